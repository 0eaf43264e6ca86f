//! Prints how fast the kernels run on this machine: `cargo run --release -p ramekin-kernels --example speed`.
//!
//! Sizes are those of a 58 M parameter model at 4×512 tokens; each figure is the best of several calls.

use std::time::Instant;

use ramekin_kernels::attention::{self, Segment, Shape};
use ramekin_kernels::cross_entropy::{self, Options};
use ramekin_kernels::linear::{self, WeightRows};
use ramekin_kernels::philox::Stream;
use ramekin_kernels::{elementwise, matmul, rms_norm, rope, swiglu};

fn best(mut f: impl FnMut()) -> f64 {
    let mut least = f64::INFINITY;
    let start = Instant::now();
    while start.elapsed().as_secs_f64() < 0.4 {
        let t = Instant::now();
        f();
        least = least.min(t.elapsed().as_secs_f64());
    }
    least
}

fn random(n: usize) -> Vec<f32> {
    let mut x = vec![0.0; n];
    Stream::new(1, n as u64).fill_normal(0, 1.0, &mut x);
    x
}

/// A dense weight that hides its values, so that it is multiplied as a packed one would be.
struct Hidden(Vec<f32>, usize);

impl WeightRows<f32> for Hidden {
    fn out_features(&self) -> usize {
        self.0.len() / self.1
    }
    fn in_features(&self) -> usize {
        self.1
    }
    fn rows(&self, first: usize, out: &mut [f32]) {
        out.copy_from_slice(&self.0[first * self.1..][..out.len()]);
    }
}

