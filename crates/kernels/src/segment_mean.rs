//! The mean of each segment's rows, or the running mean up to each row, written to every row.
//!
//! whole: y_t = (1/n) Σ_s x_s            gx_s = (1/n) Σ_t g_t
//! prefix: y_t = (1/(t+1)) Σ_{s≤t} x_s   gx_s = Σ_{t≥s} g_t/(t+1)

use std::ops::Range;

use crate::Real;

/// Rows of `d`; rows outside all segments are zero.
///
/// # Panics
/// If the slices do not fit; so does [`backward`].
pub fn forward<T: Real>(x: &[T], d: usize, segments: &[Range<usize>], prefix: bool, y: &mut [T]) {
    assert_eq!(x.len(), y.len(), "slices must be equally long");
    y.fill(T::ZERO);
    let mut sum = vec![T::ZERO; d];
    for s in segments {
        sum.fill(T::ZERO);
        for (i, t) in s.clone().enumerate() {
            sum.iter_mut().zip(&x[t * d..(t + 1) * d]).for_each(|(s, x)| *s += *x);
            if prefix {
                write(&sum, i + 1, &mut y[t * d..(t + 1) * d]);
            }
        }
        if !prefix {
            s.clone().for_each(|t| write(&sum, s.len(), &mut y[t * d..(t + 1) * d]));
        }
    }
}

fn write<T: Real>(sum: &[T], count: usize, to: &mut [T]) {
    let f = T::ONE / T::from_f64(count as f64);
    to.iter_mut().zip(sum).for_each(|(y, s)| *y = *s * f);
}

/// Gradient of [`forward`], overwritten.
pub fn backward<T: Real>(g: &[T], d: usize, segments: &[Range<usize>], prefix: bool, gx: &mut [T]) {
    if !prefix {
        return forward(g, d, segments, false, gx); // symmetric
    }
    assert_eq!(g.len(), gx.len(), "slices must be equally long");
    gx.fill(T::ZERO);
    let mut sum = vec![T::ZERO; d];
    for s in segments {
        sum.fill(T::ZERO);
        for (i, t) in s.clone().enumerate().rev() {
            let f = T::ONE / T::from_f64((i + 1) as f64);
            sum.iter_mut().zip(&g[t * d..(t + 1) * d]).for_each(|(s, g)| *s += *g * f);
            gx[t * d..(t + 1) * d].copy_from_slice(&sum);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_gradient, normal, weighted};

    const SEGMENTS: [Range<usize>; 2] = [0..3, 3..5];

    fn run(x: &[f64], prefix: bool) -> Vec<f64> {
        let mut y = vec![f64::NAN; x.len()];
        forward(x, 2, &SEGMENTS, prefix, &mut y);
        y
    }

    #[test]
    fn means() {
        let x = [1.0, 0.0, 2.0, 0.0, 6.0, 3.0, 4.0, 1.0, 2.0, 1.0];
        assert_eq!(run(&x, false), [3.0, 1.0, 3.0, 1.0, 3.0, 1.0, 3.0, 1.0, 3.0, 1.0]);
        assert_eq!(run(&x, true), [1.0, 0.0, 1.5, 0.0, 3.0, 1.0, 4.0, 1.0, 3.0, 1.0]);
    }

    #[test]
    fn backward_is_the_gradient() {
        let (x, g) = (normal::<f64>(1, 10), normal::<f64>(2, 10));
        for prefix in [false, true] {
            let mut gx = vec![f64::NAN; 10];
            backward(&g, 2, &SEGMENTS, prefix, &mut gx);
            assert_gradient(&x, &gx, |x| weighted(&g, &run(x, prefix)));
        }
    }
}
