//! Attention whose weights are rectified scores over their sum, plus the identity.
//!
//! r_ij = max(q_i·k_j, 0), w_ij = r_ij / (Σ_j r_ij + ε), y_i = Σ_j w_ij v_j + v_i
//! gr_ij = (g_i·v_j − Σ_j w_ij g_i·v_j) / (Σ_j r_ij + ε) where q_i·k_j > 0, else 0
//! gq_i = Σ_j gr_ij k_j,  gk_j = Σ_i gr_ij q_i,  gv_j = Σ_i w_ij g_i + g_j
//!
//! Each segment for itself; causal, j ≤ i. A row without a positive score keeps the identity alone. One
//! block of `ROWS` rows of scores exists at a time and task; backward computes scores again.
//!
//! Source: Diao et al. 2024, arXiv:2308.14316.

use std::ops::Range;

use crate::split::Tasks;
use crate::{Real, matmul};

/// Rows of one block.
const ROWS: usize = 64;

/// Widths and rules of a call.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Width of queries and keys.
    pub width: usize,
    /// Width of values.
    pub values: usize,
    /// Whether a row sees only rows up to itself.
    pub causal: bool,
    /// ε
    pub eps: f64,
}

/// The rows of each segment; segments lie in order.
fn split<'a, T>(mut rest: &'a mut [T], segments: &[Range<usize>], width: usize) -> Vec<&'a mut [T]> {
    let (mut at, mut parts) = (0, Vec::with_capacity(segments.len()));
    for s in segments {
        let (_, later) = std::mem::take(&mut rest).split_at_mut((s.start - at) * width);
        let (part, later) = later.split_at_mut(s.len() * width);
        parts.push(part);
        (rest, at) = (later, s.end);
    }
    parts
}

/// Rectified scores of `rows` of a segment, and the factor of each row. Returns how many keys they see.
fn scores<T: Real>(q: &[T], k: &[T], rows: Range<usize>, shape: &Shape, r: &mut [T], f: &mut [T]) -> usize {
    let (n, d) = (k.len() / shape.width.max(1), shape.width);
    let keys = if shape.causal { rows.end } else { n };
    let r = &mut r[..rows.len() * keys];
    matmul::nt(rows.len(), keys, d, T::ONE, &q[rows.start * d..rows.end * d], &k[..keys * d], false, r);
    for (i, (row, f)) in r.chunks_exact_mut(keys).zip(f.iter_mut()).enumerate() {
        let seen = if shape.causal { rows.start + i + 1 } else { keys };
        row[seen..].fill(T::ZERO);
        row.iter_mut().for_each(|x| *x = x.max(T::ZERO));
        *f = T::ONE / (row.iter().copied().sum::<T>() + T::from_f64(shape.eps));
    }
    keys
}

/// `y`, as long as `v`.
///
/// # Panics
/// If the slices do not fit; so does [`backward`].
pub fn forward<T: Real>(q: &[T], k: &[T], v: &[T], segments: &[Range<usize>], shape: &Shape, y: &mut [T]) {
    assert!(q.len() == k.len() && v.len() == y.len(), "slices must be equally long");
    y.copy_from_slice(v);
    let (d, e) = (shape.width, shape.values);
    split(y, segments, e).into_iter().zip(segments).each_task(|(y, s)| {
        let (q, k) = (&q[s.start * d..s.end * d], &k[s.start * d..s.end * d]);
        let v = &v[s.start * e..s.end * e];
        let (mut r, mut f) = (vec![T::ZERO; ROWS.min(s.len()) * s.len()], [T::ZERO; ROWS]);
        for first in (0..s.len()).step_by(ROWS) {
            let rows = first..s.len().min(first + ROWS);
            let keys = scores(q, k, rows.clone(), shape, &mut r, &mut f);
            let r = &mut r[..rows.len() * keys];
            for (row, f) in r.chunks_exact_mut(keys).zip(f) {
                row.iter_mut().for_each(|w| *w *= f);
            }
            let y = &mut y[rows.start * e..rows.end * e];
            matmul::nn(rows.len(), keys, e, T::ONE, r, &v[..keys * e], true, y);
        }
    });
}

