//! AVX-512 BF16: the same blocks of 32×32, eight rows at a time; and rounding, packing and dot products.

use std::arch::x86_64::*;

use super::{PANEL, STEP, TILE};
use crate::registers::first_lanes;
use crate::tile::square;

/// Rows that share a panel's loads: 8×2 vectors of sums.
const ROWS: usize = 8;

#[target_feature(enable = "avx512f,avx512bf16")]
fn as_bf16(x: __m512i) -> __m512bh {
    // SAFETY: both are 512 bits of anything.
    unsafe { std::mem::transmute(x) }
}

/// c[32×32] = (accumulate: c +) a · b over `steps` × 32 numbers.
///
/// # Safety
/// As for the tiles' block; the features were seen.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
pub unsafe fn block(
    (a, below): (*const u16, *const u16),
    b: *const u16,
    steps: usize,
    c: *mut f32,
    stride: usize,
    accumulate: bool,
) {
    for (rows, a) in [(0, a), (TILE, below)] {
        for r0 in (0..TILE).step_by(ROWS) {
            let mut sums = [[_mm512_setzero_ps(); 2]; ROWS];
            // SAFETY: the caller's promise on shapes.
            unsafe {
                let out = |r: usize| c.byte_add((rows + r0 + r) * stride);
                if accumulate {
                    for (r, s) in sums.iter_mut().enumerate() {
                        *s = [_mm512_loadu_ps(out(r)), _mm512_loadu_ps(out(r).add(16))];
                    }
                }
                for step in 0..steps {
                    let (a, b) = (a.add(step * TILE * STEP + r0 * STEP), b.add(step * STEP * 32));
                    for pair in 0..STEP / 2 {
                        let left = as_bf16(_mm512_loadu_si512(b.add(pair * 64).cast()));
                        let right = as_bf16(_mm512_loadu_si512(b.add(pair * 64 + 32).cast()));
                        for (r, s) in sums.iter_mut().enumerate() {
                            let both = a.add(r * STEP + 2 * pair).cast::<i32>().read_unaligned();
                            let both = as_bf16(_mm512_set1_epi32(both));
                            s[0] = _mm512_dpbf16_ps(s[0], both, left);
                            s[1] = _mm512_dpbf16_ps(s[1], both, right);
                        }
                    }
                }
                for (r, s) in sums.iter().enumerate() {
                    _mm512_storeu_ps(out(r), s[0]);
                    _mm512_storeu_ps(out(r).add(16), s[1]);
                }
            }
        }
    }
}

/// Rounds to bf16.
///
/// # Safety
/// The features were seen.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
pub unsafe fn round(from: &[f32], to: &mut [u16]) {
    let n = from.len().min(to.len());
    let mut i = 0;
    // SAFETY: loads and stores lie within both slices, or are masked to them.
    unsafe {
        while i < n {
            let mask = first_lanes(n - i);
            let x = _mm512_maskz_loadu_ps(mask, from.as_ptr().add(i));
            let narrow: __m256i = std::mem::transmute(_mm512_cvtneps_pbh(x));
            _mm256_mask_storeu_epi16(to.as_mut_ptr().add(i).cast(), mask, narrow);
            i += 16;
        }
    }
}

/// A row rounded into its tiles: 32 numbers every [`TILE`]·32, the last ones filled up with zeros.
///
/// # Safety
/// The features were seen; `to` has room for as many tiles.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
pub unsafe fn round_into_tiles(row: &[f32], to: *mut u16) {
    for (s, at) in (0..row.len()).step_by(STEP).enumerate() {
        let left = row.len() - at;
        // SAFETY: masked to the row; the caller's promise.
        unsafe {
            let from = row.as_ptr().add(at);
            let low = _mm512_maskz_loadu_ps(first_lanes(left), from);
            let high = _mm512_maskz_loadu_ps(first_lanes(left.saturating_sub(16)), from.wrapping_add(16));
            let both: __m512i = std::mem::transmute(_mm512_cvtne2ps_pbh(high, low));
            _mm512_storeu_si512(to.add(s * TILE * STEP).cast(), both);
        }
    }
}

/// `to[pair][16]` ← pairs of 16 rows of bf16, `stride` numbers apart, `pairs` of them.
///
/// # Safety
/// The features were seen; the rows hold 2 × `pairs` numbers each; rows of `to` lie 32 pairs apart.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
pub unsafe fn pairs_of_columns(from: *const u16, stride: usize, pairs: usize, to: *mut u16) {
    for first in (0..pairs).step_by(16) {
        // SAFETY: the caller's promise.
        unsafe {
            let to = to.add(first * 2 * PANEL).cast();
            square((from.add(2 * first).cast(), 2 * stride), 16.min(pairs - first), (to, PANEL));
        }
    }
}

/// `to[32 columns][2]` ← the numbers of two rows, one beside the other; 32 columns.
///
/// # Safety
/// The features were seen; both rows hold 32 numbers, `to` 64.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
pub unsafe fn pairs_of_rows(even: *const u16, odd: *const u16, to: *mut u16) {
    // SAFETY: the caller's promise.
    unsafe {
        for half in 0..2 {
            let widen = |p: *const u16| _mm512_cvtepu16_epi32(_mm256_loadu_si256(p.add(16 * half).cast()));
            let both = _mm512_or_si512(widen(even), _mm512_slli_epi32::<16>(widen(odd)));
            _mm512_storeu_si512(to.add(32 * half).cast(), both);
        }
    }
}

/// The dot products of M rows of bf16 `x`, each as long as `w`, with `w`.
///
/// # Safety
/// The features were seen; `x` points at M rows as long as `w`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
pub unsafe fn dots<const M: usize>(x: *const u16, w: &[u16]) -> [f32; M] {
    let k = w.len();
    let w = w.as_ptr();
    let mut sums = [[_mm512_setzero_ps(); 2]; M];
    // SAFETY: loads lie within the rows, or are masked to them.
    unsafe {
        let mut c = 0;
        while c + 64 <= k {
            let w0 = as_bf16(_mm512_loadu_si512(w.add(c).cast()));
            let w1 = as_bf16(_mm512_loadu_si512(w.add(c + 32).cast()));
            for (r, s) in sums.iter_mut().enumerate() {
                let x = x.add(r * k + c);
                s[0] = _mm512_dpbf16_ps(s[0], as_bf16(_mm512_loadu_si512(x.cast())), w0);
                s[1] = _mm512_dpbf16_ps(s[1], as_bf16(_mm512_loadu_si512(x.add(32).cast())), w1);
            }
            c += 64;
        }
        while c < k {
            let mask = if k - c >= 32 { !0 } else { (1u32 << (k - c)) - 1 };
            let w0 = as_bf16(_mm512_maskz_loadu_epi16(mask, w.add(c).cast()));
            for (r, s) in sums.iter_mut().enumerate() {
                let x = as_bf16(_mm512_maskz_loadu_epi16(mask, x.add(r * k + c).cast()));
                s[0] = _mm512_dpbf16_ps(s[0], x, w0);
            }
            c += 32;
        }
    }
    std::array::from_fn(|r| _mm512_reduce_add_ps(_mm512_add_ps(sums[r][0], sums[r][1])))
}
