//! `shakespeare`: characters from scratch, in nanoGPT's settings for a CPU and for a GPU, beside the same in PyTorch.
//!
//! Only the training steps are timed.

use std::path::Path;

use anyhow::{Context, Result};

use crate::figure::Figures;
use crate::rounds::{Side, alternate};
use crate::shape::Shape;
use crate::whole;

/// A model and how long it is trained in a round.
struct Setting {
    name: &'static str,
    shape: Shape,
    steps: usize,
    /// The loss on held-out text is compared; after few steps it says nothing.
    loss: bool,
}

/// `recipes/tasks/shakespeare-char.toml`; and 10 million parameters on a context of 256.
const SETTINGS: [Setting; 2] = [
    Setting { name: "shakespeare-char", shape: shape(128, 344, 4, 12, 64), steps: 500, loss: true },
    Setting {
        name: "10 M parameters, context 256",
        shape: shape(384, 1024, 6, 16, 256),
        steps: 5,
        loss: false,
    },
];

/// As many heads as layers; the vocabulary is the text's.
const fn shape(width: usize, intermediate: usize, layers: usize, batch: usize, length: usize) -> Shape {
    Shape { vocabulary: 0, width, intermediate, layers, heads: layers, kv_heads: layers, batch, length }
}

/// Tokens a second of training, the resident set, the loss on held-out text.
pub fn run(figures: &mut Figures, rounds: usize, text: &Path, torch: Option<&Path>) -> Result<()> {
    let text = text.canonicalize()?.display().to_string();
    for Setting { name, shape, steps, loss } in SETTINGS {
        let tokens = shape.tokens();
        // The middle step: a machine's moods and the first steps do not move it.
        let rate = |mut seconds: Vec<f64>| {
            seconds.sort_by(f64::total_cmp);
            seconds.get(seconds.len() / 2).map(|s| tokens / s).context("no step was timed")
        };
        let mut peer = torch.map(|python| {
            let text = text.clone();
            move || {
                let threads = whole::threads().to_string();
                let evaluate = u8::from(loss).to_string();
                let arguments = [text.clone(), shape.json()?, steps.to_string(), threads, evaluate];
                let found = whole::peer(python, "shakespeare.py", &arguments)?;
                let seconds = found["seconds"].as_array().context("the peer's `seconds`")?;
                let seconds = seconds.iter().filter_map(serde_json::Value::as_f64).collect();
                let resident = whole::figures(&found, &["peak_rss"])?[0];
                let held_out = if loss { whole::figures(&found, &["loss"])? } else { Vec::new() };
                Ok([vec![rate(seconds)?, resident / 1e6], held_out].concat())
            }
        });
        let mut ours = || {
            let folder = tempfile::tempdir()?;
            let run = whole::cook(folder.path(), &recipe(&shape, &text, steps, loss))?;
            let mut found = vec![rate(run.step_seconds(0)?)?, run.figure("0-train", "peak_rss")? / 1e6];
            if loss {
                let held_out = run.summary["stages"]["0-train"]["eval"]["loss"].as_f64();
                found.push(held_out.context("no held-out loss")?);
            }
            Ok(found)
        };
        let found = alternate(rounds, &mut ours, peer.as_mut().map(|p| p as &mut Side<'_>))?;
        let after = format!(", held-out loss after {steps} steps");
        let quantities = [("", "tokens/s"), (", resident", "MB"), (after.as_str(), "")];
        found.note(figures, "shakespeare", name, "PyTorch", &quantities);
    }
    Ok(())
}

/// The task's recipe with other sizes.
fn recipe(shape: &Shape, text: &str, steps: usize, loss: bool) -> String {
    let eval = if loss { "eval = { metrics = [\"loss\"] }" } else { "" };
    let Shape { width, intermediate, layers, heads, batch, length, .. } = shape;
    let warm = steps.div_ceil(20).min(100);
    format!(
        r#"
seed = 1337
[model]
source = "init"
tokenizer = {{ kind = "char", data = {text:?} }}
[model.config]
architectures = ["LlamaForCausalLM"]
model_type = "llama"
hidden_size = {width}
intermediate_size = {intermediate}
num_hidden_layers = {layers}
num_attention_heads = {heads}
max_position_embeddings = {length}
rms_norm_eps = 1e-5
rope_theta = 10000.0
tie_word_embeddings = true
initializer_range = 0.02
[[stage]]
kind = "train"
optimizer = {{ kind = "adamw", lr = 1e-3, betas = [0.9, 0.99], weight_decay = 0.1 }}
schedule = {{ kind = "cosine", warmup_steps = {warm}, min_ratio = 0.1 }}
data = {{ kind = "text", path = {text:?}, unit = "whole", max_length = {length}, split = {{ dev = 0.1 }} }}
batch = {{ micro_batch_size = {batch} }}
steps = {steps}
{eval}
"#
    )
}
