//! Singular values and vectors by Jacobi rotations of AᵀA, in f64: slow, short and independent.

use super::{product, transposed};

/// Singular values, descending, with the right singular vectors as rows.
pub fn right(a: &[f64], (m, n): (usize, usize)) -> (Vec<f64>, Vec<Vec<f64>>) {
    let mut s = product(&transposed(a, (m, n)), a, (n, m, n));
    let mut v: Vec<f64> = (0..n * n).map(|e| f64::from(u8::from(e / n == e % n))).collect();
    for _ in 0..60 {
        for p in 0..n {
            for q in p + 1..n {
                rotate(&mut s, &mut v, n, p, q);
            }
        }
    }
    let mut order: Vec<usize> = (0..n).collect();
    order.sort_by(|i, j| s[j * n + j].total_cmp(&s[i * n + i]));
    let values = order.iter().map(|i| s[i * n + i].max(0.0).sqrt()).collect();
    (values, order.iter().map(|i| (0..n).map(|r| v[r * n + i]).collect()).collect())
}

/// Makes entry (p, q) of the symmetric `s` zero.
fn rotate(s: &mut [f64], v: &mut [f64], n: usize, p: usize, q: usize) {
    let off = s[p * n + q];
    if off.abs() < 1e-300 {
        return;
    }
    let theta = (s[q * n + q] - s[p * n + p]) / (2.0 * off);
    let t = theta.signum() / (theta.abs() + (theta * theta + 1.0).sqrt());
    let t = if theta == 0.0 { 1.0 } else { t };
    let c = 1.0 / (t * t + 1.0).sqrt();
    let d = t * c;
    for k in 0..n {
        let (x, y) = (s[k * n + p], s[k * n + q]);
        (s[k * n + p], s[k * n + q]) = (c * x - d * y, d * x + c * y);
    }
    for k in 0..n {
        let (x, y) = (s[p * n + k], s[q * n + k]);
        (s[p * n + k], s[q * n + k]) = (c * x - d * y, d * x + c * y);
        let (x, y) = (v[k * n + p], v[k * n + q]);
        (v[k * n + p], v[k * n + q]) = (c * x - d * y, d * x + c * y);
    }
}

/// The first r vectors of the smaller side as columns `[min × r]`, signed so that the entry of the *left*
/// vector that is largest by magnitude is positive, whichever side they are of.
pub fn projector(g: &[f64], (m, n): (usize, usize), r: usize) -> Vec<f64> {
    let right_side = m >= n;
    let tall = if right_side { g.to_vec() } else { transposed(g, (m, n)) };
    let (rows, side) = if right_side { (m, n) } else { (n, m) };
    let (_, vectors) = right(&tall, (rows, side));
    let mut out = vec![0.0; side * r];
    for (j, v) in vectors.iter().take(r).enumerate() {
        // Of a right projection the left vector is G v; of a left one, v itself.
        let left = if right_side { product(g, v, (m, n, 1)) } else { v.clone() };
        let largest = left.iter().fold(0.0f64, |a, x| if x.abs() > a.abs() { *x } else { a });
        for (i, x) in v.iter().enumerate() {
            out[i * r + j] = x * largest.signum();
        }
    }
    out
}

/// How many singular values are above `least` of the largest.
pub fn rank(a: &[f64], shape: (usize, usize), least: f64) -> usize {
    let (values, _) = right(a, shape);
    values.iter().filter(|s| **s > least * values[0]).count()
}
