//! The forward: one task a (segment, head, block of queries), with a running softmax over key blocks.

use std::ops::Range;

use super::form::Form;
use super::{KEYS, PerHead, QUERIES, Segment, Shape, copy_rows, key_blocks, scores, waves};
use crate::Real;
use crate::elementwise::add_assign;
use crate::matmul::{self, Strided};
use crate::split::{Shared, tasks};
use crate::tile::PANEL;
use crate::wide::wide;

/// Attention of `q` to `k`, `v` within each segment.
///
/// * `q`, `out`: rows×heads×head_dim; `k`, `v`: rows×kv_heads×head_dim
/// * `bias`: one number a row of `k`, added to that key's scores for every head; none adds nothing
/// * `lse`: rows×heads, log-sum-exp of the scores, which [`backward`](super::backward) needs
///
/// # Panics
/// If a slice's length is not its shape or a segment reaches past the rows.
#[allow(clippy::too_many_arguments)] // the operands of attention
pub fn forward<T: Real>(
    q: &[T],
    k: &[T],
    v: &[T],
    bias: Option<&[T]>,
    segments: &[Segment],
    shape: &Shape,
    out: &mut [T],
    lse: &mut [T],
) {
    shape.check(segments, q.len(), k.len(), v.len(), bias);
    assert_eq!(out.len(), q.len(), "`out` must be as long as `q`");
    assert_eq!(lse.len() * shape.head_dim, q.len(), "`lse` must hold one entry a row and head");
    // Blocks write all rows of their own.
    if segments.iter().map(|s| s.q_len).sum::<usize>() * shape.heads != lse.len() {
        out.fill(T::ZERO);
        lse.fill(T::NEG_INFINITY);
    }
    let (out, lse) = (Shared::new(out), Shared::new(lse));
    // One query a segment is decoding: then the heads that share keys form the block, and keys are read as they lie.
    let single = |s: &Segment| s.q_len == 1;
    for pairs in waves(segments, shape, 2) {
        let panels = PerHead::panels(k, segments, shape, pairs.clone(), 2);
        let values = PerHead::rows(v, segments, shape, pairs.clone(), 2);
        let mut blocks = Vec::new();
        for pair in pairs {
            let (s, head) = (&segments[pair / shape.kv_heads], pair % shape.kv_heads * shape.group());
            let heads = if single(s) { 1 } else { shape.group() };
            for first in (0..s.q_len).step_by(QUERIES) {
                blocks.extend((head..head + heads).map(|head| (pair, head, first)));
            }
        }
        tasks(blocks.len(), |t| {
            let (pair, head, first) = blocks[t];
            let (k, v) = ((k, panels.part(pair)), (v, values.part(pair)));
            block(q, k, v, bias, &segments[pair / shape.kv_heads], shape, head, first, out, lse);
        });
    }
}

