//! Dot products of a few rows with one row: the inner loop of decoding.
//!
//! out[r] = Σ_l x[r][l] · w[l]      r < m ≤ 8
//!
//! Bound by reading w, which is read once for all rows. A row's sum is cut into the same interleaved
//! partial sums whatever m is, so its bits do not depend on the rows beside it; they do depend on the
//! instruction set.

use crate::Real;
use crate::wide::wide;
#[cfg(target_arch = "x86_64")]
use crate::wide::{Isa, isa};

/// The dot product of each row of `x` (`out.len()` rows as long as `w`) with `w`.
#[inline]
pub(crate) fn rows<T: Real>(x: &[T], w: &[T], out: &mut [T]) {
    assert_eq!(x.len(), w.len() * out.len());
    #[cfg(target_arch = "x86_64")]
    if isa() == Isa::Avx512
        && let (Some(x), Some(w), Some(out)) = (T::as_f32(x), T::as_f32(w), T::as_f32_mut(out))
    {
        // SAFETY: the features were seen; the lengths fit by the assertion above.
        return unsafe { avx512::rows(x, w, out) };
    }
    let k = w.len();
    let (fours, rest) = out.as_chunks_mut::<4>();
    for (i, four) in fours.iter_mut().enumerate() {
        *four = dot::<T, 4>(&x[4 * i * k..], w);
    }
    let done = 4 * fours.len();
    for (i, one) in rest.iter_mut().enumerate() {
        [*one] = dot::<T, 1>(&x[(done + i) * k..], w);
    }
}

wide! {
    fn dot[T: Real; const M: usize](x: &[T], w: &[T]) -> [T; M] {
        const LANES: usize = 16;
        let k = w.len();
        let mut acc = [[T::ZERO; LANES]; M];
        let (chunks, rest) = w.as_chunks::<LANES>();
        for (c, w) in chunks.iter().enumerate() {
            for (r, acc) in acc.iter_mut().enumerate() {
                let x = &x[r * k + c * LANES..][..LANES];
                for l in 0..LANES {
                    acc[l] += x[l] * w[l];
                }
            }
        }
        let mut out = [T::ZERO; M];
        for (r, out) in out.iter_mut().enumerate() {
            let tail = &x[r * k + k - rest.len()..(r + 1) * k];
            *out = acc[r].iter().copied().sum();
            for (x, w) in tail.iter().zip(rest) {
                *out += *x * *w;
            }
        }
        out
    }
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    use std::arch::x86_64::*;

    use crate::registers::first_lanes;

    /// # Safety
    /// `x` holds `out.len()` rows as long as `w`.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
    pub unsafe fn rows(x: &[f32], w: &[f32], out: &mut [f32]) {
        let k = w.len();
        let mut x = x.as_ptr();
        let mut out = out;
        // SAFETY: each call gets as many rows as it asks for.
        unsafe {
            while !out.is_empty() {
                let step = match out.len() {
                    8.. => 8,
                    4.. => 4,
                    n => n.min(2),
                };
                let (now, rest) = out.split_at_mut(step);
                match step {
                    8 => now.copy_from_slice(&group::<8>(x, w)),
                    4 => now.copy_from_slice(&group::<4>(x, w)),
                    2 => now.copy_from_slice(&group::<2>(x, w)),
                    _ => now.copy_from_slice(&group::<1>(x, w)),
                }
                x = x.add(step * k);
                out = rest;
            }
        }
    }

    /// # Safety
    /// `x` points at M rows as long as `w`.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
    #[inline]
    unsafe fn group<const M: usize>(x: *const f32, w: &[f32]) -> [f32; M] {
        let k = w.len();
        let w = w.as_ptr();
        let mut even = [_mm512_setzero_ps(); M];
        let mut odd = [_mm512_setzero_ps(); M];
        // SAFETY: every load lies within a row, or is masked to it.
        unsafe {
            let mut c = 0;
            while c + 32 <= k {
                let (w0, w1) = (_mm512_loadu_ps(w.add(c)), _mm512_loadu_ps(w.add(c + 16)));
                for r in 0..M {
                    let x = x.add(r * k + c);
                    even[r] = _mm512_fmadd_ps(_mm512_loadu_ps(x), w0, even[r]);
                    odd[r] = _mm512_fmadd_ps(_mm512_loadu_ps(x.add(16)), w1, odd[r]);
                }
                c += 32;
            }
            while c < k {
                let mask = first_lanes(k - c);
                let w0 = _mm512_maskz_loadu_ps(mask, w.add(c));
                for (r, even) in even.iter_mut().enumerate() {
                    *even = _mm512_fmadd_ps(_mm512_maskz_loadu_ps(mask, x.add(r * k + c)), w0, *even);
                }
                c += 16;
            }
        }
        std::array::from_fn(|r| _mm512_reduce_add_ps(_mm512_add_ps(even[r], odd[r])))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_close, normal, wide};

    #[test]
    fn equals_the_sum_written_down_for_any_company() {
        for k in [0, 1, 15, 16, 17, 31, 32, 33, 64, 100, 531] {
            let (x, w) = (normal::<f32>(1, 8 * k), normal::<f32>(2, k));
            let dot =
                |r: usize| wide(&x[r * k..(r + 1) * k]).iter().zip(wide(&w)).map(|(x, w)| x * w).sum::<f64>();
            let want: Vec<f64> = (0..8).map(dot).collect();
            let mut all = [f32::NAN; 8];
            rows(&x, &w, &mut all);
            assert_close(&all, &want, 1e-5);
            for m in 0..8 {
                let mut some = vec![f32::NAN; m];
                rows(&x[..m * k], &w, &mut some);
                assert_eq!(some, all[..m]);
            }
            let mut portable = [dot_portable(&x[..k], &w), 0.0];
            portable[1] = dot_portable(&x[7 * k..], &w);
            assert_close(&portable, &[want[0], want[7]], 2e-5);
        }
    }

    fn dot_portable(x: &[f32], w: &[f32]) -> f32 {
        dot::<f32, 1>(x, w)[0]
    }
}
