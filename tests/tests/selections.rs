//! The engine's side of selections and hooks: masks under an optimizer, rounds, stopping early.

use std::sync::Arc;

use anyhow::Result;
use ramekin_core::{Mask, Param};
use ramekin_engine::assembly::Assembly;
use ramekin_engine::parts;
use ramekin_engine::step::{LabelledBatch, Trainer};
use ramekin_slots::{AttachContext, Event, Flow, RoundContext, Selection, Stateful};
use ramekin_tests::kitchen::{cook, json as read};
use ramekin_tests::lab::{self, assemble, batch, fresh_model, sequences, small_llama};
use ramekin_tests::selecting::{bits, frozen_since, restore, save, steps, weights};
use serde_json::{Map, json};

/// Trains a window of columns of every `o_proj`, another one every three steps; two columns stay in common.
struct Columns(Vec<Arc<Param>>);

impl Columns {
    fn mask(step: u64) -> Mask {
        let first = 4 * (step / 3) as u32;
        Mask::columns(&(first..first + 6).collect::<Vec<_>>(), 32, 32)
    }
}

impl Stateful for Columns {}

impl Selection for Columns {
    fn attach(&mut self, cx: &mut AttachContext<'_>) -> Result<Vec<String>> {
        let names: Vec<String> =
            cx.sites.param_names().iter().filter(|n| n.contains("o_proj")).cloned().collect();
        self.0 = names.iter().map(|n| cx.train(n)).collect::<Result<_>>()?;
        Ok(names)
    }

    fn before_step(&mut self, cx: &mut RoundContext<'_>) -> Result<()> {
        let mask = Arc::new(Self::mask(cx.step));
        self.0.iter().for_each(|p| p.set_mask(Some(mask.clone())));
        Ok(())
    }
}

fn columns(optimizer: &str) -> (Assembly, Trainer) {
    let assembly = assemble(&fresh_model(small_llama()));
    let mut selection = Columns(Vec::new());
    assembly.seated(false, |cx| selection.attach(cx)).expect("attached");
    *assembly.selection.borrow_mut() = Some(Box::new(selection));
    let mut trainer = lab::trainer(1e-2);
    let part = lab::part(optimizer, json!({ "lr": 1e-2, "weight_decay": 0.1 }));
    trainer.optimizer = parts::optimizer(&part).expect("an optimizer");
    (assembly, trainer)
}

fn rows(step: u64) -> LabelledBatch {
    batch(&sequences(&[12, 7, 10], 61, 100 + step))
}

#[test]
fn masked_training_leaves_the_rest_alone() {
    let (assembly, mut trainer) = columns("adamw");
    for step in 0..8 {
        let before = weights(&assembly);
        trainer.step(&assembly, &[rows(step)], step).expect("a step");
        frozen_since(&before, &assembly);
        let changed = before.iter().zip(weights(&assembly)).filter(|(a, b)| **a != *b).count();
        assert_eq!(changed, 2, "both o_proj train");
        let (_, trained) = assembly.ledger.borrow().counts();
        assert_eq!(trained, 2 * 6 * 32);
        for t in trainer.state(&assembly).expect("state").iter().filter(|t| t.name.starts_with("exp_avg")) {
            assert_eq!(t.array.dims(), [6 * 32], "{}: state for masked entries alone", t.name);
        }
    }
}

/// Entries that stay in the mask keep their moments, new ones begin at zero.
#[test]
fn state_follows_the_mask() {
    let (assembly, mut trainer) = columns("adamw");
    let moments = |trainer: &Trainer| {
        let state = trainer.state(&assembly).expect("state");
        let found = state.iter().find(|t| t.name.starts_with("exp_avg_sq.")).expect("a second moment");
        found.array.to_f32().expect("f32")
    };
    steps(&assembly, &mut trainer, &rows, 0, 3);
    let before = moments(&trainer);
    assert!(before.iter().all(|m| *m > 0.0));
    trainer.choose(&assembly, 3).expect("a choice");
    let after = moments(&trainer);
    for row in 0..32 {
        // Columns 0..6 before, 4..10 after.
        assert_eq!(after[row * 6..row * 6 + 2], before[row * 6 + 4..row * 6 + 6]);
        assert!(after[row * 6 + 2..row * 6 + 6].iter().all(|m| *m == 0.0));
    }
    trainer.choose(&assembly, 3).expect("a choice");
    assert_eq!(moments(&trainer), after, "choosing twice is choosing once");
}

