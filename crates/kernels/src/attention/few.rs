//! A few queries against a block of keys, by dot products: what decoding does with what a cache holds.

#[cfg(target_arch = "x86_64")]
use crate::cpu::{self, Cpu};
#[cfg(target_arch = "x86_64")]
use crate::registers::first_lanes;
use crate::{Real, dot};

/// `to[g·row + j]` = scale · q_g·k_j for `q` `[group, d]` and `keys` `[n, d]`. A score's bits depend on its own query
/// and key alone.
///
/// # Panics
/// If `to` has no room.
pub fn scores<T: Real>(q: &[T], keys: &[T], d: usize, scale: T, to: &mut [T], row: usize) {
    let n = keys.len() / d;
    #[cfg(target_arch = "x86_64")]
    if cpu::found() >= Cpu::Avx512
        && let (Some(q), Some(keys), Some(to)) = (T::as_f32(q), T::as_f32(keys), T::as_f32_mut(to))
    {
        for (q, to) in q.chunks_exact(d).zip(to.chunks_mut(row)) {
            // SAFETY: the features were seen.
            unsafe { avx512(q, keys, scale.to_f64() as f32, &mut to[..n]) };
        }
        return;
    }
    let mut dots = vec![T::ZERO; q.len() / d];
    for (j, key) in keys.chunks_exact(d).enumerate() {
        dot::rows(q, key, &mut dots);
        for (to, dot) in to.chunks_mut(row).zip(&dots) {
            to[j] = scale * *dot;
        }
    }
}

/// Sixteen keys at a time, whose sixteen sums of each are added up together.
///
/// # Safety
/// AVX-512 was seen; `keys` holds `to.len()` rows as long as `q`.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
unsafe fn avx512(q: &[f32], keys: &[f32], scale: f32, to: &mut [f32]) {
    use std::arch::x86_64::*;
    let (d, n) = (q.len(), to.len());
    assert_eq!(keys.len(), n * d);
    for first in (0..n).step_by(16) {
        let here = 16.min(n - first);
        let mut sums = [_mm512_setzero_ps(); 16];
        // SAFETY: keys past the end stand for the last one; loads are masked to the row.
        unsafe {
            let rows: [*const f32; 16] =
                std::array::from_fn(|j| keys.as_ptr().add((first + j.min(here - 1)) * d));
            for c in (0..d).step_by(16) {
                let mask = first_lanes(d - c);
                let q = _mm512_maskz_loadu_ps(mask, q.as_ptr().add(c));
                for j in 0..16 {
                    sums[j] = _mm512_fmadd_ps(_mm512_maskz_loadu_ps(mask, rows[j].add(c)), q, sums[j]);
                }
            }
            // Halves meet until a lane is left for each key.
            let two: [__m512; 8] = std::array::from_fn(|i| {
                let (a, b) = (sums[2 * i], sums[2 * i + 1]);
                _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b))
            });
            let four: [__m512; 4] = std::array::from_fn(|i| {
                let (a, b) = (_mm512_castps_pd(two[2 * i]), _mm512_castps_pd(two[2 * i + 1]));
                let (low, high) = (_mm512_unpacklo_pd(a, b), _mm512_unpackhi_pd(a, b));
                _mm512_add_ps(_mm512_castpd_ps(low), _mm512_castpd_ps(high))
            });
            let meet = |a: __m512, b: __m512| {
                let even = _mm512_shuffle_f32x4::<0b10_00_10_00>(a, b);
                _mm512_add_ps(even, _mm512_shuffle_f32x4::<0b11_01_11_01>(a, b))
            };
            let all = meet(meet(four[0], four[1]), meet(four[2], four[3]));
            let all = _mm512_mul_ps(all, _mm512_set1_ps(scale));
            let mask = first_lanes(here);
            _mm512_mask_storeu_ps(to.as_mut_ptr().add(first), mask, all);
        }
    }
}
