//! The backward: one task a segment and query head.

use std::ops::Range;

use super::form::Form;
use super::{KEYS, PerHead, QUERIES, Segment, Shape, copy_rows, key_blocks, scores, waves};
use crate::Real;
use crate::elementwise::{add_assign, add_scaled_chunk};
use crate::matmul::Strided;
use crate::rms_norm::sum_of_products;
use crate::split::{Shared, partials, tasks};
use crate::tile::PANEL;
use crate::wide::wide;

/// The tensors of the forward, read only.
struct Saved<'a, T> {
    g: &'a [T],
    q: &'a [T],
    bias: Option<&'a [T]>,
    out: &'a [T],
    lse: &'a [T],
    k_panels: PerHead<T>,
    v_panels: PerHead<T>,
    k_rows: PerHead<T>,
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
    // Tasks write all rows of their own.
    if segments.iter().map(|s| s.q_len).sum::<usize>() * shape.heads != lse.len() {
        gq.fill(T::ZERO);
    }
    let whole = segments.iter().map(|s| s.k_len).sum::<usize>() * shape.kv_heads * shape.head_dim == gk.len();
    if !whole {
        gk.fill(T::ZERO);
        gv.fill(T::ZERO);
    }
    let (gq, gk, gv) = (Shared::new(gq), Shared::new(gk), Shared::new(gv));
    let (d, narrow) = (shape.head_dim, shape.kv_heads * shape.head_dim);
    let group = shape.group();
    let place = |pair: usize| segments[pair / shape.kv_heads].k_start * narrow + pair % shape.kv_heads * d;
    let clear = |pair: usize| {
        for j in 0..segments[pair / shape.kv_heads].k_len {
            let at = place(pair) + j * narrow;
            // SAFETY: the keys of this segment and head belong to the task that clears them.
            let rows = unsafe { [gk.slice(at, d), gv.slice(at, d)] };
            rows.into_iter().for_each(|row| row.fill(T::ZERO));
        }
    };
    // Where heads share keys each sums a share of its own.
    for pairs in waves(segments, shape, if group == 1 { 3 } else { 3 + 2 * group }) {
        let panels = |x| PerHead::panels(x, segments, shape, pairs.clone(), 1);
        let k_rows = PerHead::rows(k, segments, shape, pairs.clone(), 1);
        let saved = Saved { g, q, bias, out, lse, k_panels: panels(k), v_panels: panels(v), k_rows };
        if group == 1 {
            tasks(pairs.len(), |t| {
                let pair = pairs.start + t;
                clear(pair);
                // SAFETY: the keys of this segment and head belong to this task.
                let to = unsafe { (gk.at(place(pair)), gv.at(place(pair)), narrow) };
                let s = &segments[pair / shape.kv_heads];
                one_head(&saved, (pair, s), shape, pair % shape.kv_heads, gq, to);
            });
            continue;
        }
        let shares = partials(pairs.len() * group, |t| {
            let pair = pairs.start + t / group;
            let s = &segments[pair / shape.kv_heads];
            let (mut dk, mut dv) = (vec![T::ZERO; s.k_len * d], vec![T::ZERO; s.k_len * d]);
            let to = (dk.as_mut_ptr(), dv.as_mut_ptr(), d);
            let head = pair % shape.kv_heads * group + t % group;
            one_head(&saved, (pair, s), shape, head, gq, to);
            (dk, dv)
        });
        // The shares meet in order of the heads.
        tasks(pairs.len(), |t| {
            let pair = pairs.start + t;
            clear(pair);
            for (dk, dv) in &shares[t * group..][..group] {
                for j in 0..segments[pair / shape.kv_heads].k_len {
                    let at = place(pair) + j * narrow;
                    // SAFETY: as above; one row of one head at a time.
                    let (gk, gv) = unsafe { (gk.slice(at, d), gv.slice(at, d)) };
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
    (pair, s): (usize, &Segment),
    shape: &Shape,
    head: usize,
    gq: Shared<T>,
    (gk, gv, row): (*mut T, *mut T, usize),
) {
    let d = shape.head_dim;
    let wide = shape.heads * d;
    let scale = T::from_f64(shape.scale);
    let (k_panels, v_panels) = (t.k_panels.part(pair), t.v_panels.part(pair));
    let mut p = vec![T::ZERO; QUERIES.min(s.q_len) * KEYS.min(s.k_len.next_multiple_of(PANEL))];
    let mut ds = p.clone();
    let k_rows = t.k_rows.part(pair);
    let (mut q, mut g, mut gq_block) = (Vec::new(), Vec::new(), Vec::new());
    let form = Form::of::<T>(shape);
    let [mut q_left, mut q_beside, mut g_left, mut g_beside] = [const { Vec::new() }; 4];
    let [mut p_beside, mut ds_beside, mut ds_left] = [const { Vec::new() }; 3];
    let mut dots = [T::ZERO; QUERIES];
    for first in (0..s.q_len).step_by(QUERIES) {
        let rows = QUERIES.min(s.q_len - first);
        let keys = shape.visible_to_any(s, first..first + rows);
        let q_at = (s.q_start + first) * wide + head * d;
        for (r, dot) in dots[..rows].iter_mut().enumerate() {
            let row = q_at + r * wide..q_at + r * wide + d;
            *dot = sum_of_products(&t.g[row.clone()], &t.out[row]);
        }
        for (x, from) in [(&mut q, t.q), (&mut g, t.g)] {
            x.resize(rows * d, T::ZERO);
            // SAFETY: these rows lie within the operands by the check of `backward`.
            unsafe { copy_rows(from.as_ptr().add(q_at), wide, d, x) };
        }
        let (q_left, g_left) = (form.left(&q, &mut q_left), form.left(&g, &mut g_left));
        let (q_beside, g_beside) = (form.beside(&q, d, &mut q_beside), form.beside(&g, d, &mut g_beside));
        gq_block.clear();
        gq_block.resize(rows * d, T::ZERO);
        for start in key_blocks(&keys) {
            let n = KEYS.min(keys.end - start);
            let width = n.next_multiple_of(PANEL);
            // SAFETY: all rows and columns lie within the operands by the check of `backward`; the rows of
            // this head in gq, and what gk and gv point at, belong to this call.
            unsafe {
                let (words, block) = (form.words(d), (rows, start, n));
                let left = |x: &[T]| (Strided::new(x.as_ptr(), words, 1), words);
                scores(form, block, scale, left(q_left), k_panels, (p.as_mut_ptr(), width));
                scores(form, block, T::ONE, left(g_left), v_panels, (ds.as_mut_ptr(), width));
                for r in 0..rows {
                    let Range { start: lo, end: hi } = shape.visible_of(s, first + r, start, n);
                    let (p, ds) = (&mut p[r * width..][..width], &mut ds[r * width..][..width]);
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
                let all = rows * width;
                let p = form.beside(&p[..all], width, &mut p_beside);
                let flipped = |x: &[T]| Strided::new(x.as_ptr(), 1, width);
                let to = |x: *mut T| (x.add(start * row), row);
                let keys = (n, d, form.words(rows));
                form.product(keys, T::ONE, flipped(p), (g_beside.as_ptr(), d), true, to(gv));
                let beside = form.beside(&ds[..all], width, &mut ds_beside);
                form.product(keys, scale, flipped(beside), (q_beside.as_ptr(), d), true, to(gk));
                let left = form.left(&ds[..all], &mut ds_left);
                let left = Strided::new(left.as_ptr(), form.words(width), 1);
                let k = (k_rows[form.words(start) * d..].as_ptr(), d);
                form.product((rows, d, form.words(n)), scale, left, k, true, (gq_block.as_mut_ptr(), d));
            }
        }
        for (r, row) in gq_block.chunks_exact(d).enumerate() {
            // SAFETY: these rows of this head belong to this call.
            unsafe { gq.slice(q_at + r * wide, d) }.copy_from_slice(row);
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
