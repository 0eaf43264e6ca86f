//! Layer norm over rows of width d.
//!
//! y = n·w + b      n = (x − μ)·s, μ = mean x, s = 1 / √(mean (x − μ)² + ε), both one a row
//! gx = s·(h − mean h − n·mean(h⊙n)), h = g⊙w      gw += Σ_rows g ⊙ n      gb += Σ_rows g
//!
//! Source: Ba et al. 2016, arXiv:1607.06450.

use crate::Real;
use crate::split::{Tasks, partials, rows_per_task};

/// Rows whose weight gradients are added up in one task.
const GRADIENT_ROWS: usize = 64;

/// What a row's backward needs: its mean and its factor.
pub struct Row<T> {
    mean: T,
    factor: T,
}

fn statistics<T: Real>(x: &[T], eps: T) -> Row<T> {
    let width = T::from_f64(x.len() as f64);
    let mean = x.iter().copied().sum::<T>() / width;
    let spread = x.iter().map(|x| (*x - mean) * (*x - mean)).sum::<T>() / width;
    Row { mean, factor: T::ONE / (spread + eps).sqrt() }
}

fn check(x: usize, d: usize) {
    assert!(d > 0 || x == 0, "a norm of width 0");
    assert_eq!(x % d.max(1), 0, "`x` must be rows of {d}");
}

/// `y` for each row as long as `w`.
///
/// # Panics
/// If the slices do not fit.
pub fn forward<T: Real>(x: &[T], w: &[T], b: &[T], eps: f64, y: &mut [T]) {
    let d = w.len();
    check(x.len(), d);
    assert!(b.len() == d && x.len() == y.len(), "slices must be equally long");
    let (span, eps) = (rows_per_task(d) * d.max(1), T::from_f64(eps));
    y.chunks_mut(span).zip(x.chunks(span)).each_task(|(y, x)| {
        for (y, x) in y.chunks_exact_mut(d).zip(x.chunks_exact(d)) {
            let row = statistics(x, eps);
            for (((y, x), w), b) in y.iter_mut().zip(x).zip(w).zip(b) {
                *y = (*x - row.mean) * row.factor * *w + *b;
            }
        }
    });
}

/// Gradients of [`forward`]: `gx` is overwritten, `gw` and `gb` are added to. The rows' statistics are
/// taken again from `x`.
///
/// # Panics
/// If the slices do not fit.
pub fn backward<T: Real>(
    g: &[T],
    x: &[T],
    w: &[T],
    eps: f64,
    gx: Option<&mut [T]>,
    affine: Option<(&mut [T], &mut [T])>,
) {
    let d = w.len();
    check(x.len(), d);
    assert_eq!(g.len(), x.len(), "`g` must be as long as `x`");
    if d == 0 {
        return;
    }
    let eps = T::from_f64(eps);
    if let Some(gx) = gx {
        assert_eq!(gx.len(), x.len(), "`gx` must be as long as `x`");
        let (span, width) = (rows_per_task(d) * d, T::from_f64(d as f64));
        gx.chunks_mut(span).zip(g.chunks(span)).zip(x.chunks(span)).each_task(|((gx, g), x)| {
            for ((gx, g), x) in gx.chunks_exact_mut(d).zip(g.chunks_exact(d)).zip(x.chunks_exact(d)) {
                let row = statistics(x, eps);
                let n = |i: usize| (x[i] - row.mean) * row.factor;
                let mean = (0..d).map(|i| g[i] * w[i]).sum::<T>() / width;
                let along = (0..d).map(|i| g[i] * w[i] * n(i)).sum::<T>() / width;
                for (i, gx) in gx.iter_mut().enumerate() {
                    *gx = row.factor * (g[i] * w[i] - mean - n(i) * along);
                }
            }
        });
    }
    if let Some((gw, gb)) = affine {
        assert!(gw.len() == d && gb.len() == d, "`gw` and `gb` must hold {d} values");
        let rows = x.len() / d;
        let sums = partials(rows.div_ceil(GRADIENT_ROWS), |t| {
            let span = t * GRADIENT_ROWS * d..x.len().min((t + 1) * GRADIENT_ROWS * d);
            let (mut sw, mut sb) = (vec![T::ZERO; d], vec![T::ZERO; d]);
            for (g, x) in g[span.clone()].chunks_exact(d).zip(x[span].chunks_exact(d)) {
                let row = statistics(x, eps);
                for (((sw, sb), g), x) in sw.iter_mut().zip(&mut sb).zip(g).zip(x) {
                    *sw += *g * (*x - row.mean) * row.factor;
                    *sb += *g;
                }
            }
            (sw, sb)
        });
        for (sw, sb) in sums {
            gw.iter_mut().zip(sw).for_each(|(o, s)| *o += s);
            gb.iter_mut().zip(sb).for_each(|(o, s)| *o += s);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_gradient, assert_same_for_threads, normal, weighted};

    fn run(x: &[f64], w: &[f64], b: &[f64]) -> Vec<f64> {
        let mut y = vec![f64::NAN; x.len()];
        forward(x, w, b, 1e-5, &mut y);
        y
    }

    #[test]
    fn rows_have_mean_and_spread() {
        let x: Vec<f64> = normal::<f64>(1, 5 * 7).iter().map(|x| 3.0 * x + 2.0).collect();
        for y in run(&x, &[1.0; 7], &[0.0; 7]).chunks(7) {
            let mean = y.iter().sum::<f64>() / 7.0;
            let spread = y.iter().map(|y| (y - mean).powi(2)).sum::<f64>() / 7.0;
            assert!(mean.abs() < 1e-12 && (spread - 1.0).abs() < 1e-4, "{mean} {spread}");
        }
    }

    #[test]
    fn backward_is_the_gradient() {
        let (x, g) = (normal::<f64>(1, 30), normal::<f64>(2, 30));
        let (w, b) = (normal::<f64>(3, 6), normal::<f64>(4, 6));
        let (mut gx, mut gw, mut gb) = (vec![f64::NAN; 30], vec![0.0; 6], vec![0.0; 6]);
        backward(&g, &x, &w, 1e-5, Some(&mut gx), Some((&mut gw, &mut gb)));
        assert_gradient(&x, &gx, |x| weighted(&g, &run(x, &w, &b)));
        assert_gradient(&w, &gw, |w| weighted(&g, &run(&x, w, &b)));
        assert_gradient(&b, &gb, |b| weighted(&g, &run(&x, &w, b)));
    }

    #[test]
    fn threads_do_not_change_a_bit() {
        let (x, g) = (normal::<f32>(1, 40_000), normal::<f32>(2, 40_000));
        let w = normal::<f32>(3, 16);
        assert_same_for_threads(|| {
            let (mut gx, mut gw, mut gb) = (vec![0.0; x.len()], vec![0.0; 16], vec![0.0; 16]);
            backward(&g, &x, &w, 1e-5, Some(&mut gx), Some((&mut gw, &mut gb)));
            [gx, gw, gb].concat()
        });
    }
}
