//! Root-mean-square norm over rows of width d.
//!
//! y = x · s · w      s = 1 / √(mean x² + ε), one a row
//! gx = s·(g⊙w) − x · s³/d · Σ(g⊙w⊙x)      gw += Σ_rows g ⊙ x · s
//!
//! Source: Zhang & Sennrich 2019, arXiv:1910.07467.

use crate::Real;
use crate::split::{Tasks, partials, rows_per_task};
use crate::wide::wide;

/// Rows whose weight gradients are added up in one task.
const GRADIENT_ROWS: usize = 64;

/// `y = x · rsqrt(mean(x²) + eps) · w` for each row of width `d`; keeps the factor of each row in
/// `inv_rms` for the backward.
///
/// # Panics
/// If `x` and `y` are not rows of `d`, `w` not `d` long, or `inv_rms` not one entry a row.
pub fn forward<T: Real>(x: &[T], d: usize, w: &[T], eps: f64, y: &mut [T], inv_rms: &mut [T]) {
    check(x.len(), d, w.len(), inv_rms.len());
    assert_eq!(x.len(), y.len(), "`y` must be as long as `x`");
    let rows = rows_per_task(d);
    y.chunks_mut(rows * d.max(1))
        .zip(x.chunks(rows * d.max(1)))
        .zip(inv_rms.chunks_mut(rows))
        .each_task(|((y, x), s)| forward_rows(x, w, T::from_f64(eps), y, s));
}

/// Gradients of [`forward`]: `gx` is overwritten, `gw` is added to.
///
/// # Panics
/// If a slice's length is not its shape.
pub fn backward<T: Real>(
    g: &[T],
    x: &[T],
    w: &[T],
    inv_rms: &[T],
    d: usize,
    gx: Option<&mut [T]>,
    gw: Option<&mut [T]>,
) {
    check(x.len(), d, w.len(), inv_rms.len());
    assert_eq!(g.len(), x.len(), "`g` must be as long as `x`");
    if d == 0 {
        return;
    }
    if let Some(gx) = gx {
        assert_eq!(gx.len(), x.len(), "`gx` must be as long as `x`");
        let rows = rows_per_task(d);
        gx.chunks_mut(rows * d)
            .zip(g.chunks(rows * d))
            .zip(x.chunks(rows * d))
            .zip(inv_rms.chunks(rows))
            .each_task(|(((gx, g), x), s)| backward_rows(g, x, w, s, gx));
    }
    if let Some(gw) = gw {
        assert_eq!(gw.len(), d, "`gw` must hold {d} values");
        let sums = partials(inv_rms.len().div_ceil(GRADIENT_ROWS), |t| {
            let rows = t * GRADIENT_ROWS..inv_rms.len().min((t + 1) * GRADIENT_ROWS);
            let mut sum = vec![T::ZERO; d];
            let span = rows.start * d..rows.end * d;
            weight_rows(&g[span.clone()], &x[span], &inv_rms[rows], &mut sum);
            sum
        });
        for sum in sums {
            for (w, s) in gw.iter_mut().zip(sum) {
                *w += s;
            }
        }
    }
}

fn check(x: usize, d: usize, w: usize, rows: usize) {
    assert_eq!(w, d, "`w` must hold {d} values");
    assert_eq!(x, rows * d, "`x` must hold {rows} rows of {d}");
}

wide! {
    /// Σ a·b in 32 interleaved partial sums.
    pub(crate) fn sum_of_products[T: Real](a: &[T], b: &[T]) -> T {
        const LANES: usize = 32;
        let mut acc = [T::ZERO; LANES];
        let (a, a_rest) = a.as_chunks::<LANES>();
        let (b, b_rest) = b.as_chunks::<LANES>();
        for (a, b) in a.iter().zip(b) {
            for l in 0..LANES {
                acc[l] += a[l] * b[l];
            }
        }
        let mut width = LANES / 2;
        while width > 0 {
            for l in 0..width {
                acc[l] += acc[l + width];
            }
            width /= 2;
        }
        let mut sum = acc[0];
        for (a, b) in a_rest.iter().zip(b_rest) {
            sum += *a * *b;
        }
        sum
    }

    fn forward_rows[T: Real](x: &[T], w: &[T], eps: T, y: &mut [T], inv_rms: &mut [T]) {
        let d = w.len();
        let width = T::from_f64(d as f64);
        for (r, s) in inv_rms.iter_mut().enumerate() {
            let x = &x[r * d..(r + 1) * d];
            let f = T::ONE / (sum_of_products(x, x) / width + eps).sqrt();
            *s = f;
            for ((y, x), w) in y[r * d..(r + 1) * d].iter_mut().zip(x).zip(w) {
                *y = *x * f * *w;
            }
        }
    }

    fn backward_rows[T: Real](g: &[T], x: &[T], w: &[T], inv_rms: &[T], gx: &mut [T]) {
        let d = w.len();
        let width = T::from_f64(d as f64);
        for (r, &s) in inv_rms.iter().enumerate() {
            let row = r * d..(r + 1) * d;
            let (g, x, gx) = (&g[row.clone()], &x[row.clone()], &mut gx[row]);
            for ((gx, g), w) in gx.iter_mut().zip(g).zip(w) {
                *gx = *g * *w;
            }
            let f = s * s * s / width * sum_of_products(gx, x);
            for (gx, x) in gx.iter_mut().zip(x) {
                *gx = *gx * s - *x * f;
            }
        }
    }

    fn weight_rows[T: Real](g: &[T], x: &[T], inv_rms: &[T], gw: &mut [T]) {
        let d = gw.len();
        for (r, &s) in inv_rms.iter().enumerate() {
            let row = r * d..(r + 1) * d;
            for ((w, g), x) in gw.iter_mut().zip(&g[row.clone()]).zip(&x[row]) {
                *w += *g * *x * s;
            }
        }
    }
}

