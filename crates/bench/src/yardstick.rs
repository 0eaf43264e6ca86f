//! The yardstick: a llama of 58 million random parameters (vocabulary 32000, width 512,
//! 8 layers), LoRA of rank 16 on every linear, 4×512 tokens a step.

use std::path::Path;

use anyhow::{Context, Result};
use serde_json::json;

use crate::figure::Figures;
use crate::whole;

/// Tokens of a step.
const TOKENS: f64 = 2048.0;

/// Updates of a run; the first warms up.
const STEPS: u64 = 5;

const MODEL: &str = r#"
seed = 1
[model]
source = "init"
dtype = "DTYPE"
[model.config]
architectures = ["LlamaForCausalLM"]
model_type = "llama"
vocab_size = 32000
hidden_size = 512
intermediate_size = 1408
num_hidden_layers = 8
num_attention_heads = 8
num_key_value_heads = 8
max_position_embeddings = 512
rms_norm_eps = 1e-6
tie_word_embeddings = false
"#;

/// What is trained in, how it is kept, and what the base is packed in.
const WAYS: [(&str, bool, &str); 6] = [
    ("f32", false, ""),
    ("f32", true, ""),
    ("bf16", false, ""),
    ("bf16", true, ""),
    ("f32", true, "nf4"),
    ("bf16", true, "nf4"),
];

fn quantizer(kind: &str) -> String {
    if kind.is_empty() { String::new() } else { format!("quantizer = {{ kind = \"{kind}\" }}") }
}

fn tokens(folder: &Path) -> Result<()> {
    // A generator that needs no crate; the values do not matter.
    let mut state = 1u32;
    let mut bytes = Vec::with_capacity(TOKENS as usize * 8);
    for _ in 0..TOKENS as usize {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        bytes.extend_from_slice(&i64::from((state >> 8) % 32000).to_le_bytes());
    }
    let header =
        json!({ "input_ids": { "dtype": "I64", "shape": [4, 512], "data_offsets": [0, bytes.len()] } });
    let header = header.to_string();
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(header.as_bytes());
    file.extend_from_slice(&bytes);
    Ok(std::fs::write(folder.join("ids.safetensors"), file)?)
}

/// Tokens a second and peak memory of training steps.
pub fn train(figures: &mut Figures, python: Option<&Path>) -> Result<()> {
    for (dtype, checkpoint, packed) in WAYS {
        let folder = tempfile::tempdir()?;
        tokens(folder.path())?;
        let recipe = format!(
            r#"{}
[[stage]]
kind = "train"
{}
adapter = [{{ kind = "lora", r = 16, lora_alpha = 32, target_modules = "all-linear" }}]
activation = {{ kind = "{}" }}
optimizer = {{ kind = "adamw", lr = 1e-3 }}
data = {{ kind = "tokens", path = "ids.safetensors" }}
steps = {STEPS}
"#,
            MODEL.replace("DTYPE", dtype),
            quantizer(packed),
            if checkpoint { "checkpoint" } else { "keep" },
        );
        let run = whole::cook(folder.path(), &recipe)?;
        let seconds = run.step_seconds(0)?;
        let least = seconds.iter().skip(1).copied().fold(f64::INFINITY, f64::min);
        let peer = match python {
            Some(python) if packed.is_empty() => {
                let checkpoint = u8::from(checkpoint).to_string();
                let arguments =
                    [dtype.to_owned(), STEPS.to_string(), checkpoint, whole::threads().to_string()];
                Some(whole::peer(python, "yardstick.py", &arguments)?)
            }
            _ => None,
        };
        let of_peer = |key: &str| -> Result<Option<f64>> {
            peer.as_ref().map(|p| p[key].as_f64().with_context(|| format!("the peer's `{key}`"))).transpose()
        };
        let kept = if checkpoint { ", checkpoint" } else { "" };
        let on = if packed.is_empty() { String::new() } else { format!(" on {packed}") };
        let case = format!("LoRA step in {dtype}{on}{kept}");
        figures.beside("yardstick", &case, TOKENS / least, "tokens/s", of_peer("tokens_per_s")?);
        let (resident, metered) =
            (run.figure("0-train", "peak_rss")?, run.figure("0-train", "measured_peak")?);
        let peer = of_peer("peak_rss")?.map(|b| b / 1e6);
        figures.beside("yardstick", format!("{case}: resident"), resident / 1e6, "MB", peer);
        figures.add("yardstick", format!("{case}: on the meter"), metered / 1e6, "MB");
    }
    Ok(())
}

/// Tokens a second of greedy decoding, one sequence at a time.
pub fn decode(figures: &mut Figures) -> Result<()> {
    for (dtype, packed) in [("f32", ""), ("bf16", ""), ("f32", "nf4")] {
        let mut seconds = [0.0; 2];
        for (i, new) in [64, 320].into_iter().enumerate() {
            let folder = tempfile::tempdir()?;
            prompt(folder.path())?;
            let recipe = format!(
                "{}\n[[stage]]\nkind = \"generate\"\n{}\ninput = \"prompt.safetensors\"\nmax_new_tokens = {new}\n",
                MODEL.replace("DTYPE", dtype),
                quantizer(packed)
            );
            let begun = std::time::Instant::now();
            whole::cook(folder.path(), &recipe)?;
            seconds[i] = begun.elapsed().as_secs_f64();
        }
        // Loading costs the same in both.
        let on = if packed.is_empty() { String::new() } else { format!(" on {packed}") };
        let rate = 256.0 / (seconds[1] - seconds[0]).max(1e-9);
        figures.add("decode", format!("greedy, one sequence, {dtype}{on}"), rate, "tokens/s");
    }
    Ok(())
}

fn prompt(folder: &Path) -> Result<()> {
    let header = json!({ "input_ids": { "dtype": "I64", "shape": [1, 4], "data_offsets": [0, 32] } });
    let header = header.to_string();
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(header.as_bytes());
    for id in [5i64, 6, 7, 8] {
        file.extend_from_slice(&id.to_le_bytes());
    }
    Ok(std::fs::write(folder.join("prompt.safetensors"), file)?)
}