fn main() {
    for (m, n, k) in [
        (2048, 512, 512),
        (2048, 1408, 512),
        (2048, 512, 1408),
        (2048, 16, 512),
        (2048, 512, 16),
        (512, 32000, 512),
        (128, 128, 128),
        (768, 128, 128),
        (1024, 1024, 1024),
    ] {
        let (x, w, g) = (random(m * k), random(n * k), random(m * n));
        let (mut y, mut gx, mut gw) = (vec![0.0; m * n], vec![0.0; m * k], vec![0.0; n * k]);
        let rate = |s: f64| 2.0 * (m * n * k) as f64 / s / 1e9;
        let own = best(|| unsafe {
            gemm::gemm(
                m,
                n,
                k,
                y.as_mut_ptr(),
                1,
                n as isize,
                false,
                x.as_ptr(),
                1,
                k as isize,
                w.as_ptr(),
                k as isize,
                1,
                0.0,
                1.0,
                false,
                false,
                false,
                gemm::Parallelism::Rayon(0),
            );
        });
        let nt = best(|| matmul::nt(m, n, k, 1.0, &x, &w, false, &mut y));
        let nn = best(|| matmul::nn(m, n, k, 1.0, &g, &w, false, &mut gx));
        let tn = best(|| matmul::tn(m, n, k, 1.0, &g, &x, false, &mut gw));
        let hidden = Hidden(w, k);
        let lf = best(|| linear::forward(&x, m, &hidden, None, &mut y));
        let lb = best(|| linear::backward_input(&g, m, &hidden, false, &mut gx));
        println!(
            "matmul {m}×{n}×{k}: gemm's own threads {:.0}, nt {:.0}, nn {:.0}, tn {:.0}; linear forward {:.0}, backward {:.0} GFLOP/s",
            rate(own),
            rate(nt),
            rate(nn),
            rate(tn),
            rate(lf),
            rate(lb)
        );
    }
    for m in [1, 4, 8] {
        let (n, k) = (8192, 4096);
        let (x, w) = (random(m * k), random(n * k));
        let mut y = vec![0.0; m * n];
        let s = best(|| matmul::nt(m, n, k, 1.0, &x, &w, false, &mut y));
        println!("nt with {m} rows: {:.1} GB/s of weight", (n * k * 4) as f64 / s / 1e9);
    }
    for (batch, t, heads, kv_heads, d) in
        [(4, 512, 8, 8, 64), (4, 512, 8, 2, 64), (1, 4096, 4, 4, 64), (12, 64, 4, 4, 32), (32, 128, 4, 4, 32)]
    {
        let rows = batch * t;
        let (q, k, v) = (random(rows * heads * d), random(rows * kv_heads * d), random(rows * kv_heads * d));
        let g = random(q.len());
        let shape = Shape { heads, kv_heads, head_dim: d, scale: 0.125, window: None, causal: true };
        let segments: Vec<_> =
            (0..batch).map(|b| Segment { q_start: b * t, q_len: t, k_start: b * t, k_len: t }).collect();
        let (mut out, mut lse) = (vec![0.0; q.len()], vec![0.0; rows * heads]);
        let f = best(|| attention::forward(&q, &k, &v, &segments, &shape, &mut out, &mut lse));
        let (mut gq, mut gk, mut gv) = (q.clone(), k.clone(), v.clone());
        let b = best(|| {
            attention::backward(&g, &q, &k, &v, &out, &lse, &segments, &shape, &mut gq, &mut gk, &mut gv)
        });
        let pairs = (batch * heads * t * (t + 1) / 2 * d) as f64;
        println!(
            "attention {batch}×{t}, {heads}/{kv_heads} heads of {d}: forward {:.0}, backward {:.0} GFLOP/s ({:.1}, {:.1} ms)",
            4.0 * pairs / f / 1e9,
            10.0 * pairs / b / 1e9,
            f * 1e3,
            b * 1e3
        );
    }
    for t in [512, 4096] {
        let (heads, kv_heads, d) = (8, 2, 64);
        let (q, k, v) = (random(heads * d), random(t * kv_heads * d), random(t * kv_heads * d));
        let shape = Shape { heads, kv_heads, head_dim: d, scale: 0.125, window: None, causal: true };
        let s = [Segment { q_start: 0, q_len: 1, k_start: 0, k_len: t }];
        let (mut out, mut lse) = (vec![0.0; q.len()], vec![0.0; heads]);
        let f = best(|| attention::forward(&q, &k, &v, &s, &shape, &mut out, &mut lse));
        println!("one query on {t} keys: {:.1} µs", f * 1e6);
    }
    let (rows, d) = (2048, 512);
    let (x, w, g) = (random(rows * d), random(d), random(rows * d));
    let (mut y, mut s, mut gw) = (vec![0.0; rows * d], vec![0.0; rows], vec![0.0; d]);
    let gb = (rows * d * 4) as f64 / 1e9;
    println!(
        "rms_norm forward {:.1} GB/s",
        2.0 * gb / best(|| rms_norm::forward(&x, d, &w, 1e-5, &mut y, &mut s))
    );
    println!(
        "rms_norm backward {:.1} GB/s",
        3.0 * gb / best(|| rms_norm::backward(&g, &x, &w, &s, d, Some(&mut y), Some(&mut gw)))
    );
    let positions: Vec<u32> = (0..rows as u32).map(|p| p % 512).collect();
    let freq: Vec<f32> = (0..32).map(|i| 10000f32.powf(-(i as f32) / 32.0)).collect();
    println!("rope {:.1} GB/s", 2.0 * gb / best(|| rope::apply(&mut y, 8, 64, &positions, &freq, false)));
    let n = 2048 * 1408;
    let (a, u, g) = (random(n), random(n), random(n));
    let (mut ga, mut gu) = (vec![0.0; n], vec![0.0; n]);
    let gb = (n * 4) as f64 / 1e9;
    println!("swiglu forward {:.1} GB/s", 3.0 * gb / best(|| swiglu::forward(&a, &u, &mut ga)));
    println!(
        "swiglu backward {:.1} GB/s",
        5.0 * gb / best(|| swiglu::backward(&g, &a, &u, &mut ga, &mut gu))
    );
    println!("add {:.1} GB/s", 3.0 * gb / best(|| elementwise::add(&a, &u, &mut ga)));
    println!(
        "sum_of_squares {:.1} GB/s",
        gb / best(|| {
            std::hint::black_box(elementwise::sum_of_squares(&a));
        })
    );
    println!(
        "all_finite {:.1} GB/s",
        gb / best(|| {
            std::hint::black_box(elementwise::all_finite(&a));
        })
    );
    let stream = Stream::new(3, 4);
    println!(
        "dropout {:.2} G entries/s",
        n as f64 / 1e9 / best(|| elementwise::dropout(&a, 0.1, &stream, 0, &mut ga))
    );
    println!("normal {:.3} G entries/s", n as f64 / 1e9 / best(|| stream.fill_normal(0, 1.0, &mut ga)));
    let (rows, vocab) = (256, 32000);
    let mut z = random(rows * vocab);
    let labels: Vec<i64> = (0..rows as i64).collect();
    let mut losses = vec![0.0; rows];
    let gb = (rows * vocab * 4) as f64 / 1e9;
    let s = best(|| {
        cross_entropy::forward_backward(&mut z, vocab, &labels, &Options::default(), Some(1.0), &mut losses)
    });
    println!("cross_entropy {:.1} GB/s", 2.0 * gb / s);
}
