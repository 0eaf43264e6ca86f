//! Attention of a bf16 model against f64, and against what plain code in bf16 makes of it.

use super::*;
use crate::bf16::{round, unit, widen};
use crate::testing::{assert_same_for_threads, normal, wide};

fn rounded(x: f64) -> f64 {
    f64::from(widen(round(x as f32)))
}

fn all_rounded(x: &[f32]) -> Vec<f64> {
    x.iter().map(|x| rounded(f64::from(*x))).collect()
}

/// Output and gradients of q, k and v in f64; `narrow` rounds the weights and their gradients on the way, as operands
/// of products in bf16. One segment, heads as `o` says.
fn written_down([g, q, k, v]: [&[f64]; 4], o: &Shape, narrow: &dyn Fn(f64) -> f64) -> [Vec<f64>; 4] {
    let (d, group) = (o.head_dim, o.heads / o.kv_heads);
    let (rows, keys) = (q.len() / (o.heads * d), k.len() / (o.kv_heads * d));
    let s = Segment { q_start: 0, q_len: rows, k_start: 0, k_len: keys };
    let (mut out, mut gq) = (vec![0.0; q.len()], vec![0.0; q.len()]);
    let (mut gk, mut gv) = (vec![0.0; k.len()], vec![0.0; k.len()]);
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    for (i, h) in (0..rows).flat_map(|i| (0..o.heads).map(move |h| (i, h))) {
        let qi = (i * o.heads + h) * d..(i * o.heads + h + 1) * d;
        let of = |j: usize| (j * o.kv_heads + h / group) * d..(j * o.kv_heads + h / group + 1) * d;
        let seen = o.visible(&s, i);
        let scores: Vec<f64> = seen.clone().map(|j| o.scale * dot(&q[qi.clone()], &k[of(j)])).collect();
        let top = scores.iter().fold(f64::NEG_INFINITY, |a, x| a.max(*x));
        let sum: f64 = scores.iter().map(|x| (x - top).exp()).sum();
        for (j, x) in seen.clone().zip(&scores) {
            let p = narrow((x - top).exp()) / sum;
            qi.clone().zip(of(j)).for_each(|(o, v_at)| out[o] += p * v[v_at]);
        }
        let along = dot(&g[qi.clone()], &out[qi.clone()]);
        for (j, x) in seen.zip(&scores) {
            let p = (x - top).exp() / sum;
            let ds = narrow(p * (dot(&g[qi.clone()], &v[of(j)]) - along));
            for (at, kv) in qi.clone().zip(of(j)) {
                gv[kv] += narrow(p) * g[at];
                gk[kv] += o.scale * ds * q[at];
                gq[at] += o.scale * ds * k[kv];
            }
        }
    }
    [out, gq, gk, gv]
}

/// What the kernels make of one segment: as [`written_down`].
fn made([g, q, k, v]: [&[f32]; 4], o: &Shape) -> [Vec<f32>; 4] {
    let (rows, keys) = (q.len() / (o.heads * o.head_dim), k.len() / (o.kv_heads * o.head_dim));
    let s = [Segment { q_start: 0, q_len: rows, k_start: 0, k_len: keys }];
    let (mut out, mut lse) = (vec![f32::NAN; q.len()], vec![f32::NAN; rows * o.heads]);
    forward(q, k, v, None, &s, o, &mut out, &mut lse);
    let [mut gq, mut gk, mut gv] = [q, k, v].map(|x| vec![f32::NAN; x.len()]);
    backward(g, q, k, v, None, &out, &lse, &s, o, &mut gq, &mut gk, &mut gv);
    [out, gq, gk, gv]
}

fn shape(kv_heads: usize, group: usize, head_dim: usize, window: Option<usize>) -> Shape {
    let reach = Reach { window, chunk: None };
    let scale = (head_dim as f64).powf(-0.5);
    Shape { heads: kv_heads * group, kv_heads, head_dim, scale, reach, causal: true, bf16: true }
}

#[test]
fn errors_are_at_most_twice_those_of_plain_code_in_bf16() {
    for (o, rows, keys) in [
        (shape(2, 1, 64, None), 150, 150),
        (shape(1, 3, 64, None), 70, 301),
        (shape(2, 2, 18, Some(33)), 130, 130),
        (Shape { causal: false, ..shape(1, 1, 6, None) }, 65, 67),
        (shape(1, 2, 7, None), 40, 40), // an odd width stays in f32
    ] {
        let q = normal::<f32>(1, rows * o.heads * o.head_dim);
        let k = normal::<f32>(2, keys * o.kv_heads * o.head_dim);
        let (v, g) = (normal::<f32>(3, k.len()), normal::<f32>(4, q.len()));
        let all = [&g[..], &q, &k, &v];
        let exact = all.map(wide);
        let truth = written_down(exact.each_ref().map(|x| &x[..]), &o, &|x| x);
        let narrow = all.map(all_rounded);
        let plain = written_down(narrow.each_ref().map(|x| &x[..]), &o, &rounded);
        for (name, ((found, truth), plain)) in
            ["out", "gq", "gk", "gv"].into_iter().zip(made(all, &o).iter().zip(&truth).zip(&plain))
        {
            let size = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
            let ours = size(&mut found.iter().zip(truth).map(|(a, b)| f64::from(*a) - b));
            let theirs = size(&mut plain.iter().zip(truth).map(|(a, b)| a - b));
            assert!(ours <= 2.0 * theirs, "{name} of {o:?}: {ours:e} against {theirs:e}");
            let pairs = unit().is_some() && o.head_dim % 2 == 0;
            assert!(!pairs || ours > 0.1 * theirs, "{name} of {o:?}: nothing was rounded, {ours:e}");
        }
    }
}

#[test]
fn segments_stand_alone_and_threads_change_nothing() {
    let o = shape(1, 2, 16, None);
    let (a, b) = (90, 71);
    let q = normal::<f32>(1, (a + b) * o.heads * o.head_dim);
    let k = normal::<f32>(2, (a + b) * o.kv_heads * o.head_dim);
    let g = normal::<f32>(3, q.len());
    let s = [(0, a), (a, b)].map(|(at, len)| Segment { q_start: at, q_len: len, k_start: at, k_len: len });
    let run = || {
        let (mut out, mut lse) = (vec![0.0; q.len()], vec![0.0; (a + b) * o.heads]);
        forward(&q, &k, &k, None, &s, &o, &mut out, &mut lse);
        let [mut gq, mut gk, mut gv] = [&q, &k, &k].map(|x| vec![0.0; x.len()]);
        backward(&g, &q, &k, &k, None, &out, &lse, &s, &o, &mut gq, &mut gk, &mut gv);
        [out, gq, gk, gv]
    };
    let together = run();
    let (wide, narrow) = (a * o.heads * o.head_dim, a * o.head_dim);
    let alone = made([&g[wide..], &q[wide..], &k[narrow..], &k[narrow..]], &o);
    for (both, (one, from)) in together.iter().zip(alone.iter().zip([wide, wide, narrow, narrow])) {
        assert!(both[from..] == one[..], "a segment sees another");
    }
    assert_same_for_threads(|| run().concat());
}

#[test]
fn nan_stays_in_its_query() {
    let o = shape(1, 1, 8, None);
    let mut q = normal::<f32>(1, 70 * 8);
    let k = normal::<f32>(2, 70 * 8);
    q[5 * 8 + 1] = f32::NAN;
    let [out, ..] = made([&k, &q, &k, &k], &o);
    for (i, row) in out.chunks(8).enumerate() {
        assert_eq!(row.iter().any(|x| x.is_nan()), i == 5, "row {i}");
    }
}
