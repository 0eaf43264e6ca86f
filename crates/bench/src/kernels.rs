//! The kernels, at the sizes of the yardstick (58 M parameters, 4×512 tokens); the best of several calls.

use std::hint::black_box;
use std::time::Instant;

use ramekin_kernels::attention::{self, Segment, Shape};
use ramekin_kernels::bf16::{self, Bf16Rows};
use ramekin_kernels::cross_entropy::{self, Options};
use ramekin_kernels::linear::{self, WeightRows};
use ramekin_kernels::packed_rows::{self, Activations, Layout};
use ramekin_kernels::philox::Stream;
use ramekin_kernels::{Real, elementwise, matmul, rms_norm, rope, swiglu};
use ramekin_quant_block::nf4_codec::{Nf4Data, Nf4Spec};
use ramekin_quant_block::rtn_codec::{RtnData, RtnSpec};

use crate::figure::Figures;

/// The least seconds of as many calls as fit in a third of a second.
pub fn best(mut f: impl FnMut()) -> f64 {
    let mut least = f64::INFINITY;
    let start = Instant::now();
    while start.elapsed().as_secs_f64() < 0.35 {
        let t = Instant::now();
        f();
        least = least.min(t.elapsed().as_secs_f64());
    }
    least
}

/// Normal numbers.
pub fn random(n: usize) -> Vec<f32> {
    let mut x = vec![0.0; n];
    Stream::new(1, n as u64).fill_normal(0, 1.0, &mut x);
    x
}

/// Measures all of them.
pub fn run(figures: &mut Figures) {
    products(figures);
    narrow(figures);
    packed(figures);
    attentions(figures);
    one_row(figures);
    one_query(figures);
    pointwise(figures);
    losses(figures);
    random_numbers(figures);
}

fn products(figures: &mut Figures) {
    for (m, n, k) in
        [(2048, 512, 512), (2048, 1408, 512), (2048, 16, 512), (512, 32000, 512), (768, 128, 128)]
    {
        let (x, w, g) = (random(m * k), random(n * k), random(m * n));
        let (mut y, mut gx, mut gw) = (vec![0.0; m * n], vec![0.0; m * k], vec![0.0; n * k]);
        let rate = |s: f64| 2.0 * (m * n * k) as f64 / s / 1e9;
        let forward = best(|| matmul::nt(m, n, k, 1.0, &x, &w, false, &mut y));
        let to_input = best(|| matmul::nn(m, n, k, 1.0, &g, &w, false, &mut gx));
        let to_weight = best(|| matmul::tn(m, n, k, 1.0, &g, &x, false, &mut gw));
        let size = format!("product {m}×{n}×{k}");
        figures.add("kernels", format!("{size}, x·wᵀ"), rate(forward), "GFLOP/s");
        figures.add("kernels", format!("{size}, g·w"), rate(to_input), "GFLOP/s");
        figures.add("kernels", format!("{size}, gᵀ·x"), rate(to_weight), "GFLOP/s");
    }
}

/// Bits of bf16 as they lie.
pub struct Bits(pub Vec<u16>, pub usize, pub usize);

impl Bf16Rows for Bits {
    fn out_features(&self) -> usize {
        self.1
    }
    fn in_features(&self) -> usize {
        self.2
    }
    fn rows(&self, first: usize, out: &mut [u16]) {
        out.copy_from_slice(&self.0[first * self.2..][..out.len()]);
    }
    fn as_dense(&self) -> Option<&[u16]> {
        Some(&self.0)
    }
}

/// Products in bf16, where the machine multiplies it.
fn narrow(figures: &mut Figures) {
    let Some(unit) = bf16::unit() else { return };
    for (m, n, k) in
        [(1024, 1024, 1024), (512, 1536, 576), (512, 576, 1536), (2048, 1408, 512), (512, 32000, 512)]
    {
        let (x, g) = (random(m * k), random(m * n));
        let w = Bits(random(n * k).into_iter().map(bf16::round).collect(), n, k);
        let (mut y, mut gx) = (vec![0.0; m * n], vec![0.0; m * k]);
        let rate = |s: f64| 2.0 * (m * n * k) as f64 / s / 1e9;
        let forward = best(|| bf16::forward(&x, m, &w, None, &mut y));
        let backward = best(|| bf16::backward_input(&g, m, &w, false, &mut gx));
        let one = best(|| bf16::forward(&x[..k], 1, &w, None, &mut y[..n]));
        let case = format!("linear {m}×{n}×{k} in bf16 ({unit:?})");
        figures.add("kernels", format!("{case}, forward"), rate(forward), "GFLOP/s");
        figures.add("kernels", format!("{case}, backward to the input"), rate(backward), "GFLOP/s");
        let read = (2 * n * k) as f64 / one / 1e9;
        figures.add("kernels", format!("linear 1×{n}×{k} in bf16"), read, "GB/s of weight");
    }
}

/// A packed weight, known by its rows.
struct Packed<R>(R, usize, usize);

