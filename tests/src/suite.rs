//! What the suites of several slots measure alike.

use std::collections::BTreeMap;
use std::path::Path;

use ramekin_core::Rng;
use ramekin_engine::assembly::Assembly;
use ramekin_engine::step::{LabelledBatch, Trainer};
use ramekin_registry::PartEntry;
use ramekin_store::{Data, write_safetensors};
use ramekin_tape::GradStore;
use serde_json::json;

/// Moves every trainable number away from where it starts.
#[track_caller]
pub fn stir(assembly: &Assembly, by: f64) {
    for param in assembly.trainable() {
        let mut noise = vec![0f32; param.value().len()];
        Rng::new(23).named("suite/stir", param.name()).fill_normal(0, by, &mut noise);
        param
            .value()
            .update(|x: &mut [f32]| x.iter_mut().zip(noise).for_each(|(x, n)| *x += n))
            .expect("f32");
    }
}

/// Loss and gradients of a batch in f64, which the assembly holds all its tensors in.
#[track_caller]
pub fn loss_f64(
    assembly: &Assembly,
    trainer: &Trainer,
    batch: &LabelledBatch,
    training: bool,
) -> (f64, BTreeMap<String, Vec<f64>>) {
    let mut store = GradStore::new();
    let totals = [batch.active() as f64];
    let done = trainer.micro_batch(assembly, batch, &totals, 0, training, &mut store);
    let grads = store.iter().map(|(p, g)| (p.name().to_owned(), g.view::<f64>().expect("f64").to_vec()));
    (done.unwrap_or_else(|e| panic!("{e:#}")), grads.collect())
}

/// Whole-model loss against central differences in f64, at up to four entries of each tensor but those
/// whose names end in one of `detached`.
#[track_caller]
pub fn differences(
    what: &str,
    assembly: &Assembly,
    trainer: &Trainer,
    batch: &LabelledBatch,
    detached: &[&str],
) {
    let (_, grads) = loss_f64(assembly, trainer, batch, false);
    assert_eq!(grads.len(), assembly.trainable().len(), "`{what}`: a gradient for each tensor");
    let mut seen = 0;
    for param in assembly.trainable() {
        let grad = &grads[param.name()];
        let norm = grad.iter().map(|g| g * g).sum::<f64>().sqrt();
        assert!(norm > 1e-9, "`{what}`: nothing flows to {}", param.name());
        if detached.iter().any(|tail| param.name().ends_with(tail)) {
            continue;
        }
        seen += 1;
        let nudge = |i: usize, by: f64| param.value().update(|x: &mut [f64]| x[i] += by).expect("f64");
        let count = grad.len().min(4);
        for i in (0..count).map(|k| k * grad.len() / count) {
            nudge(i, 1e-5);
            let up = loss_f64(assembly, trainer, batch, false).0;
            nudge(i, -2e-5);
            let down = loss_f64(assembly, trainer, batch, false).0;
            nudge(i, 1e-5);
            let off = ((up - down) / 2e-5 - grad[i]).abs();
            let name = param.name();
            assert!(off <= 1e-6 * norm, "`{what}`: {name}[{i}] is off by {off:.1e} of {norm:.1e}");
        }
    }
    assert!(seen > 0, "`{what}`: nothing was compared");
}

/// Writes the first adapter's files.
#[track_caller]
pub fn save_adapter(assembly: &Assembly, folder: &Path) {
    let file = assembly.adapters[0].adapter.file("base").expect("an adapter's file");
    let all: Vec<(String, Data)> = file.tensors.iter().map(|(n, a)| (n.clone(), Data::from(a))).collect();
    write_safetensors(folder.join("adapter_model.safetensors"), &all, &[("format", "pt")]).expect("written");
    std::fs::write(folder.join("adapter_config.json"), file.config.to_string()).expect("written");
}

/// Fails unless both folders hold the same adapter, byte for byte.
#[track_caller]
pub fn same_files(what: &str, one: &Path, other: &Path) {
    for name in ["adapter_config.json", "adapter_model.safetensors"] {
        let read = |folder: &Path| std::fs::read(folder.join(name)).expect("a file");
        assert!(read(one) == read(other), "`{what}`: {name} is another one");
    }
}

/// Every parameter's name, shape and whether it trains.
pub fn listed(assembly: &Assembly) -> Vec<(String, Vec<usize>, bool)> {
    let ledger = assembly.ledger.borrow();
    ledger.entries().iter().map(|e| (e.name.clone(), e.shape.clone(), e.is_trainable())).collect()
}

/// A part's settings are described, complete with their defaults, and closed.
#[track_caller]
pub fn settings(part: &PartEntry) {
    let full = (part.complete)(json!({})).unwrap_or_else(|e| panic!("`{}`: {e}", part.name));
    let schema = (part.schema)().to_value();
    let known = schema["properties"].as_object().expect("properties");
    for (key, value) in full.as_object().expect("an object") {
        let described = known.get(key).unwrap_or_else(|| panic!("`{}`: `{key}` is in no schema", part.name));
        assert!(described["description"].is_string(), "`{}`: `{key}` is not described", part.name);
        assert_eq!(&described["default"], value, "`{}`: the default of `{key}`", part.name);
    }
    assert_eq!(known.len(), full.as_object().map_or(0, serde_json::Map::len), "`{}`", part.name);
    assert_eq!(schema["additionalProperties"], json!(false), "`{}` is open", part.name);
    let again = (part.complete)(full.clone()).unwrap_or_else(|e| panic!("`{}`: {e}", part.name));
    assert_eq!(again, full, "`{}`: complete settings are complete", part.name);
    (part.build)(full).unwrap_or_else(|e| panic!("`{}` refuses its defaults: {e:#}", part.name));
    let refused = (part.build)(json!({ "no_such_setting": 1 })).err().expect("an unknown key").to_string();
    assert!(refused.contains("no_such_setting"), "`{}`: {refused}", part.name);
}
