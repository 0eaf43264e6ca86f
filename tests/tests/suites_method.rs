//! What every registered method must do, whoever wrote it.
//!
//! The parts come from the registry; a part without a line in [`CASES`] fails the suite. What a part
//! declares is measured; the rest holds for all: gradients, saving and loading, resuming, a frozen base,
//! settings, a cache, and the run on shapes that a plan is.

use ramekin_engine::assembly::Assembly;
use ramekin_engine::bill::{self, StepShape};
use ramekin_engine::blueprint::Blueprint;
use ramekin_engine::parts;
use ramekin_engine::step::{LabelledBatch, Trainer};
use ramekin_recipe::Part;
use ramekin_registry::{PartEntry, Slot, Trait};
use ramekin_slots::{FlatBatch, KvPolicy};
use ramekin_tests::compare::{close, difference, same_bits};
use ramekin_tests::decoding::{Session, shape};
use ramekin_tests::lab::{self, assemble, saved_adapter, sequences};
use ramekin_tests::selecting::{bits, frozen_since, restore, save, steps, weights};
use ramekin_tests::suite::{self, differences, listed, same_files, save_adapter, stir};
use ramekin_tests::toy;
use serde_json::{Value as Json, json};

/// A line for each method, or several: its name and settings.
const CASES: &[(&str, &str)] = &[
    ("meft", r#"{ "adapter_bottleneck_dim": 4 }"#),
    (
        "meft",
        r#"{ "variant": "meft2", "layernorm_in_adapter": true, "lambda": -0.9, "checkpoint_every": 0 }"#,
    ),
    ("meft", r#"{ "variant": "meft3", "dropout": 0.1, "checkpoint_every": 1 }"#),
    ("meft", r#"{ "num_rev_layers": 1, "dropout": 0.1 }"#),
    ("meft", r#"{ "num_rev_layers": 2, "freeze_irreversible_layers": true, "report_drift": true }"#),
    ("meft", r#"{ "variant": "meft3", "num_rev_layers": 0, "lambda": 0.0 }"#),
];

/// Runs `f` on every case of every registered method.
fn each(f: impl Fn(&PartEntry, &Part)) {
    ramekin_catalog::link();
    let all: Vec<_> = ramekin_registry::parts().into_iter().filter(|p| p.slot == Slot::Method).collect();
    assert!(!all.is_empty(), "no method is registered");
    for (name, _) in CASES {
        assert!(all.iter().any(|p| p.name == *name), "`{name}` is not registered");
    }
    for part in all {
        let own: Vec<_> = CASES.iter().filter(|(name, _)| *name == part.name).collect();
        assert!(!own.is_empty(), "`{}` has no case in this suite", part.name);
        for (name, settings) in own {
            println!("{name} {settings}");
            f(part, &lab::part(name, serde_json::from_str(settings).expect("JSON")));
        }
    }
}

/// The small llama with one more layer.
fn config() -> Json {
    let mut config = lab::small_llama();
    config["num_hidden_layers"] = json!(3);
    config
}

fn blueprint(method: &Part) -> Blueprint {
    Blueprint { method: Some(method.clone()), ..lab::fresh_model(config()) }
}

fn begun(method: &Part) -> (Assembly, Trainer) {
    (assemble(&blueprint(method)), lab::method_trainer(1e-2, method))
}

fn probe() -> FlatBatch {
    FlatBatch::new(&sequences(&[17, 5, 1], 61, 3))
}

fn rows(step: u64) -> LabelledBatch {
    lab::batch(&sequences(&[12, 7, 10], 61, 100 + step))
}

#[test]
fn declared_traits_hold() {
    let bare = lab::logits(&assemble(&lab::fresh_model(config())), &probe(), true);
    each(|part, method| {
        let declares = |what: Trait| part.traits.contains(&what);
        let brings = parts::installed(method).expect("parts");
        assert!(!brings.taken().is_empty(), "`{}` brings nothing", part.name);
        assert_eq!(declares(Trait::OwnsActivations), brings.activation.is_some(), "`{}`", part.name);
        let assembly = assemble(&blueprint(method));
        let fresh = lab::logits(&assembly, &probe(), true);
        if declares(Trait::IdentityAtStart) {
            same_bits(part.name, &fresh, &bare);
        } else {
            assert!(difference(&fresh, &bare) > 0.0, "`{}` is the identity and does not say so", part.name);
        }
        for attached in &assembly.adapters {
            let merges = attached.adapter.unmergeable().is_none();
            assert_eq!(declares(Trait::Mergeable), merges, "`{}`: merging", part.name);
        }
        stir(&assembly, 0.3);
        let stirred = lab::logits(&assembly, &probe(), true);
        assert!(difference(&stirred, &fresh) > 1e-2, "`{}` does nothing", part.name);
        same_bits("adapters off", &lab::logits(&assembly, &probe(), false), &bare);
    });
}

#[test]
fn gradients_are_differences() {
    let batch = lab::batch(&sequences(&[6, 3], 61, 9));
    each(|part, method| {
        let (assembly, trainer) = begun(method);
        stir(&assembly, 0.3);
        toy::to_f64(&assembly);
        differences(part.name, &assembly, &trainer, &batch, &[]);
    });
}

#[test]
fn saved_and_loaded_is_the_same_to_the_bit() {
    each(|part, method| {
        let assembly = assemble(&blueprint(method));
        stir(&assembly, 0.3);
        let folder = tempfile::tempdir().expect("a folder");
        save_adapter(&assembly, folder.path());
        let adapters = vec![saved_adapter(folder.path())];
        let again = assemble(&Blueprint { adapters, ..lab::fresh_model(config()) });
        let logits = |a: &Assembly| lab::logits(a, &probe(), true);
        same_bits(part.name, &logits(&again), &logits(&assembly));
        let second = tempfile::tempdir().expect("a folder");
        save_adapter(&again, second.path());
        same_files(part.name, folder.path(), second.path());
    });
}

#[test]
fn resume_to_the_bit() {
    each(|part, method| {
        let (whole, mut undisturbed) = begun(method);
        steps(&whole, &mut undisturbed, &rows, 0, 5);
        let expected = bits(&whole, &undisturbed);
        for cut in [1, 3] {
            let folder = tempfile::tempdir().expect("a folder");
            let (first, mut trainer) = begun(method);
            steps(&first, &mut trainer, &rows, 0, cut);
            save(folder.path(), cut, &first, &trainer);
            drop((first, trainer));
            let (second, mut trainer) = begun(method);
            assert_eq!(restore(folder.path(), &second, &mut trainer), cut);
            steps(&second, &mut trainer, &rows, cut, 5);
            assert!(bits(&second, &trainer) == expected, "`{}`, cut after step {cut}", part.name);
        }
    });
}

#[test]
fn what_is_frozen_stays() {
    each(|part, method| {
        let (assembly, mut trainer) = begun(method);
        let bare = lab::logits(&assembly, &probe(), false);
        for step in 0..3 {
            let before = weights(&assembly);
            let trained = lab::trained(&assembly);
            steps(&assembly, &mut trainer, &rows, step, step + 1);
            frozen_since(&before, &assembly);
            let moved = trained.iter().zip(lab::trained(&assembly)).filter(|(a, b)| a.1 != b.1).count();
            assert_eq!(moved, trained.len(), "`{}`: every trainable tensor moves", part.name);
        }
        same_bits("adapters off", &lab::logits(&assembly, &probe(), false), &bare);
    });
}

/// Token by token with a cache as all at once.
#[test]
fn a_cache_changes_nothing() {
    each(|part, method| {
        let assembly = assemble(&blueprint(method));
        stir(&assembly, 0.1);
        let text = sequences(&[14], 61, 8).remove(0);
        let whole = lab::logits(&assembly, &FlatBatch::new(std::slice::from_ref(&text)), true);
        let full: Box<dyn KvPolicy> = parts::kv(&Part::of("full")).expect("full");
        let mut session = Session::new(&assembly, &*full, shape(&assembly, 1, 6, 8));
        let mut stepwise = session.feed(&[text[..6].to_vec()]).remove(0);
        for id in &text[6..] {
            stepwise.extend(session.feed(&[vec![*id]]).remove(0));
        }
        close(part.name, &stepwise, &whole, 1e-5);
    });
}

#[test]
fn settings_are_complete_and_closed() {
    each(|part, _| suite::settings(part));
}

/// A plan's assembly has the same parameters in the same shapes, its step runs without numbers, and it
/// counts what trains.
#[test]
fn shapes_alone_run() {
    for quantizer in [None, Some(lab::part("nf4", json!({ "block_size": 32 })))] {
        each(|part, method| {
            let plan = Blueprint { quantizer: quantizer.clone(), ..blueprint(method) };
            let (real, shapes) = (assemble(&plan), plan.assemble(true).expect("shapes"));
            assert_eq!(listed(&real), listed(&shapes), "`{}`", part.name);
            lab::train(&real, &mut lab::method_trainer(1e-2, method), &rows(0), 1);
            let shape = StepShape { segments: vec![12, 7, 10], active: 26, micro_batches: 1, exact: true };
            let mut planned = lab::method_trainer(1e-2, method);
            let bill = bill::train(part.name, &plan, &mut planned, &shape, None, &|_, _| Ok(()))
                .unwrap_or_else(|e| panic!("{e:#}"));
            assert_eq!((bill.parameters, bill.trainable), real.ledger.borrow().counts(), "`{}`", part.name);
        });
    }
}
