//! Check 8: on a task that needs the inner layers, GaLore keeps up with Adam.

use std::sync::Arc;

use anyhow::Result;
use ramekin_core::{Array, Category, Draws, Param, Rng};
use ramekin_engine::parts;
use ramekin_engine::update::{self, How};
use ramekin_kernels::matmul;
use ramekin_slots::{GradientTransform, ParamGroup, StepInfo};
use ramekin_tape::GradStore;
use ramekin_tests::lab::part;
use ramekin_tests::toy::Chain;
use serde_json::json;

use super::gpt::{CONTEXT, Gpt, RANK, TOKENS};

const STEPS: u64 = 400;

/// How the inner linears learn.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Arm {
    Adam,
    Galore,
    Fira,
    /// GaLore's settings on the last singular vectors.
    Last,
    Frozen,
    /// W = BA of GaLore's rank.
    Factorised,
}

impl Arm {
    fn transforms(self) -> Vec<Box<dyn GradientTransform>> {
        let galore = |residual: bool| {
            let settings = json!({ "rank": RANK, "update_proj_gap": 50, "scale": 1.0, "residual": residual });
            parts::gradient(&part("galore", settings)).unwrap()
        };
        match self {
            Arm::Galore => vec![galore(false)],
            Arm::Fira => vec![galore(true)],
            Arm::Last => vec![Box::new(LastVectors::default())],
            Arm::Adam | Arm::Frozen | Arm::Factorised => Vec::new(),
        }
    }
}

/// Texts in which the two tokens before decide the next.
fn texts(chain: &Chain, seed: u64, stream: &str, id: u64, rows: usize) -> Vec<Vec<u32>> {
    let mut draws = Draws::new(Rng::new(seed).stream(stream, id));
    (0..rows).map(|_| chain.text(CONTEXT + 1, &mut draws)).collect()
}

/// GaLore with the wrong vectors.
#[derive(Default)]
struct LastVectors {
    projectors: std::collections::HashMap<String, (u64, Vec<f32>)>,
}

impl GradientTransform for LastVectors {
    fn project(&mut self, param: &Arc<Param>, grad: &Array) -> Result<Option<Array>> {
        let [m, n] = *grad.dims() else { return Ok(None) };
        if !(param.name().contains("attn") || param.name().contains("mlp")) {
            return Ok(None);
        }
        let g = grad.view::<f32>()?;
        let (steps, q) = self.projectors.entry(param.name().to_owned()).or_default();
        if steps.is_multiple_of(50) {
            let found = ramekin_linalg::svd(m, n, &g)?;
            let first = m.min(n) - RANK;
            *q = if m >= n { found.right(first, RANK) } else { found.left(first, RANK) };
        }
        *steps += 1;
        let dims = if m >= n { [m, RANK] } else { [RANK, n] };
        let mut out = vec![0.0; dims[0] * dims[1]];
        match m >= n {
            true => matmul::nn(m, n, RANK, 1.0, &g, q, false, &mut out),
            false => matmul::tn(m, RANK, n, 1.0, q, &g, false, &mut out),
        }
        Array::from_vec(out, &dims, Category::Workspace).map(Some)
    }

    fn back(&mut self, param: &Arc<Param>, grad: &Array, _: &Array, direction: Array) -> Result<Array> {
        let [m, n] = *grad.dims() else { unreachable!() };
        let (d, q) = (direction.view::<f32>()?, &self.projectors[param.name()].1);
        let mut out = vec![0.0; m * n];
        match m >= n {
            true => matmul::nt(m, n, RANK, 1.0, &d, q, false, &mut out),
            false => matmul::nn(m, RANK, n, 1.0, q, &d, false, &mut out),
        }
        Array::from_vec(out, &[m, n], Category::Workspace)
    }
}

/// Loss on held texts before and after training.
fn run(seed: u64, arm: Arm, lr: f64) -> (f64, f64) {
    let chain = Chain::new(TOKENS, 2, 3.0, seed);
    let held = texts(&chain, seed, "held", 0, 256);
    let model = Gpt::new(seed, arm == Arm::Factorised);
    if arm == Arm::Frozen {
        model.inner().iter().for_each(|p| p.set_trainable(false));
    }
    let mut optimizer = parts::optimizer(&part("adamw", json!({ "eps": 1e-6 }))).unwrap();
    let cosine = part("cosine", json!({ "warmup_ratio": 0.1, "min_ratio": 0.1 }));
    let schedule = parts::schedule(&cosine).unwrap();
    let mut transforms = arm.transforms();
    let before = model.loss(&held, None).unwrap();
    for step in 0..STEPS {
        let mut store = GradStore::new();
        model.loss(&texts(&chain, seed, "train", step, 16), Some(&mut store)).unwrap();
        let info = StepInfo { step: step + 1, lr: lr * schedule.factor(step, STEPS) };
        for (param, grad) in store.take() {
            let group = ParamGroup::default();
            update::apply(
                &mut *optimizer,
                &mut transforms,
                &param,
                grad,
                How { info, group, rng: Rng::new(0) },
            )
            .unwrap();
        }
    }
    (before, model.loss(&held, None).unwrap())
}

/// The lowest loss at the end over some rates, with the loss at the start.
fn best(seed: u64, arm: Arm, rates: &[f64]) -> (f64, f64) {
    let ends = rates.iter().map(|lr| run(seed, arm, *lr));
    ends.min_by(|a, b| a.1.total_cmp(&b.1)).expect("a rate")
}

/// One seed's figures: GaLore's and Fira's losses at the end.
fn seed(seed: u64) -> (f64, f64) {
    let (start, adam) = best(seed, Arm::Adam, &[3e-3, 6e-3]);
    let (_, galore) = run(seed, Arm::Galore, 1e-2);
    let (_, fira) = best(seed, Arm::Fira, &[1e-2, 2e-2]);
    let (_, frozen) = best(seed, Arm::Frozen, &[1e-2, 3e-2]);
    let (_, factorised) = best(seed, Arm::Factorised, &[1e-3, 3e-3]);
    let (_, last) = run(seed, Arm::Last, 1e-2);
    let share = |end: f64| (start - end) / (start - adam);
    println!(
        "seed {seed}: {start:.3} → adam {adam:.3}; shares of its drop: galore {:.3}, fira {:.3}, frozen {:.3}, \
         factorised {:.3}, last vectors {:.3}; galore leads frozen by {:.3} and factorised by {:.3}",
        share(galore),
        share(fira),
        share(frozen),
        share(factorised),
        share(last),
        frozen - galore,
        factorised - galore
    );
    assert!(share(galore) >= 0.88, "seed {seed}: galore recovers {:.3} of Adam's drop", share(galore));
    assert!(galore <= frozen - 0.18, "seed {seed}: galore {galore:.3}, frozen linears {frozen:.3}");
    assert!(galore < factorised, "seed {seed}: galore {galore:.3}, factorised {factorised:.3}");
    assert!(share(last) < 0.88, "seed {seed}: the last vectors recover {:.3}", share(last));
    (galore, fira)
}

#[test]
fn check_8() {
    let threads: Vec<_> = (0..3).map(|s| std::thread::spawn(move || seed(s))).collect();
    let ends: Vec<(f64, f64)> = threads.into_iter().map(|t| t.join().expect("a seed holds")).collect();
    let mean = |f: fn(&(f64, f64)) -> f64| ends.iter().map(f).sum::<f64>() / 3.0;
    let (galore, fira) = (mean(|e| e.0), mean(|e| e.1));
    println!("means: galore {galore:.4}, fira {fira:.4}");
    assert!(fira <= galore, "fira {fira}, galore {galore}");
}
