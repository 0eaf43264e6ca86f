//! Places in a table: looked up in registers, multiplied in f32 or in bf16.

use std::arch::x86_64::*;

use super::avx512::AHEAD;
use super::{Scales, Table};
use crate::bf16;
use crate::cpu::{self, Cpu};
use crate::registers::first_lanes;
use crate::split::{Shared, tasks};

/// Codes of one step.
const CHUNK: usize = 64;

/// Codes of one task: enough to pay for the hand-over.
const TASK: usize = 1 << 15;

/// Whether there is such a way for this weight.
pub fn suits(w: &Table<'_>) -> bool {
    w.shape.1.is_multiple_of(CHUNK)
        && w.block >= CHUNK
        && w.block.is_power_of_two()
        && cpu::found() >= Cpu::Avx512
}

/// Each half of `half` numbers of x as its even ones, then its odd ones, as the codes of bytes come.
fn parted<T: Copy>(x: &[T], half: usize) -> Vec<T> {
    let part = |x: &[T], odd: usize| -> Vec<T> { x.iter().skip(odd).step_by(2).copied().collect() };
    x.chunks(2 * half).flat_map(|x| [part(x, 0), part(x, 1)]).flatten().collect()
}

/// In f32.
pub fn wide(x: &[f32], m: usize, w: &Table<'_>, y: &mut [f32]) {
    let x = parted(x, 16);
    // SAFETY: `suits` saw the features.
    rows(m, w, y, |i, codes, scales| unsafe { dot(codes, &x[i * w.shape.1..], w.table, scales) });
}

/// With x and the table in bf16.
pub fn narrow(x: &[f32], m: usize, w: &Table<'_>, y: &mut [f32]) {
    let mut bits = vec![0; x.len()];
    bf16::round_all(x, &mut bits);
    let x = parted(&bits, 32);
    let table = w.table.map(bf16::round);
    // SAFETY: the unit was seen.
    rows(m, w, y, |i, codes, scales| unsafe { dot_bf16(codes, &x[i * w.shape.1..], &table, scales) });
}

/// The scales of a row: one a block, and how far into its block the row begins.
struct RowScales<'a> {
    of: &'a [f32],
    /// Chunks of a block are two to this power.
    chunks: u32,
    /// The first chunk's place in its block.
    first: usize,
}

fn rows(
    m: usize,
    w: &Table<'_>,
    y: &mut [f32],
    dot: impl Fn(usize, &[u8], &RowScales<'_>) -> f32 + Send + Sync,
) {
    let (n, k) = w.shape;
    assert_eq!(w.packed.len(), (n * k).div_ceil(2), "the codes of {n}×{k}");
    let out = Shared::new(y);
    let task = (TASK / k).max(1);
    tasks(n.div_ceil(task), |t| {
        let mut scales = Vec::new();
        for j in t * task..n.min((t + 1) * task) {
            let (first, last) = (j * k / w.block, ((j + 1) * k - 1) / w.block);
            scales.resize(last - first + 1, 0.0);
            // SAFETY: `suits` saw the features.
            unsafe { w.scales.fill(first, &mut scales) };
            let of = RowScales {
                of: &scales,
                chunks: (w.block / CHUNK).trailing_zeros(),
                first: j * k % w.block / CHUNK,
            };
            let codes = &w.packed[j * k / 2..(j + 1) * k / 2];
            for i in 0..m {
                // SAFETY: each task owns its columns of y.
                unsafe { *out.at(i * n + j) = dot(i, codes, &of) };
            }
        }
    });
}

impl Scales<'_> {
    /// The scales of the blocks from `first` on.
    ///
    /// # Safety
    /// AVX-512 was seen.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
    unsafe fn fill(&self, first: usize, out: &mut [f32]) {
        match self {
            Scales::Plain(all) => out.copy_from_slice(&all[first..first + out.len()]),
            Scales::Nested { codes, map, absmax, offset } => {
                let codes = &codes[first..first + out.len()];
                let mut at = 0;
                while at < out.len() {
                    let place = first + at;
                    let n = (out.len() - at).min(256 - place % 256).min(16);
                    let mask = first_lanes(n);
                    // SAFETY: masked to the blocks that are there; a byte is a place of the map.
                    unsafe {
                        let bytes = _mm_maskz_loadu_epi8(mask, codes.as_ptr().add(at).cast());
                        let values = _mm512_i32gather_ps::<4>(_mm512_cvtepu8_epi32(bytes), map.as_ptr());
                        let largest = _mm512_set1_ps(absmax[place / 256]);
                        // Not fused, so that every way to the scales gives the same ones.
                        let scaled = _mm512_add_ps(_mm512_mul_ps(values, largest), _mm512_set1_ps(*offset));
                        _mm512_mask_storeu_ps(out.as_mut_ptr().add(at), mask, scaled);
                    }
                    at += n;
                }
            }
        }
    }
}

