//! Adam with decoupled weight decay, in torch's order of operations.
//!
//! p ← p · (1 − lr·wd)
//! m ← m + (1 − β₁)(g − m)        v ← β₂ v + (1 − β₂) g²
//! p ← p − lr/(1 − β₁ᵗ) · m / (√v / √(1 − β₂ᵗ) + ε)
//!
//! Source: Loshchilov & Hutter 2019, arXiv:1711.05101; the order is `torch.optim.AdamW`'s.

use rayon::prelude::*;

use crate::Real;
use crate::split::CHUNK;
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
    assert!(
        [g.len(), m.len(), v.len()] == [p.len(); 3],
        "slices must be equally long"
    );
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
    p.par_chunks_mut(CHUNK)
        .zip(g.par_chunks(CHUNK))
        .zip(m.par_chunks_mut(CHUNK))
        .zip(v.par_chunks_mut(CHUNK))
        .for_each(|(((p, g), m), v)| chunk(&scalars, p, g, m, v));
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
