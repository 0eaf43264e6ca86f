//! Whole numbers: x in planes of seven bits, dot products of bytes.

use super::Grid;
use super::avx512::{self, CHUNK, HALF};
use crate::cpu::{self, Cpu};
use crate::packed::stream_bytes;
use crate::split::{Shared, tasks};

/// Codes of one task: enough to pay for the hand-over.
const TASK: usize = 1 << 16;

/// Whether there is such a way for this weight.
pub fn suits(w: &Grid<'_>) -> bool {
    let known = match w.bits {
        3 => is_x86_feature_detected!("avx512vbmi"),
        bits => matches!(bits, 2 | 4 | 8),
    };
    known
        && w.group.is_multiple_of(HALF)
        && cpu::found() >= Cpu::Avx512
        && is_x86_feature_detected!("avx512vnni")
}

/// A row of x as whole numbers.
pub struct Planes<const P: usize> {
    /// `[chunk][plane][64]`, the lowest seven bits first, in the order of the codes' bytes; the highest has a sign.
    pub bytes: Vec<i8>,
    /// What one stands for in each 32 inputs.
    pub scales: Vec<f32>,
    /// The sum of each 32 inputs.
    pub sums: Vec<f32>,
    /// Which of a chunk's two halves each of the sixteen sums of a step is of.
    pub halves: [i32; 16],
}

impl<const P: usize> Planes<P> {
    fn of(x: &[f32], bits: u32) -> Self {
        let (chunks, halves) = (x.len().div_ceil(CHUNK), x.len().div_ceil(CHUNK) * 2);
        let mut planes = Planes {
            bytes: vec![0; chunks * P * CHUNK],
            scales: vec![0.0; halves.next_multiple_of(16)],
            sums: vec![0.0; halves.next_multiple_of(16)],
            halves: lanes(bits),
        };
        let order = order(bits);
        for (h, x) in x.chunks(HALF).enumerate() {
            let chunk = &mut planes.bytes[h / 2 * P * CHUNK..][..P * CHUNK];
            // SAFETY: `suits` saw the features.
            let (scale, sum) = unsafe { avx512::whole::<P>(x, &order[h % 2 * HALF..], chunk) };
            planes.scales[h] = scale;
            planes.sums[h] = sum;
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
    let (n, k) = w.shape;
    let (groups, row_bytes) = (k / w.group, stream_bytes(k, w.bits));
    assert_eq!(w.packed.len(), n * row_bytes, "the codes of {n}×{k}");
    assert!(w.scales.len() == n * groups && (w.zeros.is_empty() || w.zeros.len() == n * groups));
    let planes: Vec<Planes<P>> = x.chunks_exact(k).map(|x| Planes::of(x, w.bits)).collect();
    let out = Shared::new(y);
    let rows = (TASK / k).max(1);
    tasks(n.div_ceil(rows), |t| {
        let mut factors = vec![0.0; planes.first().map_or(0, |p| p.scales.len())];
        for j in t * rows..n.min((t + 1) * rows) {
            let row = avx512::Row {
                codes: &w.packed[j * row_bytes..(j + 1) * row_bytes],
                scales: &w.scales[j * groups..(j + 1) * groups],
                zeros: w.zeros.get(j * groups..(j + 1) * groups),
                middle: w.middle,
                halves_of_group: w.group / HALF,
            };
            for (i, x) in planes.iter().enumerate() {
                // SAFETY: `suits` saw the features; each task owns its columns of y.
                unsafe {
                    *out.at(i * n + j) = match w.bits {
                        2 => avx512::dot::<2, P>(&row, x, &mut factors),
                        3 => avx512::dot_3(&row, x, &mut factors),
                        4 => avx512::dot::<4, P>(&row, x, &mut factors),
                        _ => avx512::dot::<8, P>(&row, x, &mut factors),
                    };
                }
            }
        }
    });
}
