//! `trainable_dtype = "bf16"`: weights that train in half the memory, and nothing lost of small steps.

use std::sync::Arc;

use half::bf16;
use ramekin_core::{DType, Param};
use ramekin_engine::assembly::Assembly;
use ramekin_engine::blueprint::Blueprint;
use ramekin_engine::step::{LabelledBatch, Trainer};
use ramekin_engine::{checkpoint, parts};
use ramekin_recipe::Dtype;
use ramekin_tests::kitchen::{self, Kitchen};
use ramekin_tests::{lab, toy};
use serde_json::{Value as Json, json};

fn plan(trainable: DType) -> Blueprint {
    let mut plan = lab::fresh_model(toy::llama(64, 48, 2, 4, 96));
    plan.model.dtype = Some(Dtype::Bf16);
    Blueprint { full_training: true, trainable, ..plan }
}

fn trainer(kind: &str, optimizer: Json, lr: f64) -> Trainer {
    let settings = json!({ "perturb_mode": "scratch" });
    Trainer {
        estimator: parts::estimator(&lab::part(kind, settings)).expect("an estimator"),
        optimizer: parts::optimizer(&lab::part("sgd", optimizer)).expect("sgd"),
        fused: true,
        total_steps: 400,
        ..lab::trainer(lr)
    }
}

fn batch(step: u64) -> LabelledBatch {
    lab::batch(&lab::sequences(&[12; 4], 64, step))
}

fn steps(assembly: &Assembly, trainer: &mut Trainer, from: u64, to: u64) {
    for step in from..to {
        trainer.step(assembly, &[batch(step)], step).unwrap_or_else(|e| panic!("{e:#}"));
    }
    trainer.flush(assembly, to).expect("what is pending");
}

fn numbers(assembly: &Assembly) -> Vec<f32> {
    let read = |p: &Arc<Param>| p.value().to_f32().expect("numbers");
    assembly.trainable().iter().filter(|p| p.value().dims().len() > 1).flat_map(read).collect()
}

/// Steps a tenth of bf16's spacing: rounded to the nearest they would leave nearly every weight where it was. By chance
/// their mean arrives: where the same run in f32 has gone, to within what chance leaves.
#[test]
fn small_steps_arrive() {
    for (kind, optimizer) in [
        ("mezo", json!({ "lr": 2e-6 })),
        ("zo2", json!({ "lr": 2e-6 })),
        ("mezo", json!({ "lr": 2e-7, "momentum": 0.9 })),
        ("mezo", json!({ "lr": 2e-6, "weight_decay": 0.1 })),
    ] {
        let lr = optimizer["lr"].as_f64().expect("a rate");
        let run = |trainable: DType| {
            let assembly = lab::assemble(&plan(trainable));
            let start = numbers(&assembly);
            steps(&assembly, &mut trainer(kind, optimizer.clone(), lr), 0, 40);
            assert!(assembly.trainable().iter().all(|p| {
                let held = if p.value().dims().len() > 1 { trainable } else { DType::F32 };
                p.value().dtype() == held
            }));
            (start, numbers(&assembly))
        };
        let ((start, narrow), (wide_start, wide)) = (run(DType::BF16), run(DType::F32));
        // Both begin at the same weights but for their rounding.
        assert!(start.iter().zip(&wide_start).all(|(a, b)| *a == bf16::from_f32(*b).to_f32()));
        let (mut along, mut norm, mut steps) = (0.0, 0.0, 0.0);
        for i in 0..start.len() {
            let (moved, wanted) = (f64::from(narrow[i] - start[i]), f64::from(wide[i] - wide_start[i]));
            along += moved * wanted;
            norm += wanted * wanted;
            let spacing = f64::from(start[i].abs()).max(1e-3) / 256.0;
            steps += wanted.abs() / spacing / start.len() as f64;
        }
        // On the way c differs a little, as the weights do.
        let share = along / norm;
        assert!((0.8..1.2).contains(&share), "{kind} {optimizer}: {share:.3} of the way in f32");
        assert!(steps < 1.0, "{kind} {optimizer}: {steps:.2} spacings in all are no small steps");
    }
}