impl<T: Real, R: Fn(usize, &mut [T]) + Sync> WeightRows<T> for Packed<R> {
    fn out_features(&self) -> usize {
        self.1
    }
    fn in_features(&self) -> usize {
        self.2
    }
    fn rows(&self, first: usize, out: &mut [T]) {
        self.0(first, out);
    }
}

fn packed(figures: &mut Figures) {
    let (n, k) = (1408, 512);
    let w = random(n * k);
    let dense = |first: usize, out: &mut [f32]| out.copy_from_slice(&w[first * k..][..out.len()]);
    linears(figures, "f32 by tiles", (n * k * 4) as u64, &Packed(dense, n, k));
    if let Ok(nf4) = Nf4Data::encode(&w, (n, k), Nf4Spec::default()) {
        let rows = |first: usize, out: &mut [f32]| nf4.rows_into(first, out);
        linears(figures, "nf4", nf4.bytes(), &Packed(rows, n, k));
    }
    for bits in [8, 4, 3, 2] {
        let spec = RtnSpec { bits, ..RtnSpec::default() };
        if let Ok(rtn) = RtnData::encode(&w, (n, k), spec) {
            let rows = |first: usize, out: &mut [f32]| rtn.rows_into(first, out);
            linears(figures, &format!("rtn, {bits} bits"), rtn.bytes(), &Packed(rows, n, k));
        }
    }
}

/// One row times a weight that no cache holds, read in place, in GB/s of what is stored.
fn one_row(figures: &mut Figures) {
    let (n, k) = (32000, 2048);
    let (w, x) = (random(n * k), random(k));
    let mut y = vec![0.0; n];
    let bits = Bits(w.iter().map(|x| bf16::round(*x)).collect(), n, k);
    let mut add = |what: &str, bytes: u64, seconds: f64| {
        let case = format!("linear 1×{n}×{k} on {what}");
        figures.add("kernels", case, bytes as f64 / seconds / 1e9, "GB/s of weight");
    };
    if bf16::unit().is_some() {
        let seconds = best(|| bf16::forward(&x, 1, &bits, None, &mut y));
        add("bf16", (2 * n * k) as u64, seconds);
    }
    for bits in [8, 4, 3, 2] {
        let spec = RtnSpec { bits, group_size: 32, ..RtnSpec::default() };
        let Ok(rtn) = RtnData::encode(&w, (n, k), spec) else { continue };
        for (activations, of) in [(Activations::Bf16, "bf16"), (Activations::F32, "f32")] {
            let layout = Layout::Grid(rtn.layout());
            if !packed_rows::forward(&x, 1, &layout, activations, &mut y) {
                continue;
            }
            let seconds = best(|| {
                packed_rows::forward(&x, 1, &layout, activations, &mut y);
            });
            add(&format!("rtn, {bits} bits, groups of 32, as of {of}"), rtn.bytes(), seconds);
        }
    }
    let Ok(nf4) = Nf4Data::encode(&w, (n, k), Nf4Spec::default()) else { return };
    for (activations, of) in [(Activations::Bf16, "bf16"), (Activations::F32, "f32")] {
        let layout = Layout::Table(nf4.layout());
        if packed_rows::forward(&x, 1, &layout, activations, &mut y) {
            let seconds = best(|| {
                packed_rows::forward(&x, 1, &layout, activations, &mut y);
            });
            add(&format!("nf4, as of {of}"), nf4.bytes(), seconds);
        }
    }
}

/// Products of 2048 rows with a weight, and of one row.
fn linears(figures: &mut Figures, name: &str, bytes: u64, w: &dyn WeightRows<f32>) {
    let (m, n, k) = (2048, w.out_features(), w.in_features());
    let (x, g) = (random(m * k), random(m * n));
    let (mut y, mut gx) = (vec![0.0; m * n], vec![0.0; m * k]);
    let rate = |s: f64| 2.0 * (m * n * k) as f64 / s / 1e9;
    let forward = best(|| linear::forward(&x, m, w, None, &mut y));
    let backward = best(|| linear::backward_input(&g, m, w, false, &mut gx));
    let one = best(|| linear::forward(&x[..k], 1, w, None, &mut y[..n]));
    let case = format!("linear {m}×{n}×{k} on {name}");
    figures.add("kernels", format!("{case}, forward"), rate(forward), "GFLOP/s");
    figures.add("kernels", format!("{case}, backward to the input"), rate(backward), "GFLOP/s");
    figures.add("kernels", format!("linear 1×{n}×{k} on {name}"), bytes as f64 / one / 1e9, "GB/s of weight");
}

/// Causal attention in f32.
fn causal(heads: usize, kv_heads: usize, head_dim: usize) -> Shape {
    let reach = attention::Reach::ALL;
    Shape { heads, kv_heads, head_dim, scale: 0.125, reach, causal: true, bf16: false }
}

