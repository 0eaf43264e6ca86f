//! The suite.

use std::collections::HashMap;

use ramekin_core::{Array, Category, Meter, meter};
use ramekin_engine::assembly::Assembly;
use ramekin_engine::blueprint::Blueprint;
use ramekin_engine::checkpoint;
use ramekin_engine::parts;
use ramekin_engine::step::{LabelledBatch, Trainer};
use ramekin_recipe::Part;
use ramekin_registry::{PartEntry, Slot, Trait};
use ramekin_tests::lab::{self, part};
use serde_json::{Value as Json, json};

/// Optimizers with settings under which they keep all the state they can, on tensors as small as these.
fn optimizers() -> Vec<Part> {
    vec![
        part("adafactor", json!({ "lr": 1e-2, "beta1": 0.9 })),
        part("adamw", json!({ "lr": 1e-2, "weight_decay": 0.01 })),
        part("adamw8bit", json!({ "lr": 1e-2, "min_8bit_size": 64, "keep_f32": [] })),
        part("lion", json!({ "lr": 3e-3, "weight_decay": 0.01 })),
        part("sgd", json!({ "lr": 0.1, "momentum": 0.9 })),
    ]
}

/// Gradient transforms with settings that fit the small model.
fn transforms() -> Vec<Part> {
    vec![
        part("clip", json!({ "max_norm": 0.5 })),
        part("galore", json!({ "rank": 4, "update_proj_gap": 3, "scale": 1.0, "residual": true })),
    ]
}

fn table(slot: Slot) -> Vec<Part> {
    match slot {
        Slot::Optimizer => optimizers(),
        _ => transforms(),
    }
}

/// Every registered part of both slots with its line of the table.
fn all() -> Vec<(&'static PartEntry, Part)> {
    ramekin_catalog::link();
    let registered = ramekin_registry::parts();
    let ours = registered.into_iter().filter(|p| matches!(p.slot, Slot::Optimizer | Slot::Gradient));
    let found: Vec<_> = ours
        .map(|entry| {
            let line = table(entry.slot).into_iter().find(|p| p.kind == entry.name);
            (entry, line.unwrap_or_else(|| panic!("`{}` has no line in the table of this suite", entry.name)))
        })
        .collect();
    let lines = optimizers().len() + transforms().len();
    assert_eq!(found.len(), lines, "a line of the table names a part that is not registered");
    found
}

fn model() -> Blueprint {
    Blueprint { full_training: true, ..lab::fresh_model(lab::small_llama()) }
}

fn trainer(entry: &PartEntry, part: &Part) -> Trainer {
    let mut trainer = lab::trainer(1e-2);
    match entry.slot {
        Slot::Optimizer => trainer.optimizer = parts::optimizer(part).unwrap(),
        _ => trainer.gradient = vec![parts::gradient(part).unwrap()],
    }
    trainer
}

fn batch() -> LabelledBatch {
    lab::batch(&lab::sequences(&[12, 9], 61, 3))
}

fn weights(assembly: &Assembly) -> Vec<Vec<u32>> {
    lab::trained(assembly).into_iter().map(|(_, x)| x.into_iter().map(f32::to_bits).collect()).collect()
}

/// A fresh model with its trainer, from this step to that.
fn go(entry: &PartEntry, part: &Part, steps: u64) -> (Assembly, Trainer) {
    let assembly = lab::assemble(&model());
    let mut trainer = trainer(entry, part);
    lab::train(&assembly, &mut trainer, &batch(), steps);
    (assembly, trainer)
}

#[test]
fn twenty_steps_lower_the_loss() {
    for (entry, part) in all() {
        let assembly = lab::assemble(&model());
        let losses = lab::train(&assembly, &mut trainer(entry, &part), &batch(), 20);
        let (first, last) = (losses[0], losses[19]);
        println!("{}: {first:.3} → {last:.3}", entry.name);
        assert!(last < first - 0.3, "{}: {first} → {last}", entry.name);
    }
}

