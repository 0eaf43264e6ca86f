//! A residual MLP in plain numbers: input 32 → 64, six blocks x + down(gelu(up(norm(x)))) of width 64/128,
//! a final norm, and heads of 8 classes that are kept apart.

use ramekin_core::{Draws, Rng};
use ramekin_kernels::matmul;

use crate::normal;

const D: usize = 32;
const W: usize = 64;
const H: usize = 128;
/// Blocks.
pub const B: usize = 6;
const C: usize = 8;

/// Points with their classes.
pub struct Points {
    /// `[n, D]`.
    pub x: Vec<f32>,
    /// `n` of them.
    pub y: Vec<usize>,
}

/// A task: 8 classes of 4 Gaussian clusters each.
pub struct Clusters {
    means: Vec<f64>,
    name: String,
}

impl Clusters {
    /// The task of this name.
    pub fn new(name: &str) -> Self {
        Clusters { means: normal(&format!("means {name}"), C * 4 * D), name: name.to_owned() }
    }

    /// `n` points of a split.
    pub fn draw(&self, split: &str, n: usize) -> Points {
        let noise = normal(&format!("noise {} {split}", self.name), n * D);
        let mut draws = Draws::new(Rng::new(23).named("tests/clusters", &format!("{} {split}", self.name)));
        let cluster: Vec<usize> = (0..n).map(|_| draws.below(C * 4)).collect();
        let x = (0..n * D).map(|i| (self.means[cluster[i / D] * D + i % D] + noise[i]) as f32).collect();
        Points { x, y: cluster.into_iter().map(|c| c / 4).collect() }
    }
}

/// Name and length of every tensor, in the order of the flattened vector.
pub fn layout() -> Vec<(String, usize)> {
    let mut all = vec![("embed.weight".to_owned(), W * D), ("embed.bias".to_owned(), W)];
    for l in 0..B {
        let sizes = [
            ("norm.weight", W),
            ("norm.bias", W),
            ("up.weight", H * W),
            ("up.bias", H),
            ("down.weight", W * H),
            ("down.bias", W),
        ];
        all.extend(sizes.map(|(tail, len)| (format!("blocks.{l}.{tail}"), len)));
    }
    all.extend([("norm.weight".to_owned(), W), ("norm.bias".to_owned(), W)]);
    all
}

fn offsets() -> Vec<usize> {
    let mut at = 0;
    let mut all = vec![0];
    all.extend(layout().iter().map(|(_, len)| {
        at += len;
        at
    }));
    all
}

/// Initial numbers.
pub fn fresh(seed: u64) -> Vec<f32> {
    let mut p = Vec::new();
    for (name, len) in layout() {
        let inputs = match name.rsplit('.').nth(1) {
            Some("embed") => D,
            Some("up") => W,
            _ => H,
        };
        let vector = name.ends_with("bias") || name.contains("norm");
        p.extend(if vector {
            vec![f32::from(u8::from(name.ends_with("norm.weight"))); len]
        } else {
            normal(&format!("{seed} {name}"), len)
                .iter()
                .map(|x| (x / (inputs as f64).sqrt()) as f32)
                .collect()
        });
    }
    p
}

/// A fresh head, `[C, W]`.
pub fn fresh_head(seed: u64, task: &str) -> Vec<f32> {
    normal(&format!("{seed} head {task}"), C * W).iter().map(|x| (x / 8.0) as f32).collect()
}

struct Norm {
    hat: Vec<f32>,
    inverse: Vec<f32>,
}

fn norm(x: &[f32], weight: &[f32], bias: &[f32]) -> (Vec<f32>, Norm) {
    let (mut hat, mut inverse, mut out) = (x.to_vec(), Vec::new(), Vec::with_capacity(x.len()));
    for row in hat.chunks_mut(W) {
        let mean = row.iter().sum::<f32>() / W as f32;
        let variance = row.iter().map(|v| (v - mean) * (v - mean)).sum::<f32>() / W as f32;
        let scale = 1.0 / (variance + 1e-5).sqrt();
        row.iter_mut().for_each(|v| *v = (*v - mean) * scale);
        inverse.push(scale);
        out.extend(row.iter().zip(weight).zip(bias).map(|((v, w), b)| v * w + b));
    }
    (out, Norm { hat, inverse })
}

