//! Selections and hooks in this process: rows to look at, lengths, checkpoints.

use std::path::Path;
use std::rc::Rc;

use ramekin_core::Rng;
use ramekin_engine::assembly::Assembly;
use ramekin_engine::blueprint::Blueprint;
use ramekin_engine::checkpoint;
use ramekin_engine::pass::{Draw, Look, Pass};
use ramekin_engine::step::{LabelledBatch, Trainer};
use ramekin_slots::{Event, Probe};
use serde_json::{Map, Value as Json, json};

use crate::lab;

/// Rows for looks: seeded ids below `vocabulary`, `length` a row.
pub fn draw(vocabulary: usize, length: usize) -> Draw {
    Rc::new(move |stream, index, rows| {
        let seed = Rng::new(9).named(stream, &index.to_string()).u64_at(0);
        lab::batch(&lab::sequences(&vec![length; rows], vocabulary, seed))
    })
}

/// What a stage does before its first step: the look at rows, the length; `epoch` steps show every row.
#[track_caller]
pub fn prepare(assembly: &Assembly, trainer: &mut Trainer, epoch: f64) {
    trainer.calibrate(assembly).unwrap_or_else(|e| panic!("{e:#}"));
    if let Some(selection) = assembly.selection.borrow_mut().as_mut()
        && let Some(steps) = selection.updates(epoch).unwrap_or_else(|e| panic!("{e:#}"))
    {
        trainer.total_steps = steps;
    }
}

/// Steps `from..to` on batches made by their numbers. After each step held rows are "measured":
/// the figures are made up, the events are real.
#[track_caller]
pub fn steps(
    assembly: &Assembly,
    trainer: &mut Trainer,
    batch: &dyn Fn(u64) -> LabelledBatch,
    from: u64,
    to: u64,
) {
    let none = Map::new();
    for step in from..to {
        trainer.step(assembly, &[batch(step)], step).unwrap_or_else(|e| panic!("{e:#}"));
        let figures = json!({ "loss": 2.0 - ((step + 1) % 3) as f64 }).as_object().cloned().expect("a map");
        for (event, figures) in [(Event::BeforeEval, &none), (Event::AfterEval, &figures)] {
            trainer.event(event, assembly, step + 1, 1.0, figures).unwrap_or_else(|e| panic!("{e:#}"));
        }
    }
}

/// Saves a checkpoint after `step` updates.
#[track_caller]
pub fn save(folder: &Path, step: u64, assembly: &Assembly, trainer: &Trainer) {
    let all = checkpoint::open(folder, 2).expect("a folder for checkpoints");
    checkpoint::save(&all, step, 0.0, assembly, trainer, None).unwrap_or_else(|e| panic!("{e:#}"));
}

/// Puts the newest checkpoint back and returns its step.
#[track_caller]
pub fn restore(folder: &Path, assembly: &Assembly, trainer: &mut Trainer) -> u64 {
    let all = checkpoint::open(folder, 2).expect("a folder of checkpoints");
    let found = checkpoint::restore(&all, assembly, trainer).unwrap_or_else(|e| panic!("{e:#}"));
    found.expect("a checkpoint").step
}

/// The bits of every dense tensor, and of all saved state.
pub fn bits(assembly: &Assembly, trainer: &Trainer) -> Vec<(String, Vec<u32>)> {
    let mut all = weights(assembly);
    for t in trainer.state(assembly).expect("state") {
        let numbers = t.array.to_f32().expect("numbers");
        all.push((format!("state {}", t.name), numbers.into_iter().map(f32::to_bits).collect()));
    }
    all.sort();
    all
}

/// The bits of every dense tensor, in the ledger's order.
pub fn weights(assembly: &Assembly) -> Vec<(String, Vec<u32>)> {
    let ledger = assembly.ledger.borrow();
    let params = ledger.entries().iter().filter_map(|e| e.param.as_ref());
    params
        .map(|p| {
            let numbers = p.value().to_f32().expect("numbers");
            (p.name().to_owned(), numbers.into_iter().map(f32::to_bits).collect())
        })
        .collect()
}

/// Fails unless everything that does not train now has the bits it had `before`.
#[track_caller]
pub fn frozen_since(before: &[(String, Vec<u32>)], assembly: &Assembly) {
    let ledger = assembly.ledger.borrow();
    for ((name, old), (_, new)) in before.iter().zip(weights(assembly)) {
        let param = ledger.get(name).and_then(|e| e.param.clone()).expect("a parameter");
        let trains: Box<dyn Fn(usize) -> bool> = match (param.is_trainable(), param.mask()) {
            (false, _) => Box::new(|_| false),
            (true, None) => Box::new(|_| true),
            (true, Some(mask)) => Box::new(move |i| mask.places().binary_search(&(i as u32)).is_ok()),
        };
        let changed = (0..old.len()).find(|i| old[*i] != new[*i] && !trains(*i));
        assert_eq!(changed, None, "`{name}`: a frozen entry has changed");
    }
}

/// Mean loss of a batch, by a forward alone.
#[track_caller]
pub fn loss(assembly: &Assembly, trainer: &Trainer, batch: &LabelledBatch) -> f64 {
    let pass = Pass { objective: &*trainer.objective, activation: &*trainer.activation, rng: trainer.rng };
    let batch = batch.clone();
    let draw: Draw = Rc::new(move |_, _, _| batch.clone());
    let mut look = Look { pass, assembly, draw: Some(&draw) };
    look.loss("held", 0, 0).unwrap_or_else(|e| panic!("{e:#}"))
}

/// A model's dense tensors and config in a folder, so that several trainings can begin with them.
#[track_caller]
pub fn write_model(assembly: &Assembly, folder: &Path) {
    let ledger = assembly.ledger.borrow();
    let params = ledger.entries().iter().filter_map(|e| e.param.as_ref());
    let tensors: Vec<(String, ramekin_store::Data)> =
        params.map(|p| (p.name().to_owned(), ramekin_store::Data::from(&p.value()))).collect();
    ramekin_store::write_safetensors(folder.join("model.safetensors"), &tensors, &[("format", "pt")])
        .expect("a written file");
    std::fs::write(folder.join("config.json"), assembly.config.to_string()).expect("a written config");
}

/// The same blueprint with a selection.
pub fn with_selection(blueprint: Blueprint, kind: &str, settings: Json) -> Blueprint {
    Blueprint { selection: Some(lab::part(kind, settings)), ..blueprint }
}

/// The refusal of a blueprint, which must be one.
#[track_caller]
pub fn refusal(blueprint: &Blueprint) -> String {
    match blueprint.assemble(true) {
        Ok(_) => panic!("this must be refused"),
        Err(e) => {
            assert_eq!(ramekin_core::exit_code(&e), 2, "a user's mistake: {e:#}");
            format!("{e:#}")
        }
    }
}
