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

/// Whether these weights take the same numbers of x.
pub fn alike(ws: &[&Grid<'_>]) -> bool {
    let of = |w: &Grid<'_>| {
        let narrow = matches!(w.scales, GroupScales::Bf16(_));
        (w.bits, w.shape.1, w.zeros.is_empty(), w.middle.to_bits(), narrow)
    };
    ws.windows(2).all(|w| of(w[0]) == of(w[1]))
}

/// `y[m×n] = x[m×k] · wᵀ` with P planes, for each of some weights that are [`alike`].
pub fn forward<const P: usize>(x: &[f32], ws: &[&Grid<'_>], ys: &mut [&mut [f32]]) {
    match ws[0].scales {
        GroupScales::F32(_) => by_scales::<P, f32>(x, ws, ys),
        GroupScales::Bf16(_) => by_scales::<P, u16>(x, ws, ys),
    }
}

/// A weight and its share of the tasks.
struct Share<'a, S> {
    weight: Weight<'a, S>,
    bits: u32,
    n: usize,
    /// Rows of a task.
    rows: usize,
    out: Shared<f32>,
}

impl<'a, S: Scale> Share<'a, S> {
    fn of(w: &Grid<'a>, y: &mut [f32]) -> Self {
        let (n, k) = w.shape;
        let (groups, row_bytes) = (k / w.group, stream_bytes(k, w.bits));
        let scales = S::of(w.scales);
        assert_eq!(w.packed.len(), n * row_bytes, "the codes of {n}×{k}");
        assert!(scales.len() == n * groups && (w.zeros.is_empty() || w.zeros.len() == n * groups));
        let task = (n * k / TASKS).clamp(*TASK.start(), *TASK.end());
        let rows = (task / k).max(1).next_multiple_of(ROWS);
        let weight = Weight::of(w, scales, row_bytes, order(w.bits));
        Share { weight, bits: w.bits, n, rows, out: Shared::new(y) }
    }

    fn tasks(&self) -> usize {
        self.n.div_ceil(self.rows)
    }

    /// Task `t`, of rows of x with so many chunks each.
    fn run<const P: usize>(&self, t: usize, x: &[Chunk<P>], chunks: usize) {
        let end = self.n.min((t + 1) * self.rows);
        for first in (t * self.rows..end).step_by(ROWS) {
            for (i, x) in x.chunks_exact(chunks).enumerate() {
                let here = (end - first).min(ROWS);
                // SAFETY: `suits` saw the features; each task owns its columns of y.
                let to = unsafe { self.out.slice(i * self.n + first, here) };
                if here == ROWS {
                    to.copy_from_slice(&dots::<P, ROWS, S>(self.bits, &self.weight, first, x));
                } else {
                    for (r, y) in to.iter_mut().enumerate() {
                        [*y] = dots(self.bits, &self.weight, first + r, x);
                    }
                }
            }
        }
    }
}

fn by_scales<const P: usize, S: Scale>(x: &[f32], ws: &[&Grid<'_>], ys: &mut [&mut [f32]]) {
    let k = ws[0].shape.1;
    let shares: Vec<Share<'_, S>> = ws.iter().zip(ys).map(|(w, y)| Share::of(w, y)).collect();
    let chunks = k.div_ceil(CHUNK);
    scratch::with(x.len() / k * chunks, |all: &mut [Chunk<P>]| {
        fill(x, ws[0], order(ws[0].bits), all);
        let all = &*all;
        tasks(shares.iter().map(Share::tasks).sum(), |mut t| {
            for share in &shares {
                match t.checked_sub(share.tasks()) {
                    None => return share.run(t, all, chunks),
                    Some(rest) => t = rest,
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
