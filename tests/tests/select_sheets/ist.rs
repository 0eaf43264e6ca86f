//! Sheet `ist`.

use std::collections::HashMap;
use std::rc::Rc;

use ramekin_core::{Draws, Rng};
use ramekin_engine::assembly::Assembly;
use ramekin_engine::blueprint::Blueprint;
use ramekin_engine::parts;
use ramekin_engine::pass::Draw;
use ramekin_engine::step::{LabelledBatch, Trainer};
use ramekin_hook_layers::{sample, sigmoid, update};
use ramekin_slots::{Adapter, AttachContext};
use ramekin_tests::domains::{chain, walk};
use ramekin_tests::lab::{self, assemble, batch, fresh_model, sequences, small_llama};
use ramekin_tests::selecting::{draw, frozen_since, loss, weights};
use ramekin_tests::toy_model::{Toy, values};
use serde_json::{Value as Json, json};

const LORA: &str = r#"{ "r": 2, "lora_alpha": 4, "target_modules": "all-linear", "lora_dropout": 0.1 }"#;

fn layers(count: usize) -> Blueprint {
    let mut config = small_llama();
    config["num_hidden_layers"] = count.into();
    let lora = serde_json::from_str(LORA).expect("settings");
    Blueprint { adapters: vec![lab::new_adapter("lora", lora)], ..fresh_model(config) }
}

fn trainer(ist: Json) -> Trainer {
    let mut trainer = lab::trainer(1e-2);
    let adamw = lab::part("adamw", json!({ "lr": 1e-2, "weight_decay": 0.1 }));
    trainer.optimizer = parts::optimizer(&adamw).expect("adamw");
    trainer.draw = Some(draw(61, 10));
    let hook = parts::hook(&lab::part("ist", ist));
    trainer.hooks.push(hook.unwrap_or_else(|e| panic!("{e:#}")));
    trainer
}

fn rows(step: u64) -> LabelledBatch {
    batch(&sequences(&[12, 7, 10], 61, 100 + step))
}

fn step(assembly: &Assembly, trainer: &mut Trainer, step: u64) {
    trainer.step(assembly, &[rows(step)], step).unwrap_or_else(|e| panic!("{e:#}"));
}

/// Layers whose adapters train now.
fn active(assembly: &Assembly) -> Vec<usize> {
    let mut all: Vec<usize> = assembly
        .trainable()
        .iter()
        .map(|p| ramekin_core::pattern::layer_of(p.name()).expect("a layer"))
        .collect();
    all.sort_unstable();
    all.dedup();
    all
}

/// Frozen layers keep their bits in every step, and so many layers train.
#[test]
fn check_1() {
    let assembly = assemble(&layers(8));
    let mut trainer = trainer(json!({ "importance_interval": 4, "importance_batch_size": 2 }));
    let mut met = std::collections::BTreeSet::new();
    for s in 0..12 {
        let before = weights(&assembly);
        step(&assembly, &mut trainer, s);
        frozen_since(&before, &assembly);
        let active = active(&assembly);
        assert_eq!(active.len(), 2, "step {s}: {active:?}");
        let (_, grads) = lab::loss_and_gradients(&assembly, &trainer, &[rows(s)]);
        let with: std::collections::BTreeSet<usize> =
            grads.iter().map(|(n, _)| ramekin_core::pattern::layer_of(n).expect("a layer")).collect();
        assert_eq!(with.into_iter().collect::<Vec<_>>(), active);
        met.extend(active);
    }
    assert!(met.len() > 4, "{met:?}");
}

/// The loop changes nothing but importance; at a rate near zero training is RST's.
#[test]
fn check_2() {
    let run = |settings: Json| {
        let assembly = assemble(&layers(4));
        let mut trainer = trainer(settings);
        for s in 0..9 {
            step(&assembly, &mut trainer, s);
        }
        let strengths: Vec<f64> = assembly.sites.linears().iter().map(|l| l.strength()).collect();
        assert!(strengths.iter().all(|s| *s == 1.0));
        let mut state: Vec<(String, Vec<f32>)> = trainer
            .state(&assembly)
            .expect("state")
            .into_iter()
            .filter(|t| !t.name.ends_with("scores"))
            .map(|t| (t.name, t.array.to_f32().expect("numbers")))
            .collect();
        state.sort_by(|a, b| a.0.cmp(&b.0));
        (weights(&assembly), state)
    };
    let often = |method: &str, rate: f64| {
        json!({ "method": method, "importance_interval": 2, "importance_batch_size": 2, "importance_lr": rate,
            "active_fraction": 0.5 })
    };
    let (ist, rst) = (run(often("ist", f64::MIN_POSITIVE)), run(often("rst", 10.0)));
    assert!(ist == rst, "loops are without side effects");
    assert!(run(often("ist", 1e6)) != rst, "importance matters");
}

