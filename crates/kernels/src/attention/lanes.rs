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

use super::few;
use super::forward::softmax_block;
use crate::Real;
use crate::elementwise::{add_scaled_chunk, scale_chunk};
use crate::matmul::Strided;
use crate::split::partials;
use crate::tile;

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
    /// Each head's weight on each entry, `[group, entries]`; empty where nobody wants them.
    pub weights: Vec<T>,
}

/// Entries of one task.
const BLOCK: usize = 128;

/// A part of what a query sees, and what it finds there.
struct Part<'a, T: Real> {
    query: usize,
    /// Its first entry's place among all that the query sees.
    at: usize,
    lane: &'a dyn Stored<T>,
    entries: Range<usize>,
}

/// What a query finds in a part: exp(score − top) of each entry, and for each head their top, their sum, and the
/// values they weigh.
struct Piece<T> {
    weights: Vec<T>,
    tops: Vec<T>,
    sums: Vec<T>,
    out: Vec<T>,
}

/// Answers each query for itself, with its weights on the entries where they are `wanted`. What it sees is cut into
/// blocks, which threads share; the pieces meet in order.
///
/// # Panics
/// If a lane gives less than it is asked for.
pub fn lanes<T: Real>(queries: &[Query<'_, T>], head_dim: usize, scale: f64, wanted: bool) -> Vec<Found<T>> {
    let mut parts = Vec::new();
    for (query, of) in queries.iter().enumerate() {
        let mut at = 0;
        for (lane, entries) in &of.sees {
            for start in entries.clone().step_by(BLOCK) {
                let entries = start..entries.end.min(start + BLOCK);
                parts.push(Part { query, at, lane: *lane, entries: entries.clone() });
                at += entries.len();
            }
        }
    }
    let scale = T::from_f64(scale);
    let pieces = partials(parts.len(), |i| piece(queries[parts[i].query].q, &parts[i], head_dim, scale));
    let mut found = parts.iter().zip(pieces).peekable();
    let of = |(nth, query): (usize, &Query<'_, T>)| {
        let mut own = Vec::new();
        while let Some(piece) = found.next_if(|(part, _)| part.query == nth) {
            own.push(piece);
        }
        meet(query, &own, head_dim, wanted)
    };
    queries.iter().enumerate().map(of).collect()
}

fn piece<T: Real>(q: &[T], part: &Part<'_, T>, d: usize, scale: T) -> Piece<T> {
    let (group, n) = (q.len() / d, part.entries.len());
    let mut scratch = Vec::new();
    let mut weights = vec![T::ZERO; group * n];
    let keys = part.lane.keys(part.entries.clone(), &mut scratch);
    assert_eq!(keys.len(), n * d, "a lane's keys");
    few::scores(q, keys, d, scale, &mut weights, n);
    let (mut tops, mut sums) = (vec![T::NEG_INFINITY; group], vec![T::ZERO; group]);
    for ((row, top), sum) in weights.chunks_exact_mut(n).zip(&mut tops).zip(&mut sums) {
        softmax_block(row, top, sum);
    }
    let values = part.lane.values(part.entries.clone(), &mut scratch);
    assert_eq!(values.len(), n * d, "a lane's values");
    let mut out = vec![T::ZERO; group * d];
    // SAFETY: the weights have a column for each entry, `values` holds the block, `out` the group.
    unsafe {
        let p = Strided::new(weights.as_ptr(), n, 1);
        tile::product((group, d, n), T::ONE, p, (values.as_ptr(), d), false, (out.as_mut_ptr(), d));
    }
    Piece { weights, tops, sums, out }
}

/// Pieces under their common top.
fn meet<T: Real>(
    query: &Query<'_, T>,
    pieces: &[(&Part<'_, T>, Piece<T>)],
    d: usize,
    wanted: bool,
) -> Found<T> {
    let group = query.q.len() / d;
    let entries: usize = if wanted { query.sees.iter().map(|(_, r)| r.len()).sum() } else { 0 };
    let mut found = Found { out: vec![T::ZERO; group * d], weights: vec![T::ZERO; group * entries] };
    for head in 0..group {
        let top = pieces.iter().fold(T::NEG_INFINITY, |top, (_, p)| top.max(p.tops[head]));
        // All −∞: nothing is seen, and exp gives 0 and not NaN.
        let top = if top == T::NEG_INFINITY { T::ZERO } else { top };
        let factor = |p: &Piece<T>| (p.tops[head] - top).exp();
        let sum = pieces.iter().fold(T::ZERO, |sum, (_, p)| sum + p.sums[head] * factor(p));
        if sum == T::ZERO {
            continue;
        }
        for (part, piece) in pieces {
            let factor = factor(piece) / sum;
            add_scaled_chunk(factor, &piece.out[head * d..][..d], &mut found.out[head * d..][..d]);
            if !wanted {
                continue;
            }
            let n = part.entries.len();
            let to = &mut found.weights[head * entries + part.at..][..n];
            scale_chunk(factor, &piece.weights[head * n..][..n], to);
        }
    }
    found
}
