//! What every selection and every hook must hold, for all of them in the registry.
//!
//! A part that has no entry in [`case`] fails: whoever adds one says here how it is tried.

use ramekin_engine::assembly::Assembly;
use ramekin_engine::bill::{self, StepShape};
use ramekin_engine::blueprint::Blueprint;
use ramekin_engine::parts;
use ramekin_engine::step::{LabelledBatch, Trainer};
use ramekin_registry::{Slot, names};
use ramekin_tests::lab::{self, assemble, batch, fresh_model, sequences};
use ramekin_tests::selecting::{bits, draw, frozen_since, prepare, restore, save, steps, weights};
use serde_json::{Value as Json, json};

const SLOTS: [Slot; 2] = [Slot::Selection, Slot::Hook];

/// How a part is tried: its settings, what the model's config has besides, an adapter.
struct Case {
    settings: Json,
    config: Json,
    adapter: Option<Json>,
}

fn case(kind: &str) -> Option<Case> {
    let plain = |settings: Json| Case { settings, config: json!({}), adapter: None };
    let lora = json!({ "r": 2, "target_modules": "all-linear" });
    Some(match kind {
        "full" | "hft" => plain(json!({})),
        "bias" => Case { config: json!({ "attention_bias": true }), ..plain(json!({})) },
        "s2ft" => plain(json!({ "o_ratio": 0.25, "d_ratio": 0.1, "v_ratio": 0.25, "u_ratio": 0.05 })),
        "lt-sft" => plain(json!({
            "full_ft_max_epochs": 0, "full_ft_max_steps": 3, "sparse_ft_max_epochs": 0, "sparse_ft_max_steps": 4,
            "full_l1_reg": 0.1, "ft_params_proportion": 0.1,
        })),
        "ist" => Case {
            adapter: Some(lora),
            config: json!({ "num_hidden_layers": 4 }),
            ..plain(json!({ "importance_interval": 2, "importance_batch_size": 2 }))
        },
        "ema" => plain(json!({ "decay": 0.9 })),
        "early-stop" => Case { adapter: Some(lora), ..plain(json!({ "restore_best": true })) },
        _ => return None,
    })
}

/// Every part of both slots with its case.
fn all() -> Vec<(Slot, &'static str, Case)> {
    ramekin_catalog::link();
    let mut found = Vec::new();
    for slot in SLOTS {
        for kind in names(slot) {
            let case = case(kind).unwrap_or_else(|| panic!("`{}/{kind}` has no case here", slot.name()));
            found.push((slot, kind, case));
        }
    }
    assert!(found.len() >= 8, "{} parts: the registry is not linked", found.len());
    found
}

fn blueprint(slot: Slot, kind: &str, case: &Case) -> Blueprint {
    let mut config = lab::small_llama();
    config.as_object_mut().expect("a config").extend(case.config.as_object().cloned().unwrap_or_default());
    let plan = fresh_model(config);
    let part = lab::part(kind, case.settings.clone());
    if slot == Slot::Selection {
        return Blueprint { selection: Some(part), ..plan };
    }
    match &case.adapter {
        Some(lora) => Blueprint { adapters: vec![lab::new_adapter("lora", lora.clone())], ..plan },
        None => Blueprint { full_training: true, ..plan },
    }
}

fn trainer(slot: Slot, kind: &str, case: &Case) -> Trainer {
    let mut trainer = lab::trainer(1e-2);
    let adamw = lab::part("adamw", json!({ "lr": 1e-2, "weight_decay": 0.1 }));
    trainer.optimizer = parts::optimizer(&adamw).expect("adamw");
    trainer.total_steps = 12;
    trainer.draw = Some(draw(61, 10));
    if slot == Slot::Hook {
        let hook = parts::hook(&lab::part(kind, case.settings.clone()));
        trainer.hooks.push(hook.unwrap_or_else(|e| panic!("{kind}: {e:#}")));
    }
    trainer
}

fn begun(slot: Slot, kind: &str, case: &Case) -> (Assembly, Trainer) {
    let assembly = assemble(&blueprint(slot, kind, case));
    let mut trainer = trainer(slot, kind, case);
    prepare(&assembly, &mut trainer, 4.0);
    (assembly, trainer)
}

fn rows(step: u64) -> LabelledBatch {
    batch(&sequences(&[12, 7, 10], 61, 100 + step))
}

/// In each of three steps with weight decay, what does not train keeps its bits, and something changes.
#[test]
fn frozen_entries_stay() {
    for (slot, kind, case) in all() {
        let (assembly, mut trainer) = begun(slot, kind, &case);
        for step in 0..3 {
            let before = weights(&assembly);
            trainer.step(&assembly, &[rows(step)], step).unwrap_or_else(|e| panic!("{kind}: {e:#}"));
            println!("{kind}: step {step}");
            frozen_since(&before, &assembly);
            assert_ne!(before, weights(&assembly), "{kind}: step {step} changes nothing");
        }
    }
}

