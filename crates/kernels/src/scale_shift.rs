//! A scale and a shift for each channel.
//!
//! y\[n,c,i\] = x\[n,c,i\]·γ\[c\] + β\[c\]      gx = g·γ,   gγ\[c\] = Σ_ni g·x,   gβ\[c\] = Σ_ni g
//!
//! `inner` is the product of the axes behind the channels: 1 where they come last, H·W for `[B, C, H, W]`.
//!
//! Source: Lian et al. 2022, arXiv:2210.08823.

use crate::Real;
use crate::split::{Tasks, partials, rows_per_task};
use crate::wide::wide;

/// Rows whose gradients are added up in one task.
const SUM_ROWS: usize = 64;

fn check(x: usize, channels: usize, inner: usize) -> usize {
    let row = channels * inner;
    assert!(row > 0 || x == 0, "a feature without channels holds nothing");
    assert_eq!(x % row.max(1), 0, "`x` must be rows of {channels}×{inner}");
    row
}

/// `y = x·γ + β`
///
/// # Panics
/// If the slices do not fit; so do all functions of this module.
pub fn forward<T: Real>(x: &[T], gamma: &[T], beta: &[T], inner: usize, y: &mut [T]) {
    assert!(gamma.len() == beta.len() && x.len() == y.len(), "slices must be equally long");
    let row = check(x.len(), gamma.len(), inner);
    let span = rows_per_task(row) * row.max(1);
    y.chunks_mut(span).zip(x.chunks(span)).each_task(|(y, x)| {
        for (y, x) in y.chunks_exact_mut(row).zip(x.chunks_exact(row)) {
            if inner == 1 {
                last(x, gamma, beta, y);
            } else {
                for (c, (y, x)) in y.chunks_exact_mut(inner).zip(x.chunks_exact(inner)).enumerate() {
                    y.iter_mut().zip(x).for_each(|(y, x)| *y = *x * gamma[c] + beta[c]);
                }
            }
        }
    });
}

/// `gx = g·γ`, overwritten.
pub fn input_gradient<T: Real>(g: &[T], gamma: &[T], inner: usize, gx: &mut [T]) {
    assert_eq!(g.len(), gx.len(), "slices must be equally long");
    let row = check(g.len(), gamma.len(), inner);
    let span = rows_per_task(row) * row.max(1);
    gx.chunks_mut(span).zip(g.chunks(span)).each_task(|(gx, g)| {
        for (gx, g) in gx.chunks_exact_mut(row).zip(g.chunks_exact(row)) {
            for (c, (gx, g)) in gx.chunks_exact_mut(inner).zip(g.chunks_exact(inner)).enumerate() {
                gx.iter_mut().zip(g).for_each(|(gx, g)| *gx = *g * gamma[c]);
            }
        }
    });
}

/// `gγ += Σ g·x` (where `x` is given) and `gβ += Σ g`.
pub fn sums<T: Real>(g: &[T], x: Option<&[T]>, inner: usize, g_gamma: &mut [T], g_beta: &mut [T]) {
    let channels = g_beta.len();
    assert_eq!(g_gamma.len(), channels, "slices must be equally long");
    let row = check(g.len(), channels, inner);
    if row == 0 {
        return;
    }
    let rows = g.len() / row;
    let parts = partials(rows.div_ceil(SUM_ROWS), |t| {
        let span = t * SUM_ROWS * row..g.len().min((t + 1) * SUM_ROWS * row);
        let (mut scale, mut shift) = (vec![T::ZERO; channels], vec![T::ZERO; channels]);
        for at in span.step_by(row) {
            let g = &g[at..at + row];
            for (s, g) in shift.iter_mut().zip(g.chunks_exact(inner)) {
                g.iter().for_each(|g| *s += *g);
            }
            let Some(x) = x.map(|x| &x[at..at + row]) else { continue };
            for ((s, g), x) in scale.iter_mut().zip(g.chunks_exact(inner)).zip(x.chunks_exact(inner)) {
                g.iter().zip(x).for_each(|(g, x)| *s += *g * *x);
            }
        }
        (scale, shift)
    });
    for (scale, shift) in parts {
        g_gamma.iter_mut().zip(scale).for_each(|(o, s)| *o += s);
        g_beta.iter_mut().zip(shift).for_each(|(o, s)| *o += s);
    }
}

