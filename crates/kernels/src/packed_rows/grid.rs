//! Whole numbers: x in planes of seven bits, dot products of bytes.

use super::avx512::{self, CHUNK, ChunkOfX, HALF, Scale, Weight};
use super::{Grid, GroupScales};
use crate::cpu;
use crate::packed::stream_bytes;
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

/// A row of x as whole numbers. What belongs to a chunk lies as the sixteen sums of a step do, of four codes each.
pub struct Planes<const P: usize> {
    /// `[chunk][plane][64]`, the lowest seven bits first, in the order of the codes' bytes; the highest has a sign.
    pub bytes: Vec<i8>,
    /// What one stands for.
    pub scales: Vec<[f32; 16]>,
    /// What the middle takes off a sum: `[chunk][2]`, of the two lowest planes and of the third.
    pub less: Vec<[i32; 16]>,
    /// The four numbers' sum.
    pub sums: Vec<[f32; 16]>,
    /// Which of a chunk's two halves each sum is of.
    pub halves: [i32; 16],
}

impl<const P: usize> Planes<P> {
    /// With zeros of a weight's own nothing is taken off for the middle.
    fn of(x: &[f32], w: &Grid<'_>) -> Self {
        let chunks = x.len().div_ceil(CHUNK);
        let mut planes = Planes {
            bytes: vec![0; chunks * P * CHUNK],
            scales: vec![[0.0; 16]; chunks],
            less: vec![[0; 16]; 2 * chunks],
            sums: vec![[0.0; 16]; chunks],
            halves: lanes(w.bits),
        };
        let middle = if w.zeros.is_empty() { w.middle as i32 } else { 0 };
        let order = order(w.bits);
        for (c, x) in x.chunks(CHUNK).enumerate() {
            let to = ChunkOfX {
                bytes: &mut planes.bytes[c * P * CHUNK..][..P * CHUNK],
                scale: &mut planes.scales[c],
                less: &mut planes.less[2 * c..][..2],
                sum: &mut planes.sums[c],
            };
            // SAFETY: `suits` saw the features.
            unsafe { avx512::whole::<P>(x, &order, &planes.halves, middle, to) };
        }
        planes
    }
}

/// Where the dot products have the code i of a chunk.
fn order(bits: u32) -> [usize; CHUNK] {
    std::array::from_fn(|i| match bits {
        4 => i / 2 + i % 2 * 32,
        2 => i / 4 + i % 4 * 16,
        _ => i,
    })
}

fn lanes(bits: u32) -> [i32; 16] {
    std::array::from_fn(|lane| match bits {
        4 => lane as i32 % 8 / 4,
        2 => lane as i32 % 4 / 2,
        _ => lane as i32 / 8,
    })
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
    let planes: Vec<Planes<P>> = x.chunks_exact(k).map(|x| Planes::of(x, w)).collect();
    let weight = Weight::of(w, scales, row_bytes);
    let out = Shared::new(y);
    let task = (n * k / TASKS).clamp(*TASK.start(), *TASK.end());
    let rows = (task / k).max(1).next_multiple_of(ROWS);
    tasks(n.div_ceil(rows), |t| {
        let end = n.min((t + 1) * rows);
        for first in (t * rows..end).step_by(ROWS) {
            for (i, x) in planes.iter().enumerate() {
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
}

/// Rows that share what is loaded of x.
const ROWS: usize = 4;

fn dots<const P: usize, const R: usize, S: Scale>(
    bits: u32,
    w: &Weight<'_, S>,
    first: usize,
    x: &Planes<P>,
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
