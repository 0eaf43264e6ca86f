//! Gradient descent with momentum, as torch does it.
//!
//! g ← g + wd · p
//! b ← g at the first step, else μ b + (1 − τ) g        without momentum b is not kept
//! p ← p − lr · (g + μ b  with Nesterov, b otherwise)
//!
//! Source: Sutskever et al. 2013 (momentum and Nesterov's form of it); the order is `torch.optim.SGD`'s.

use crate::Real;
use crate::split::{CHUNK, Tasks};
use crate::wide::wide;

/// The scalars of one update.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sgd {
    /// Learning rate of this step.
    pub lr: f64,
    /// μ, the share of the buffer that stays.
    pub momentum: f64,
    /// τ, what is taken off a new gradient's weight in the buffer.
    pub dampening: f64,
    /// Added to the gradient as `weight_decay · p`.
    pub weight_decay: f64,
    /// Whether the step looks ahead along the buffer.
    pub nesterov: bool,
    /// Number of this update for this buffer, from 1.
    pub step: u64,
}

/// One update of `p` from the gradient `g`; `buffer` is empty without momentum.
///
/// # Panics
/// If the slices differ in length, or `buffer` is empty and there is momentum.
pub fn step<T: Real>(o: &Sgd, p: &mut [T], g: &[T], buffer: &mut [T]) {
    assert_eq!(p.len(), g.len(), "slices must be equally long");
    let (lr, decay) = (T::from_f64(o.lr), T::from_f64(o.weight_decay));
    if o.momentum == 0.0 {
        p.chunks_mut(CHUNK).zip(g.chunks(CHUNK)).each_task(|(p, g)| plain(lr, decay, p, g));
        return;
    }
    assert_eq!(p.len(), buffer.len(), "slices must be equally long");
    let first = o.step == 1;
    let s = Scalars {
        lr,
        decay,
        old: T::from_f64(if first { 0.0 } else { o.momentum }),
        new: T::from_f64(if first { 1.0 } else { 1.0 - o.dampening }),
        ahead: T::from_f64(if o.nesterov { o.momentum } else { 1.0 }),
        now: T::from_f64(if o.nesterov { 1.0 } else { 0.0 }),
    };
    p.chunks_mut(CHUNK)
        .zip(g.chunks(CHUNK))
        .zip(buffer.chunks_mut(CHUNK))
        .each_task(|((p, g), b)| with_momentum(&s, p, g, b));
}

/// What the inner loop needs, rounded once.
struct Scalars<T> {
    lr: T,
    decay: T,
    old: T,
    new: T,
    ahead: T,
    now: T,
}

wide! {
    fn plain[T: Real](lr: T, decay: T, p: &mut [T], g: &[T]) {
        for (p, g) in p.iter_mut().zip(g) {
            *p -= lr * (*g + decay * *p);
        }
    }

    fn with_momentum[T: Real](s: &Scalars<T>, p: &mut [T], g: &[T], b: &mut [T]) {
        for ((p, g), b) in p.iter_mut().zip(g).zip(b) {
            let g = *g + s.decay * *p;
            *b = s.old * *b + s.new * g;
            *p -= s.lr * (s.now * g + s.ahead * *b);
        }
    }
}

/// The same written down directly, one entry at a time.
pub mod reference {
    use super::Sgd;

    /// New `(p, buffer)`.
    pub fn step(o: &Sgd, p: f64, g: f64, buffer: f64) -> (f64, f64) {
        let g = g + o.weight_decay * p;
        if o.momentum == 0.0 {
            return (p - o.lr * g, 0.0);
        }
        let buffer = if o.step == 1 { g } else { o.momentum * buffer + (1.0 - o.dampening) * g };
        let direction = if o.nesterov { g + o.momentum * buffer } else { buffer };
        (p - o.lr * direction, buffer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_close, assert_same_for_threads, normal, wide};

    const PLAIN: Sgd =
        Sgd { lr: 0.1, momentum: 0.0, dampening: 0.0, weight_decay: 0.01, nesterov: false, step: 1 };

    #[test]
    fn equals_the_reference_over_steps() {
        let momentum = Sgd { momentum: 0.9, dampening: 0.3, ..PLAIN };
        let nesterov = Sgd { momentum: 0.9, nesterov: true, ..PLAIN };
        for o in [PLAIN, momentum, nesterov] {
            for n in [0, 1, 17, 40_000] {
                let mut p = normal::<f32>(1, n);
                let mut b = vec![0.0; if o.momentum == 0.0 { 0 } else { n }];
                let mut want: Vec<_> = wide(&p).into_iter().map(|p| (p, 0.0)).collect();
                for t in 1..=5 {
                    let g = normal::<f32>(10 + t, n);
                    let o = Sgd { step: t, ..o };
                    step(&o, &mut p, &g, &mut b);
                    for (w, g) in want.iter_mut().zip(&g) {
                        *w = reference::step(&o, w.0, *g as f64, w.1);
                    }
                }
                assert_close(&p, &want.iter().map(|w| w.0).collect::<Vec<_>>(), 1e-6);
                if o.momentum != 0.0 {
                    assert_close(&b, &want.iter().map(|w| w.1).collect::<Vec<_>>(), 1e-6);
                }
            }
        }
    }

    #[test]
    fn threads_do_not_change_a_bit() {
        let n = 100_000;
        let (g, start) = (normal::<f32>(1, n), normal::<f32>(2, n));
        assert_same_for_threads(|| {
            let (mut p, mut b) = (start.clone(), vec![0.5; n]);
            step(&Sgd { momentum: 0.9, step: 2, ..PLAIN }, &mut p, &g, &mut b);
            p
        });
    }
}
