//! `mezo`'s log in the place of weights: a checkpoint of a few bytes a step, and the run to the bit.

use std::path::Path;
use std::sync::Arc;

use ramekin_core::Param;
use ramekin_engine::assembly::Assembly;
use ramekin_engine::blueprint::Blueprint;
use ramekin_engine::step::{LabelledBatch, Trainer};
use ramekin_engine::{checkpoint, parts};
use ramekin_tests::kitchen::Kitchen;
use ramekin_tests::{lab, toy};
use serde_json::{Value as Json, json};

fn plan() -> Blueprint {
    Blueprint { full_training: true, ..lab::fresh_model(toy::llama(32, 32, 2, 4, 64)) }
}

fn trainer(settings: Json, optimizer: &str) -> Trainer {
    let settings = lab::part("mezo", settings);
    Trainer {
        estimator: parts::estimator(&settings).expect("mezo"),
        optimizer: parts::optimizer(&lab::part(optimizer, json!({ "lr": 1e-4 }))).expect("an optimizer"),
        schedule: parts::schedule(&lab::part("linear", json!({}))).expect("linear"),
        fused: true,
        total_steps: 30,
        ..lab::trainer(1e-4)
    }
}

fn batch(step: u64) -> LabelledBatch {
    lab::batch(&lab::sequences(&[12; 4], 32, step))
}

fn steps(assembly: &Assembly, trainer: &mut Trainer, from: u64, to: u64) {
    for step in from..to {
        trainer.step(assembly, &[batch(step)], step).unwrap_or_else(|e| panic!("{e:#}"));
    }
}

fn bits(assembly: &Assembly) -> Vec<u32> {
    let read = |p: &Arc<Param>| p.value().to_f32().expect("numbers");
    assembly.trainable().iter().flat_map(read).map(f32::to_bits).collect()
}

fn size(folder: &Path) -> u64 {
    let entries = std::fs::read_dir(folder).expect("a folder").map(|e| e.expect("an entry").path());
    entries.map(|p| if p.is_dir() { size(&p) } else { p.metadata().expect("a file").len() }).sum()
}

/// First weights and the log give weights and optimizer state again, with state of moments too.
#[test]
fn a_log_alone_goes_on_to_the_bit() {
    for (mode, optimizer) in [("in_place", "sgd"), ("scratch", "sgd"), ("in_place", "adamw")] {
        let settings = json!({ "perturb_mode": mode, "n_directions": 2, "log_only": true });
        let whole = lab::assemble(&plan());
        let mut all = trainer(settings.clone(), optimizer);
        steps(&whole, &mut all, 0, 20);

        let folder = tempfile::tempdir().expect("a folder");
        let checkpoints = checkpoint::open(folder.path(), 1).expect("checkpoints");
        let first = lab::assemble(&plan());
        let mut begun = trainer(settings.clone(), optimizer);
        steps(&first, &mut begun, 0, 12);
        checkpoint::save(&checkpoints, 12, 0.0, &first, &begun, None).expect("a checkpoint");
        let weights: u64 = first.trainable().iter().map(|p| p.value().bytes()).sum();
        assert!(10 * size(folder.path()) < weights, "{} bytes for {weights}", size(folder.path()));

        let second = lab::assemble(&plan());
        let mut again = trainer(settings, optimizer);
        let found = checkpoint::restore(&checkpoints, &second, &mut again).expect("a restored run");
        assert_eq!(found.expect("a checkpoint").step, 12);
        assert!(bits(&second) == bits(&first), "{mode}, {optimizer}: the replay");
        steps(&second, &mut again, 12, 20);
        assert!(bits(&second) == bits(&whole), "{mode}, {optimizer}: going on");
    }
}

/// A step that the log does not have is an error.
#[test]
fn a_log_needs_its_own_steps() {
    let settings = json!({ "log_only": true });
    let assembly = lab::assemble(&plan());
    let mut begun = trainer(settings.clone(), "sgd");
    steps(&assembly, &mut begun, 0, 3);
    let folder = tempfile::tempdir().expect("a folder");
    let checkpoints = checkpoint::open(folder.path(), 1).expect("checkpoints");
    checkpoint::save(&checkpoints, 5, 0.0, &assembly, &begun, None).expect("a checkpoint");
    let mut again = trainer(settings, "sgd");
    let error = checkpoint::restore(&checkpoints, &lab::assemble(&plan()), &mut again);
    let error = format!("{:#}", error.err().expect("a log of three steps cannot tell of five"));
    assert!(error.contains("the log has no step 4"), "{error}");
}

/// What else changes weights is refused, with both lines.
#[test]
fn a_log_is_refused_beside_others() {
    let outcome = Kitchen::new(
        r#"
seed = 1
model = { source = "builtin:tiny" }

[[stage]]
kind = "train"
steps = 3
estimator = { kind = "mezo", log_only = true }
max_grad_norm = 0
hook = [{ kind = "ema" }]
adapter = [{ kind = "lora", r = 4, target_modules = "all-linear" }]
data = { kind = "builtin", name = "records", rows = 32, max_length = 64 }
"#,
    )
    .run(&[]);
    outcome.expect(2);
    for name in ["estimator/mezo", "hook/ema", "log_only"] {
        assert!(outcome.stderr.contains(name), "no `{name}` in\n{}", outcome.stderr);
    }
}
