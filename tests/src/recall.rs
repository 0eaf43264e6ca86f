//! The recall toy: one model, data and curriculum for all cache policies.
//!
//! A row is BOS, p triples (key, v1, v2) with distinct keys, then queries "key v1 v2". The measure is the
//! accuracy of v2, which a decoding step predicts: the first answer token comes out of the prompt, which
//! no policy can change.

use std::path::{Path, PathBuf};

use ramekin_core::{Draws, Rng};
use ramekin_engine::assembly::Assembly;
use ramekin_engine::parts;
use ramekin_engine::step::LabelledBatch;
use ramekin_slots::{FlatBatch, KvPolicy};
use serde_json::{Value as Json, json};

use crate::decoding::{Session, shape};
use crate::lab;

const KEYS: usize = 32;
/// Triples of a test prompt.
const TRIPLES: usize = 8;
const QUERIES: usize = 8;
const ROWS: usize = 32;
const STEPS: u64 = 800;
const INIT: f64 = 0.07;

fn config() -> Json {
    json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64,
        "intermediate_size": 160, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 64, "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0, "tie_word_embeddings": false, "vocab_size": 1 + 2 * KEYS,
        "initializer_range": INIT,
    })
}

/// Triples with distinct keys, as `[key, v1, v2]`.
fn triples(draws: &mut Draws, count: usize) -> Vec<[u32; 3]> {
    let mut keys: Vec<u32> = (1..=KEYS as u32).collect();
    (0..count)
        .map(|i| {
            let other = i + draws.below(KEYS - i);
            keys.swap(i, other);
            let mut value = || (1 + KEYS + draws.below(KEYS)) as u32;
            [keys[i], value(), value()]
        })
        .collect()
}

fn batch(step: u64) -> LabelledBatch {
    let mut draws = Draws::new(Rng::new(11).stream("recall/train", step));
    let (mut rows, mut labels) = (Vec::new(), Vec::new());
    for _ in 0..ROWS {
        let early = step < STEPS * 6 / 10;
        let count = if early { 2 + draws.below(TRIPLES - 1) } else { TRIPLES };
        let all = triples(&mut draws, count);
        let mut row = vec![0];
        row.extend(all.iter().flatten());
        labels.extend(vec![-100i64; row.len()]);
        for _ in 0..QUERIES {
            let [key, v1, v2] = all[draws.below(count)];
            row.extend([key, v1, v2]);
            labels.extend([i64::from(v1), i64::from(v2), -100]);
        }
        rows.push(row);
    }
    LabelledBatch::of(FlatBatch::new(&rows), labels)
}

/// The trained model; trained once, in seconds, and kept beside the build. Tests that come at the same
/// time wait for the first.
pub fn model() -> Assembly {
    let tmp = target().join("tmp");
    std::fs::create_dir_all(&tmp).expect("a folder");
    let folder = tmp.join(format!("recall-{:016x}", key()));
    let lock = std::fs::File::create(folder.with_extension("lock")).expect("a lock file");
    lock.lock().expect("a lock");
    if !folder.join("config.json").exists() {
        let aside = folder.with_extension("new");
        std::fs::create_dir_all(&aside).expect("a folder");
        train(&aside);
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::rename(&aside, &folder).expect("a folder in its place");
    }
    lab::assemble(&lab::folder_model(&folder))
}

fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../target"), PathBuf::from)
}

/// Changes with everything that the toy is made of: this file.
fn key() -> u64 {
    let bytes = include_bytes!("recall.rs");
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x0100_0000_01b3))
}

fn train(folder: &Path) {
    let mut blueprint = lab::fresh_model(config());
    blueprint.full_training = true;
    let model = lab::assemble(&blueprint);
    let embedding = model.sites.param("model.embed_tokens.weight").expect("an embedding").base().value();
    let wider = |x: &mut [f32]| x.iter_mut().for_each(|x| *x *= (0.3 / INIT) as f32);
    embedding.update(wider).expect("numbers");
    let mut trainer = lab::trainer(3e-3);
    trainer.optimizer =
        parts::optimizer(&lab::part("adamw", json!({ "lr": 3e-3, "weight_decay": 0.01 }))).expect("adamw");
    let schedule = json!({ "warmup_steps": 50, "decay_ratio": 0.3, "min_ratio": 0.05 });
    trainer.schedule = parts::schedule(&lab::part("wsd", schedule)).expect("wsd");
    trainer.total_steps = STEPS;
    for step in 0..STEPS {
        let report = trainer.step(&model, &[batch(step)], step).unwrap_or_else(|e| panic!("{e:#}"));
        if step % 100 == 0 || step + 1 == STEPS {
            println!("recall toy: step {step}, loss {:.3}", report.loss);
        }
    }
    let tensors: Vec<_> = model
        .ledger
        .borrow()
        .entries()
        .iter()
        .filter_map(|e| e.param.as_ref().map(|p| (e.name.clone(), p.value().tensor().clone().into())))
        .collect();
    ramekin_store::write_safetensors(folder.join("model.safetensors"), &tensors, &[]).expect("a file");
    std::fs::write(folder.join("config.json"), config().to_string()).expect("a file");
}

/// Share of right second answer tokens over `prompts` prompts under a policy.
pub fn accuracy(model: &Assembly, policy: &dyn KvPolicy, prompts: usize) -> f64 {
    let v = model.model.facts().vocab_size;
    let mut right = 0;
    for chunk in 0..prompts.div_ceil(64) {
        let mut draws = Draws::new(Rng::new(12).stream("recall/test", chunk as u64));
        let (mut rows, mut first, mut wanted) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..64.min(prompts - chunk * 64) {
            let all = triples(&mut draws, TRIPLES);
            let [key, v1, v2] = all[draws.below(TRIPLES)];
            let mut row = vec![0];
            row.extend(all.iter().flatten());
            row.push(key);
            rows.push(row);
            first.push(vec![v1]);
            wanted.push(v2);
        }
        let mut session = Session::new(model, policy, shape(model, rows.len(), rows[0].len(), 1));
        session.feed(&rows);
        let logits = session.feed(&first);
        right += logits.iter().zip(&wanted).filter(|(z, w)| best(&z[..v]) == **w).count();
    }
    right as f64 / prompts as f64
}

fn best(z: &[f32]) -> u32 {
    z.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).map_or(0, |(i, _)| i as u32)
}
