//! Attention written down directly, with the whole row of scores at hand.

use super::{Segment, Shape};
use crate::Real;

/// `(out, lse)` of [`forward`](super::forward).
pub fn forward<T: Real>(
    q: &[T],
    k: &[T],
    v: &[T],
    bias: Option<&[T]>,
    segments: &[Segment],
    o: &Shape,
) -> (Vec<T>, Vec<T>) {
    let d = o.head_dim;
    let mut out = vec![T::ZERO; q.len()];
    let mut lse = vec![T::NEG_INFINITY; q.len() / d];
    for s in segments {
        for i in 0..s.q_len {
            for h in 0..o.heads {
                let qi = ((s.q_start + i) * o.heads + h) * d;
                let kv = |j: usize| ((s.k_start + j) * o.kv_heads + h / (o.heads / o.kv_heads)) * d;
                let place = i as i64 + s.k_len as i64 - s.q_len as i64;
                let sees = |j: usize| {
                    (!o.causal || j as i64 <= place)
                        && o.reach.window.is_none_or(|w| j as i64 > place - w as i64)
                        && o.reach.chunk.is_none_or(|c| j as i64 / c as i64 >= place / c as i64)
                };
                let seen: Vec<usize> = (0..s.k_len).filter(|j| sees(*j)).collect();
                if seen.is_empty() {
                    continue;
                }
                let score = |j: usize| {
                    let dot = (0..d).map(|c| q[qi + c] * k[kv(j) + c]).sum::<T>();
                    dot * T::from_f64(o.scale) + bias.map_or(T::ZERO, |b| b[s.k_start + j])
                };
                let scores: Vec<T> = seen.iter().map(|j| score(*j)).collect();
                let top = scores.iter().fold(T::NEG_INFINITY, |a, x| a.max(*x));
                let log = top + scores.iter().map(|x| (*x - top).exp()).sum::<T>().ln();
                lse[(s.q_start + i) * o.heads + h] = log;
                for (j, x) in seen.iter().zip(&scores) {
                    for c in 0..d {
                        out[qi + c] += (*x - log).exp() * v[kv(*j) + c];
                    }
                }
            }
        }
    }
    (out, lse)
}
