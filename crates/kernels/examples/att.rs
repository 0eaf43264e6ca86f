use ramekin_kernels::attention::*;
use std::time::Instant;
fn main() {
    for (b, t, h, kvh, d) in [
        (4usize, 512usize, 8usize, 8usize, 64usize),
        (4, 512, 9, 3, 64),
        (1, 2048, 8, 8, 64),
        (1, 8192, 8, 8, 64),
        (12, 64, 4, 4, 32),
        (12, 256, 6, 6, 64),
    ] {
        let shape =
            Shape { heads: h, kv_heads: kvh, head_dim: d, scale: 0.125, reach: Reach::ALL, causal: true };
        let rnd = |n: usize, s: u32| {
            let mut x = s;
            (0..n)
                .map(|_| {
                    x = x.wrapping_mul(1664525).wrapping_add(1013904223);
                    (x >> 8) as f32 / 8388608.0 - 1.0
                })
                .collect::<Vec<f32>>()
        };
        let (q, k, v, g) =
            (rnd(b * t * h * d, 1), rnd(b * t * kvh * d, 2), rnd(b * t * kvh * d, 3), rnd(b * t * h * d, 4));
        let s: Vec<_> =
            (0..b).map(|i| Segment { q_start: i * t, q_len: t, k_start: i * t, k_len: t }).collect();
        let (mut o, mut l) = (vec![0.0; q.len()], vec![0.0; b * t * h]);
        let (mut gq, mut gk, mut gv) = (q.clone(), k.clone(), v.clone());
        let (mut bf, mut bb) = (1e9f64, 1e9f64);
        let reps = if t > 4000 { 2 } else { 8 };
        for _ in 0..reps {
            let t0 = Instant::now();
            forward(&q, &k, &v, None, &s, &shape, &mut o, &mut l);
            bf = bf.min(t0.elapsed().as_secs_f64());
            let t0 = Instant::now();
            backward(&g, &q, &k, &v, None, &o, &l, &s, &shape, &mut gq, &mut gk, &mut gv);
            bb = bb.min(t0.elapsed().as_secs_f64());
        }
        let pairs = (b * h * t * (t + 1) / 2) as f64;
        println!(
            "{b}x{t} {h}/{kvh}/{d}: fwd {:.1} bwd {:.1} GFLOP/s",
            pairs * 4.0 * d as f64 / bf / 1e9,
            pairs * 10.0 * d as f64 / bb / 1e9
        );
    }
}
