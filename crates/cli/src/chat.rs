//! `ramekin chat`: a conversation in the terminal.

use std::cell::RefCell;
use std::io::{BufRead as _, IsTerminal as _, Write as _};
use std::path::Path;

use anyhow::Result;
use clap::Args;
use ramekin_core::{Rng, UserError};
use ramekin_engine::assembly::Assembly;
use ramekin_engine::blueprint::Blueprint;
use ramekin_engine::generation::{Generator, Limits};
use ramekin_engine::parts;
use ramekin_engine::run::plain_model;
use ramekin_recipe::{Adapter, Part};
use serde_json::{Value as Json, json};

/// What to talk to and how.
#[derive(Args)]
pub struct ChatArgs {
    /// A run folder, a model's folder, `hf:ORG/NAME` or `builtin:tiny`.
    model: String,
    /// Tokens of an answer at most.
    #[arg(long, default_value_t = 128)]
    max_new_tokens: usize,
    /// Above 0 samples; 0 takes the most probable token.
    #[arg(long, default_value_t = 0.0)]
    temperature: f64,
    /// Seed of sampling.
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

/// Reads lines, answers each, until the input ends or `/exit`.
pub fn run(args: &ChatArgs) -> Result<()> {
    let assembly = open(&args.model)?.assemble(false)?;
    let tokenizer = assembly.tokenizer()?.clone();
    let template = tokenizer.chat_template()?;
    let decoder = decoder(args.temperature)?;
    let kv = parts::kv(&Part::of("full"))?;
    let eos = assembly.eos_ids();
    let limits = Limits { max_new_tokens: args.max_new_tokens, eos: &eos };
    let terminal = std::io::stdin().is_terminal();
    let mut messages: Vec<Json> = Vec::new();
    let mut turn = 0;
    if terminal {
        let kind = if template.is_some() {
            "chat template"
        } else {
            "no chat template: your text is simply continued"
        };
        eprintln!("{} ({kind}); /exit or Ctrl-D leaves, /clear forgets", assembly.label);
    }
    loop {
        if terminal {
            eprint!("> ");
        }
        let mut line = String::new();
        if std::io::stdin().lock().read_line(&mut line)? == 0 {
            return Ok(());
        }
        let line = line.trim_end_matches(['\n', '\r']);
        match line.trim() {
            "" => continue,
            "/exit" => return Ok(()),
            "/clear" => {
                messages.clear();
                continue;
            }
            _ => {}
        }
        let prompt = match &template {
            Some(template) => {
                messages.push(json!({ "role": "user", "content": line }));
                tokenizer.encode(&template.render(&messages, None, true)?, false)?
            }
            None => tokenizer.encode_with_offsets(line, true)?.without_closing_specials(),
        };
        let generator = Generator {
            assembly: &assembly,
            decoder: &*decoder,
            kv: Some(&*kv),
            rng: Rng::new(args.seed.wrapping_add(turn)),
            adapters: true,
        };
        turn += 1;
        let answer = stream(&generator, &prompt, &limits, &assembly)?;
        messages.push(json!({ "role": "assistant", "content": answer }));
    }
}

/// Prints the answer as it comes and returns it whole.
fn stream(
    generator: &Generator<'_>,
    prompt: &[u32],
    limits: &Limits<'_>,
    assembly: &Assembly,
) -> Result<String> {
    let tokenizer = assembly.tokenizer()?;
    let ids: RefCell<Vec<u32>> = RefCell::default();
    let shown = RefCell::new(0);
    generator.run(&[prompt.to_vec()], limits, &mut |_, id| {
        ids.borrow_mut().push(id);
        let text = tokenizer.decode(&ids.borrow(), true).unwrap_or_default();
        // A character that is not whole yet ends in the replacement sign.
        if !text.ends_with('\u{fffd}') && text.len() > *shown.borrow() {
            print!("{}", &text[*shown.borrow()..]);
            let _ = std::io::stdout().flush();
            *shown.borrow_mut() = text.len();
        }
    })?;
    println!();
    tokenizer.decode(&ids.borrow(), true)
}

fn decoder(temperature: f64) -> Result<Box<dyn ramekin_engine::parts::Decoder>> {
    if temperature == 0.0 {
        return parts::decoder(&Part::of("greedy"));
    }
    let mut part = Part::of("sample");
    part.settings.insert("temperature".to_owned(), json!(temperature));
    parts::decoder(&part)
}

/// A run folder stands for the model it made, or for its base with its adapter.
fn open(model: &str) -> Result<Blueprint> {
    let folder = Path::new(model);
    let blueprint = |source: &str, adapters| Blueprint { adapters, ..Blueprint::new(plain_model(source)) };
    let adapter =
        if folder.join("adapter_config.json").exists() { folder.to_owned() } else { folder.join("adapter") };
    if folder.join("model/config.json").exists() {
        return Ok(blueprint(&folder.join("model").display().to_string(), Vec::new()));
    }
    if adapter.join("adapter_config.json").exists() {
        let text = std::fs::read_to_string(adapter.join("adapter_config.json"))?;
        let config: Json = serde_json::from_str(&text).map_err(|e| {
            UserError::new(format!("is no JSON: {e}")).in_file(adapter.join("adapter_config.json"))
        })?;
        let base = config["base_model_name_or_path"].as_str().unwrap_or_default();
        let source = if base.starts_with("builtin:") || Path::new(base).exists() {
            base.to_owned()
        } else {
            format!("hf:{base}")
        };
        let saved = Adapter::Saved { folder: adapter.display().to_string(), path: String::new() };
        return Ok(blueprint(&source, vec![saved]));
    }
    Ok(blueprint(model, Vec::new()))
}