/// Folds the pair into what made the feature: row c of `weight` (`γ.len()` rows of any width: a linear's
/// outputs, a convolution's kernels, a norm's entries) times γ\[c\].
pub fn fold_rows<T: Real>(gamma: &[T], weight: &mut [T]) {
    let width = check(weight.len(), gamma.len(), 1);
    let width = weight.len().checked_div(width).unwrap_or(0);
    if width > 0 {
        weight.chunks_exact_mut(width).zip(gamma).for_each(|(w, s)| w.iter_mut().for_each(|w| *w *= *s));
    }
}

/// As [`fold_rows`] for its bias: `b ← γ·b + β`.
pub fn fold_bias<T: Real>(gamma: &[T], beta: &[T], bias: &mut [T]) {
    assert!(gamma.len() == beta.len() && beta.len() == bias.len(), "slices must be equally long");
    for ((b, s), t) in bias.iter_mut().zip(gamma).zip(beta) {
        *b = *b * *s + *t;
    }
}

wide! {
    fn last[T: Real](x: &[T], gamma: &[T], beta: &[T], y: &mut [T]) {
        for (((y, x), s), t) in y.iter_mut().zip(x).zip(gamma).zip(beta) {
            *y = *x * *s + *t;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_gradient, assert_same_for_threads, normal, weighted};

    fn run(x: &[f64], gamma: &[f64], beta: &[f64], inner: usize) -> Vec<f64> {
        let mut y = vec![f64::NAN; x.len()];
        forward(x, gamma, beta, inner, &mut y);
        y
    }

    #[test]
    fn both_layouts() {
        assert_eq!(run(&[1.0, 2.0, 3.0, 4.0], &[2.0, 3.0], &[0.5, 0.0], 1), [2.5, 6.0, 6.5, 12.0]);
        assert_eq!(run(&[1.0, 2.0, 3.0, 4.0], &[2.0, 3.0], &[0.5, 0.0], 2), [2.5, 4.5, 9.0, 12.0]);
    }

    #[test]
    fn backward_is_the_gradient() {
        for inner in [1, 6] {
            let n = 3 * 4 * inner;
            let (x, g) = (normal::<f64>(1, n), normal::<f64>(2, n));
            let (gamma, beta) = (normal::<f64>(3, 4), normal::<f64>(4, 4));
            let (mut gx, mut gs, mut gt) = (vec![f64::NAN; n], vec![0.0; 4], vec![0.0; 4]);
            input_gradient(&g, &gamma, inner, &mut gx);
            sums(&g, Some(&x), inner, &mut gs, &mut gt);
            assert_gradient(&x, &gx, |x| weighted(&g, &run(x, &gamma, &beta, inner)));
            assert_gradient(&gamma, &gs, |s| weighted(&g, &run(&x, s, &beta, inner)));
            assert_gradient(&beta, &gt, |t| weighted(&g, &run(&x, &gamma, t, inner)));
        }
    }

    #[test]
    fn folding_is_the_same_function() {
        let (w, b) = (normal::<f64>(1, 12), normal::<f64>(2, 3));
        let (gamma, beta, x) = (normal::<f64>(3, 3), normal::<f64>(4, 3), normal::<f64>(5, 4));
        let linear = |w: &[f64], b: &[f64]| -> Vec<f64> {
            (0..3).map(|o| b[o] + weighted(&w[o * 4..o * 4 + 4], &x)).collect()
        };
        let want = run(&linear(&w, &b), &gamma, &beta, 1);
        let (mut w2, mut b2) = (w, b);
        fold_rows(&gamma, &mut w2);
        fold_bias(&gamma, &beta, &mut b2);
        for (a, b) in linear(&w2, &b2).iter().zip(&want) {
            assert!((a - b).abs() < 1e-12);
        }
    }

    #[test]
    fn threads_do_not_change_a_bit() {
        let (x, g) = (normal::<f32>(1, 40_000), normal::<f32>(2, 40_000));
        assert_same_for_threads(|| {
            let (mut gs, mut gt) = (vec![0.0; 8], vec![0.0; 8]);
            sums(&g, Some(&x), 1, &mut gs, &mut gt);
            [gs, gt].concat()
        });
    }
}
