//! `kind = "generate"`: prompts or a file's batch to tokens and text.

use std::cell::Cell;
use std::io::Write as _;
use std::time::Instant;

use anyhow::Result;
use candle_core::{Device, Tensor};
use ramekin_core::{BadRecipe, Rng, UserError, meter, units};
use ramekin_plan::Bill;
use ramekin_recipe::GenerateStage;
use ramekin_slots::Decoder;
use ramekin_store::{write_atomic, write_safetensors};
use serde_json::{Value as Json, json};

use super::tokens::TokenFile;
use crate::assembly::Assembly;
use crate::blueprint::Blueprint;
use crate::generation::{Generated, Generator, Limits, prompt_ids};
use crate::run::StageContext;
use crate::{bill, objective, parts};

/// The stage's bill.
pub fn bill(name: &str, s: &GenerateStage, plan: &Blueprint) -> Result<Bill> {
    let tokens = Cell::new(0);
    let bill = bill::inference(name, plan, 0, &|assembly| {
        let decoder = decoder(s, plan, assembly)?;
        let prompts = prompts(s, plan, assembly)?;
        tokens.set(prompts.iter().map(Vec::len).sum());
        generate(s, assembly, &*decoder, &prompts, 0).map(drop)
    })?;
    Ok(Bill { tokens: tokens.get(), ..bill })
}

/// The stage's decoder, with its further models beside the one in work.
fn decoder(s: &GenerateStage, plan: &Blueprint, assembly: &mut Assembly) -> Result<Box<dyn Decoder>> {
    let facts = assembly.model.facts();
    if !facts.causal {
        let message =
            format!("`{}` predicts no next token, so nothing goes on from a prompt", facts.model_type);
        return Err(BadRecipe::new(message)
            .at(&s.decode.path, format!("`decode/{}` asks for the next token", s.decode.kind))
            .at(&s.kv.path, format!("`kv/{}` keeps what came before it", s.kv.kind))
            .help("measure it with an `eval` or `logits` stage")
            .into());
    }
    let decoder = parts::decoder(&s.decode)?;
    parts::placed(&s.decode, objective::companions(assembly, plan, decoder.models(), &s.decode.path))?;
    Ok(decoder)
}

fn generate(
    s: &GenerateStage,
    assembly: &Assembly,
    decoder: &dyn Decoder,
    prompts: &[Vec<u32>],
    seed: u64,
) -> Result<Generated> {
    let kv = parts::kv(&s.kv)?;
    let generator = Generator { assembly, decoder, kv: Some(&*kv), rng: Rng::new(seed), adapters: true };
    let eos = assembly.eos_ids();
    let limits = Limits { max_new_tokens: s.max_new_tokens as usize, eos: &eos };
    parts::placed(&s.kv, generator.run(prompts, &limits, &mut |_, _| {}))
}

/// Runs the stage.
pub fn run(cx: &mut StageContext<'_>, s: &GenerateStage, plan: &Blueprint) -> Result<Json> {
    let mut assembly = plan.assemble(false)?;
    let decoder = decoder(s, plan, &mut assembly)?;
    let prompts = prompts(s, plan, &assembly)?;
    let begun = Instant::now();
    let made = generate(s, &assembly, &*decoder, &prompts, cx.recipe.seed)?;
    let seconds = begun.elapsed().as_secs_f64().max(1e-9);
    let rates = Rates::of(&made, &prompts, seconds);
    let results = made.ids;
    write_ids(cx, &results, &assembly)?;
    let mut lines = Vec::new();
    for (prompt, ids) in prompts.iter().zip(&results) {
        let mut line = json!({ "prompt_ids": prompt, "ids": ids });
        if let Some(t) = &assembly.tokenizer {
            let mut text = t.decode(&ids[prompt.len()..], true)?;
            if let Some(at) = s.stop.iter().filter_map(|stop| text.find(stop)).min() {
                text.truncate(at);
            }
            let prompt = t.decode(prompt, true)?;
            println_quiet(&prompt, &text);
            line["prompt"] = json!(prompt);
            line["completion"] = json!(text);
        }
        writeln!(lines, "{line}")?;
    }
    write_atomic(cx.dir.join("samples.jsonl"), &lines)?;
    let new: usize = results.iter().zip(&prompts).map(|(r, p)| r.len() - p.len()).sum();
    let kv_bytes = meter::current().highest().kv;
    ramekin_core::say!("  keys and values took {}", units::bytes(kv_bytes));
    ramekin_core::say!("  {}", rates.words());
    let mut figures = json!({
        "sequences": results.len(),
        "new_tokens": new,
        "tokens_per_s": new as f64 / seconds,
        "prefill_tokens_per_s": rates.prefill,
        "decode_tokens_per_s": rates.decode,
        "kv_bytes": kv_bytes,
    });
    for (name, x) in made.figures {
        figures[name] = json!(x);
    }
    Ok(figures)
}