/// The update by hand; damping to nothing is leaving out.
#[test]
fn check_3() {
    let scores = [0.5, -1.0, 0.0, 2.0];
    let (sets, losses) = ([vec![0, 1], vec![1, 2], vec![0, 3]], [1.0, 1.5, 0.7]);
    let found = update(&scores, &sets, &losses, 10.0).expect("finite");
    let r: Vec<f64> = losses.iter().map(|l: &f64| (-l).exp()).collect();
    let mean = r.iter().sum::<f64>() / 3.0;
    assert!(r.iter().map(|r| r - mean).sum::<f64>().abs() < 1e-12);
    let p = |i: usize| 1.0 / (1.0 + f64::exp(-scores[i]));
    let by = |i: usize, k: usize| 10.0 * (r[k] - mean) * p(i) * (1.0 - p(i));
    let wanted = [0.5 + by(0, 0) + by(0, 2), -1.0 + by(1, 0) + by(1, 1), by(2, 1), 2.0 + by(3, 2)];
    found.iter().zip(wanted).for_each(|(f, w)| assert!((f - w).abs() < 1e-6, "{f} and {w}"));
    assert_eq!(update(&scores, &sets, &[1.25; 3], 10.0).expect("finite"), scores);
    assert_eq!(update(&scores, &sets, &[1.0, f64::NAN, 2.0], 10.0), None);
    // Layer 1 damped to nothing against a model without its adapters.
    let tuned = |without: Option<usize>| {
        let assembly = assemble(&layers(3));
        let mut trainer = lab::trainer(1e-2);
        lab::train(&assembly, &mut trainer, &rows(0), 4);
        for site in assembly.sites.linears() {
            if without.is_some() && ramekin_core::pattern::layer_of(&site.path) == without {
                site.detach_all();
            }
        }
        (assembly, trainer)
    };
    let damp = |(assembly, trainer): &(Assembly, Trainer), by: f64| {
        for site in assembly.sites.linears() {
            if ramekin_core::pattern::layer_of(&site.path) == Some(1) {
                site.set_strength(by);
            }
        }
        loss(assembly, trainer, &rows(7))
    };
    let (whole, bare) = (tuned(None), tuned(Some(1)));
    let (full, half, none) = (damp(&whole, 1.0), damp(&whole, 0.5), damp(&whole, 0.0));
    let removed = damp(&bare, 1.0);
    assert!((none - removed).abs() <= 1e-6, "{none} and {removed}");
    assert!((full - none).abs() > 1e-4 && half != full && half != none, "{full}, {half}, {none}");
}

/// Important layers train more often and are damped less often.
#[test]
fn check_4() {
    let scores: Vec<f64> = (0..8).map(|i| if i < 4 { 3.0 } else { -3.0 }).collect();
    let count = |weights: &[f64], n: usize| {
        let mut counts = [0; 2];
        for i in 0..2000 {
            let mut draws = Draws::new(Rng::new(1).stream("ist", i));
            let set = sample(weights, n, &mut draws);
            assert!(set.len() == n && set.is_sorted_by(|a, b| a < b));
            set.iter().for_each(|l| counts[l / 4] += 1);
        }
        counts
    };
    let by = |sign: f64| scores.iter().map(|s| sigmoid(sign * s)).collect::<Vec<f64>>();
    let (a, s) = (count(&by(-1.0), 2), count(&by(1.0), 4));
    println!("active {a:?}, damped {s:?}");
    assert!(a[1] > 3 * a[0], "{a:?}");
    assert!(s[0] > 3 * s[1] / 2 && s[0] > s[1], "{s:?}");
}

/// Eight layers of width 32, as the sheet says; RMS norms and rotated positions are this project's.
fn toy() -> Toy {
    Toy {
        vocabulary: 32,
        outputs: 32,
        tags: 0,
        width: 32,
        layers: 8,
        heads: 4,
        inner: 64,
        gated: false,
        causal: true,
        residual: 0.25,
        std: 0.02,
        embed_std: 0.02,
        up_std: (1.0f64 / 32.0).sqrt(),
    }
}

struct Text(Vec<Vec<f64>>, u64);

impl Text {
    fn new(seed: u64, name: &str, sharpness: f64) -> Self {
        Text(chain(Rng::new(seed), name, 32, sharpness), seed)
    }

    fn rows(&self, stream: &str, index: u64, rows: usize) -> LabelledBatch {
        let mut draws = Draws::new(Rng::new(self.1).stream(stream, index));
        batch(&(0..rows).map(|_| walk(&self.0, 12, &mut draws)).collect::<Vec<_>>())
    }