/// # Safety
/// AVX-512 was seen; x holds two numbers a byte of codes.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
unsafe fn dot(codes: &[u8], x: &[f32], table: &[f32; 16], scales: &RowScales<'_>) -> f32 {
    assert!(x.len() >= 2 * codes.len());
    let mut total = _mm512_setzero_ps();
    // SAFETY: 32 bytes and 64 numbers a chunk.
    unsafe {
        let table = _mm512_loadu_ps(table.as_ptr());
        for (c, bytes) in codes.as_chunks::<32>().0.iter().enumerate() {
            _mm_prefetch::<_MM_HINT_T0>(bytes.as_ptr().wrapping_add(AHEAD).cast());
            let x = x.as_ptr().add(c * CHUNK);
            let mut sums = [_mm512_setzero_ps(); 2];
            for (half, sum) in sums.iter_mut().enumerate() {
                let bytes = _mm512_cvtepu8_epi32(_mm_loadu_si128(bytes.as_ptr().add(16 * half).cast()));
                let even = _mm512_permutexvar_ps(_mm512_srli_epi32::<4>(bytes), table);
                // The permutation reads the low four bits of each lane and no others.
                let odd = _mm512_permutexvar_ps(bytes, table);
                *sum = _mm512_mul_ps(even, _mm512_loadu_ps(x.add(32 * half)));
                *sum = _mm512_fmadd_ps(odd, _mm512_loadu_ps(x.add(32 * half + 16)), *sum);
            }
            let scale = _mm512_set1_ps(scales.of[(scales.first + c) >> scales.chunks]);
            total = _mm512_fmadd_ps(_mm512_add_ps(sums[0], sums[1]), scale, total);
        }
    }
    _mm512_reduce_add_ps(total)
}

/// # Safety
/// AVX-512 BF16 was seen; x holds two numbers a byte of codes.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
unsafe fn dot_bf16(codes: &[u8], x: &[u16], table: &[u16; 16], scales: &RowScales<'_>) -> f32 {
    assert!(x.len() >= 2 * codes.len());
    let mut total = _mm512_setzero_ps();
    // SAFETY: as above; the casts are between 512 bits of anything.
    unsafe {
        let as_bf16 = |x: __m512i| std::mem::transmute::<__m512i, __m512bh>(x);
        let table = _mm512_castsi256_si512(_mm256_loadu_si256(table.as_ptr().cast()));
        let table = _mm512_inserti64x4::<1>(table, _mm512_castsi512_si256(table));
        for (c, bytes) in codes.as_chunks::<32>().0.iter().enumerate() {
            _mm_prefetch::<_MM_HINT_T0>(bytes.as_ptr().wrapping_add(AHEAD).cast());
            let x = x.as_ptr().add(c * CHUNK);
            let bytes = _mm512_cvtepu8_epi16(_mm256_loadu_si256(bytes.as_ptr().cast()));
            let even = _mm512_permutexvar_epi16(_mm512_srli_epi16::<4>(bytes), table);
            // Five bits of a place are read; both halves of the table are alike.
            let odd = _mm512_permutexvar_epi16(bytes, table);
            let sum = _mm512_setzero_ps();
            let sum = _mm512_dpbf16_ps(sum, as_bf16(even), as_bf16(_mm512_loadu_si512(x.cast())));
            let sum = _mm512_dpbf16_ps(sum, as_bf16(odd), as_bf16(_mm512_loadu_si512(x.add(32).cast())));
            let scale = _mm512_set1_ps(scales.of[(scales.first + c) >> scales.chunks]);
            total = _mm512_fmadd_ps(sum, scale, total);
        }
    }
    _mm512_reduce_add_ps(total)
}
