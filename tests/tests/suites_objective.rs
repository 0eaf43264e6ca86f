//! What every registered objective must do, whatever it is. A part without an entry in the table fails.
//!
//! Slopes are the gradient, the loss falls, two micro-batches make the step of the one big batch, the size
//! of a chunk changes nothing, what is frozen stays, and shapes suffice for a plan.

use ramekin_core::{Array, Category, DType};
use ramekin_engine::assembly::Assembly;
use ramekin_engine::blueprint::Blueprint;
use ramekin_engine::parts;
use ramekin_engine::step::{LabelledBatch, Trainer};
use ramekin_registry::Slot;
use ramekin_slots::FlatBatch;
use ramekin_tests::compare::same_bits;
use ramekin_tests::lab::{self, assemble, part, sequences};
use serde_json::{Value as Json, json};

/// How an objective is tried: its settings, and the rows it learns from.
struct Case {
    kind: &'static str,
    settings: Json,
    rows: fn() -> LabelledBatch,
    chunked: bool,
}

const V: usize = 61;

fn tokens() -> LabelledBatch {
    lab::batch(&sequences(&[9, 5, 12, 7], V, 1))
}

/// Texts that end with one of three words, which alone is learnt.
fn answers() -> LabelledBatch {
    let mut texts = sequences(&[9, 5, 12, 7], V, 1);
    texts.iter_mut().zip([7, 30, 11, 30]).for_each(|(text, word)| text.push(word));
    ramekin_tests::toy::labelled(&texts, |i, n| i + 1 == n)
}

/// Two segments with one prompt of three tokens each, the answers learnt.
fn pairs() -> LabelledBatch {
    let answers = sequences(&[6, 4, 5, 7, 3, 4, 6, 2], V, 2);
    let prompts = sequences(&[3; 4], V, 3);
    let (mut texts, mut labels) = (Vec::new(), Vec::new());
    for (i, answer) in answers.iter().enumerate() {
        let text = [prompts[i / 2].clone(), answer.clone()].concat();
        labels.extend((1..text.len()).map(|t| if t < 3 { -100 } else { i64::from(text[t]) }));
        labels.push(-100);
        texts.push(text);
    }
    LabelledBatch::of(FlatBatch::new(&texts), labels)
}

fn targets(target: fn(usize) -> Vec<f32>) -> LabelledBatch {
    let texts = sequences(&[9, 5, 12, 7, 6, 8], V, 4);
    let flat = FlatBatch::new(&texts);
    let labels = vec![-100; flat.len()];
    LabelledBatch { flat, labels, targets: (0..texts.len()).map(target).collect() }
}

