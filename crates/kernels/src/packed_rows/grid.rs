//! Whole numbers: x in planes of seven bits, dot products of bytes.

use std::sync::LazyLock;

use super::avx512::{self, CHUNK, Chunk, HALF, Order, Scale, Weight};
use super::{Grid, GroupScales};
use crate::cpu;
use crate::packed::stream_bytes;
use crate::scratch;
use crate::split::{Shared, tasks};

/// Codes of one task, where there are enough of them for [`TASKS`]: the least pays for the hand-over.
const TASK: std::ops::RangeInclusive<usize> = 1 << 14..=1 << 17;

/// Tasks that a weight is cut into: so many that threads end together.
const TASKS: usize = 64;

/// Whether there is such a way for this weight.
pub fn suits(w: &Grid<'_>) -> bool {
    let known = match w.bits {
        3 => is_x86_feature_detected!("avx512vbmi"),
        bits => matches!(bits, 2 | 4 | 8),
    };
    known && w.group.is_multiple_of(HALF) && cpu::has_vnni()
}

/// How far apart in a row the codes lie that a shift of the bytes brings side by side.
const STRIDES: [usize; 3] = [1, 2, 4];

static ORDERS: LazyLock<[Order; 3]> = LazyLock::new(|| STRIDES.map(Order::of));

fn order(bits: u32) -> &'static Order {
    let [one, two, four] = &*ORDERS;
    match bits {
        4 => two,
        2 => four,
        _ => one,
    }
}

/// Rows of x as whole numbers, `[row][chunk]`. With zeros of a weight's own nothing is taken off for the middle.
fn fill<const P: usize>(x: &[f32], w: &Grid<'_>, order: &Order, chunks: &mut [Chunk<P>]) {
    let k = w.shape.1;
    let middle = if w.zeros.is_empty() { w.middle as i32 } else { 0 };
    for (x, to) in x.chunks_exact(k).zip(chunks.chunks_exact_mut(k.div_ceil(CHUNK))) {
        for (x, to) in x.chunks(CHUNK).zip(to) {
            // SAFETY: `suits` saw the features.
            unsafe { avx512::whole(x, order, to) };
        }
    }
    for chunk in chunks {
        // SAFETY: as above.
        unsafe { avx512::add_up(middle, chunk) };
    }
}

/// `y[m×n] = x[m×k] · wᵀ` with P planes.
pub fn forward<const P: usize>(x: &[f32], w: &Grid<'_>, y: &mut [f32]) {
    match w.scales {
        GroupScales::F32(scales) => by_scales::<P, f32>(x, w, scales, y),
        GroupScales::Bf16(scales) => by_scales::<P, u16>(x, w, scales, y),
    }
}

fn by_scales<const P: usize, S: Scale>(x: &[f32], w: &Grid<'_>, scales: &[S], y: &mut [f32]) {
    let (n, k) = w.shape;
    let (groups, row_bytes) = (k / w.group, stream_bytes(k, w.bits));
    assert_eq!(w.packed.len(), n * row_bytes, "the codes of {n}×{k}");
    assert!(scales.len() == n * groups && (w.zeros.is_empty() || w.zeros.len() == n * groups));
    let order = order(w.bits);
    let weight = Weight::of(w, scales, row_bytes, order);
    let task = (n * k / TASKS).clamp(*TASK.start(), *TASK.end());
    let rows = (task / k).max(1).next_multiple_of(ROWS);
    let chunks = k.div_ceil(CHUNK);
    scratch::with(x.len() / k * chunks, |all: &mut [Chunk<P>]| {
        fill(x, w, order, all);
        let (all, out) = (&*all, Shared::new(y));
        tasks(n.div_ceil(rows), |t| {
            let end = n.min((t + 1) * rows);
            for first in (t * rows..end).step_by(ROWS) {
                for (i, x) in all.chunks_exact(chunks).enumerate() {
                    let here = (end - first).min(ROWS);
                    // SAFETY: `suits` saw the features; each task owns its columns of y.
                    let to = unsafe { out.slice(i * n + first, here) };
                    if here == ROWS {
                        to.copy_from_slice(&dots::<P, ROWS, S>(w.bits, &weight, first, x));
                    } else {
                        for (r, y) in to.iter_mut().enumerate() {
                            [*y] = dots(w.bits, &weight, first + r, x);
                        }
                    }
                }
            }
        });
    });
}

/// Rows that share what is loaded of x.
const ROWS: usize = 4;

fn dots<const P: usize, const R: usize, S: Scale>(
    bits: u32,
    w: &Weight<'_, S>,
    first: usize,
    x: &[Chunk<P>],
) -> [f32; R] {
    // SAFETY: `suits` saw the features; slices of rows are checked.
    unsafe {
        match bits {
            2 => avx512::dots::<2, P, R, S>(w, first, x),
            3 => avx512::dots_3(w, first, x),
            4 => avx512::dots::<4, P, R, S>(w, first, x),
            _ => avx512::dots::<8, P, R, S>(w, first, x),
        }
    }
}
