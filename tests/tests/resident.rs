//! The meter against the operating system: by how much a run's resident set grows.
//!
//! A model of some size, so that what a process holds besides (code, stacks, tables) is small
//! beside what the meter counts.

use ramekin_tests::lab::sequences;
use ramekin_tests::{Kitchen, write_ids};

const MODEL: &str = r#"
seed = 1
[model]
source = "init"
dtype = "DTYPE"
[model.config]
architectures = ["LlamaForCausalLM"]
model_type = "llama"
vocab_size = 8192
hidden_size = 384
intermediate_size = 1024
num_hidden_layers = 6
num_attention_heads = 6
max_position_embeddings = 512
rms_norm_eps = 1e-5
tie_word_embeddings = false
[[stage]]
kind = "train"
data = { kind = "tokens", path = "ids.safetensors" }
steps = 2
audit = false
"#;

const LORA: &str = r#"adapter = [{ kind = "lora", r = 16, target_modules = "all-linear" }]"#;
const CHECKPOINT: &str = r#"activation = { kind = "checkpoint" }"#;
const NF4: &str = r#"quantizer = { kind = "nf4" }"#;

/// Runs the recipe on a batch of `rows` sequences of `length`; the growth of the resident set
/// must be within 10 % of what the meter saw.
#[track_caller]
fn meter_against_resident(dtype: &str, rows: usize, length: usize, stage: &[&str]) {
    let recipe = format!("{}{}\n", MODEL.replace("DTYPE", dtype), stage.join("\n"));
    let kitchen = Kitchen::new(&recipe);
    write_ids(&kitchen.folder().join("ids.safetensors"), &sequences(&vec![length; rows], 8192, 1));
    kitchen.run(&[]).expect(0);
    let figures = kitchen.figures("0-train");
    let number = |key: &str| figures[key].as_f64().unwrap_or_else(|| panic!("no `{key}` in {figures}"));
    let grown = number("peak_rss") - number("rss_before");
    let (measured, mib) = (number("measured_peak"), f64::from(1 << 20));
    assert!(measured > 64.0 * mib, "{:.1} MiB are too little to tell", measured / mib);
    let off = grown / measured - 1.0;
    println!("meter {:.1} MiB, resident {:+.1} %: {:.1} MiB", measured / mib, off * 100.0, grown / mib);
    assert!(
        off.abs() <= 0.10,
        "the meter saw {:.1} MiB, the resident set grew by {:.1} MiB ({:+.1} %)\n{}",
        measured / mib,
        grown / mib,
        off * 100.0,
        figures["measured"]
    );
}

#[test]
fn full_training() {
    meter_against_resident("f32", 2, 256, &[]);
}

#[test]
fn full_training_with_checkpointing() {
    meter_against_resident("f32", 4, 256, &[CHECKPOINT]);
}

#[test]
fn lora() {
    meter_against_resident("f32", 4, 256, &[LORA]);
}

#[test]
fn lora_with_checkpointing() {
    meter_against_resident("f32", 8, 512, &[LORA, CHECKPOINT]);
}

#[test]
fn lora_in_bf16() {
    meter_against_resident("bf16", 4, 256, &[LORA]);
}

#[test]
fn lora_on_nf4() {
    meter_against_resident("f32", 4, 256, &[LORA, NF4]);
}

#[test]
fn lora_on_nf4_with_checkpointing() {
    meter_against_resident("f32", 8, 512, &[LORA, NF4, CHECKPOINT]);
}

#[test]
fn lora_on_rtn_with_accumulation() {
    let rtn = r#"quantizer = { kind = "rtn", bits = 8 }"#;
    let batch = "batch = { gradient_accumulation_steps = 2 }";
    meter_against_resident("f32", 4, 256, &[LORA, rtn, batch]);
}
