//! Several features mixed by a softmax over their scores, row by row.
//!
//! a_i = softmax_i(c_i), y = Σ_i a_i x_i
//! gx_i = a_i g,  gc_i = a_i (g·x_i − Σ_j a_j g·x_j)

use crate::Real;

/// `scores[i]` holds one number a row, `x[i]` rows of `d`; `a` is rows × features.
///
/// # Panics
/// If the slices do not fit; so does [`backward`].
pub fn forward<T: Real>(scores: &[&[T]], x: &[&[T]], d: usize, a: &mut [T], y: &mut [T]) {
    let n = x.len();
    assert_eq!(scores.len(), n, "as many scores as features");
    y.fill(T::ZERO);
    for (t, (a, y)) in a.chunks_exact_mut(n).zip(y.chunks_exact_mut(d)).enumerate() {
        let top = scores.iter().fold(T::NEG_INFINITY, |m, c| m.max(c[t]));
        a.iter_mut().zip(scores).for_each(|(a, c)| *a = (c[t] - top).exp());
        let sum = a.iter().copied().sum::<T>();
        for (a, x) in a.iter_mut().zip(x) {
            *a /= sum;
            y.iter_mut().zip(&x[t * d..(t + 1) * d]).for_each(|(y, x)| *y += *a * *x);
        }
    }
}

/// Gradients of [`forward`]: of each score, then of each feature.
pub fn backward<T: Real>(g: &[T], x: &[&[T]], d: usize, a: &[T]) -> (Vec<Vec<T>>, Vec<Vec<T>>) {
    let n = x.len();
    let rows = a.len() / n.max(1);
    let mut gc = vec![vec![T::ZERO; rows]; n];
    let mut gx = vec![vec![T::ZERO; rows * d]; n];
    for (t, (a, g)) in a.chunks_exact(n).zip(g.chunks_exact(d)).enumerate() {
        let along = |i: usize| g.iter().zip(&x[i][t * d..(t + 1) * d]).map(|(g, x)| *g * *x).sum::<T>();
        let dots: Vec<T> = (0..n).map(along).collect();
        let mean = a.iter().zip(&dots).map(|(a, v)| *a * *v).sum::<T>();
        for (((gc, gx), a), dot) in gc.iter_mut().zip(&mut gx).zip(a).zip(&dots) {
            gc[t] = *a * (*dot - mean);
            gx[t * d..(t + 1) * d].iter_mut().zip(g).for_each(|(o, g)| *o = *a * *g);
        }
    }
    (gc, gx)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_gradient, normal, weighted};

    fn run(c: &[f64], x: &[f64]) -> Vec<f64> {
        let (mut a, mut y) = (vec![0.0; 8], vec![0.0; 12]);
        forward(&[&c[..4], &c[4..]], &[&x[..12], &x[12..]], 3, &mut a, &mut y);
        y
    }

    #[test]
    fn backward_is_the_gradient() {
        let (c, x, g) = (normal::<f64>(1, 8), normal::<f64>(2, 24), normal::<f64>(3, 12));
        let (mut a, mut y) = (vec![0.0; 8], vec![0.0; 12]);
        forward(&[&c[..4], &c[4..]], &[&x[..12], &x[12..]], 3, &mut a, &mut y);
        assert!(a.chunks(2).all(|a| (a[0] + a[1] - 1.0).abs() < 1e-12));
        let (gc, gx) = backward(&g, &[&x[..12], &x[12..]], 3, &a);
        assert_gradient(&c, &gc.concat(), |c| weighted(&g, &run(c, &x)));
        assert_gradient(&x, &gx.concat(), |x| weighted(&g, &run(&c, x)));
    }
}
