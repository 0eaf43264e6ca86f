//! The rules against their formulas, evaluated here in f64 on recorded gradients.

use std::sync::Arc;

use ramekin_core::{Array, Category, Param, Rng};
use ramekin_engine::parts;
use ramekin_slots::{Optimizer, ParamGroup, StepInfo};
use ramekin_tests::lab::part;
use serde_json::{Value as Json, json};

const STEPS: u64 = 30;

fn numbers(name: &str, id: u64, len: usize) -> Vec<f32> {
    let stream = Rng::new(11).stream(name, id);
    (0..len as u64).map(|i| stream.normal_at(i)).collect()
}

/// The rate of update `t`, from 1: one that changes.
fn lr(t: u64) -> f64 {
    1e-2 / (1.0 + 0.1 * t as f64)
}

struct Replay {
    rows: usize,
    cols: usize,
    p: Vec<f64>,
    /// Whatever state a formula needs, by number.
    state: Vec<Vec<f64>>,
}

impl Replay {
    fn new(dims: &[usize]) -> Self {
        let n: usize = dims.iter().product();
        let p = numbers("start", 0, n).iter().map(|x| f64::from(*x)).collect();
        let (rows, cols) = if dims.len() == 2 { (dims[0], dims[1]) } else { (n, 0) };
        Replay { rows, cols, p, state: vec![vec![0.0; n], vec![0.0; n], vec![0.0; n]] }
    }
}

/// Runs a part and a formula side by side on a matrix and on a vector.
fn compare(kind: &str, settings: Json, formula: impl Fn(&mut Replay, u64, &[f64])) {
    ramekin_catalog::link();
    for dims in [vec![12, 8], vec![40]] {
        let n: usize = dims.iter().product();
        let mut optimizer = parts::optimizer(&part(kind, settings.clone())).unwrap();
        let param = param("w", numbers("start", 0, n), &dims);
        let mut replay = Replay::new(&dims);
        for t in 1..=STEPS {
            let g = numbers("gradient", t, n);
            step(&mut *optimizer, &param, &g, t);
            formula(&mut replay, t, &g.iter().map(|x| f64::from(*x)).collect::<Vec<_>>());
        }
        let found = param.value().to_f32().unwrap();
        let largest = replay.p.iter().fold(0.0f64, |a, x| a.max(x.abs()));
        let off =
            found.iter().zip(&replay.p).fold(0.0f64, |a, (x, y)| a.max((f64::from(*x) - y).abs())) / largest;
        let start = numbers("start", 0, n);
        assert!(found != start, "{kind}: nothing moved");
        println!("{kind} {dims:?}: off by {off:.1e}");
        assert!(off < 1e-6, "{kind} {dims:?}: off by {off:e}");
    }
}

pub fn param(name: &str, x: Vec<f32>, dims: &[usize]) -> Arc<Param> {
    let param = Param::new(name, Array::from_vec(x, dims, Category::Weights).unwrap());
    param.set_trainable(true);
    param
}

pub fn step(optimizer: &mut dyn Optimizer, param: &Arc<Param>, g: &[f32], t: u64) {
    let grad = Array::from_vec(g.to_vec(), param.value().dims(), Category::Gradients).unwrap();
    optimizer.step(param, &grad, StepInfo { step: t, lr: lr(t) }, ParamGroup::default()).unwrap();
}

#[test]
fn adamw() {
    let settings = json!({ "betas": [0.8, 0.95], "eps": 1e-6, "weight_decay": 0.1 });
    for kind in ["adamw", "adamw8bit"] {
        // Below 4096 entries the second keeps f32 moments and is the first.
        compare(kind, settings.clone(), |r, t, g| {
            for (i, g) in g.iter().enumerate() {
                r.p[i] *= 1.0 - lr(t) * 0.1;
                r.state[0][i] = 0.8 * r.state[0][i] + 0.2 * g;
                r.state[1][i] = 0.95 * r.state[1][i] + 0.05 * g * g;
                let m = r.state[0][i] / (1.0 - 0.8f64.powi(t as i32));
                let v = r.state[1][i] / (1.0 - 0.95f64.powi(t as i32));
                r.p[i] -= lr(t) * m / (v.sqrt() + 1e-6);
            }
        });
    }
}

#[test]
fn sgd() {
    for (momentum, dampening, nesterov) in [(0.0, 0.0, false), (0.9, 0.2, false), (0.9, 0.0, true)] {
        let settings = json!({
            "momentum": momentum, "dampening": dampening, "nesterov": nesterov, "weight_decay": 0.1
        });
        compare("sgd", settings, |r, t, g| {
            for (i, g) in g.iter().enumerate() {
                let g = g + 0.1 * r.p[i];
                let b = &mut r.state[0][i];
                *b = if t == 1 { g } else { momentum * *b + (1.0 - dampening) * g };
                let direction = match (momentum > 0.0, nesterov) {
                    (false, _) => g,
                    (true, false) => *b,
                    (true, true) => g + momentum * *b,
                };
                r.p[i] -= lr(t) * direction;
            }
        });
    }
}