/// The same written down directly.
pub mod reference {
    use crate::Real;

    /// `y` of [`forward`](super::forward).
    pub fn forward<T: Real>(x: &[T], d: usize, w: &[T], eps: f64) -> Vec<T> {
        let row = |x: &[T]| {
            let mean = x.iter().map(|x| *x * *x).sum::<T>() / T::from_f64(d as f64);
            let s = T::ONE / (mean + T::from_f64(eps)).sqrt();
            x.iter().zip(w).map(|(x, w)| *x * s * *w).collect::<Vec<_>>()
        };
        x.chunks(d.max(1)).flat_map(row).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::{assert_close, assert_gradient, assert_same_for_threads, normal, weighted, wide};

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn equals_the_reference(rows in 0usize..80, d in 1usize..150, scale in 1e-3f32..1e3) {
            let x: Vec<f32> = normal::<f32>(1, rows * d).iter().map(|x| x * scale).collect();
            let w = normal::<f32>(2, d);
            let (mut y, mut s) = (vec![f32::NAN; rows * d], vec![f32::NAN; rows]);
            forward(&x, d, &w, 1e-5, &mut y, &mut s);
            assert_close(&y, &reference::forward(&wide(&x), d, &wide(&w), 1e-5), 1e-6);
        }
    }

    #[test]
    fn backward_is_the_gradient() {
        let (rows, d) = (5, 37);
        let (x, w, g) = (normal::<f64>(1, rows * d), normal::<f64>(2, d), normal::<f64>(3, rows * d));
        let (mut y, mut s) = (vec![0.0; rows * d], vec![0.0; rows]);
        forward(&x, d, &w, 1e-2, &mut y, &mut s);
        let (mut gx, mut gw) = (vec![f64::NAN; rows * d], vec![1.0; d]);
        backward(&g, &x, &w, &s, d, Some(&mut gx), Some(&mut gw));
        assert_gradient(&x, &gx, |x| weighted(&g, &reference::forward(x, d, &w, 1e-2)));
        let gw: Vec<f64> = gw.iter().map(|g| g - 1.0).collect(); // it was added to
        assert_gradient(&w, &gw, |w| weighted(&g, &reference::forward(&x, d, w, 1e-2)));
    }

    #[test]
    fn nan_stays_in_its_row() {
        let d = 40;
        let (mut x, w) = (normal::<f32>(1, 3 * d), normal::<f32>(2, d));
        x[d + 3] = f32::NAN;
        let (mut y, mut s) = (vec![0.0; 3 * d], vec![0.0; 3]);
        forward(&x, d, &w, 1e-5, &mut y, &mut s);
        assert!(y.chunks(d).enumerate().all(|(i, y)| y.iter().all(|y| y.is_nan() == (i == 1))));
    }

    #[test]
    fn threads_do_not_change_a_bit() {
        let (rows, d) = (500, 96);
        let (x, w, g) = (normal::<f32>(1, rows * d), normal::<f32>(2, d), normal::<f32>(3, rows * d));
        assert_same_for_threads(|| {
            let (mut y, mut s) = (vec![0.0; rows * d], vec![0.0; rows]);
            let (mut gx, mut gw) = (vec![0.0; rows * d], vec![0.0; d]);
            forward(&x, d, &w, 1e-5, &mut y, &mut s);
            backward(&g, &x, &w, &s, d, Some(&mut gx), Some(&mut gw));
            [y, gx, gw].concat()
        });
    }
}
