//! The gated activation of llama's MLP.
//!
//! y = silu(a) ⊙ u      a = gate, u = up, silu(a) = a·σ(a)
//! ga = g ⊙ u ⊙ σ(a)·(1 + a·(1 − σ(a)))      gu = g ⊙ silu(a)
//!
//! Source: Shazeer 2020, arXiv:2002.05202.

use crate::Real;
use crate::split::{CHUNK, Tasks};
use crate::wide::wide;

/// `y = silu(gate) · up`
///
/// # Panics
/// If the slices differ in length.
pub fn forward<T: Real>(gate: &[T], up: &[T], y: &mut [T]) {
    assert!(gate.len() == up.len() && up.len() == y.len(), "slices must be equally long");
    y.chunks_mut(CHUNK)
        .zip(gate.chunks(CHUNK))
        .zip(up.chunks(CHUNK))
        .each_task(|((y, a), u)| forward_chunk(a, u, y));
}

/// Gradients of [`forward`] towards both inputs, in the place of the inputs.
///
/// # Panics
/// If the slices differ in length.
pub fn backward<T: Real>(g: &[T], gate: &mut [T], up: &mut [T]) {
    assert!([gate.len(), up.len()] == [g.len(); 2], "slices must be equally long");
    gate.chunks_mut(CHUNK)
        .zip(up.chunks_mut(CHUNK))
        .zip(g.chunks(CHUNK))
        .each_task(|((a, u), g)| backward_chunk(g, a, u));
}

wide! {
    fn forward_chunk[T: Real](gate: &[T], up: &[T], y: &mut [T]) {
        for ((y, a), u) in y.iter_mut().zip(gate).zip(up) {
            *y = *a * a.sigmoid() * *u;
        }
    }

    fn backward_chunk[T: Real](g: &[T], gate: &mut [T], up: &mut [T]) {
        for ((a, u), g) in gate.iter_mut().zip(up).zip(g) {
            let s = a.sigmoid();
            let g_up = *g * *a * s;
            *a = *g * *u * s * (T::ONE + *a * (T::ONE - s));
            *u = g_up;
        }
    }
}

/// The same written down directly.
pub mod reference {
    use crate::Real;

    /// `y` of [`forward`](super::forward).
    pub fn forward<T: Real>(gate: &[T], up: &[T]) -> Vec<T> {
        gate.iter().zip(up).map(|(a, u)| *a / (T::ONE + (-*a).exp()) * *u).collect()
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
        fn equals_the_reference(n in 0usize..3000, scale in 0.1f32..60.0) {
            let a: Vec<f32> = normal::<f32>(1, n).iter().map(|x| x * scale).collect();
            let u = normal::<f32>(2, n);
            let mut y = vec![f32::NAN; n];
            forward(&a, &u, &mut y);
            assert_close(&y, &reference::forward(&wide(&a), &wide(&u)), 1e-6);
        }
    }

    #[test]
    fn backward_is_the_gradient() {
        let n = 50;
        let (a, u, g) = (normal::<f64>(1, n), normal::<f64>(2, n), normal::<f64>(3, n));
        let (mut ga, mut gu) = (a.clone(), u.clone());
        backward(&g, &mut ga, &mut gu);
        assert_gradient(&a, &ga, |a| weighted(&g, &reference::forward(a, &u)));
        assert_gradient(&u, &gu, |u| weighted(&g, &reference::forward(&a, u)));
    }

    #[test]
    fn saturates_without_nan() {
        let a = [-1e30f32, -200.0, 200.0, 1e30];
        let (mut y, mut ga) = ([f32::NAN; 4], a);
        forward(&a, &[1.0; 4], &mut y);
        assert_eq!(y, [0.0, 0.0, 200.0, 1e30]);
        backward(&[1.0; 4], &mut ga, &mut [1.0; 4]);
        assert_eq!(ga, [0.0, 0.0, 1.0, 1.0]);
    }

    #[test]
    fn threads_do_not_change_a_bit() {
        let n = 70_000;
        let (a, u, g) = (normal::<f32>(1, n), normal::<f32>(2, n), normal::<f32>(3, n));
        assert_same_for_threads(|| {
            let (mut y, mut ga, mut gu) = (vec![0.0; n], a.clone(), u.clone());
            forward(&a, &u, &mut y);
            backward(&g, &mut ga, &mut gu);
            [y, ga, gu].concat()
        });
    }
}