/// Queries `first..` of one segment and head (or, with one query, of all heads that share its keys).
#[allow(clippy::too_many_arguments)] // the operands of attention
fn block<T: Real>(
    q: &[T],
    (k, panels): (&[T], &[T]),
    (v, values): (&[T], &[T]),
    bias: Option<&[T]>,
    s: &Segment,
    shape: &Shape,
    head: usize,
    first: usize,
    out: Shared<T>,
    lse: Shared<T>,
) {
    let d = shape.head_dim;
    let (wide, narrow) = (shape.heads * d, shape.kv_heads * d);
    let single = s.q_len == 1;
    // Rows of the block, how far apart they lie in q and out, and in lse.
    let (rows, stride, lse_stride) =
        if single { (shape.group(), d, 1) } else { (QUERIES.min(s.q_len - first), wide, shape.heads) };
    let span = if single { 0..1 } else { first..first + rows };
    let keys = shape.visible_to_any(s, span);
    let q_at = (s.q_start + first) * wide + head * d;
    let kv_at = |j: usize| (s.k_start + j) * narrow + head / shape.group() * d;
    // Single queries are not worth the rounding, and their keys and values are not in order.
    let form = if single { Form::Plain } else { Form::of::<T>(shape) };
    let (mut own, mut left) = (vec![T::ZERO; if single { 0 } else { rows * d }], Vec::new());
    // SAFETY: these rows lie within q by the check of `forward`.
    unsafe { copy_rows(q.as_ptr().add(q_at), stride, d, &mut own) };
    let queries = form.left(&own, &mut left);
    let mut rounded = Vec::new();
    let mut weights = vec![T::ZERO; rows * KEYS.min(keys.end.next_multiple_of(PANEL))];
    let mut sums = vec![T::ZERO; rows];
    let mut tops = vec![T::NEG_INFINITY; rows];
    let mut acc = vec![T::ZERO; rows * d];
    for (turn, start) in key_blocks(&keys).enumerate() {
        let n = KEYS.min(keys.end - start);
        let width = n.next_multiple_of(PANEL);
        let factor = T::from_f64(shape.scale);
        // SAFETY: all rows and columns lie within q, k, v by the check of `forward`; scratch is ours.
        unsafe {
            let to = weights.as_mut_ptr();
            if single {
                let queries = Strided::new(q.as_ptr().add(q_at), stride, 1);
                let block = Strided::new(k.as_ptr().add(kv_at(start)), 1, narrow);
                matmul::product((rows, n, d), factor, queries, block, false, Strided::new(to, width, 1));
            } else {
                let queries = (Strided::new(queries.as_ptr(), form.words(d), 1), form.words(d));
                scores(form, (rows, start, n), factor, queries, panels, (to, width));
            }
        }
        for r in 0..rows {
            let Range { start: lo, end: hi } =
                shape.visible_of(s, if single { 0 } else { first + r }, start, n);
            let row = &mut weights[r * width..][..width];
            row[..lo].fill(T::ZERO);
            row[hi..].fill(T::ZERO);
            if lo == hi {
                continue;
            }
            if let Some(bias) = bias {
                add_assign(&mut row[lo..hi], &bias[s.k_start + start + lo..s.k_start + start + hi]);
            }
            let shrink = softmax_block(&mut row[lo..hi], &mut tops[r], &mut sums[r]);
            if turn > 0 {
                scale(&mut acc[r * d..(r + 1) * d], shrink);
            }
        }
        // SAFETY: as above.
        unsafe {
            let p = form.left(&weights[..rows * width], &mut rounded);
            let p = Strided::new(p.as_ptr(), form.words(width), 1);
            let values = match single {
                true => (v.as_ptr().add(kv_at(start)), narrow),
                false => (values[form.words(start) * d..].as_ptr(), d),
            };
            let shape = (rows, d, form.words(n));
            form.product(shape, T::ONE, p, values, turn > 0, (acc.as_mut_ptr(), d));
        }
    }
    for r in 0..rows {
        let lse_at = (s.q_start + first) * shape.heads + head + r * lse_stride;
        // SAFETY: these rows of this head belong to this task.
        let (to, log) = unsafe { (out.slice(q_at + r * stride, d), &mut *lse.at(lse_at)) };
        if sums[r] == T::ZERO {
            to.fill(T::ZERO); // sees nothing
            *log = T::NEG_INFINITY;
            continue;
        }
        to.copy_from_slice(&acc[r * d..(r + 1) * d]);
        divide(to, sums[r]);
        *log = tops[r] + sums[r].ln();
    }
}

wide! {
    /// Turns scores into exp(score − top) with the new running top, updates the running sum and returns
    /// the factor by which what was summed before shrinks.
    pub(super) fn softmax_block[T: Real](row: &mut [T], top: &mut T, sum: &mut T) -> T {
        let (chunks, rest) = row.as_chunks_mut::<16>();
        let mut most = [T::NEG_INFINITY; 16];
        for c in chunks.iter() {
            for l in 0..16 {
                most[l] = most[l].max(c[l]);
            }
        }
        let new = most.iter().chain(rest.iter()).fold(*top, |a, x| a.max(*x));
        // All −∞ so far: shift by 0, so that exp gives 0 and not NaN.
        let shift = if new == T::NEG_INFINITY { T::ZERO } else { new };
        let mut acc = [T::ZERO; 16];
        for c in chunks {
            for l in 0..16 {
                c[l] = (c[l] - shift).exp();
                acc[l] += c[l];
            }
        }
        let mut total = T::ZERO;
        for a in acc {
            total += a;
        }
        for x in rest {
            *x = (*x - shift).exp();
            total += *x;
        }
        let shrink = (*top - shift).exp();
        *sum = *sum * shrink + total;
        *top = new;
        shrink
    }

    fn scale[T: Real](x: &mut [T], s: T) {
        for x in x {
            *x *= s;
        }
    }

    pub(super) fn divide[T: Real](x: &mut [T], by: T) {
        let f = T::ONE / by;
        for x in x {
            *x *= f;
        }
    }
}
