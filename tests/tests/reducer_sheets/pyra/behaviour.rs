//! Check 6: on a shifted task the generators make the loss smaller than plain merging does.
//!
//! 20 by 20 grey images, 26 tokens. A class is an 8 by 8 pattern at a random place of whole patches, in noise.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use ramekin_core::{Array, Category, Draws, Rng};
use ramekin_engine::assembly::Assembly;
use ramekin_engine::blueprint::Blueprint;
use ramekin_engine::parts;
use ramekin_engine::run::plain_model;
use ramekin_engine::step::{LabelledBatch, Trainer};
use ramekin_recipe::{Config, Model};
use ramekin_slots::{Forward, Mode};
use ramekin_tape::{GradStore, Tape};
use ramekin_tests::images::{CLASSES, labelled, small_vit};
use ramekin_tests::lab::{self, new_adapter, part};
use serde_json::{Value as Json, json};

use crate::ok;

const SIDE: usize = 20;
const PATTERN: usize = 8;
const STEPS: u64 = 150;
const ROWS: usize = 32;

fn normal(rng: Rng, name: &str, n: usize) -> Vec<f32> {
    let mut x = vec![0.0; n];
    rng.named("tests/patterns", name).fill_normal(0, 1.0, &mut x);
    x
}

/// Patterns, a class after the other.
struct Task {
    patterns: Vec<f32>,
    rng: Rng,
}

impl Task {
    fn first(rng: Rng) -> Self {
        Task { patterns: normal(rng, "old", CLASSES * PATTERN * PATTERN), rng }
    }

    fn shifted(&self) -> Self {
        let new = normal(self.rng, "new", self.patterns.len());
        let patterns = self.patterns.iter().zip(new).map(|(old, new)| 0.6 * old + 0.8 * new).collect();
        Task { patterns, rng: self.rng }
    }

    /// Images with their classes.
    fn images(&self, name: &str, count: usize) -> (Vec<f32>, Vec<usize>) {
        let mut pixels = normal(self.rng, name, count * SIDE * SIDE);
        let mut draws = Draws::new(self.rng.named("tests/places", name));
        let mut classes = Vec::with_capacity(count);
        for image in pixels.chunks_exact_mut(SIDE * SIDE) {
            image.iter_mut().for_each(|x| *x *= 0.7);
            let class = draws.below(CLASSES);
            let places = (SIDE - PATTERN) / 4 + 1;
            let (top, left) = (4 * draws.below(places), 4 * draws.below(places));
            let pattern = &self.patterns[class * PATTERN * PATTERN..(class + 1) * PATTERN * PATTERN];
            for (y, row) in pattern.chunks_exact(PATTERN).enumerate() {
                let at = (top + y) * SIDE + left;
                image[at..at + PATTERN].iter_mut().zip(row).for_each(|(x, p)| *x += p);
            }
            classes.push(class);
        }
        (pixels, classes)
    }
}

fn pick(assembly: &Assembly, (pixels, classes): &(Vec<f32>, Vec<usize>), rows: &[usize]) -> LabelledBatch {
    let size = SIDE * SIDE;
    let some = rows.iter().flat_map(|r| pixels[r * size..(r + 1) * size].to_vec()).collect();
    labelled(assembly, some, &rows.iter().map(|r| classes[*r]).collect::<Vec<_>>())
}

fn blueprint(seed: u64) -> Blueprint {
    let mut config = small_vit(SIDE);
    config["initializer_range"] = json!(0.1);
    let config = config.as_object().cloned();
    let model = Model { config: config.map(Config::Table), ..plain_model("init") };
    ramekin_catalog::link();
    Blueprint { seed, ..Blueprint::new(model) }
}

fn trainer(lr: f64, schedule: (&str, Json)) -> Trainer {
    Trainer {
        schedule: ok(parts::schedule(&part(schedule.0, schedule.1))),
        total_steps: STEPS,
        ..lab::trainer(lr)
    }
}

/// The weights of a model that has learnt the first task without merging.
fn pretrained(seed: u64, task: &Task) -> BTreeMap<String, Vec<f32>> {
    let assembly = ok(Blueprint { full_training: true, ..blueprint(seed) }.assemble(false));
    let mut trainer = trainer(2e-3, ("constant", json!({})));
    for step in 0..STEPS {
        let images = task.images(&format!("pretraining {step}"), ROWS);
        let batch = pick(&assembly, &images, &(0..ROWS).collect::<Vec<_>>());
        ok(trainer.step(&assembly, &[batch], step));
    }
    lab::trained(&assembly).into_iter().collect()
}