#[test]
fn saved_and_restored_it_goes_on_to_the_bit() {
    for (entry, part) in all() {
        let (assembly, mut straight) = go(entry, &part, 5);
        let folder = tempfile::tempdir().unwrap();
        let checkpoints = checkpoint::open(folder.path(), 1).unwrap();
        checkpoint::save(&checkpoints, 5, 0.0, &assembly, &straight, None).unwrap();

        let again = lab::assemble(&model());
        let mut resumed = trainer(entry, &part);
        let found = checkpoint::restore(&checkpoints, &again, &mut resumed).unwrap().unwrap();
        assert_eq!(found.step, 5);
        assert_eq!(weights(&again), weights(&assembly), "{}: the weights of the checkpoint", entry.name);
        for step in 5..9 {
            straight.step(&assembly, &[batch()], step).unwrap();
            resumed.step(&again, &[batch()], step).unwrap();
        }
        assert_eq!(weights(&again), weights(&assembly), "{}", entry.name);
    }
}

#[test]
fn the_same_bits_whatever_the_number_of_threads() {
    for (entry, part) in all() {
        let on = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| weights(&go(entry, &part, 3).0))
        };
        assert_eq!(on(1), on(3), "{}", entry.name);
    }
}

/// `StatefulAcrossSteps`: what it does depends on what it did before.
#[test]
fn state_is_declared_where_there_is_some() {
    for (entry, part) in all() {
        let (assembly, mut kept) = go(entry, &part, 3);
        let (other, mut forgot) = go(entry, &part, 3);
        let fresh = trainer(entry, &part);
        match entry.slot {
            Slot::Optimizer => forgot.optimizer = fresh.optimizer,
            _ => forgot.gradient = fresh.gradient,
        }
        kept.step(&assembly, &[batch()], 3).unwrap();
        forgot.step(&other, &[batch()], 3).unwrap();
        let differs = weights(&assembly) != weights(&other);
        assert_eq!(differs, entry.traits.contains(&Trait::StatefulAcrossSteps), "{}", entry.name);
    }
}

/// `NeedsGlobalGradNorm`: one tensor's gradient changes what becomes of another's.
#[test]
fn the_need_of_all_gradients_is_declared() {
    for (entry, part) in all().into_iter().filter(|(e, _)| e.slot == Slot::Gradient) {
        let second = |factor: f32| {
            let mut transform = parts::gradient(&part).unwrap();
            let name = |i: usize| format!("layers.{i}.mlp.up_proj.weight");
            let gradient = |i: usize, factor: f32| {
                let x = (0..48).map(|e| ((e * 7 + i) % 5) as f32 * factor).collect();
                let array = Array::from_vec(x, &[8, 6], Category::Gradients).unwrap();
                (ramekin_core::Param::new(name(i), array.clone()), array)
            };
            let mut grads = vec![gradient(0, factor), gradient(1, 1.0)];
            let squares: f32 = grads.iter().flat_map(|(_, g)| g.to_f32().unwrap()).map(|x| x * x).sum();
            transform.whole(&mut grads, f64::from(squares).sqrt()).unwrap();
            let outputs: Vec<Vec<f32>> = grads
                .iter()
                .map(|(p, g)| transform.project(p, g).unwrap().as_ref().unwrap_or(g).to_f32().unwrap())
                .collect();
            outputs[1].clone()
        };
        let needs = second(1.0) != second(100.0);
        assert_eq!(needs, entry.traits.contains(&Trait::NeedsGlobalGradNorm), "{}", entry.name);
    }
}