fn norm_back(n: &Norm, weight: &[f32], g: &[f32], gw: &mut [f32], gb: &mut [f32]) -> Vec<f32> {
    let mut gx = Vec::with_capacity(g.len());
    for ((g, hat), inverse) in g.chunks(W).zip(n.hat.chunks(W)).zip(&n.inverse) {
        for i in 0..W {
            gw[i] += g[i] * hat[i];
            gb[i] += g[i];
        }
        let gh: Vec<f32> = g.iter().zip(weight).map(|(g, w)| g * w).collect();
        let mean = gh.iter().sum::<f32>() / W as f32;
        let along = gh.iter().zip(hat).map(|(g, h)| g * h).sum::<f32>() / W as f32;
        gx.extend(gh.iter().zip(hat).map(|(g, h)| inverse * (g - mean - h * along)));
    }
    gx
}

const K: f32 = 0.797_884_6;

fn gelu(x: f32) -> f32 {
    0.5 * x * (1.0 + (K * (x + 0.044715 * x * x * x)).tanh())
}

fn gelu_slope(x: f32) -> f32 {
    let t = (K * (x + 0.044715 * x * x * x)).tanh();
    0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * K * (1.0 + 3.0 * 0.044715 * x * x)
}

fn linear(x: &[f32], w: &[f32], b: &[f32], inputs: usize) -> Vec<f32> {
    let (n, o) = (x.len() / inputs, b.len());
    let mut y: Vec<f32> = b.iter().copied().cycle().take(n * o).collect();
    matmul::nt(n, o, inputs, 1.0, x, w, true, &mut y);
    y
}

fn linear_back(x: &[f32], w: &[f32], g: &[f32], inputs: usize, gw: &mut [f32], gb: &mut [f32]) -> Vec<f32> {
    let (n, o) = (x.len() / inputs, gb.len());
    matmul::tn(n, o, inputs, 1.0, g, x, true, gw);
    g.chunks(o).for_each(|row| gb.iter_mut().zip(row).for_each(|(s, g)| *s += g));
    let mut gx = vec![0.0; n * inputs];
    matmul::nn(n, o, inputs, 1.0, g, w, false, &mut gx);
    gx
}

struct Kept {
    norm: Norm,
    normed: Vec<f32>,
    up: Vec<f32>,
    act: Vec<f32>,
}

/// Adds to the gradients of a weight and of its bias; returns the input's.
type Pair<'a> = dyn FnMut(&mut [f32], &mut [f32]) -> Vec<f32> + 'a;

/// Logits `[n, C]`; with `grads` (of the parameters and of the head) also the mean loss's gradients, added.
pub fn run(p: &[f32], head: &[f32], points: &Points, grads: Option<(&mut [f32], &mut [f32])>) -> Vec<f32> {
    let at = offsets();
    let t = |i: usize| &p[at[i]..at[i + 1]];
    let mut x = linear(&points.x, t(0), t(1), D);
    let mut kept = Vec::new();
    for l in 0..B {
        let first = 2 + 6 * l;
        let (normed, norm) = norm(&x, t(first), t(first + 1));
        let up = linear(&normed, t(first + 2), t(first + 3), W);
        let act: Vec<f32> = up.iter().map(|v| gelu(*v)).collect();
        let down = linear(&act, t(first + 4), t(first + 5), H);
        x.iter_mut().zip(&down).for_each(|(x, d)| *x += d);
        kept.push(Kept { norm, normed, up, act });
    }
    let last = 2 + 6 * B;
    let (h, final_norm) = norm(&x, t(last), t(last + 1));
    let n = points.y.len();
    let mut logits = vec![0.0; n * C];
    matmul::nt(n, C, W, 1.0, &h, head, false, &mut logits);
    let Some((gp, gh)) = grads else { return logits };

    let mut g = logits.clone();
    for (row, y) in g.chunks_mut(C).zip(&points.y) {
        let largest = row.iter().fold(f32::MIN, |m, v| m.max(*v));
        row.iter_mut().for_each(|v| *v = (*v - largest).exp());
        let sum: f32 = row.iter().sum();
        row.iter_mut().for_each(|v| *v /= sum * n as f32);
        row[*y] -= 1.0 / n as f32;
    }
    matmul::tn(n, C, W, 1.0, &g, &h, true, gh);
    let mut gx = vec![0.0; n * W];
    matmul::nn(n, C, W, 1.0, &g, head, false, &mut gx);
    let mut pair = |i: usize, f: &mut Pair<'_>| {
        let (a, b) = gp[at[i]..at[i + 2]].split_at_mut(at[i + 1] - at[i]);
        f(a, b)
    };
    gx = pair(last, &mut |gw, gb| norm_back(&final_norm, t(last), &gx, gw, gb));
    for l in (0..B).rev() {
        let (first, k) = (2 + 6 * l, &kept[l]);
        let mut ga = pair(first + 4, &mut |gw, gb| linear_back(&k.act, t(first + 4), &gx, H, gw, gb));
        ga.iter_mut().zip(&k.up).for_each(|(g, u)| *g *= gelu_slope(*u));
        let gn = pair(first + 2, &mut |gw, gb| linear_back(&k.normed, t(first + 2), &ga, W, gw, gb));
        let through = pair(first, &mut |gw, gb| norm_back(&k.norm, t(first), &gn, gw, gb));
        gx.iter_mut().zip(through).for_each(|(g, t)| *g += t);
    }
    pair(0, &mut |gw, gb| linear_back(&points.x, t(0), &gx, D, gw, gb));
    logits
}

