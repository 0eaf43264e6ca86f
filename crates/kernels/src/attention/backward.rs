//! The backward: one task a segment and query head.

use super::{KEYS, Panels, QUERIES, Segment, Shape, key_blocks, scores};
use crate::Real;
use crate::elementwise::{add_assign, add_scaled_chunk};
use crate::matmul::Strided;
use crate::rms_norm::sum_of_products;
use crate::split::{Shared, partials, tasks};
use crate::tile::{self, PANEL};
use crate::wide::wide;

/// Query heads whose shares of the gradients to shared keys wait for each other.
const SHARES: usize = 16;

/// The tensors of the forward, read only.
struct Saved<'a, T> {
    g: &'a [T],
    q: &'a [T],
    k: &'a [T],
    bias: Option<&'a [T]>,
    out: &'a [T],
    lse: &'a [T],
    k_panels: Panels<T>,
    v_panels: Panels<T>,
}

/// Gradients of [`forward`](super::forward); `gq`, `gk` and `gv` are overwritten.
///
/// Shapes as there; `g` is the gradient of `out`. Scores are computed again from q, k, `bias` and `lse`;
/// the bias itself is given no gradient.
///
/// # Panics
/// If a slice's length is not its shape or a segment reaches past the rows.
#[allow(clippy::too_many_arguments)] // the operands of attention
pub fn backward<T: Real>(
    g: &[T],
    q: &[T],
    k: &[T],
    v: &[T],
    bias: Option<&[T]>,
    out: &[T],
    lse: &[T],
    segments: &[Segment],
    shape: &Shape,
    gq: &mut [T],
    gk: &mut [T],
    gv: &mut [T],
) {
    shape.check(segments, q.len(), k.len(), v.len(), bias);
    assert!([g.len(), out.len(), gq.len()] == [q.len(); 3], "`g`, `out` and `gq` must be as long as `q`");
    assert_eq!(lse.len() * shape.head_dim, q.len(), "`lse` must hold one entry a row and head");
    assert!([gk.len(), gv.len()] == [k.len(); 2], "`gk` and `gv` must be as long as `k`");
    gq.fill(T::ZERO);
    gk.fill(T::ZERO);
    gv.fill(T::ZERO);
    let of = |x| Panels::of(x, segments, shape, |s| s.q_len > 0);
    let saved = Saved { g, q, k, bias, out, lse, k_panels: of(k), v_panels: of(v) };
    let (gq, gk, gv) = (Shared::new(gq), Shared::new(gk), Shared::new(gv));
    let (d, narrow) = (shape.head_dim, shape.kv_heads * shape.head_dim);
    let (group, pairs) = (shape.group(), segments.len() * shape.kv_heads);
    let place = |pair: usize| {
        let (at, kv_head) = (pair / shape.kv_heads, pair % shape.kv_heads);
        (at, kv_head, segments[at].k_start * narrow + kv_head * d)
    };
    if group == 1 {
        return tasks(pairs, |pair| {
            let (at, head, to) = place(pair);
            // SAFETY: the keys of this segment and head belong to this task.
            let to = unsafe { (gk.at(to), gv.at(to), narrow) };
            one_head(&saved, (at, &segments[at]), shape, head, gq, to);
        });
    }
    // Each query head sums its own share, then the shares meet in order of the heads; some heads at a time, which
    // bounds what the shares take.
    let wave = SHARES.div_ceil(group);
    for first in (0..pairs).step_by(wave) {
        let wave = wave.min(pairs - first);
        let shares = partials(wave * group, |t| {
            let (at, kv_head, _) = place(first + t / group);
            let s = &segments[at];
            let (mut dk, mut dv) = (vec![T::ZERO; s.k_len * d], vec![T::ZERO; s.k_len * d]);
            let to = (dk.as_mut_ptr(), dv.as_mut_ptr(), d);
            one_head(&saved, (at, s), shape, kv_head * group + t % group, gq, to);
            (dk, dv)
        });
        tasks(wave, |pair| {
            let (at, _, to) = place(first + pair);
            for (dk, dv) in &shares[pair * group..][..group] {
                for j in 0..segments[at].k_len {
                    // SAFETY: as above; one row of one head at a time.
                    let (gk, gv) = unsafe { (gk.slice(to + j * narrow, d), gv.slice(to + j * narrow, d)) };
                    add_scaled_chunk(T::ONE, &dk[j * d..(j + 1) * d], gk);
                    add_scaled_chunk(T::ONE, &dv[j * d..(j + 1) * d], gv);
                }
            }
        });
    }
}