/// A run that is cut after any of its first steps and goes on elsewhere ends with the same bits.
#[test]
fn resume_to_the_bit() {
    for (slot, kind, case) in all() {
        let (whole, mut undisturbed) = begun(slot, kind, &case);
        steps(&whole, &mut undisturbed, &rows, 0, 6);
        let expected = bits(&whole, &undisturbed);
        for cut in [1, 3, 4] {
            let folder = tempfile::tempdir().expect("a folder");
            let (first, mut trainer) = begun(slot, kind, &case);
            steps(&first, &mut trainer, &rows, 0, cut);
            save(folder.path(), cut, &first, &trainer);
            drop((first, trainer));
            let (second, mut trainer) = begun(slot, kind, &case);
            assert_eq!(restore(folder.path(), &second, &mut trainer), cut);
            steps(&second, &mut trainer, &rows, cut, 6);
            for (found, wanted) in bits(&second, &trainer).iter().zip(&expected) {
                assert_eq!(found, wanted, "{kind}, cut after step {cut}");
            }
            assert_eq!(bits(&second, &trainer).len(), expected.len(), "{kind}");
        }
    }
}

/// A plan on shapes runs, and its count of what trains is the one of the real thing.
#[test]
fn plans_count_what_trains() {
    for (slot, kind, case) in all() {
        let (assembly, mut real) = begun(slot, kind, &case);
        steps(&assembly, &mut real, &rows, 0, 2);
        let measured = assembly.ledger.borrow().counts();
        let shape = StepShape { segments: vec![12, 7, 10], active: 26, micro_batches: 1, exact: true };
        let plan = blueprint(slot, kind, &case);
        let mut planned = trainer(slot, kind, &case);
        let bill = bill::train(kind, &plan, &mut planned, &shape, None, &|_, _| Ok(()))
            .unwrap_or_else(|e| panic!("{kind}: {e:#}"));
        assert_eq!((bill.parameters, bill.trainable), measured, "{kind}: numbers and how many train");
        assert!(bill.peak > 0 && bill.trainable > 0, "{kind}");
    }
}

/// What a plan promises at most is what a run then holds, within a few per cent.
#[test]
fn plans_bound_memory() {
    for (slot, kind, case) in all() {
        let shape = StepShape { segments: vec![12; 8], active: 8 * 11, micro_batches: 1, exact: true };
        let mut planned = trainer(slot, kind, &case);
        let plan = blueprint(slot, kind, &case);
        let bill = bill::train(kind, &plan, &mut planned, &shape, None, &|_, _| Ok(())).expect("a bill");
        let meter = ramekin_core::Meter::new();
        let scope = ramekin_core::meter::scope(meter.clone());
        let (assembly, mut real) = begun(slot, kind, &case);
        meter.reset_peak();
        let row = |step| batch(&sequences(&[12; 8], 61, 100 + step));
        for step in 0..6 {
            real.step(&assembly, &[row(step)], step).unwrap_or_else(|e| panic!("{kind}: {e:#}"));
        }
        let (plan, held) = (bill.peak as f64, meter.peak() as f64);
        drop(scope);
        println!("{kind}: planned {plan}, held {held}");
        assert!(held <= 1.03 * plan, "{kind}: planned {plan}, held {held}");
        assert!(held >= 0.6 * plan, "{kind}: planned {plan} is far above {held}");
    }
}

/// Defaults build, every setting is documented, and a key that nobody knows is refused.
#[test]
fn settings() {
    for (slot, kind, _) in all() {
        let name = format!("{}/{kind}", slot.name());
        if let Err(e) = ramekin_registry::build(slot, kind, json!({})) {
            panic!("{name}: the defaults are refused: {e:#}");
        }
        let Err(e) = ramekin_registry::build(slot, kind, json!({ "no_such_setting": 1 })) else {
            panic!("{name} takes a setting that it does not have");
        };
        assert!(format!("{e:#}").contains("no_such_setting"), "{name}: {e:#}");
        let part = ramekin_registry::find(slot, kind).expect("a part");
        let schema = serde_json::to_value((part.schema)()).expect("a schema");
        let settings = schema["properties"].as_object().cloned().unwrap_or_default();
        let full = ramekin_registry::complete(slot, kind, json!({})).expect("defaults");
        for (key, value) in full.as_object().expect("a table") {
            let told = &settings[key];
            assert!(told["description"].is_string(), "{name}: `{key}` is not documented");
            let _ = value;
        }
    }
}
