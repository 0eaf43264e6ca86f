//! Decoding: single queries, each against what a cache stores for its own head and sequence.
//!
//! o = Σ_j p_j v_j,   p = softmax(scale · q·k_j)      over the entries j that the query sees
//!
//! A *lane* is what one key head of one sequence stores; lanes differ in length, and may hold keys and
//! values in another form than they are multiplied in, so they are read block by block into scratch.
//! Each query sums in an order that depends on its own lane alone: a row's bits do not depend on the
//! rows beside it. Cost: 4·head_dim operations an entry and query head; scratch of one block and one
//! score an entry and query head.

use std::ops::Range;

use super::KEYS;
use super::forward::{divide, softmax_block};
use crate::Real;
use crate::matmul::Strided;
use crate::split::partials;
use crate::{dot, tile};

/// Keys and values of a lane, `[head_dim]` an entry.
pub trait Stored<T: Real>: Sync {
    /// Keys of these entries; `scratch` is for lanes that do not hold them as they are.
    fn keys<'a>(&'a self, entries: Range<usize>, scratch: &'a mut Vec<T>) -> &'a [T];
    /// Values of these entries.
    fn values<'a>(&'a self, entries: Range<usize>, scratch: &'a mut Vec<T>) -> &'a [T];
}

/// The query heads of one token that share a lane.
pub struct Query<'a, T: Real> {
    /// `[group, head_dim]`.
    pub q: &'a [T],
    /// What they see, in order.
    pub sees: Vec<(&'a dyn Stored<T>, Range<usize>)>,
}

/// What a query found.
pub struct Found<T> {
    /// `[group, head_dim]`; zeros where it sees nothing.
    pub out: Vec<T>,
    /// Each head's weight on each entry, `[group, entries]`.
    pub weights: Vec<T>,
}

/// Answers each query for itself.
///
/// # Panics
/// If a lane gives less than it is asked for.
pub fn lanes<T: Real>(queries: &[Query<'_, T>], head_dim: usize, scale: f64) -> Vec<Found<T>> {
    partials(queries.len(), |i| one(&queries[i], head_dim, T::from_f64(scale)))
}

fn one<T: Real>(query: &Query<'_, T>, d: usize, scale: T) -> Found<T> {
    let group = query.q.len() / d;
    let entries: usize = query.sees.iter().map(|(_, r)| r.len()).sum();
    let mut found = Found { out: vec![T::ZERO; group * d], weights: vec![T::ZERO; group * entries] };
    if entries == 0 {
        return found;
    }
    let (mut scratch, mut dots) = (Vec::new(), vec![T::ZERO; group]);
    each_block(query, |at, lane, block| {
        let keys = lane.keys(block.clone(), &mut scratch);
        assert_eq!(keys.len(), block.len() * d, "a lane's keys");
        for (j, key) in keys.chunks_exact(d).enumerate() {
            dot::rows(query.q, key, &mut dots);
            for (weights, dot) in found.weights.chunks_exact_mut(entries).zip(&dots) {
                weights[at + j] = scale * *dot;
            }
        }
    });
    let sums: Vec<T> = found
        .weights
        .chunks_exact_mut(entries)
        .map(|row| {
            let (mut top, mut sum) = (T::NEG_INFINITY, T::ZERO);
            softmax_block(row, &mut top, &mut sum);
            sum
        })
        .collect();
    each_block(query, |at, lane, block| {
        let values = lane.values(block.clone(), &mut scratch);
        assert_eq!(values.len(), block.len() * d, "a lane's values");
        // SAFETY: the weights have a column for each entry, `values` holds the block, `out` the group.
        unsafe {
            let p = Strided::new(found.weights.as_ptr().add(at), entries, 1);
            let (values, out) = (values.as_ptr(), found.out.as_mut_ptr());
            tile::product((group, d, block.len()), T::ONE, p, (values, d), at != 0, (out, d));
        }
    });
    for ((out, weights), sum) in
        found.out.chunks_exact_mut(d).zip(found.weights.chunks_exact_mut(entries)).zip(&sums)
    {
        divide(out, *sum);
        divide(weights, *sum);
    }
    found
}

/// Calls with the place of each block among all entries, its lane, and its entries there.
fn each_block<T: Real>(query: &Query<'_, T>, mut call: impl FnMut(usize, &dyn Stored<T>, Range<usize>)) {
    let mut at = 0;
    for (lane, entries) in &query.sees {
        for start in entries.clone().step_by(KEYS) {
            let block = start..entries.end.min(start + KEYS);
            let len = block.len();
            call(at, *lane, block);
            at += len;
        }
    }
}
