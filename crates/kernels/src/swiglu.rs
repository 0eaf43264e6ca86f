//! The gated activation of llama's MLP.
//!
//! y = silu(a) ⊙ u      a = gate, u = up, silu(a) = a·σ(a)
//! ga = g ⊙ u ⊙ σ(a)·(1 + a·(1 − σ(a)))      gu = g ⊙ silu(a)
//!
//! Source: Shazeer 2020, arXiv:2002.05202.

use rayon::prelude::*;

use crate::Real;
use crate::split::CHUNK;
use crate::wide::wide;

/// `y = silu(gate) · up`
///
/// # Panics
/// If the slices differ in length.
pub fn forward<T: Real>(gate: &[T], up: &[T], y: &mut [T]) {
    assert!(
        gate.len() == up.len() && up.len() == y.len(),
        "slices must be equally long"
    );
    y.par_chunks_mut(CHUNK)
        .zip(gate.par_chunks(CHUNK))
        .zip(up.par_chunks(CHUNK))
        .for_each(|((y, a), u)| forward_chunk(a, u, y));
}

/// Gradients of [`forward`] towards both inputs, overwritten.
///
/// # Panics
/// If the slices differ in length.
pub fn backward<T: Real>(g: &[T], gate: &[T], up: &[T], g_gate: &mut [T], g_up: &mut [T]) {
    let n = g.len();
    assert!(
        [gate.len(), up.len(), g_gate.len(), g_up.len()] == [n; 4],
        "slices must be equally long"
    );
    g_gate
        .par_chunks_mut(CHUNK)
        .zip(g_up.par_chunks_mut(CHUNK))
        .zip(g.par_chunks(CHUNK))
        .zip(gate.par_chunks(CHUNK))
        .zip(up.par_chunks(CHUNK))
        .for_each(|((((ga, gu), g), a), u)| backward_chunk(g, a, u, ga, gu));
}

wide! {
    fn forward_chunk[T: Real](gate: &[T], up: &[T], y: &mut [T]) {
        for ((y, a), u) in y.iter_mut().zip(gate).zip(up) {
            *y = *a * a.sigmoid() * *u;
        }
    }

    fn backward_chunk[T: Real](g: &[T], gate: &[T], up: &[T], g_gate: &mut [T], g_up: &mut [T]) {
        for ((((ga, gu), g), a), u) in g_gate.iter_mut().zip(g_up).zip(g).zip(gate).zip(up) {
            let s = a.sigmoid();
            *gu = *g * *a * s;
            *ga = *g * *u * s * (T::ONE + *a * (T::ONE - s));
        }
    }
}
