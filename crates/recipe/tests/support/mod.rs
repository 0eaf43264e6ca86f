//! A few parts as other crates define them, and reading a recipe with them.
#![allow(dead_code)] // each test file uses its share

use ramekin_recipe::{Diagnostics, Doc, Part, Recipe};
use schemars::{JsonSchema, Schema, schema_for};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value as Json};

/// AdamW's settings.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct AdamW {
    #[serde(alias = "learning_rate")]
    lr: f64,
    betas: [f64; 2],
    weight_decay: f64,
}

impl Default for AdamW {
    fn default() -> Self {
        AdamW { lr: 1e-3, betas: [0.9, 0.999], weight_decay: 0.01 }
    }
}

#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Jsonl {
    path: String,
    #[serde(default)]
    format: Format,
    #[serde(default)]
    packing: bool,
    #[serde(default)]
    max_length: Option<usize>,
    #[serde(default)]
    columns: Option<Columns>,
}

#[derive(Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum Format {
    #[default]
    Messages,
    Alpaca,
    Text,
}

#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Columns {
    prompt: String,
    #[serde(default)]
    completion: Option<String>,
}

#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct Lora {
    r: usize,
    lora_alpha: f64,
    target_modules: Json,
}

impl Default for Lora {
    fn default() -> Self {
        Lora { r: 8, lora_alpha: 16.0, target_modules: "all-linear".into() }
    }
}

#[derive(Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct Cosine {
    warmup_ratio: f64,
}

#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct Streaming {
    start_size: usize,
    recent_size: usize,
}

impl Default for Streaming {
    fn default() -> Self {
        Streaming { start_size: 4, recent_size: 512 }
    }
}

#[derive(Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct Nf4 {
    double_quant: bool,
}

/// A part without settings.
#[derive(Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct Plain {}

type Complete = fn(Json) -> Result<Json, serde_json::Error>;

fn complete<T: DeserializeOwned + Serialize>(settings: Json) -> Result<Json, serde_json::Error> {
    serde_json::to_value(serde_json::from_value::<T>(settings)?)
}

/// Slot, name, completion and schema of every part there is.
pub fn parts() -> Vec<(&'static str, &'static str, Complete, Schema)> {
    macro_rules! parts {
        ($($slot:literal / $name:literal => $settings:ty),* $(,)?) => {
            vec![$(($slot, $name, complete::<$settings> as Complete, schema_for!($settings))),*]
        };
    }
    parts! {
        "optimizer" / "adamw" => AdamW,
        "data" / "jsonl" => Jsonl,
        "adapter" / "lora" => Lora,
        "schedule" / "cosine" => Cosine,
        "schedule" / "constant" => Plain,
        "quantizer" / "nf4" => Nf4,
        "objective" / "sft" => Plain,
        "activation" / "keep" => Plain,
        "activation" / "checkpoint" => Plain,
        "estimator" / "backprop" => Plain,
        "merge" / "lora" => Plain,
        "placement" / "resident" => Plain,
        "kv" / "full" => Plain,
        "kv" / "streaming" => Streaming,
        "decode" / "greedy" => Plain,
        "gradient" / "clip" => Plain,
    }
}

/// The full settings of a part, as a registry gives them.
pub fn settings(doc: &Doc, slot: &str, part: &Part) -> Result<Map<String, Json>, Diagnostics> {
    let all = parts();
    match all.iter().find(|(s, name, _, _)| *s == slot && *name == part.kind) {
        Some((_, _, complete, _)) => match doc.complete(slot, part, complete)? {
            Json::Object(full) => Ok(full),
            _ => Ok(Map::new()),
        },
        None => {
            let known: Vec<&str> =
                all.iter().filter(|(s, ..)| *s == slot).map(|(_, name, ..)| *name).collect();
            Err(doc.unknown_part(slot, part, &known).into())
        }
    }
}

/// Reads a recipe text with these parts.
pub fn read(name: &str, text: &str, overrides: &[&str]) -> Result<(Doc, Recipe), Diagnostics> {
    let overrides: Vec<String> = overrides.iter().map(|s| (*s).to_owned()).collect();
    let doc = Doc::parse(name.as_ref(), text, &overrides)?;
    let recipe = Recipe::read_with(&doc, |slot, part| settings(&doc, slot, part))?;
    Ok((doc, recipe))
}

/// A recipe that uses most of the language.
pub const WHOLE: &str = r#"# A recipe with a bit of everything.
name = "qlora-gsm8k"
seed = 7

[model]
source = "hf:HuggingFaceTB/SmolLM2-135M"
dtype = "bf16"

[memory]
budget = "6GiB"
allow = ["checkpoint", "micro_batch_size"]

[[stage]]
kind = "train"
quantizer = { kind = "nf4", double_quant = true }
adapter = [{ kind = "lora", r = 16, lora_alpha = 32, target_modules = "all-linear" }]
gradient = { kind = "clip" }
activation = { kind = "checkpoint" }
optimizer = { kind = "adamw", lr = 2e-4, weight_decay = 0.0 }
schedule = { kind = "cosine", warmup_ratio = 0.03 }
data = { kind = "jsonl", path = "data/träin.jsonl", format = "messages", packing = true, max_length = 1024 }
batch = { tokens = 8192, micro_batch_size = 4 }
steps = 400
eval = { every = 50, data = "data/dev.jsonl", metrics = ["loss", "exact_match"] }
samples.prompts = ["Zwölf Äpfel", "two"]

[stage.checkpoint]
every = 100

[[stage]]
kind = "generate"
prompt = "Once upon a time"
kv = { kind = "streaming", recent_size = 60 }

[[stage]]
kind = "eval"
adapter = { load = "runs/other/adapter" }
data = { kind = "jsonl", path = "data/test.jsonl" }
metrics = ["loss", "perplexity"]

[[stage]]
kind = "logits"
input = "x.safetensors"
gradients = true

[[stage]]
kind = "merge"
max_shard_size = "2GiB"
"#;