/// Tokens a second, loading left out.
struct Rates {
    /// Of prompts, until the first new token is known.
    prefill: f64,
    /// Of new tokens but each sequence's first; none where no more were made.
    decode: Option<f64>,
}

impl Rates {
    fn of(made: &Generated, prompts: &[Vec<u32>], seconds: f64) -> Self {
        let read: usize = prompts.iter().map(Vec::len).sum();
        let later = |(ids, prompt): (&Vec<u32>, &Vec<u32>)| (ids.len() - prompt.len()).saturating_sub(1);
        let later: usize = made.ids.iter().zip(prompts).map(later).sum();
        let prefill = made.prefill.as_secs_f64().max(1e-9);
        let decode = later as f64 / (seconds - prefill).max(1e-9);
        Rates { prefill: read as f64 / prefill, decode: (later > 0).then_some(decode) }
    }

    fn words(&self) -> String {
        let decode = self.decode.map(|rate| format!(", then {rate:.1} new tokens a second"));
        format!("prompts: {:.1} tokens a second{}", self.prefill, decode.unwrap_or_default())
    }
}

/// Samples are for a person to read while the run goes on: standard error, like all progress.
fn println_quiet(prompt: &str, completion: &str) {
    ramekin_core::say!("  {} ▸ {}", prompt.trim_end(), completion.trim());
}

fn prompts(s: &GenerateStage, plan: &Blueprint, assembly: &Assembly) -> Result<Vec<Vec<u32>>> {
    if let Some(input) = &s.input {
        let file = TokenFile::read(&plan.base_dir.join(input), assembly.model.facts())?;
        let spans = file.spans()?;
        return Ok(file.ids.iter().zip(spans).map(|(row, span)| row[span].to_vec()).collect());
    }
    let texts: Vec<&String> = s.prompt.iter().chain(s.prompts.iter().flatten()).collect();
    if texts.is_empty() {
        return Err(UserError::new("a `generate` stage needs `prompt`, `prompts` or `input`").into());
    }
    let tokenizer = assembly.tokenizer()?;
    texts.into_iter().map(|text| prompt_ids(tokenizer, text, s.chat)).collect()
}

fn write_ids(cx: &StageContext<'_>, results: &[Vec<u32>], assembly: &Assembly) -> Result<()> {
    let width = results.iter().map(Vec::len).max().unwrap_or(0);
    let pad = assembly
        .tokenizer
        .as_ref()
        .and_then(|t| t.pad_id())
        .or_else(|| assembly.config["pad_token_id"].as_u64().map(|n| n as u32))
        .unwrap_or(0);
    let mut all = Vec::with_capacity(results.len() * width);
    for ids in results {
        all.extend(ids.iter().map(|id| i64::from(*id)));
        all.extend(std::iter::repeat_n(i64::from(pad), width - ids.len()));
    }
    let tensor = Tensor::from_vec(all, (results.len(), width), &Device::Cpu)?;
    write_safetensors(cx.dir.join("generated.safetensors"), &[("ids".to_owned(), tensor.into())], &[])
}