/// Gradients through one query head of one segment, added to its rows of `gq` and to `gk`, `gv`, which
/// point at the segment's first key, rows of theirs as far apart as the third says.
fn one_head<T: Real>(
    t: &Saved<T>,
    (at, s): (usize, &Segment),
    shape: &Shape,
    head: usize,
    gq: Shared<T>,
    (gk, gv, row): (*mut T, *mut T, usize),
) {
    let d = shape.head_dim;
    let (wide, narrow) = (shape.heads * d, shape.kv_heads * d);
    let scale = T::from_f64(shape.scale);
    let kv_head = head / shape.group();
    let (k_panels, v_panels) = (t.k_panels.part(at, kv_head), t.v_panels.part(at, kv_head));
    let mut p = vec![T::ZERO; QUERIES.min(s.q_len) * KEYS.min(s.k_len.next_multiple_of(PANEL))];
    let mut ds = p.clone();
    let mut dots = [T::ZERO; QUERIES];
    for first in (0..s.q_len).step_by(QUERIES) {
        let rows = QUERIES.min(s.q_len - first);
        let keys = shape.visible_to_any(s, first..first + rows);
        let q_at = (s.q_start + first) * wide + head * d;
        for (r, dot) in dots[..rows].iter_mut().enumerate() {
            let row = q_at + r * wide..q_at + r * wide + d;
            *dot = sum_of_products(&t.g[row.clone()], &t.out[row]);
        }
        for start in key_blocks(&keys) {
            let n = KEYS.min(keys.end - start);
            let width = n.next_multiple_of(PANEL);
            let kv_at = (s.k_start + start) * narrow + kv_head * d;
            // SAFETY: all rows and columns lie within the operands by the check of `backward`; the rows of
            // this head in gq, and what gk and gv point at, belong to this call.
            unsafe {
                let (q, g) = (t.q.as_ptr().add(q_at), t.g.as_ptr().add(q_at));
                let left = |x| (Strided::new(x, wide, 1), d);
                scores((rows, start, n), scale, left(q), k_panels, (p.as_mut_ptr(), width));
                scores((rows, start, n), T::ONE, left(g), v_panels, (ds.as_mut_ptr(), width));
                for r in 0..rows {
                    let seen = shape.visible(s, first + r);
                    let (lo, hi) = (
                        seen.start.clamp(start, start + n) - start,
                        seen.end.clamp(start, start + n) - start,
                    );
                    let hi = hi.max(lo);
                    let (p, ds) = (&mut p[r * width..][..n], &mut ds[r * width..][..n]);
                    for x in [&mut *p, &mut *ds] {
                        x[..lo].fill(T::ZERO);
                        x[hi..].fill(T::ZERO);
                    }
                    if let Some(bias) = t.bias {
                        let from = s.k_start + start;
                        add_assign(&mut p[lo..hi], &bias[from + lo..from + hi]);
                    }
                    let lse = t.lse[(s.q_start + first + r) * shape.heads + head];
                    probabilities(&mut p[lo..hi], &mut ds[lo..hi], lse, dots[r]);
                }
                let flipped = |x: &[T]| Strided::new(x.as_ptr(), 1, width);
                let to = |x: *mut T| (x.add(start * row), row);
                tile::product((n, d, rows), T::ONE, flipped(&p), (g, wide), true, to(gv));
                tile::product((n, d, rows), scale, flipped(&ds), (q, wide), true, to(gk));
                let (ds, k) = (Strided::new(ds.as_ptr(), width, 1), t.k.as_ptr().add(kv_at));
                tile::product((rows, d, n), scale, ds, (k, narrow), true, (gq.at(q_at), wide));
            }
        }
    }
}

wide! {
    /// p ← exp(p − lse), ds ← p · (ds − dot)
    fn probabilities[T: Real](p: &mut [T], ds: &mut [T], lse: T, dot: T) {
        for (p, ds) in p.iter_mut().zip(ds) {
            *p = (*p - lse).exp();
            *ds = *p * (*ds - dot);
        }
    }
}
