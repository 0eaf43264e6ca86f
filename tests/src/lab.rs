//! Models assembled in this process, for tests that look inside.

use std::path::Path;
use std::sync::Arc;

use ramekin_core::{Param, Rng};
use ramekin_engine::assembly::Assembly;
use ramekin_engine::blueprint::Blueprint;
use ramekin_engine::hidden::hidden;
use ramekin_engine::masks::Masks;
use ramekin_engine::parts;
use ramekin_engine::run::plain_model;
use ramekin_engine::step::{LabelledBatch, Trainer};
use ramekin_engine::team::Team;
use ramekin_recipe::{Adapter, Config, Model, Part};
use ramekin_slots::{FlatBatch, Forward, LinearBase, Mode};
use ramekin_tape::{GradStore, Tape};
use serde_json::{Value as Json, json};

/// A part by its kind with these settings; every default is filled in when it is built.
pub fn part(kind: &str, settings: Json) -> Part {
    let mut part = Part::of(kind);
    part.settings = settings.as_object().cloned().unwrap_or_default();
    part
}

/// A new adapter.
pub fn new_adapter(kind: &str, settings: Json) -> Adapter {
    Adapter::New(part(kind, settings))
}

/// A saved adapter.
pub fn saved_adapter(folder: &Path) -> Adapter {
    Adapter::Saved { folder: folder.display().to_string(), path: String::new() }
}

/// A model in a folder, frozen, with nothing attached.
pub fn folder_model(folder: &Path) -> Blueprint {
    blueprint(plain_model(&folder.display().to_string()))
}

/// Fresh weights of an architecture.
pub fn fresh_model(config: Json) -> Blueprint {
    let table = config.as_object().cloned().expect("a config is an object");
    blueprint(Model { config: Some(Config::Table(table)), ..plain_model("init") })
}

fn blueprint(model: Model) -> Blueprint {
    ramekin_catalog::link();
    Blueprint { seed: 5, ..Blueprint::new(model) }
}

/// A small llama: 2 layers, width 32, 4 heads of 8, 2 for keys and values, 61 tokens.
///
/// Its weights are wide (std 0.18), so that logits are not all alike.
pub fn small_llama() -> Json {
    json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 32,
        "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 128, "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0, "tie_word_embeddings": false, "vocab_size": 61,
        "initializer_range": 0.18, "eos_token_id": 2,
    })
}

/// Loads, with the reason if that fails.
#[track_caller]
pub fn assemble(blueprint: &Blueprint) -> Assembly {
    blueprint.assemble(false).unwrap_or_else(|e| panic!("{e:#}"))
}

/// Sequences of seeded ids below `vocabulary`.
pub fn sequences(lengths: &[usize], vocabulary: usize, seed: u64) -> Vec<Vec<u32>> {
    let mut draws = ramekin_core::Draws::new(Rng::new(seed).stream("tests/ids", 0));
    lengths.iter().map(|n| (0..*n).map(|_| draws.below(vocabulary) as u32).collect()).collect()
}

/// A batch in which every token but a sequence's last predicts the next.
pub fn batch(sequences: &[Vec<u32>]) -> LabelledBatch {
    let mut labels = Vec::new();
    for s in sequences {
        labels.extend(s.iter().skip(1).map(|id| i64::from(*id)));
        labels.push(-100);
    }
    LabelledBatch::of(FlatBatch::new(sequences), labels)
}

/// A step's parts: `sft`, `keep`, AdamW without decay at this rate, no clipping.
pub fn trainer(lr: f64) -> Trainer {
    Trainer {
        objective: parts::objective(&Part::of("sft")).expect("sft"),
        activation: parts::activation(&Part::of("keep")).expect("keep"),
        estimator: parts::estimator(&Part::of("backprop")).expect("backprop"),
        optimizer: parts::optimizer(&part("adamw", json!({ "lr": lr, "weight_decay": 0.0 }))).expect("adamw"),
        schedule: parts::schedule(&Part::of("constant")).expect("constant"),
        fused: false,
        gradient: Vec::new(),
        hooks: Vec::new(),
        groups: Vec::new(),
        total_steps: 1000,
        rng: Rng::new(5),
        masks: Masks::default(),
        draw: None,
        team: Team::alone(),
    }
}

/// The parts of [`trainer`] with the activation policy that a method brings, where it brings one.
pub fn method_trainer(lr: f64, method: &Part) -> Trainer {
    let own = parts::installed(method).unwrap_or_else(|e| panic!("{e:#}")).activation;
    let plain = trainer(lr);
    Trainer { activation: own.unwrap_or(plain.activation), ..plain }
}

/// Runs this many updates on one batch; returns the losses before each.
pub fn train(assembly: &Assembly, trainer: &mut Trainer, batch: &LabelledBatch, steps: u64) -> Vec<f64> {
    let one = [batch.clone()];
    (0..steps).map(|s| trainer.step(assembly, &one, s).unwrap_or_else(|e| panic!("{e:#}")).loss).collect()
}

/// Logits `[N, V]` in inference mode, with or without adapters.
pub fn logits(assembly: &Assembly, flat: &FlatBatch, adapters: bool) -> Vec<f32> {
    let mode = Mode { adapters, ..Mode::inference() };
    let fx = Forward::new(Tape::off(), assembly.sites.clone(), flat.clone(), mode);
    let h = hidden(&assembly.model, &fx, None).unwrap_or_else(|e| panic!("{e:#}"));
    assembly.model.head(&fx, &h).and_then(|z| z.array().to_f32()).unwrap_or_else(|e| panic!("{e:#}"))
}

/// Mean loss and each trainable parameter's gradient of micro-batches that make one step together.
pub fn loss_and_gradients(
    assembly: &Assembly,
    trainer: &Trainer,
    batches: &[LabelledBatch],
) -> (f64, Vec<(String, Vec<f32>)>) {
    let totals = trainer.totals(batches);
    let mut store = GradStore::new();
    let mut loss = 0.0;
    for (i, b) in batches.iter().enumerate() {
        let done = trainer.micro_batch(assembly, b, &totals, i as u64, true, &mut store);
        loss += done.unwrap_or_else(|e| panic!("{e:#}"));
    }
    let mut grads: Vec<(String, Vec<f32>)> =
        store.iter().map(|(p, g)| (p.name().to_owned(), g.to_f32().expect("f32"))).collect();
    grads.sort_by(|a, b| a.0.cmp(&b.0));
    (loss, grads)
}

/// The bits of everything frozen: dense tensors, and packed ones as the numbers they stand for.
pub fn frozen_bits(assembly: &Assembly) -> Vec<(String, Vec<u32>)> {
    let bits = |x: Vec<f32>| x.into_iter().map(f32::to_bits).collect::<Vec<_>>();
    let mut all = Vec::new();
    for entry in assembly.ledger.borrow().entries() {
        if let Some(param) = entry.param.as_ref().filter(|p| !p.is_trainable()) {
            all.push((entry.name.clone(), bits(param.value().to_f32().expect("numbers"))));
        }
    }
    for site in assembly.sites.linears() {
        if let LinearBase::Packed(w) = site.base() {
            let mut rows = vec![0.0; w.shape().0 * w.shape().1];
            w.rows_f32(0, &mut rows);
            all.push((format!("{} (packed)", site.path), bits(rows)));
        }
    }
    all
}

/// What trains, by name.
pub fn trained(assembly: &Assembly) -> Vec<(String, Vec<f32>)> {
    let value = |p: &Arc<Param>| (p.name().to_owned(), p.value().to_f32().expect("f32"));
    assembly.trainable().iter().map(value).collect()
}
