//! `decode`: 4- and 8-bit weights beside llama.cpp's Q4_0 and Q8_0, prompts and new tokens apart.
//!
//! Random weights of the same shapes on both sides. Loading is left out. A generate stage says both speeds itself; a
//! round of ours is a process of its own, llama.cpp keeps its model loaded.

use std::path::Path;

use anyhow::{Context, Result};

use crate::figure::Figures;
use crate::limits;
use crate::peers;
use crate::rounds::{Side, alternate};
use crate::shape::{Shape, YARDSTICK, quantizer};
use crate::whole::{self, Cooked, Server};

/// Tokens of the prompt.
const PROMPT: usize = 512;

/// Tokens made one by one.
const NEW: usize = 64;

/// The sizes of SmolLM-135M with a smaller vocabulary.
const SMALL: Shape = Shape {
    vocabulary: 32000,
    width: 576,
    intermediate: 1536,
    layers: 30,
    heads: 9,
    kv_heads: 3,
    batch: 1,
    length: PROMPT,
};

/// The sizes of TinyLlama-1.1B.
const LARGE: Shape = Shape { width: 2048, intermediate: 5632, layers: 22, heads: 32, kv_heads: 4, ..SMALL };

/// Measures both models in both widths; with `small` the smaller one alone.
pub fn run(figures: &mut Figures, rounds: usize, small: bool, llama: Option<&Path>) -> Result<()> {
    let models = [("135M", SMALL), ("1.1B", LARGE)];
    for (name, shape) in models.into_iter().take(if small { 1 } else { 2 }) {
        for (bits, kind) in [(4, "q4_0"), (8, "q8_0")] {
            // A peer that cannot start is left out; ours goes on.
            let mut server = llama.and_then(|python| {
                let started = start(python, name, &shape, kind);
                started.inspect_err(|e| eprintln!("llama.cpp is left out of {name} {kind}: {e:#}")).ok()
            });
            let mut peer = server.as_mut().map(|server| {
                move || {
                    let found = server.ask(&format!("{PROMPT} {NEW}"))?;
                    let keys = ["decode_tokens_per_s", "prefill_tokens_per_s", "peak_rss"];
                    let found = whole::figures(&found, &keys)?;
                    Ok(vec![found[0], found[1], found[2] / 1e6])
                }
            });
            // llama.cpp rounds activations to 8 bits, ours to bf16 unless it is told to do the same.
            for (act_bits, of) in [("", ""), (", act_bits = 8", ", 8-bit activations")] {
                let settings = format!(
                    "kind = \"rtn\", bits = {bits}, group_size = 32, scale_dtype = \"bf16\", lm_head_bits = 8{act_bits}"
                );
                let mut ours = || {
                    // llama.cpp keeps keys and values in f16.
                    let kv = "kv = { kind = \"full\", dtype = \"bf16\" }";
                    let mut found = generate(&shape, "bf16", &settings, kv)?;
                    // What memory gives just then: it changes from one minute to the next.
                    found.push(limits::read(whole::threads()));
                    Ok(found)
                };
                let found = alternate(rounds, &mut ours, peer.as_mut().map(|p| p as &mut Side<'_>))?;
                let case = format!("{name} in {bits} bits{of}");
                let name = if bits == 4 { "llama.cpp Q4_0" } else { "llama.cpp Q8_0" };
                let quantities =
                    [(", new tokens", "tokens/s"), (", prompt of 512", "tokens/s"), (", resident", "MB")];
                found.note(figures, "decode", &case, name, &quantities);
                // Codes and a scale of 16 bits in each group of 32; the head in 8 bits; as on the other side.
                let read = shape.bytes_read(f64::from(bits) + 0.5, 8.5) / 1e9;
                let read = found.ours[0].map(|rate| rate * read);
                let memory = Some(("memory", found.ours[3].clone()));
                figures.beside("decode", format!("{case}, weights read"), "GB/s", read, memory);
            }
        }
    }
    for (dtype, packed) in [("f32", ""), ("bf16", ""), ("f32", "kind = \"nf4\"")] {
        let found = alternate(rounds, &mut || generate(&YARDSTICK, dtype, packed, ""), None)?;
        let on = if packed.is_empty() { "" } else { " on nf4" };
        let quantities = [(", new tokens", "tokens/s"), (", prompt of 512", "tokens/s")];
        found.note(figures, "decode", &format!("58M in {dtype}{on}"), "", &quantities);
    }
    Ok(())
}

/// New tokens a second, tokens of the prompt a second, resident MB.
fn generate(shape: &Shape, dtype: &str, packed: &str, kv: &str) -> Result<Vec<f64>> {
    let folder = tempfile::tempdir()?;
    Shape { batch: 1, ..*shape }.write_ids(folder.path())?;
    let model = Shape { length: PROMPT + 2 * NEW, ..*shape }.model(dtype);
    // The first new token comes out of the prompt.
    let new = NEW + 1;
    let recipe = format!(
        "{model}\n[[stage]]\nkind = \"generate\"\n{}\n{kv}\ninput = \"ids.safetensors\"\nmax_new_tokens = {new}\n",
        quantizer(packed)
    );
    let run: Cooked = whole::cook(folder.path(), &recipe)?;
    let figure = |key| run.figure("0-generate", key);
    Ok(vec![figure("decode_tokens_per_s")?, figure("prefill_tokens_per_s")?, figure("peak_rss")? / 1e6])
}

/// Writes the model's file if it is not there yet and starts llama.cpp on it.
fn start(python: &Path, name: &str, shape: &Shape, kind: &str) -> Result<Server> {
    let models = peers::folder()?.join("models");
    std::fs::create_dir_all(&models)?;
    let file = models.join(format!("{name}-{kind}.gguf"));
    let path = file.to_str().context("the target folder's name is not UTF-8")?.to_owned();
    if !file.exists() {
        eprintln!("writing `{path}`");
        whole::peer(python, "gguf_model.py", &[path.clone(), shape.json()?, kind.to_owned()])?;
    }
    Server::start(python, "llama.py", &[path, whole::threads().to_string()])
}