fn attentions(figures: &mut Figures) {
    for (batch, t, heads, kv_heads, d) in
        [(4, 512, 8, 8, 64), (4, 512, 8, 2, 64), (1, 4096, 4, 4, 64), (12, 64, 4, 4, 32)]
    {
        let rows = batch * t;
        let (q, k, v) = (random(rows * heads * d), random(rows * kv_heads * d), random(rows * kv_heads * d));
        let g = random(q.len());
        let shape = causal(heads, kv_heads, d);
        let segments: Vec<_> =
            (0..batch).map(|b| Segment { q_start: b * t, q_len: t, k_start: b * t, k_len: t }).collect();
        let (mut out, mut lse) = (vec![0.0; q.len()], vec![0.0; rows * heads]);
        let f = best(|| attention::forward(&q, &k, &v, None, &segments, &shape, &mut out, &mut lse));
        let (mut gq, mut gk, mut gv) = (q.clone(), k.clone(), v.clone());
        let b = best(|| {
            attention::backward(
                &g, &q, &k, &v, None, &out, &lse, &segments, &shape, &mut gq, &mut gk, &mut gv,
            );
        });
        let pairs = (batch * heads * t * (t + 1) / 2 * d) as f64;
        let case = format!("attention {batch}×{t}, {heads}/{kv_heads} heads of {d}");
        figures.add("kernels", format!("{case}, forward"), 4.0 * pairs / f / 1e9, "GFLOP/s");
        figures.add("kernels", format!("{case}, backward"), 10.0 * pairs / b / 1e9, "GFLOP/s");
    }
}

fn one_query(figures: &mut Figures) {
    for t in [512, 4096] {
        let (heads, kv_heads, d) = (8, 2, 64);
        let (q, k, v) = (random(heads * d), random(t * kv_heads * d), random(t * kv_heads * d));
        let shape = causal(heads, kv_heads, d);
        let s = [Segment { q_start: 0, q_len: 1, k_start: 0, k_len: t }];
        let (mut out, mut lse) = (vec![0.0; q.len()], vec![0.0; heads]);
        let f = best(|| attention::forward(&q, &k, &v, None, &s, &shape, &mut out, &mut lse));
        let bytes = (2 * t * kv_heads * d * 4) as f64;
        figures.add(
            "kernels",
            format!("attention of one query on {t} keys"),
            bytes / f / 1e9,
            "GB/s of cache",
        );
    }
}

fn pointwise(figures: &mut Figures) {
    let (rows, d) = (2048, 512);
    let (x, w, g) = (random(rows * d), random(d), random(rows * d));
    let (mut y, mut s, mut gw) = (vec![0.0; rows * d], vec![0.0; rows], vec![0.0; d]);
    let mut add = |case: &str, arrays: f64, n: usize, seconds: f64| {
        figures.add("kernels", case, arrays * (n * 4) as f64 / seconds / 1e9, "GB/s");
    };
    let n = rows * d;
    let t = best(|| rms_norm::forward(&x, d, &w, 1e-5, &mut y, &mut s));
    add("rms_norm, forward", 2.0, n, t);
    let t = best(|| rms_norm::backward(&g, &x, &w, &s, d, Some(&mut y), Some(&mut gw)));
    add("rms_norm, backward", 3.0, n, t);
    let positions: Vec<u32> = (0..rows as u32).map(|p| p % 512).collect();
    let freq: Vec<f32> = (0..32).map(|i| 10000f32.powf(-(i as f32) / 32.0)).collect();
    let t = best(|| rope::apply(&mut y, 8, 64, &positions, &freq, false));
    add("rope", 2.0, n, t);
    let n = rows * 1408;
    let (a, u, g) = (random(n), random(n), random(n));
    let (mut ga, mut gu) = (a.clone(), u.clone());
    let t = best(|| swiglu::forward(&a, &u, &mut ga));
    add("swiglu, forward", 3.0, n, t);
    let t = best(|| swiglu::backward(&g, &mut ga, &mut gu));
    add("swiglu, backward", 5.0, n, t);
    let t = best(|| elementwise::add(&a, &u, &mut ga));
    add("add", 3.0, n, t);
    let t = best(|| {
        black_box(elementwise::sum_of_squares(&a));
    });
    add("sum of squares", 1.0, n, t);
    let t = best(|| {
        black_box(elementwise::all_finite(&a));
    });
    add("all finite", 1.0, n, t);
}

fn losses(figures: &mut Figures) {
    let (rows, vocab) = (256, 32000);
    let mut z = random(rows * vocab);
    let labels: Vec<i64> = (0..rows as i64).collect();
    let mut losses = vec![0.0; rows];
    let s = best(|| {
        cross_entropy::forward_backward(&mut z, vocab, &labels, &Options::default(), Some(1.0), &mut losses);
    });
    figures.add("kernels", "cross-entropy and its gradient", 2.0 * (z.len() * 4) as f64 / s / 1e9, "GB/s");
}

fn random_numbers(figures: &mut Figures) {
    let a = random(1 << 21);
    let mut out = vec![0.0; a.len()];
    let stream = Stream::new(3, 4);
    let rate = |s: f64| a.len() as f64 / s / 1e9;
    let s = best(|| stream.fill_normal(0, 1.0, &mut out));
    figures.add("kernels", "normal numbers", rate(s), "G/s");
    let s = best(|| elementwise::dropout(&a, 0.1, &stream, 0, &mut out));
    figures.add("kernels", "dropout", rate(s), "G/s");
}
