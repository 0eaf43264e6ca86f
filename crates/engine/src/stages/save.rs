//! What a stage leaves on disk: adapters in PEFT layout, models in Hugging Face layout.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use candle_core::DType;
use ramekin_slots::{LinearBase, LinearSite};
use ramekin_store::{AtomicDir, Data, Spec, write_safetensors, write_sharded};
use serde_json::{Map, Value as Json, json};

use crate::assembly::{Assembly, Attached};

/// Files that travel with every copy of a model.
const COMPANIONS: [&str; 9] = [
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "added_tokens.json",
];

/// Writes one adapter: `adapter_config.json`, `adapter_model.safetensors`,
/// `README.md`, and `ramekin.json` for what PEFT has no place for.
pub fn adapter(assembly: &Assembly, attached: &Attached, target: &Path, seed: u64) -> Result<()> {
    let file = attached.adapter.file(&assembly.label)?;
    let mut tensors: Vec<(String, Data)> =
        file.tensors.iter().map(|(n, a)| (n.clone(), Data::from(a))).collect();
    tensors.sort_by(|a, b| a.0.cmp(&b.0));
    let mut dir = AtomicDir::begin(target)?;
    write_safetensors(dir.path().join("adapter_model.safetensors"), &tensors, &[("format", "pt")])?;
    dir.write("adapter_config.json", &pretty(&file.config)?)?;
    let extra =
        json!({ "seed": seed, "owner": attached.owner, "sites": attached.sites, "extra": file.extra });
    dir.write("ramekin.json", &pretty(&extra)?)?;
    dir.write("README.md", card(&assembly.label, &file.config).as_bytes())?;
    dir.commit()?;
    Ok(())
}

/// All adapters of an assembly; the first in `dir` itself, further ones in folders of their number.
pub fn adapters(assembly: &Assembly, dir: &Path, seed: u64) -> Result<Vec<PathBuf>> {
    let mut made = Vec::new();
    for (i, attached) in assembly.adapters.iter().enumerate() {
        let target = if i == 0 { dir.to_owned() } else { dir.with_file_name(format!("adapter-{i}")) };
        adapter(assembly, attached, &target, seed)?;
        made.push(target);
    }
    Ok(made)
}

fn card(base: &str, config: &Json) -> String {
    let kind = config["peft_type"].as_str().unwrap_or("adapter");
    format!(
        "---\nbase_model: {base}\nlibrary_name: peft\n---\n\nA {kind} adapter for `{base}`, made with Ramekin. \
         Load it with `PeftModel.from_pretrained`, or with `adapter = [{{ load = \"FOLDER\" }}]` in a recipe.\n"
    )
}

fn pretty(json: &Json) -> Result<Vec<u8>> {
    let mut text = serde_json::to_vec_pretty(json)?;
    text.push(b'\n');
    Ok(text)
}

/// One tensor of the model's files and where its numbers come from.
enum From<'a> {
    Linear(&'a LinearSite),
    Bias(&'a LinearSite),
    Param(String),
}

/// Writes the model with every adapter folded in: `config.json`, (sharded)
/// safetensors of this type and the files that came with it.
pub fn model(assembly: &Assembly, target: &Path, dtype: DType, max_shard: u64) -> Result<()> {
    let stored = ramekin_store::write::to_stored(dtype).context("no such type in files")?;
    let tensors = tensors(assembly)?;
    let specs: Vec<Spec> = tensors
        .iter()
        .map(|(name, shape, _)| Spec { name: name.clone(), dtype: stored, shape: shape.clone() })
        .collect();
    let mut dir = AtomicDir::begin(target)?;
    let sites = &assembly.sites;
    write_sharded(dir.path(), &specs, max_shard, &[("format", "pt")], |name| {
        let (_, _, from) = tensors.iter().find(|(n, _, _)| n == name).context("a tensor nobody listed")?;
        let array = match from {
            From::Linear(site) => site.merged(sites)?,
            From::Bias(site) => site.merged_bias(sites)?.context("a linear without its bias")?,
            From::Param(name) => sites.param(name)?.active(true).value(),
        };
        Ok(Data::Tensor(array.tensor().to_dtype(dtype)?))
    })?;
    dir.write("config.json", &pretty(&config(assembly, dtype))?)?;
    for name in COMPANIONS {
        if let Some(bytes) = assembly.origin.file(name) {
            dir.write(name, &bytes)?;
        }
    }
    if assembly.origin.file("tokenizer.json").is_none()
        && let Some(tokenizer) = &assembly.tokenizer
    {
        for (name, bytes) in tokenizer.to_files()? {
            dir.write(name, &bytes)?;
        }
    }
    dir.commit()?;
    Ok(())
}

fn config(assembly: &Assembly, dtype: DType) -> Json {
    let mut config = assembly.config.as_object().cloned().unwrap_or_else(Map::new);
    let name = match dtype {
        DType::BF16 => "bfloat16",
        DType::F16 => "float16",
        _ => "float32",
    };
    let key = if config.contains_key("torch_dtype") { "torch_dtype" } else { "dtype" };
    config.insert(key.to_owned(), name.into());
    if untied(assembly) {
        config.insert("tie_word_embeddings".to_owned(), false.into());
    }
    Json::Object(config)
}

/// Whether a head that shared the embedding's table has gone its own way.
fn untied(assembly: &Assembly) -> bool {
    let facts = assembly.model.facts();
    facts.tie_word_embeddings && assembly.sites.linears().iter().any(|l| l.is_head && l.adapter_count() > 0)
}

fn tensors(assembly: &Assembly) -> Result<Vec<(String, Vec<usize>, From<'_>)>> {
    let sites = &assembly.sites;
    let mut all = Vec::new();
    for site in sites.linears() {
        let name = format!("{}.weight", site.path);
        let shared = matches!(site.base(), LinearBase::Dense(base) if base != name);
        if shared && !untied(assembly) {
            continue;
        }
        all.push((name, vec![site.shape.0, site.shape.1], From::Linear(site)));
        if let Some(bias) = &site.bias {
            all.push((bias.clone(), vec![site.shape.0], From::Bias(site)));
        }
    }
    for name in sites.param_names() {
        if all.iter().any(|(n, _, _)| n == name) {
            continue;
        }
        let shape = sites.param(name)?.base().value().dims().to_vec();
        all.push((name.clone(), shape, From::Param(name.clone())));
    }
    all.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(all)
}

/// The type that a recipe's name stands for.
pub fn dtype(choice: ramekin_recipe::Dtype) -> DType {
    match choice {
        ramekin_recipe::Dtype::F32 => DType::F32,
        ramekin_recipe::Dtype::Bf16 => DType::BF16,
        ramekin_recipe::Dtype::F16 => DType::F16,
    }
}
