//! How much each key was looked at: column sums of the attention weights, without the weights.

use std::ops::Range;

use super::form::Form;
use super::{KEYS, QUERIES, Segment, Shape, scores};
use crate::Real;
use crate::matmul::Strided;
use crate::split::partials;
use crate::tile::{self, PANEL};
use crate::wide::wide;

/// Σ_i p_ij over the queries i in `rows` of a segment, for each head and key: `[heads, k_len]`.
///
/// * `q`, `k`, `lse`, `shape`: as given to and by [`forward`](super::forward)
/// * `rows`: queries of the segment, from 0; all of them for sums over the whole past, the last few for
///   what a prompt's end looks at
///
/// Cost: 2·head_dim operations a visible pair; scratch of one [`QUERIES`]×[`KEYS`] block a task.
///
/// # Panics
/// If a slice's length is not its shape or `rows` reach past the segment.
pub fn column_sums<T: Real>(
    q: &[T],
    k: &[T],
    lse: &[T],
    s: &Segment,
    shape: &Shape,
    rows: Range<usize>,
) -> Vec<T> {
    shape.check::<T>(std::slice::from_ref(s), q.len(), k.len(), k.len(), None);
    assert_eq!(lse.len() * shape.head_dim, q.len(), "`lse` must hold one entry a row and head");
    assert!(rows.end <= s.q_len, "{rows:?} reach past {s:?}");
    let blocks = s.k_len.div_ceil(KEYS);
    partials(shape.heads * blocks, |t| {
        let (head, start) = (t / blocks, t % blocks * KEYS);
        column_block(q, k, lse, s, shape, rows.clone(), head, start..(start + KEYS).min(s.k_len))
    })
    .concat()
}

#[allow(clippy::too_many_arguments)] // the operands of attention
fn column_block<T: Real>(
    q: &[T],
    k: &[T],
    lse: &[T],
    s: &Segment,
    shape: &Shape,
    rows: Range<usize>,
    head: usize,
    keys: Range<usize>,
) -> Vec<T> {
    let d = shape.head_dim;
    let (wide, narrow) = (shape.heads * d, shape.kv_heads * d);
    let n = keys.len();
    let mut sums = vec![T::ZERO; n];
    let width = n.next_multiple_of(PANEL);
    let mut logits = vec![T::ZERO; QUERIES.min(rows.len()) * width];
    let k_at = (s.k_start + keys.start) * narrow + head / shape.group() * d;
    // SAFETY: these rows lie within k by the check of `column_sums`.
    let panels = unsafe { tile::transposed(k.as_ptr().wrapping_add(k_at), narrow, n, d) };
    for first in rows.clone().step_by(QUERIES) {
        let count = QUERIES.min(rows.end - first);
        let seen = shape.visible_to_any(s, first..first + count);
        if seen.end <= keys.start || seen.start >= keys.end {
            continue;
        }
        let q_at = (s.q_start + first) * wide + head * d;
        // SAFETY: all rows and columns lie within q by the same check; scratch is ours.
        unsafe {
            let queries = Strided::new(q.as_ptr().add(q_at), wide, 1);
            let to = (logits.as_mut_ptr(), width);
            scores(Form::Plain, (count, 0, n), T::from_f64(shape.scale), (queries, d), &panels, to);
        }
        for r in 0..count {
            let seen = shape.visible_of(s, first + r, keys.start, n);
            if !seen.is_empty() {
                let log = lse[(s.q_start + first + r) * shape.heads + head];
                add_weights(&logits[r * width..][seen.clone()], log, &mut sums[seen]);
            }
        }
    }
    sums
}

wide! {
    fn add_weights[T: Real](scores: &[T], log: T, sums: &mut [T]) {
        for (s, x) in sums.iter_mut().zip(scores) {
            *s += (*x - log).exp();
        }
    }
}
