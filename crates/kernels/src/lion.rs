//! Lion: steps of equal size in every entry, along the sign of an interpolated momentum.
//!
//! p ← p · (1 − lr·wd) − lr · sign(β₁ m + (1 − β₁) g)        sign(0) = 0
//! m ← β₂ m + (1 − β₂) g
//!
//! Source: Chen et al. 2023, arXiv:2302.06675, algorithm 2.

use crate::Real;
use crate::split::{CHUNK, Tasks};
use crate::wide::wide;

/// The scalars of one update.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Lion {
    /// Learning rate of this step.
    pub lr: f64,
    /// Weight of the momentum in the step.
    pub beta1: f64,
    /// Decay of the momentum.
    pub beta2: f64,
    /// Decoupled decay; the step takes `lr · weight_decay` off the weight.
    pub weight_decay: f64,
}

/// One update of `p` and its momentum `m` from the gradient `g`.
///
/// # Panics
/// If the slices differ in length.
pub fn step<T: Real>(o: &Lion, p: &mut [T], g: &[T], m: &mut [T]) {
    assert!([g.len(), m.len()] == [p.len(); 2], "slices must be equally long");
    let s = Scalars {
        keep: T::from_f64(1.0 - o.lr * o.weight_decay),
        lr: T::from_f64(o.lr),
        beta1: T::from_f64(o.beta1),
        new1: T::from_f64(1.0 - o.beta1),
        beta2: T::from_f64(o.beta2),
        new2: T::from_f64(1.0 - o.beta2),
    };
    p.chunks_mut(CHUNK)
        .zip(g.chunks(CHUNK))
        .zip(m.chunks_mut(CHUNK))
        .each_task(|((p, g), m)| chunk(&s, p, g, m));
}

/// What the inner loop needs, rounded once.
struct Scalars<T> {
    keep: T,
    lr: T,
    beta1: T,
    new1: T,
    beta2: T,
    new2: T,
}

wide! {
    fn chunk[T: Real](s: &Scalars<T>, p: &mut [T], g: &[T], m: &mut [T]) {
        for ((p, g), m) in p.iter_mut().zip(g).zip(m) {
            let c = s.beta1 * *m + s.new1 * *g;
            let up = if c > T::ZERO { s.lr } else { T::ZERO };
            let down = if c < T::ZERO { s.lr } else { T::ZERO };
            *p = *p * s.keep - up + down;
            *m = s.beta2 * *m + s.new2 * *g;
        }
    }
}

/// The same written down directly, one entry at a time.
pub mod reference {
    use super::Lion;

    /// New `(p, m)`.
    pub fn step(o: &Lion, p: f64, g: f64, m: f64) -> (f64, f64) {
        let c = o.beta1 * m + (1.0 - o.beta1) * g;
        let sign = if c == 0.0 { 0.0 } else { c.signum() };
        (p - o.lr * o.weight_decay * p - o.lr * sign, o.beta2 * m + (1.0 - o.beta2) * g)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_close, assert_same_for_threads, normal, wide};

    const O: Lion = Lion { lr: 1e-2, beta1: 0.9, beta2: 0.99, weight_decay: 0.1 };

    #[test]
    fn equals_the_reference_over_steps() {
        for n in [0, 1, 17, 40_000] {
            let (mut p, mut m) = (normal::<f32>(1, n), vec![0.0; n]);
            let mut want: Vec<_> = wide(&p).into_iter().map(|p| (p, 0.0)).collect();
            for t in 1..=5 {
                let g = normal::<f32>(10 + t, n);
                step(&O, &mut p, &g, &mut m);
                for (w, g) in want.iter_mut().zip(&g) {
                    *w = reference::step(&O, w.0, *g as f64, w.1);
                }
            }
            assert_close(&p, &want.iter().map(|w| w.0).collect::<Vec<_>>(), 1e-6);
            assert_close(&m, &want.iter().map(|w| w.1).collect::<Vec<_>>(), 1e-6);
        }
    }

    #[test]
    fn nothing_moves_without_a_gradient() {
        let (mut p, mut m) = (vec![1.0f64, -2.0], vec![0.0; 2]);
        step(&Lion { weight_decay: 0.0, ..O }, &mut p, &[0.0, 0.0], &mut m);
        assert_eq!(p, [1.0, -2.0]);
    }

    #[test]
    fn threads_do_not_change_a_bit() {
        let n = 100_000;
        let (g, start) = (normal::<f32>(1, n), normal::<f32>(2, n));
        assert_same_for_threads(|| {
            let (mut p, mut m) = (start.clone(), vec![0.1; n]);
            step(&O, &mut p, &g, &mut m);
            p
        });
    }
}
