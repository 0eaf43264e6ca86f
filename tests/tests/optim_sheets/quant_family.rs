//! Sheet `quant-family`, check 6, the half on 8-bit Adam; the rest of the sheet is in `sheets`.

use ramekin_core::{Array, Category, Draws, Param, Rng};
use ramekin_engine::parts;
use ramekin_kernels::adamw::AdamW as Rule;
use ramekin_kernels::dynamic_code::{nearest, signed};
use ramekin_slots::{ParamGroup, StepInfo};
use ramekin_tests::lab::part;
use serde_json::json;

const WIDTH: usize = 100;
const ROWS: usize = 1000;
const STEPS: u64 = 500;
const LR: f64 = 1e-2;

/// A regression in which column j of the inputs has size 10^(−j/99).
struct Task {
    x: Vec<f32>,
    y: Vec<f32>,
}

impl Task {
    fn new(seed: u64) -> Self {
        let rng = Rng::new(seed);
        let fill = |name: &str, n: usize, std: f64| {
            let mut v = vec![0f32; n];
            rng.stream(name, 0).fill_normal(0, std, &mut v);
            v
        };
        let mut x = fill("x", ROWS * WIDTH, 1.0);
        x.iter_mut().enumerate().for_each(|(e, x)| *x *= 10f32.powf(-((e % WIDTH) as f32) / 99.0));
        let w = fill("w", WIDTH * WIDTH, 0.1);
        let mut y = fill("noise", ROWS * WIDTH, 0.1);
        ramekin_kernels::matmul::nt(ROWS, WIDTH, WIDTH, 1.0, &x, &w, true, &mut y);
        Task { x, y }
    }

    /// x w − y on some rows.
    fn error(&self, w: &[f32], rows: &[usize]) -> (Vec<f32>, Vec<f32>) {
        let pick = |a: &[f32]| rows.iter().flat_map(|r| a[r * WIDTH..][..WIDTH].to_vec()).collect::<Vec<_>>();
        let (x, mut e) = (pick(&self.x), pick(&self.y));
        e.iter_mut().for_each(|e| *e = -*e);
        ramekin_kernels::matmul::nt(rows.len(), WIDTH, WIDTH, 1.0, &x, w, true, &mut e);
        (x, e)
    }

    fn loss(&self, w: &[f32]) -> f64 {
        let all: Vec<usize> = (0..ROWS).collect();
        let (_, e) = self.error(w, &all);
        e.iter().map(|e| f64::from(*e) * f64::from(*e)).sum::<f64>() / (ROWS * WIDTH) as f64
    }

    /// Gradient of the mean squared error on the batch of one step.
    fn gradient(&self, w: &[f32], seed: u64, step: u64) -> Vec<f32> {
        let mut draws = Draws::new(Rng::new(seed).stream("batch", step));
        let rows: Vec<usize> = (0..64).map(|_| draws.below(ROWS)).collect();
        let (x, e) = self.error(w, &rows);
        let mut g = vec![0.0; WIDTH * WIDTH];
        let scale = 2.0 / (64.0 * WIDTH as f32);
        ramekin_kernels::matmul::tn(64, WIDTH, WIDTH, scale, &e, &x, false, &mut g);
        g
    }
}

fn rate(step: u64) -> f64 {
    LR * (1.0 - step as f64 / STEPS as f64)
}

/// Loss at the end and bytes of state.
fn train(kind: &str, task: &Task, seed: u64) -> (f64, u64) {
    ramekin_catalog::link();
    let mut optimizer = parts::optimizer(&part(kind, json!({ "lr": LR }))).unwrap();
    let zeros = Array::from_vec(vec![0f32; WIDTH * WIDTH], &[WIDTH, WIDTH], Category::Weights).unwrap();
    let w = Param::new("w", zeros);
    w.set_trainable(true);
    for step in 0..STEPS {
        let g = task.gradient(&w.value().to_f32().unwrap(), seed, step);
        let grad = Array::from_vec(g, &[WIDTH, WIDTH], Category::Gradients).unwrap();
        let info = StepInfo { step: step + 1, lr: rate(step) };
        optimizer.step(&w, &grad, info, ParamGroup::default()).unwrap();
    }
    (task.loss(&w.value().to_f32().unwrap()), optimizer.table().bytes())
}

#[test]
fn check_6_adam8bit_tracks_f32() {
    for seed in 0..3 {
        let task = Task::new(seed);
        let (full, full_bytes) = train("adamw", &task, seed);
        let (packed, bytes) = train("adamw8bit", &task, seed);
        let (ratio, share) = (packed / full, bytes as f64 / full_bytes as f64);
        println!("seed {seed}: f32 {full:.5}, 8 bits {packed:.5}, ratio {ratio:.4}, state {share:.4}");
        assert!((ratio - 1.0).abs() <= 0.02, "seed {seed}: {packed} instead of {full}");
        assert!(share <= 0.27, "{bytes} bytes instead of {full_bytes}");
        assert!(full < 0.5 * task.loss(&vec![0.0; WIDTH * WIDTH]), "the toy converges");
    }
}

/// The same with 256 even steps for v: small second moments become 0, and steps explode.
#[test]
fn check_6_a_linear_code_diverges() {
    let task = Task::new(0);
    let n = WIDTH * WIDTH;
    let (mut w, mut m, mut v) = (vec![0f32; n], vec![0f32; n], vec![0f32; n]);
    for step in 0..STEPS {
        let g = task.gradient(&w, 0, step);
        let rule =
            Rule { lr: rate(step), beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.0, step: step + 1 };
        ramekin_kernels::adamw::step(&rule, &mut w, &g, &mut m, &mut v);
        for (m, v) in m.chunks_mut(256).zip(v.chunks_mut(256)) {
            let top = |x: &[f32]| x.iter().fold(f32::MIN_POSITIVE, |a, x| a.max(x.abs()));
            let (top_m, top_v) = (top(m), top(v));
            m.iter_mut().for_each(|m| *m = signed()[nearest(signed(), *m / top_m) as usize] * top_m);
            v.iter_mut().for_each(|v| *v = (*v / top_v * 255.0).round() / 255.0 * top_v);
        }
    }
    let (loss, start) = (task.loss(&w), task.loss(&vec![0.0; n]));
    println!("from {start:.4} to {loss:.4}");
    assert!(loss.is_nan() || loss > 2.0 * start, "{start} → {loss}");
}