/// Cut in the middle of a round, at its end and at its beginning.
#[test]
fn rounds_resume_to_the_bit() {
    let (whole, mut trainer) = columns("adamw");
    steps(&whole, &mut trainer, &rows, 0, 8);
    let expected = bits(&whole, &trainer);
    for cut in [2, 3, 4, 6] {
        let folder = tempfile::tempdir().expect("a folder");
        let (first, mut trainer) = columns("adamw");
        steps(&first, &mut trainer, &rows, 0, cut);
        save(folder.path(), cut, &first, &trainer);
        let (second, mut trainer) = columns("adamw");
        assert_eq!(restore(folder.path(), &second, &mut trainer), cut);
        steps(&second, &mut trainer, &rows, cut, 8);
        assert!(bits(&second, &trainer) == expected, "cut after step {cut}");
    }
}

/// The average of the weights, by hand; evaluations see it, training does not.
#[test]
fn ema_swaps_to_the_bit() {
    let mut blueprint = fresh_model(small_llama());
    blueprint.full_training = true;
    let assembly = assemble(&blueprint);
    let mut trainer = lab::trainer(1e-2);
    let ema = lab::part("ema", json!({ "decay": 0.5, "warmup": false }));
    trainer.hooks.push(parts::hook(&ema).expect("ema"));
    let value =
        || assembly.sites.param("model.norm.weight").expect("a norm").base().value().to_f32().expect("f32");
    let mut average = value();
    let none = Map::new();
    for step in 0..3 {
        trainer.step(&assembly, &[rows(step)], step).expect("a step");
        let (trained, now) = (weights(&assembly), value());
        average.iter_mut().zip(&now).for_each(|(s, v)| *s += 0.5 * (v - *s));
        trainer.event(Event::BeforeEval, &assembly, step + 1, 0.0, &none).expect("an event");
        assert_eq!(value(), average);
        trainer.event(Event::AfterEval, &assembly, step + 1, 0.0, &none).expect("an event");
        assert!(weights(&assembly) == trained, "the weights come back to the bit");
    }
    trainer.event(Event::End, &assembly, 3, 0.0, &none).expect("an event");
    assert_eq!(value(), average, "the stage ends with the average");
}

/// Patience, and the best weights at the end.
#[test]
fn early_stop_waits_and_goes_back() {
    let mut blueprint = fresh_model(small_llama());
    blueprint.full_training = true;
    let assembly = assemble(&blueprint);
    let mut trainer = lab::trainer(1e-2);
    let settings = json!({ "patience": 2, "min_delta": 0.1, "restore_best": true });
    trainer.hooks.push(parts::hook(&lab::part("early-stop", settings)).expect("early-stop"));
    let figure = |x: f64| json!({ "loss": x }).as_object().cloned().expect("a map");
    let mut best = Vec::new();
    for (step, (loss, stops)) in
        [(3.0, false), (2.5, false), (2.45, false), (2.2, false), (2.2, false), (2.15, true)]
            .into_iter()
            .enumerate()
    {
        let step = step as u64;
        trainer.step(&assembly, &[rows(step)], step).expect("a step");
        let flow =
            trainer.event(Event::AfterEval, &assembly, step + 1, 0.0, &figure(loss)).expect("an event");
        assert_eq!(flow != Flow::Go, stops, "after {loss}");
        if loss == 2.2 && best.is_empty() {
            best = weights(&assembly);
        }
    }
    assert!(weights(&assembly) != best);
    trainer.event(Event::End, &assembly, 6, 0.0, &Map::new()).expect("an event");
    assert!(weights(&assembly) == best, "the stage ends with the best weights");
    let e = trainer.event(
        Event::AfterEval,
        &assembly,
        7,
        0.0,
        &json!({ "perplexity": 2 }).as_object().cloned().expect("a map"),
    );
    assert!(e.is_err_and(|e| e.to_string().contains("goes by `loss`, and the stage measures `perplexity`")));
}