/// Mean loss and share of images told right, in evaluation mode.
fn measure(assembly: &Assembly, images: &(Vec<f32>, Vec<usize>)) -> (f64, f64) {
    let batch = pick(assembly, images, &(0..images.1.len()).collect::<Vec<_>>());
    let totals = [images.1.len() as f64];
    let loss = lab::trainer(1.0).micro_batch(assembly, &batch, &totals, 0, false, &mut GradStore::new());
    let fx = Forward::new(Tape::off(), assembly.sites.clone(), batch.flat.clone(), Mode::inference());
    let h = ok(ramekin_engine::hidden::hidden(&assembly.model, &fx, None));
    let z = ok(ok(assembly.model.head(&fx, &h)).array().to_f32());
    let right = batch.flat.segments.iter().zip(&images.1).filter(|(s, class)| {
        let row = &z[s.start * CLASSES..(s.start + 1) * CLASSES];
        (0..CLASSES).all(|k| row[k] <= row[**class])
    });
    (ok(loss), right.count() as f64 / images.1.len() as f64)
}

/// Loss on the training images and accuracy on fresh ones after training under a reducer.
fn adapt(seed: u64, base: &BTreeMap<String, Vec<f32>>, task: &Task, reducer: (&str, Json)) -> (f64, f64) {
    let lora = json!({
        "r": 2, "lora_alpha": 4, "target_modules": ["query", "value"], "modules_to_save": ["classifier"],
    });
    let plan = Blueprint {
        adapters: vec![new_adapter("lora", lora)],
        reducers: vec![part(reducer.0, reducer.1)],
        ..blueprint(seed + 100) // another head than the one that pre-training began with
    };
    let assembly = ok(plan.assemble(false));
    for (name, value) in base.iter().filter(|(name, _)| !name.starts_with("classifier")) {
        let param = ok(assembly.sites.param(name)).base().clone();
        let dims = param.value().dims().to_vec();
        param.set(ok(Array::from_vec(value.clone(), &dims, Category::Weights)));
    }
    let train = task.images("training", 256);
    let mut trainer = trainer(3e-3, ("linear", json!({ "min_ratio": 0.05 })));
    let lr = trainer.optimizer.lr();
    trainer.groups = assembly.adapters.iter().flat_map(|a| a.adapter.groups(lr)).collect();
    let mut draws = Draws::new(Rng::new(seed).stream("tests/rows", 0));
    for step in 0..STEPS {
        let rows: Vec<usize> = (0..ROWS).map(|_| draws.below(256)).collect();
        ok(trainer.step(&assembly, &[pick(&assembly, &train, &rows)], step));
    }
    (measure(&assembly, &train).0, measure(&assembly, &task.images("fresh", 512)).1)
}

/// Loss and accuracy of PYRA and of plain merging.
fn both(seed: u64) -> [(f64, f64); 2] {
    let schedule = json!([4, 4, 3, 2]);
    let task = Task::first(Rng::new(seed));
    let (base, shifted) = (pretrained(seed, &task), task.shifted());
    let pyra = json!({ "schedule": schedule, "pyra_lr": 3e-2 });
    let tome = json!({ "schedule": schedule });
    [("pyra", pyra), ("tome", tome)].map(|reducer| adapt(seed, &base, &shifted, reducer))
}

/// Two seeds at a time, each on a thread of its own: the steps are too small to be shared out.
fn all(seeds: u64) -> Vec<[(f64, f64); 2]> {
    let found = Mutex::new(BTreeMap::new());
    let next = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("a pool");
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds {
                        return;
                    }
                    let one = pool.install(|| both(seed));
                    found.lock().expect("the list").insert(seed, one);
                }
            });
        }
    });
    found.into_inner().expect("the list").into_values().collect()
}

#[test]
fn check_6() {
    let (mut lower, mut losses, mut accuracies) = (0, [0.0; 2], [0.0; 2]);
    for (seed, each) in all(5).into_iter().enumerate() {
        let [pyra, tome] = each;
        println!(
            "seed {seed}: loss {:.4} of {:.4}, accuracy {:.3} and {:.3}",
            pyra.0, tome.0, pyra.1, tome.1
        );
        lower += usize::from(pyra.0 < tome.0);
        for (i, (loss, accuracy)) in each.into_iter().enumerate() {
            losses[i] += loss / 5.0;
            accuracies[i] += accuracy / 5.0;
        }
    }
    let ratio = losses[0] / losses[1];
    println!("ratio {ratio:.3}, lower on {lower} of 5, accuracies {accuracies:.4?}");
    assert!(lower >= 4, "the loss is lower on {lower} of 5 seeds");
    assert!(ratio <= 0.95, "the mean loss is {ratio:.3} of plain merging's");
    assert!((accuracies[0] - accuracies[1]).abs() <= 0.02, "accuracies {accuracies:?}");
}