/// Gradients of [`forward`], overwritten.
#[allow(clippy::too_many_arguments)] // the operands of attention
pub fn backward<T: Real>(
    g: &[T],
    q: &[T],
    k: &[T],
    v: &[T],
    segments: &[Range<usize>],
    shape: &Shape,
    gq: &mut [T],
    gk: &mut [T],
    gv: &mut [T],
) {
    assert!(q.len() == k.len() && v.len() == g.len(), "slices must be equally long");
    gq.fill(T::ZERO);
    gk.fill(T::ZERO);
    gv.copy_from_slice(g);
    let (d, e) = (shape.width, shape.values);
    let flows = split(gq, segments, d).into_iter().zip(split(gk, segments, d)).zip(split(gv, segments, e));
    flows.zip(segments).each_task(|(((gq, gk), gv), s)| {
        let (q, k) = (&q[s.start * d..s.end * d], &k[s.start * d..s.end * d]);
        let (v, g) = (&v[s.start * e..s.end * e], &g[s.start * e..s.end * e]);
        let mut r = vec![T::ZERO; ROWS.min(s.len()) * s.len()];
        let (mut gw, mut f) = (r.clone(), [T::ZERO; ROWS]);
        for first in (0..s.len()).step_by(ROWS) {
            let rows = first..s.len().min(first + ROWS);
            let keys = scores(q, k, rows.clone(), shape, &mut r, &mut f);
            let n = rows.len() * keys;
            let g = &g[rows.start * e..rows.end * e];
            matmul::nt(rows.len(), keys, e, T::ONE, g, &v[..keys * e], false, &mut gw[..n]);
            for ((w, gw), f) in r[..n].chunks_exact_mut(keys).zip(gw[..n].chunks_exact_mut(keys)).zip(f) {
                w.iter_mut().for_each(|w| *w *= f);
                let mean = w.iter().zip(gw.iter()).map(|(w, gw)| *w * *gw).sum::<T>();
                for (w, gw) in w.iter().zip(gw.iter_mut()) {
                    *gw = if *w > T::ZERO { (*gw - mean) * f } else { T::ZERO };
                }
            }
            let q = &q[rows.start * d..rows.end * d];
            matmul::tn(rows.len(), keys, e, T::ONE, &r[..n], g, true, &mut gv[..keys * e]);
            matmul::tn(rows.len(), keys, d, T::ONE, &gw[..n], q, true, &mut gk[..keys * d]);
            let gq = &mut gq[rows.start * d..rows.end * d];
            matmul::nn(rows.len(), keys, d, T::ONE, &gw[..n], &k[..keys * d], true, gq);
        }
    });
}

/// The same written down directly.
pub mod reference {
    use std::ops::Range;

    use super::Shape;
    use crate::Real;

    /// `y` of [`forward`](super::forward).
    pub fn forward<T: Real>(q: &[T], k: &[T], v: &[T], segments: &[Range<usize>], shape: &Shape) -> Vec<T> {
        let (d, e) = (shape.width, shape.values);
        let mut y = v.to_vec();
        for s in segments {
            for i in s.clone() {
                let seen = s.start..if shape.causal { i + 1 } else { s.end };
                let score = |j: usize| (0..d).map(|c| q[i * d + c] * k[j * d + c]).sum::<T>().max(T::ZERO);
                let sum = seen.clone().map(score).sum::<T>() + T::from_f64(shape.eps);
                for j in seen {
                    (0..e).for_each(|c| y[i * e + c] += score(j) / sum * v[j * e + c]);
                }
            }
        }
        y
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_close, assert_gradient, assert_same_for_threads, normal, weighted, wide};

    const SEGMENTS: [Range<usize>; 3] = [0..5, 5..6, 7..10];

    fn shape(causal: bool) -> Shape {
        Shape { width: 3, values: 4, causal, eps: 1e-8 }
    }

    #[test]
    fn equals_the_reference() {
        let segments = [0..150, 150..151, 151..230];
        for causal in [false, true] {
            let (q, k, v) = (normal::<f32>(1, 690), normal::<f32>(2, 690), normal::<f32>(3, 920));
            let mut y = vec![f32::NAN; 920];
            forward(&q, &k, &v, &segments, &shape(causal), &mut y);
            let want = reference::forward(&wide(&q), &wide(&k), &wide(&v), &segments, &shape(causal));
            assert_close(&y, &want, 1e-5);
        }
    }

    #[test]
    fn backward_is_the_gradient() {
        for causal in [false, true] {
            let shape = shape(causal);
            let (q, k) = (normal::<f64>(1, 30), normal::<f64>(2, 30));
            let (v, g) = (normal::<f64>(3, 40), normal::<f64>(4, 40));
            let (mut gq, mut gk, mut gv) = (vec![f64::NAN; 30], vec![f64::NAN; 30], vec![f64::NAN; 40]);
            backward(&g, &q, &k, &v, &SEGMENTS, &shape, &mut gq, &mut gk, &mut gv);
            let run = |q: &[f64], k: &[f64], v: &[f64]| reference::forward(q, k, v, &SEGMENTS, &shape);
            assert_gradient(&q, &gq, |q| weighted(&g, &run(q, &k, &v)));
            assert_gradient(&k, &gk, |k| weighted(&g, &run(&q, k, &v)));
            assert_gradient(&v, &gv, |v| weighted(&g, &run(&q, &k, v)));
        }
    }

    #[test]
    fn threads_do_not_change_a_bit() {
        let segments = [0..400, 400..1000];
        let (q, k) = (normal::<f32>(1, 3000), normal::<f32>(2, 3000));
        let (v, g) = (normal::<f32>(3, 4000), normal::<f32>(4, 4000));
        assert_same_for_threads(|| {
            let (mut gq, mut gk, mut gv) = (vec![0.0; 3000], vec![0.0; 3000], vec![0.0; 4000]);
            backward(&g, &q, &k, &v, &segments, &shape(true), &mut gq, &mut gk, &mut gv);
            [gq, gk, gv].concat()
        });
    }
}