#[test]
fn the_schema_knows_the_settings_and_no_other() {
    for (entry, part) in all() {
        let name = entry.name;
        let schema = (entry.schema)().to_value();
        assert_eq!(schema["additionalProperties"], json!(false), "{name}");
        let default = (entry.complete)(json!({})).unwrap_or_else(|e| panic!("{name}: {e}"));
        for settings in [&default, &Json::Object(part.settings.clone())] {
            for (key, value) in settings.as_object().unwrap() {
                let known = &schema["properties"][key];
                assert!(known.is_object(), "{name}: `{key}` is not in the schema");
                assert!(!known["description"].as_str().unwrap_or_default().is_empty(), "{name}: `{key}`");
                assert!(fits(value, known, &schema), "{name}: `{key} = {value}` does not fit {known}");
            }
        }
        ramekin_registry::build(entry.slot, name, json!({})).unwrap_or_else(|e| panic!("{name}: {e:#}"));
        let error = (entry.complete)(json!({ "no_such_setting": 1 })).unwrap_err().to_string();
        assert!(error.contains("no_such_setting"), "{name}: {error}");
    }
}

/// Whether a value has the type that its schema names.
fn fits(value: &Json, schema: &Json, root: &Json) -> bool {
    if let Some(reference) = schema["$ref"].as_str() {
        return fits(value, &root["$defs"][reference.rsplit('/').next().unwrap()], root);
    }
    for key in ["anyOf", "oneOf"] {
        if let Some(options) = schema[key].as_array() {
            return options.iter().any(|o| fits(value, o, root));
        }
    }
    if let Some(constant) = schema.get("const") {
        return constant == value;
    }
    if let Some(values) = schema["enum"].as_array() {
        return values.contains(value);
    }
    let types = match &schema["type"] {
        Json::Array(types) => types.clone(),
        one => vec![one.clone()],
    };
    types.iter().filter_map(Json::as_str).any(|t| match t {
        "number" => value.is_number(),
        "integer" => value.is_i64() || value.is_u64(),
        "boolean" => value.is_boolean(),
        "string" => value.is_string(),
        "array" => value.as_array().is_some_and(|a| a.iter().all(|v| fits(v, &schema["items"], root))),
        "null" => value.is_null(),
        _ => false,
    })
}

/// A plan holds the state that the run then has: the same names, shapes and bytes.
#[test]
fn on_shapes_alone_it_bills_the_state_it_will_have() {
    for (entry, part) in all() {
        let state = |shape_only: bool| -> (u64, HashMap<String, (Vec<usize>, u64)>) {
            let meter = Meter::new();
            let _scope = meter::scope(meter.clone());
            let assembly = model().assemble(shape_only).unwrap();
            let mut trainer = trainer(entry, &part);
            for step in 0..2 {
                trainer.step(&assembly, &[batch()], step).unwrap();
            }
            let held = meter.live().optimizer;
            let tensors = trainer.state(&assembly).unwrap().into_iter();
            let form = |a: &Array| (a.dims().to_vec(), a.bytes());
            (held, tensors.map(|t| (t.name, form(&t.array))).collect())
        };
        let (planned, real) = (state(true), state(false));
        assert_eq!(planned, real, "{}", entry.name);
        assert!(entry.name == "clip" || real.0 > 0, "{}: no state", entry.name);
    }
}

/// Inside backward: the same bits as after it, and never more than one gradient.
#[test]
fn inside_backward_it_gives_the_same_bits() {
    for (entry, part) in all().into_iter().filter(|(e, _)| !e.traits.contains(&Trait::NeedsGlobalGradNorm)) {
        let run = |fused: bool| {
            let meter = Meter::new();
            let _scope = meter::scope(meter.clone());
            let assembly = lab::assemble(&model());
            let mut trainer = Trainer { fused, ..trainer(entry, &part) };
            let losses = lab::train(&assembly, &mut trainer, &batch(), 4);
            (weights(&assembly), losses, meter.highest().gradients)
        };
        let (after, inside) = (run(false), run(true));
        assert!(after.0 == inside.0 && after.1 == inside.1, "{}: other numbers", entry.name);
        let largest = after.0.iter().map(|x| 4 * x.len() as u64).max().unwrap();
        assert_eq!(inside.2, largest, "{}: gradients at once", entry.name);
        assert!(after.2 > 5 * largest, "{}: {} bytes of gradients", entry.name, after.2);
    }
}
