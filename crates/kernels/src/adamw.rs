//! Adam with decoupled weight decay, in torch's order of operations.
//!
//! p ← p · (1 − lr·wd)
//! m ← m + (1 − β₁)(g − m)        v ← β₂ v + (1 − β₂) g²
//! p ← p − lr/(1 − β₁ᵗ) · m / (√v / √(1 − β₂ᵗ) + ε)
//!
//! Source: Loshchilov & Hutter 2019, arXiv:1711.05101; the order is `torch.optim.AdamW`'s.

use crate::Real;
use crate::split::{CHUNK, Tasks};
use crate::wide::wide;

/// The scalars of one update.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW {
    /// Learning rate of this step.
    pub lr: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled decay; the step takes `lr · weight_decay` off the weight.
    pub weight_decay: f64,
    /// Number of this update for these moments, from 1.
    pub step: u64,
}

/// One update of `p` and its moments `m`, `v` from the gradient `g`.
///
/// # Panics
/// If the slices differ in length or `step` is 0.
pub fn step<T: Real>(o: &AdamW, p: &mut [T], g: &[T], m: &mut [T], v: &mut [T]) {
    assert!([g.len(), m.len(), v.len()] == [p.len(); 3], "slices must be equally long");
    assert!(o.step > 0, "steps are counted from 1");
    let t = o.step as f64;
    let scalars = Scalars {
        decay: T::from_f64(1.0 - o.lr * o.weight_decay),
        rate: T::from_f64(o.lr / (1.0 - o.beta1.powf(t))),
        new1: T::from_f64(1.0 - o.beta1),
        old2: T::from_f64(o.beta2),
        new2: T::from_f64(1.0 - o.beta2),
        root: T::from_f64((1.0 - o.beta2.powf(t)).sqrt()),
        eps: T::from_f64(o.eps),
    };
    p.chunks_mut(CHUNK)
        .zip(g.chunks(CHUNK))
        .zip(m.chunks_mut(CHUNK))
        .zip(v.chunks_mut(CHUNK))
        .each_task(|(((p, g), m), v)| chunk(&scalars, p, g, m, v));
}

/// What the inner loop needs, rounded once.
struct Scalars<T> {
    decay: T,
    rate: T,
    new1: T,
    old2: T,
    new2: T,
    root: T,
    eps: T,
}

wide! {
    fn chunk[T: Real](o: &Scalars<T>, p: &mut [T], g: &[T], m: &mut [T], v: &mut [T]) {
        for (((p, g), m), v) in p.iter_mut().zip(g).zip(m).zip(v) {
            *m += o.new1 * (*g - *m);
            *v = *v * o.old2 + o.new2 * *g * *g;
            *p = *p * o.decay - o.rate * *m / (v.sqrt() / o.root + o.eps);
        }
    }
}

/// The same written down directly, one entry at a time.
pub mod reference {
    use super::AdamW;

    /// New `(p, m, v)`.
    pub fn step(o: &AdamW, p: f64, g: f64, m: f64, v: f64) -> (f64, f64, f64) {
        let p = p - o.lr * o.weight_decay * p;
        let m = o.beta1 * m + (1.0 - o.beta1) * g;
        let v = o.beta2 * v + (1.0 - o.beta2) * g * g;
        let m_hat = m / (1.0 - o.beta1.powi(o.step as i32));
        let v_hat = v / (1.0 - o.beta2.powi(o.step as i32));
        (p - o.lr * m_hat / (v_hat.sqrt() + o.eps), m, v)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_close, assert_same_for_threads, normal, wide};

    const O: AdamW = AdamW { lr: 1e-2, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.1, step: 1 };

    #[test]
    fn equals_the_reference_over_steps() {
        for n in [0, 1, 17, 40_000] {
            let mut p = normal::<f32>(1, n);
            let (mut m, mut v) = (vec![0.0; n], vec![0.0; n]);
            let mut want: Vec<_> = wide(&p).into_iter().map(|p| (p, 0.0, 0.0)).collect();
            for t in 1..=5 {
                let g = normal::<f32>(10 + t, n);
                let o = AdamW { step: t, ..O };
                step(&o, &mut p, &g, &mut m, &mut v);
                for (w, g) in want.iter_mut().zip(&g) {
                    *w = reference::step(&o, w.0, *g as f64, w.1, w.2);
                }
            }
            assert_close(&p, &want.iter().map(|w| w.0).collect::<Vec<_>>(), 1e-6);
            assert_close(&m, &want.iter().map(|w| w.1).collect::<Vec<_>>(), 1e-6);
            assert_close(&v, &want.iter().map(|w| w.2).collect::<Vec<_>>(), 1e-6);
        }
    }

    #[test]
    fn the_first_step_moves_by_the_rate_against_the_sign() {
        let (mut p, mut m, mut v) = (vec![0.0f64; 3], vec![0.0; 3], vec![0.0; 3]);
        step(&O, &mut p, &[3.0, -0.5, 0.0], &mut m, &mut v);
        assert_close(&p, &[-1e-2, 1e-2, 0.0], 1e-6);
    }

    #[test]
    fn threads_do_not_change_a_bit() {
        let n = 100_000;
        let (g, start) = (normal::<f32>(1, n), normal::<f32>(2, n));
        assert_same_for_threads(|| {
            let (mut p, mut m, mut v) = (start.clone(), vec![0.0; n], vec![0.0; n]);
            step(&O, &mut p, &g, &mut m, &mut v);
            p
        });
    }
}