/// A run that was interrupted goes on to the same bits: chance is drawn by step and place.
#[test]
fn goes_on_to_the_bit() {
    let optimizer = json!({ "lr": 1e-4 });
    let whole = lab::assemble(&plan(DType::BF16));
    steps(&whole, &mut trainer("mezo", optimizer.clone(), 1e-4), 0, 20);
    let folder = tempfile::tempdir().expect("a folder");
    let checkpoints = checkpoint::open(folder.path(), 1).expect("checkpoints");
    let first = lab::assemble(&plan(DType::BF16));
    let mut begun = trainer("mezo", optimizer.clone(), 1e-4);
    steps(&first, &mut begun, 0, 9);
    checkpoint::save(&checkpoints, 9, 0.0, &first, &begun, None).expect("a checkpoint");
    let second = lab::assemble(&plan(DType::BF16));
    let mut again = trainer("mezo", optimizer, 1e-4);
    checkpoint::restore(&checkpoints, &second, &mut again).expect("a restored run").expect("a checkpoint");
    assert!(
        second.trainable().iter().all(|p| p.value().dims().len() == 1 || p.value().dtype() == DType::BF16)
    );
    steps(&second, &mut again, 9, 20);
    assert_eq!(numbers(&second), numbers(&whole));
}

const RECIPE: &str = r#"
seed = 1
model = { source = "builtin:tiny", dtype = "bf16" }

[[stage]]
kind = "train"
steps = 3
trainable_dtype = "bf16"
estimator = { kind = "mezo", perturb_mode = "scratch" }
optimizer = { kind = "sgd", lr = 1e-5 }
max_grad_norm = 0
data = { kind = "builtin", name = "records", rows = 32, max_length = 64 }
"#;

/// Plan and measurement agree, weights take half, and what was saved is what a stage behind reads.
#[test]
fn takes_half_the_memory_and_is_saved() {
    let figure = |recipe: &str| {
        let stage = kitchen::cook(recipe).figures("0-train");
        let peak = |key: &str| stage[key].as_f64().unwrap_or_else(|| panic!("no {key} in {stage}"));
        (peak("planned_peak"), peak("measured_peak"))
    };
    let eval = "\n[[stage]]\nkind = \"eval\"\nmetrics = [\"loss\"]\n\
                data = { kind = \"builtin\", name = \"records\", rows = 32, max_length = 64 }\n";
    let narrow = figure(&(RECIPE.to_owned() + eval));
    assert!((narrow.0 / narrow.1 - 1.0).abs() < 0.02, "planned {} for {}", narrow.0, narrow.1);
    let wide = figure(&RECIPE.replace("trainable_dtype = \"bf16\"\n", ""));
    assert!(narrow.1 < wide.1, "{} in bf16, {} in f32", narrow.1, wide.1);
}

/// Where the blocks live changes no bit.
#[test]
fn blocks_may_be_elsewhere() {
    let written = |more: &str| {
        let kitchen = kitchen::cook(&RECIPE.replace("\"mezo\"", "\"zo2\"").replace("max_grad_norm", more));
        std::fs::read(kitchen.out("model/model.safetensors")).expect("a model")
    };
    let here = written("max_grad_norm");
    assert!(here == written("placement = { kind = \"offload\" }\nmax_grad_norm"));
}

/// What needs f32 is refused, with both lines.
#[test]
fn is_refused_beside_what_needs_f32() {
    for (from, to, names) in [
        ("estimator = { kind = \"mezo\", perturb_mode = \"scratch\" }\n", "", &["estimator/backprop"][..]),
        (", perturb_mode = \"scratch\"", "", &["estimator/mezo", "perturb_mode"]),
        ("max_grad_norm = 0", "max_grad_norm = 0\nhook = [{ kind = \"ema\" }]", &["hook/ema"]),
        (
            "max_grad_norm = 0",
            "max_grad_norm = 0\nadapter = [{ kind = \"lora\", target_modules = \"all-linear\" }]",
            &["an adapter"],
        ),
        (", dtype = \"bf16\" }", ", dtype = \"f32\" }", &["needs a model in bf16"]),
        ("trainable_dtype = \"bf16\"", "trainable_dtype = \"f16\"", &["bf16"]),
    ] {
        let recipe = RECIPE.replacen(from, to, 1);
        assert_ne!(recipe, RECIPE);
        let outcome = Kitchen::new(&recipe).run(&[]);
        outcome.expect(2);
        for name in names.iter().chain(&["trainable_dtype"]) {
            assert!(outcome.stderr.contains(name), "no `{name}` in\n{}", outcome.stderr);
        }
    }
}