#[test]
fn lion() {
    compare("lion", json!({ "betas": [0.9, 0.97], "weight_decay": 0.1 }), |r, t, g| {
        for (i, g) in g.iter().enumerate() {
            let m = &mut r.state[0][i];
            let direction = (0.9 * *m + 0.1 * g).signum();
            r.p[i] -= lr(t) * (0.1 * r.p[i] + direction);
            *m = 0.97 * *m + 0.03 * g;
        }
    });
}

#[test]
fn adafactor() {
    for (settings, beta1, relative, scaled) in [
        (json!({ "weight_decay": 0.1 }), None, false, false),
        (json!({ "beta1": 0.9, "clip_threshold": 0.5 }), Some(0.9), false, false),
        (json!({ "scale_parameter": true, "relative_step": true, "warmup_init": true }), None, true, true),
    ] {
        let decay = settings["weight_decay"].as_f64().unwrap_or(0.0);
        let clip = settings["clip_threshold"].as_f64().unwrap_or(1.0);
        compare("adafactor", settings, |r, t, g| {
            let (n, t64) = (g.len(), t as f64);
            let rms = |x: &[f64]| (x.iter().map(|x| x * x).sum::<f64>() / n as f64).sqrt();
            let mut rate = lr(t);
            rate *= if relative { (1e-6 * t64).min(1.0 / t64.sqrt()) } else { 1.0 };
            rate *= if scaled { rms(&r.p).max(1e-3) } else { 1.0 };
            let beta2 = 1.0 - t64.powf(-0.8);
            let square: Vec<f64> = g.iter().map(|g| g * g + 1e-30).collect();
            let mix = |old: &mut f64, new: f64| *old = beta2 * *old + (1.0 - beta2) * new;
            let (rows, cols) = (r.rows, r.cols);
            let [first, by_row, by_col] = &mut r.state[..] else { unreachable!() };
            let mut u: Vec<f64> = if cols == 0 {
                for i in 0..n {
                    mix(&mut by_row[i], square[i]);
                }
                (0..n).map(|i| g[i] / by_row[i].sqrt()).collect()
            } else {
                for i in 0..rows {
                    mix(&mut by_row[i], square[i * cols..][..cols].iter().sum::<f64>() / cols as f64);
                }
                for j in 0..cols {
                    mix(&mut by_col[j], (0..rows).map(|i| square[i * cols + j]).sum::<f64>() / rows as f64);
                }
                let mean = by_row[..rows].iter().sum::<f64>() / rows as f64;
                (0..n).map(|e| g[e] / (by_row[e / cols] * by_col[e % cols] / mean).sqrt()).collect()
            };
            let shrink = (rms(&u) / clip).max(1.0);
            u.iter_mut().for_each(|u| *u *= rate / shrink);
            for i in 0..n {
                if let Some(b) = beta1 {
                    first[i] = b * first[i] + (1.0 - b) * u[i];
                    u[i] = first[i];
                }
                r.p[i] = r.p[i] * (1.0 - decay * rate) - u[i];
            }
        });
    }
}

/// A projected gradient's update is the same rule: where nothing depends on the form of ε, applying it
/// with its decay is one step of the rule itself.
#[test]
fn update_and_step_are_one_rule() {
    ramekin_catalog::link();
    for (kind, settings) in [
        ("adamw", json!({ "eps": 0.0 })),
        ("adamw8bit", json!({ "min_8bit_size": 1 })),
        ("adafactor", json!({ "beta1": 0.9 })),
        ("sgd", json!({ "momentum": 0.9 })),
        ("lion", json!({})),
    ] {
        let made = || parts::optimizer(&part(kind, settings.clone())).unwrap();
        let (mut stepping, mut updating) = (made(), made());
        let start = numbers("start", 0, 96);
        let (one, two) = (param("w", start.clone(), &[12, 8]), param("w", start, &[12, 8]));
        for t in 1..=5 {
            let g = numbers("gradient", t, 96);
            step(&mut *stepping, &one, &g, t);
            let grad = Array::from_vec(g, &[12, 8], Category::Gradients).unwrap();
            let info = StepInfo { step: t, lr: lr(t) };
            let update = updating.update(&two, &grad, info, ParamGroup::default()).unwrap();
            let d = update.direction.to_f32().unwrap();
            let change = |p: &mut [f32]| {
                p.iter_mut().zip(&d).for_each(|(p, d)| *p -= update.rate as f32 * d);
            };
            two.value().update(change).unwrap();
        }
        let (a, b) = (one.value().to_f32().unwrap(), two.value().to_f32().unwrap());
        for (a, b) in a.iter().zip(&b) {
            assert!((a - b).abs() < 2e-6, "{kind}: {a} and {b}");
        }
    }
}