fn cases() -> Vec<Case> {
    let case = |kind, settings, rows, chunked| Case { kind, settings, rows, chunked };
    let mut all = vec![
        case("sft", json!({}), tokens as fn() -> LabelledBatch, true),
        case("sft", json!({ "label_smoothing_factor": 0.1 }), tokens, true),
        case("label-words", json!({ "label_words": (0..V).collect::<Vec<_>>() }), tokens, true),
        case("label-words", json!({ "label_words": [7, 30, 11] }), answers, true),
        case("distil", json!({}), tokens, true),
        case("distil", json!({ "kl": "reverse", "kd_alpha": 0.2 }), tokens, true),
        case("gkd", json!({}), tokens, true),
        case("classification", json!({ "num_labels": 3 }), || targets(|i| vec![(i % 3) as f32]), false),
        case(
            "classification",
            json!({ "num_labels": 2, "problem_type": "multi_label_classification" }),
            || targets(|i| vec![(i % 2) as f32, (i / 3) as f32]),
            false,
        ),
        case("regression", json!({}), || targets(|i| vec![i as f32 / 3.0 - 1.0]), false),
        case("reward", json!({ "center_rewards_coefficient": 0.01 }), pairs, false),
        case("dpo", json!({ "loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.3] }), pairs, true),
        case(
            "dpo",
            json!({ "f_divergence_type": "js_divergence", "beta": 0.5, "ld_alpha": 0.5 }),
            pairs,
            true,
        ),
        case("dpo", json!({ "use_weighting": true, "loss_type": "hinge" }), pairs, true),
    ];
    for kind in
        ["ipo", "nca_pair", "bco_pair", "sppo_hard", "apo_zero", "apo_down", "sigmoid_norm", "discopop"]
    {
        all.push(case("dpo", json!({ "loss_type": kind, "beta": 0.2 }), pairs, true));
    }
    for kind in ["robust", "exo_pair"] {
        all.push(case("dpo", json!({ "loss_type": kind, "label_smoothing": 0.1 }), pairs, true));
    }
    all
}

/// A frozen small model under a LoRA that is not at its start, with the objective in place.
fn set_up(case: &Case, settings: &Json) -> (Assembly, Trainer) {
    let adapter = lab::new_adapter("lora", json!({ "r": 4, "target_modules": "all-linear" }));
    let plan = Blueprint { adapters: vec![adapter], ..lab::fresh_model(lab::small_llama()) };
    let mut assembly = assemble(&plan);
    for p in assembly.trainable().iter().filter(|p| p.name().contains("lora_B")) {
        let stream = ramekin_core::Rng::new(8).named("suite", p.name());
        p.value().update(|x: &mut [f32]| stream.fill_normal(0, 0.05, x)).expect("f32");
    }
    let mut trainer = lab::trainer(5e-3);
    trainer.objective = parts::objective(&part(case.kind, settings.clone())).expect("an objective");
    trainer.join(&mut assembly, &plan).unwrap_or_else(|e| panic!("{}: {e:#}", case.kind));
    (assembly, trainer)
}

/// Single rows of the batch, pairs kept together.
fn singly(batch: &LabelledBatch, each: usize) -> Vec<LabelledBatch> {
    let one = |(i, segments): (usize, &[std::ops::Range<usize>])| {
        let texts: Vec<Vec<u32>> = segments.iter().map(|s| batch.flat.ids[s.clone()].to_vec()).collect();
        let labels = segments.iter().flat_map(|s| batch.labels[s.clone()].to_vec()).collect();
        let targets = batch.targets.iter().skip(i * each).take(each).cloned().collect();
        LabelledBatch { flat: FlatBatch::new(&texts), labels, targets }
    };
    batch.flat.segments.chunks(each).enumerate().map(one).collect()
}

#[test]
fn every_objective_is_in_the_table() {
    ramekin_catalog::link();
    let known: Vec<&str> = cases().iter().map(|c| c.kind).collect();
    let names = ramekin_registry::names(Slot::Objective);
    assert!(names.len() >= 7, "{names:?}");
    for name in names {
        assert!(known.contains(&name), "`{name}` has no entry in this suite's table");
    }
}

#[test]
fn schemas_take_the_default_and_refuse_the_unknown() {
    ramekin_catalog::link();
    for name in ramekin_registry::names(Slot::Objective) {
        let full = ramekin_registry::complete(Slot::Objective, name, json!({})).expect("defaults");
        assert!(parts::objective(&part(name, full)).is_ok(), "{name}");
        let unknown = parts::objective(&part(name, json!({ "no_such_setting": 1 })));
        let said = unknown.err().map(|e| format!("{e:#}")).unwrap_or_default();
        assert!(said.contains("no_such_setting"), "{name}: {said}");
    }
}

#[test]
fn slopes_are_the_gradient() {
    for case in cases() {
        let (assembly, trainer) = set_up(&case, &case.settings);
        for entry in assembly.ledger.borrow().entries() {
            let p = entry.param.as_ref().expect("dense");
            p.set(p.value().to_dtype(DType::F64, Category::Weights).expect("f64"));
        }
        let batch = [(case.rows)()];
        let totals = trainer.totals(&batch);
        let value = || {
            let mut none = ramekin_tape::GradStore::new();
            trainer.micro_batch(&assembly, &batch[0], &totals, 0, false, &mut none).expect("a loss")
        };
        let mut store = ramekin_tape::GradStore::new();
        trainer.micro_batch(&assembly, &batch[0], &totals, 0, false, &mut store).expect("a loss");
        let mut tried = 0;
        for (p, grad) in store.iter() {
            let grad = grad.to_f64().expect("numbers");
            let i = grad.len() / 3;
            let array: Array = p.value();
            let at = |h: f64| {
                array.update(|x: &mut [f64]| x[i] += h).expect("f64");
                let loss = value();
                array.update(|x: &mut [f64]| x[i] -= h).expect("f64");
                loss
            };
            let h = 1e-5;
            let slope = (at(h) - at(-h)) / (2.0 * h);
            let off = (slope - grad[i]).abs();
            // WPO's weights are constants to the gradient and not to the slope.
            let weighted = case.settings["use_weighting"] == true;
            assert!(
                off <= 1e-6 * slope.abs().max(1.0) || weighted,
                "{} {}: {}: {slope} and {}",
                case.kind,
                case.settings,
                p.name(),
                grad[i]
            );
            tried += 1;
        }
        assert_eq!(tried, assembly.trainable().len(), "{}: every parameter has a gradient", case.kind);
    }
}

#[test]
fn losses_fall_and_what_is_frozen_stays() {
    for case in cases() {
        let (assembly, mut trainer) = set_up(&case, &case.settings);
        let frozen = lab::frozen_bits(&assembly);
        let losses = lab::train(&assembly, &mut trainer, &(case.rows)(), 10);
        assert!(losses.iter().all(|l| l.is_finite()), "{}: {losses:?}", case.kind);
        assert!(losses[9] < losses[0], "{} {}: {losses:?}", case.kind, case.settings);
        assert!(frozen == lab::frozen_bits(&assembly), "{}: something frozen moved", case.kind);
    }
}

#[test]
fn chunks_and_micro_batches_do_not_matter() {
    for case in cases() {
        let batch = (case.rows)();
        let of = |settings: &Json, batches: &[LabelledBatch]| {
            let (assembly, trainer) = set_up(&case, settings);
            lab::loss_and_gradients(&assembly, &trainer, batches)
        };
        let whole = of(&case.settings, std::slice::from_ref(&batch));
        let near = |what: &str, other: &(f64, Vec<(String, Vec<f32>)>)| {
            let loss = (whole.0 - other.0).abs();
            assert!(
                loss <= 2e-6 * whole.0.abs().max(1.0),
                "{} {}: {what}: loss off by {loss:.1e}",
                case.kind,
                case.settings
            );
            for ((name, a), (_, b)) in whole.1.iter().zip(&other.1) {
                let off = ramekin_tests::compare::difference(a, b);
                let most = ramekin_tests::compare::largest(a).max(1.0);
                assert!(off <= 1e-5 * most, "{}: {what}: {name} off by {off:.1e}", case.kind);
            }
        };
        if case.chunked {
            let mut small = case.settings.clone();
            small["chunk_tokens"] = json!(3);
            near("chunks of 3", &of(&small, std::slice::from_ref(&batch)));
        }
        let objective = parts::objective(&part(case.kind, case.settings.clone())).expect("an objective");
        let each = if objective.rows() == ramekin_slots::Rows::Pairs { 2 } else { 1 };
        near("row by row", &of(&case.settings, &singly(&batch, each)));
    }
}

#[test]
fn the_same_step_twice_has_the_same_bits() {
    for case in cases() {
        let of = || {
            let (assembly, mut trainer) = set_up(&case, &case.settings);
            lab::train(&assembly, &mut trainer, &(case.rows)(), 2);
            lab::trained(&assembly)
        };
        for ((name, a), (_, b)) in of().iter().zip(of()) {
            same_bits(name, a, &b);
        }
    }
}

#[test]
fn shapes_suffice_for_a_plan() {
    for case in cases() {
        let adapter = lab::new_adapter("lora", json!({ "r": 4, "target_modules": "all-linear" }));
        let plan = Blueprint { adapters: vec![adapter], ..lab::fresh_model(lab::small_llama()) };
        let mut assembly = plan.assemble(true).expect("shapes");
        let mut trainer = lab::trainer(5e-3);
        trainer.objective = parts::objective(&part(case.kind, case.settings.clone())).expect("an objective");
        trainer.join(&mut assembly, &plan).expect("in place");
        let batch = LabelledBatch { targets: Vec::new(), ..(case.rows)() };
        let report = trainer.step(&assembly, &[batch], 0);
        report.unwrap_or_else(|e| panic!("{} {}: {e:#}", case.kind, case.settings));
    }
}