const STOPS: &str = r#"
seed = 7
model = { source = "builtin:tiny" }

[[stage]]
kind = "train"
adapter = [{ kind = "lora", r = 2, lora_alpha = 4 }]
optimizer = { kind = "adamw", lr = 1e-3 }
data = { kind = "builtin", name = "records", rows = 40, max_length = 96 }
batch = { micro_batch_size = 2 }
checkpoint = { every = 1, keep = 2 }
hook = [{ kind = "early-stop", patience = 2, min_delta = 100.0 }, { kind = "ema", decay = 0.9 }]
steps = 20

[stage.eval]
data = { kind = "builtin", name = "records", rows = 2, held_out = true, max_length = 96 }
metrics = ["loss"]
every = 1
"#;

/// A stage that ends early is complete: it says why, its adapter is there, and going on changes nothing.
#[test]
fn early_stop_ends_a_stage() {
    let kitchen = cook(STOPS);
    let figures = kitchen.figures("0-train");
    assert_eq!(figures["steps"], 3, "one evaluation improves on nothing, two do not on it");
    let adapter = kitchen.out("adapter/adapter_model.safetensors");
    let hash = ramekin_tests::sha256(&adapter);
    let before = read(&kitchen.out("summary.json"));
    // As if killed after the last checkpoint: nothing is trained anew.
    std::fs::remove_file(kitchen.out("state.json")).expect("a state");
    std::fs::remove_file(kitchen.out("summary.json")).expect("a summary");
    let again = kitchen.run(&["--resume"]);
    again.expect(0);
    assert!(again.stderr.contains("ended after step 3 of 20"), "{}", again.stderr);
    assert_eq!(ramekin_tests::sha256(&adapter), hash);
    let after = read(&kitchen.out("summary.json"));
    assert_eq!(before["stages"]["0-train"]["eval"], after["stages"]["0-train"]["eval"]);
}

/// Without evaluations between the steps it would never act.
#[test]
fn early_stop_needs_evaluations() {
    let recipe = STOPS
        .replace("every = 1\n\"#", "")
        .replace("metrics = [\"loss\"]\nevery = 1\n", "metrics = [\"loss\"]\n");
    let outcome = ramekin_tests::Kitchen::new(&recipe).run(&[]);
    outcome.expect(2);
    assert!(outcome.stderr.contains("goes by measurements between the steps"), "{}", outcome.stderr);
}

/// Three rounds of HFT in one recipe: each trains another half and leaves a model and its choice.
#[test]
fn hft_rounds_leave_models() {
    let stage = r#"
[[stage]]
kind = "train"
selection = { kind = "hft" }
optimizer = { kind = "adamw", lr = 1e-3 }
data = { kind = "builtin", name = "records", rows = 40, max_length = 96 }
batch = { micro_batch_size = 2 }
steps = 2
"#;
    let kitchen = cook(&format!("seed = 7\nmodel = {{ source = \"builtin:tiny\" }}\n{stage}{stage}"));
    let trained = |k: usize| {
        let file = read(&kitchen.out(&format!("stages/{k}-train/delta/selection.json")));
        assert_eq!((&file["kind"], &file["round"]), (&json!("hft"), &json!(k)));
        file["trained"].as_array().cloned().expect("a list")
    };
    assert_ne!(trained(0), trained(1));
    assert!(kitchen.out("model/model.safetensors").exists() && kitchen.out("delta/selection.json").exists());
    let figures = kitchen.figures("1-train");
    assert!(
        figures["measured_peak"].as_f64() <= figures["planned_peak"].as_f64().map(|p| 1.05 * p),
        "{figures}"
    );
}