/// Share of points whose class has the largest logit.
pub fn accuracy(p: &[f32], head: &[f32], points: &Points) -> f64 {
    let logits = run(p, head, points, None);
    let best = |row: &[f32]| (0..C).fold(0, |b, i| if row[i] > row[b] { i } else { b });
    let right = logits.chunks(C).zip(&points.y).filter(|(row, y)| best(row) == **y).count();
    right as f64 / points.y.len() as f64
}

/// A batch of 64 points, drawn by address.
pub fn batch(points: &Points, name: &str, step: u64) -> Points {
    let mut draws = Draws::new(Rng::new(23).stream(name, step));
    let rows: Vec<usize> = (0..64).map(|_| draws.below(points.y.len())).collect();
    Points {
        x: rows.iter().flat_map(|r| points.x[r * D..(r + 1) * D].to_vec()).collect(),
        y: rows.iter().map(|r| points.y[*r]).collect(),
    }
}

/// AdamW on one vector.
pub struct Adam {
    m: Vec<f32>,
    v: Vec<f32>,
    step: i32,
    lr: f32,
    decay: f32,
}

impl Adam {
    /// Without state.
    pub fn new(n: usize, lr: f32, decay: f32) -> Self {
        Adam { m: vec![0.0; n], v: vec![0.0; n], step: 0, lr, decay }
    }

    /// One update.
    pub fn step(&mut self, p: &mut [f32], g: &[f32]) {
        self.step += 1;
        let (c1, c2) = (1.0 - 0.9f32.powi(self.step), 1.0 - 0.999f32.powi(self.step));
        for i in 0..p.len() {
            self.m[i] = 0.9 * self.m[i] + 0.1 * g[i];
            self.v[i] = 0.999 * self.v[i] + 0.001 * g[i] * g[i];
            p[i] -= self.lr * (self.decay * p[i] + self.m[i] / c1 / ((self.v[i] / c2).sqrt() + 1e-8));
        }
    }
}

#[test]
fn gradients_are_those_of_the_loss() {
    let task = Clusters::new("g");
    let points = task.draw("g", 5);
    let (p, head) = (fresh(1), fresh_head(1, "g"));
    let loss = |p: &[f32]| {
        let logits = run(p, &head, &points, None);
        let of = |(row, y): (&[f32], &usize)| {
            let sum: f64 = row.iter().map(|v| f64::from(*v).exp()).sum();
            sum.ln() - f64::from(row[*y])
        };
        logits.chunks(C).zip(&points.y).map(of).sum::<f64>() / 5.0
    };
    let (mut gp, mut gh) = (vec![0.0; p.len()], vec![0.0; head.len()]);
    run(&p, &head, &points, Some((&mut gp, &mut gh)));
    for (o, (name, len)) in offsets().into_iter().zip(layout()) {
        let direction = normal(&format!("direction {name}"), len);
        let moved = |h: f64| {
            let mut q = p.clone();
            direction.iter().enumerate().for_each(|(i, d)| q[o + i] += (h * d) as f32);
            loss(&q)
        };
        let slope = (moved(3e-3) - moved(-3e-3)) / 6e-3;
        let found: f64 = direction.iter().enumerate().map(|(i, d)| d * f64::from(gp[o + i])).sum();
        assert!((slope - found).abs() < 2e-2 * slope.abs().max(0.05), "{name}: {found} against {slope}");
    }
}