    fn draw(self: &Rc<Self>) -> Draw {
        let text = self.clone();
        Rc::new(move |stream, index, rows| text.rows(stream, index, rows))
    }
}

fn learn(assembly: &Assembly, trainer: &mut Trainer, text: &Text, steps: u64) -> f64 {
    let mut lowest = 0;
    for s in 0..steps {
        trainer.step(assembly, &[text.rows("train", s, 16)], s).unwrap_or_else(|e| panic!("{e:#}"));
        lowest += active_toy(assembly).first().copied().unwrap_or(0);
    }
    lowest as f64 / steps as f64
}

fn active_toy(assembly: &Assembly) -> Vec<usize> {
    let mut all: Vec<usize> =
        assembly.trainable().iter().filter_map(|p| ramekin_core::pattern::layer_of(p.name())).collect();
    all.sort_unstable();
    all
}

/// A base that learnt the first table.
fn base(seed: u64, steps: u64) -> HashMap<String, Vec<f32>> {
    let (assembly, _) = toy().assemble(seed, None, None);
    let mut trainer = lab::trainer(3e-3);
    learn(&assembly, &mut trainer, &Text::new(seed, "first", 2.5), steps);
    values(&assembly)
}

/// The base with LoRA on both feed-forward matrices of every layer.
fn adapted(base: &HashMap<String, Vec<f32>>, seed: u64) -> Assembly {
    let (assembly, _) = toy().assemble(seed, Some(base), None);
    assembly
        .ledger
        .borrow()
        .entries()
        .iter()
        .filter_map(|e| e.param.as_ref())
        .for_each(|p| p.set_trainable(false));
    let settings = json!({ "r": 8, "lora_alpha": 16, "target_modules": ["up_proj", "down_proj"] });
    let mut lora = parts::adapter(&lab::part("lora", settings)).expect("lora");
    assembly.seated(false, |cx: &mut AttachContext<'_>| lora.attach(cx)).unwrap_or_else(|e| panic!("{e:#}"));
    let _: &dyn Adapter = &*lora;
    assembly
}

/// Layers that do nothing are found out.
#[test]
fn check_5() {
    let (mut gaps, mut ratios, mut flipped) = (Vec::new(), Vec::new(), Vec::new());
    for seed in 0..5 {
        let base = base(seed, 200);
        let second = Rc::new(Text::new(seed, "second", 4.0));
        let assembly = adapted(&base, seed);
        for p in assembly.trainable() {
            let layer = ramekin_core::pattern::layer_of(p.name()).expect("a layer");
            p.set_trainable(layer >= 4);
        }
        let mut trainer = lab::trainer(1e-2);
        learn(&assembly, &mut trainer, &second, 200);
        let scores = |rate: f64| {
            let mut scores = vec![0.0f64; 8];
            for loop_ in 0..60 {
                let weights: Vec<f64> = scores.iter().map(|s| sigmoid(*s)).collect();
                let mut draws = Draws::new(Rng::new(seed).stream("sets", loop_));
                let mut sets: Vec<Vec<usize>> = Vec::new();
                while sets.len() < 3 {
                    let set = sample(&weights, 4, &mut draws);
                    if !sets.contains(&set) {
                        sets.push(set);
                    }
                }
                let rows = second.rows("ist", loop_, 16);
                let damped = |set: &Vec<usize>, by: f64| {
                    for site in assembly.sites.linears() {
                        if ramekin_core::pattern::layer_of(&site.path).is_some_and(|l| set.contains(&l)) {
                            site.set_strength(by);
                        }
                    }
                };
                let losses: Vec<f64> = sets
                    .iter()
                    .map(|set| {
                        damped(set, 0.25);
                        let l = loss(&assembly, &trainer, &rows);
                        damped(set, 1.0);
                        l
                    })
                    .collect();
                scores = update(&scores, &sets, &losses, rate).expect("finite");
            }
            scores
        };
        let measure = |scores: &[f64]| {
            let mean = |range: std::ops::Range<usize>| scores[range].iter().sum::<f64>() / 4.0;
            let weights: Vec<f64> = scores.iter().map(|s| sigmoid(-s)).collect();
            let mut counts = [0; 2];
            for i in 0..2000 {
                let mut draws = Draws::new(Rng::new(seed).stream("active", i));
                sample(&weights, 2, &mut draws).iter().for_each(|l| counts[l / 4] += 1);
            }
            (mean(0..4) - mean(4..8), f64::from(counts[1]) / f64::from(counts[0].max(1)))
        };
        let (gap, ratio) = measure(&scores(10.0));
        gaps.push(gap);
        ratios.push(ratio);
        flipped.push(measure(&scores(-10.0)));
    }
    println!("gaps {gaps:.2?}, draw ratios {ratios:.2?}, sign flipped {flipped:.2?}");
    assert!(gaps.iter().all(|g| *g >= 0.6), "{gaps:?}");
    assert!(ratios.iter().all(|r| *r >= 1.3), "{ratios:?}");
    assert!(flipped.iter().all(|(g, r)| *g < 0.0 && *r < 1.0), "{flipped:?}");
}

/// The hook's own loop finds them too.
#[test]
fn check_5_hook() {
    let base = base(0, 200);
    let second = Rc::new(Text::new(0, "second", 4.0));
    let assembly = adapted(&base, 0);
    let all = assembly.trainable();
    for p in &all {
        p.set_trainable(ramekin_core::pattern::layer_of(p.name()).expect("a layer") >= 4);
    }
    let mut trainer = lab::trainer(1e-2);
    learn(&assembly, &mut trainer, &second, 200);
    all.iter().for_each(|p| p.set_trainable(true));
    let mut still = lab::trainer(0.0);
    still.draw = Some(second.draw());
    still.hooks.push(parts::hook(&lab::part("ist", json!({ "importance_interval": 1 }))).expect("ist"));
    learn(&assembly, &mut still, &second, 61);
    let state = still.state(&assembly).expect("state");
    let scores =
        state.iter().find(|t| t.name == "hook.0/scores").expect("scores").array.to_f32().expect("numbers");
    let mean = |range: std::ops::Range<usize>| scores[range].iter().sum::<f32>() / 4.0;
    assert!(mean(0..4) - mean(4..8) >= 0.6, "{scores:?}");
}

/// It learns about as well as training all adapters, with less of the backward.
#[test]
fn check_6() {
    let (mut sums, mut lowest_sum) = ([0.0; 3], 0.0);
    for seed in 0..3 {
        let base = base(seed, 300);
        let second = Rc::new(Text::new(seed, "second", 4.0));
        let held = second.rows("held", 0, 256);
        let kinds = [None, Some(json!({ "method": "rst" })), Some(json!({}))];
        for (i, kind) in kinds.into_iter().enumerate() {
            let assembly = adapted(&base, seed);
            let mut linear = lab::part("linear", json!({ "min_ratio": 0.1 }));
            linear.kind = "linear".to_owned();
            let mut trainer = Trainer {
                schedule: parts::schedule(&linear).expect("linear"),
                total_steps: 400,
                draw: Some(second.draw()),
                rng: Rng::new(seed),
                ..lab::trainer(1e-2)
            };
            let ist = kind.is_some();
            trainer.hooks.extend(kind.map(|k| parts::hook(&lab::part("ist", k)).expect("ist")));
            let lowest = learn(&assembly, &mut trainer, &second, 400);
            if i == 2 {
                lowest_sum += lowest;
            }
            assert!(ist || lowest == 0.0);
            sums[i] += loss(&assembly, &trainer, &held);
        }
    }
    let [all, rst, ist] = sums.map(|s| s / 3.0);
    println!("all adapters {all:.3}, RST {rst:.3}, IST {ist:.3}, mean lowest layer {:.2}", lowest_sum / 3.0);
    assert!(ist <= 1.02 * rst && ist <= 1.06 * all);
    assert!(lowest_sum / 3.0 >= 1.2);
}

/// What the sheet says must be refused.
#[test]
fn refusals() {
    let first = |count: usize, settings: Json| {
        let assembly = assemble(&layers(count));
        let mut trainer = trainer(settings);
        let e = trainer.step(&assembly, &[rows(0)], 0).expect_err("refused");
        assert_eq!(ramekin_core::exit_code(&e), 2, "{e:#}");
        format!("{e:#}")
    };
    let e = first(3, json!({}));
    assert!(e.contains("`active_fraction` is 0.25, which is less than one of 3 layers"), "{e}");
    let e = first(2, json!({ "active_fraction": 0.5, "num_candidates": 3 }));
    assert!(e.contains("there are only 2 sets of 1 among 2 layers"), "{e}");
    let build = |settings: Json| {
        parts::hook(&lab::part("ist", settings)).err().map(|e| format!("{e:#}")).unwrap_or_default()
    };
    assert!(build(json!({ "suppressed_fraction": 1.0 })).contains("above 0 and below 1"));
    assert!(build(json!({ "num_candidates": 1 })).contains("at least 2"));
    // A layer without an adapter.
    let mut plan = layers(4);
    let some = json!({ "r": 2, "target_modules": ["q_proj"], "layers_to_transform": [0, 1, 3] });
    plan.adapters = vec![lab::new_adapter("lora", some)];
    let e = trainer(json!({})).step(&assemble(&plan), &[rows(0)], 0).expect_err("refused");
    assert!(e.to_string().contains("layer 2 has none that trains"), "{e:#}");
}
