//! Dot products of one packed row with one row of x in planes: VNNI.

use std::arch::x86_64::*;

use super::grid::Planes;

/// Codes that one step takes.
pub const CHUNK: usize = 64;

/// Codes that share a scale of x; the least group.
pub const HALF: usize = 32;

/// A row of the weight.
pub struct Row<'a> {
    pub codes: &'a [u8],
    /// One a group.
    pub scales: &'a [f32],
    /// One a group, if they differ from `middle`.
    pub zeros: Option<&'a [f32]>,
    pub middle: f32,
    /// Scales of x that a group spans.
    pub halves_of_group: usize,
}

/// Σ over groups of scale · (Σ code·x − zero·Σ x), by 8, 4 or 2 bits.
///
/// # Safety
/// AVX-512 with VNNI was seen; `factors` is as long as `x.scales`.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma")]
pub unsafe fn dot<const BITS: u32, const P: usize>(row: &Row<'_>, x: &Planes<P>, factors: &mut [f32]) -> f32 {
    let bytes = CHUNK * BITS as usize / 8;
    // SAFETY: masked to the codes that are there.
    unsafe {
        sum(row, x, factors, |chunk, whole| {
            let left = if whole { bytes } else { row.codes.len() - chunk * bytes };
            let from = row.codes.as_ptr().add(chunk * bytes);
            match BITS {
                8 => {
                    let mask = if left == 64 { !0 } else { (1u64 << left) - 1 };
                    _mm512_maskz_loadu_epi8(mask, from.cast())
                }
                4 => {
                    let mask = if left == 32 { !0 } else { (1u32 << left) - 1 };
                    let both = _mm256_maskz_loadu_epi8(mask, from.cast());
                    let low = _mm256_set1_epi8(15);
                    let even = _mm256_and_si256(both, low);
                    let odd = _mm256_and_si256(_mm256_srli_epi16::<4>(both), low);
                    _mm512_inserti64x4::<1>(_mm512_castsi256_si512(even), odd)
                }
                _ => {
                    let mask = if left == 16 { !0 } else { (1u16 << left) - 1 };
                    let all = _mm512_broadcast_i32x4(_mm_maskz_loadu_epi8(mask, from.cast()));
                    let shifts = _mm512_set_epi64(
                        0x0006_0006_0006_0006,
                        0x0006_0006_0006_0006,
                        0x0004_0004_0004_0004,
                        0x0004_0004_0004_0004,
                        0x0002_0002_0002_0002,
                        0x0002_0002_0002_0002,
                        0,
                        0,
                    );
                    _mm512_and_si512(_mm512_srlv_epi16(all, shifts), _mm512_set1_epi8(3))
                }
            }
        })
    }
}

/// As [`dot`], by 3 bits.
///
/// # Safety
/// As there, with VBMI.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi,avx2,fma")]
pub unsafe fn dot_3<const P: usize>(row: &Row<'_>, x: &Planes<P>, factors: &mut [f32]) -> f32 {
    // Three bytes to each of eight lanes, then eight shifts of each lane.
    let spread: [u8; 64] = std::array::from_fn(|i| if i % 8 < 3 { (i / 8 * 3 + i % 8) as u8 } else { 63 });
    // SAFETY: as above; byte 63 of a load of 24 is zero.
    unsafe {
        let spread = _mm512_loadu_si512(spread.as_ptr().cast());
        let shifts = _mm512_set1_epi64(0x1512_0f0c_0906_0300);
        sum(row, x, factors, |chunk, whole| {
            let left = if whole { 24 } else { row.codes.len() - chunk * 24 };
            let from = row.codes.as_ptr().add(chunk * 24);
            let bytes = _mm512_maskz_loadu_epi8((1u64 << left) - 1, from.cast());
            let lanes = _mm512_permutexvar_epi8(spread, bytes);
            _mm512_and_si512(_mm512_multishift_epi64_epi8(shifts, lanes), _mm512_set1_epi8(7))
        })
    }
}

/// # Safety
/// AVX-512 with VNNI was seen; `codes` is called for each chunk, which is whole but for the last, and gives its codes
/// as bytes.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma")]
unsafe fn sum<const P: usize>(
    row: &Row<'_>,
    x: &Planes<P>,
    factors: &mut [f32],
    codes: impl Fn(usize, bool) -> __m512i,
) -> f32 {
    let zeros = _mm512_setzero_si512();
    let chunks = x.bytes.len() / (P * CHUNK);
    // SAFETY: x, its scales and factors are as long as the chunks ask; the rest is the caller's promise.
    unsafe {
        let less = prepare(row, &x.scales, &x.sums, factors);
        let lanes = _mm512_loadu_si512(x.halves.as_ptr().cast());
        let term = |chunk: usize, whole: bool, total: __m512| {
            let w = codes(chunk, whole);
            let planes = x.bytes.as_ptr().add(chunk * P * CHUNK);
            let part =
                |p: usize| _mm512_dpbusd_epi32(zeros, w, _mm512_loadu_si512(planes.add(p * CHUNK).cast()));
            let low = _mm512_add_epi32(part(0), _mm512_slli_epi32::<7>(part(1)));
            let mut value = _mm512_cvtepi32_ps(low);
            if P == 3 {
                value = _mm512_fmadd_ps(_mm512_cvtepi32_ps(part(2)), _mm512_set1_ps(16384.0), value);
            }
            let two = factors.as_ptr().add(2 * chunk).cast::<f64>().read_unaligned();
            let scale = _mm512_permutexvar_ps(lanes, _mm512_castpd_ps(_mm512_set1_pd(two)));
            _mm512_fmadd_ps(value, scale, total)
        };
        // Two sums, so that one need not wait for the other.
        let (mut even, mut odd) = (_mm512_setzero_ps(), _mm512_setzero_ps());
        let last = chunks - 1;
        for pair in 0..last / 2 {
            even = term(2 * pair, true, even);
            odd = term(2 * pair + 1, true, odd);
        }
        if last % 2 == 1 {
            even = term(last - 1, true, even);
        }
        odd = term(last, false, odd);
        _mm512_reduce_add_ps(_mm512_sub_ps(_mm512_add_ps(even, odd), less))
    }
}

/// `factors[h]` ← scale of w · scale of x; what the zeros take off, in sixteen parts.
///
/// # Safety
/// AVX-512 was seen; the three arrays are equally long, a multiple of 16.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
unsafe fn prepare(row: &Row<'_>, scales: &[f32], sums: &[f32], factors: &mut [f32]) -> __m512 {
    let mut less = _mm512_setzero_ps();
    let r = row.halves_of_group;
    let quick = r.is_power_of_two() && r <= 16;
    let middle = _mm512_set1_ps(row.middle);
    let lane = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    let place = _mm512_srl_epi32(lane, _mm_cvtsi32_si128(r.trailing_zeros() as i32));
    // SAFETY: loads are masked to the groups that are there.
    unsafe {
        // The numbers of the groups of 16 halves from h on; 0 past the end.
        let spread = |of: &[f32], h: usize| {
            if !quick {
                return each(of, h, r);
            }
            let first = h >> r.trailing_zeros();
            let there = of.len().saturating_sub(first).min(16);
            let mask = if there == 16 { !0 } else { (1u16 << there) - 1 };
            _mm512_permutexvar_ps(place, _mm512_maskz_loadu_ps(mask, of.as_ptr().wrapping_add(first)))
        };
        for h in (0..factors.len()).step_by(16) {
            let scale = spread(row.scales, h);
            let zero = row.zeros.map_or(middle, |z| spread(z, h));
            let at = _mm512_mul_ps(scale, _mm512_loadu_ps(scales.as_ptr().add(h)));
            _mm512_storeu_ps(factors.as_mut_ptr().add(h), at);
            let of_zero = _mm512_mul_ps(scale, zero);
            less = _mm512_fmadd_ps(of_zero, _mm512_loadu_ps(sums.as_ptr().add(h)), less);
        }
    }
    less
}

/// Groups of odd sizes, one by one.
#[cold]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
fn each(of: &[f32], h: usize, r: usize) -> __m512 {
    let each: [f32; 16] = std::array::from_fn(|i| of.get((h + i) / r).copied().unwrap_or(0.0));
    // SAFETY: sixteen numbers.
    unsafe { _mm512_loadu_ps(each.as_ptr()) }
}

/// A row of x as whole numbers: half h of `x` into the planes of chunk h / 2, in the order of `order`; the scale, and
/// the sum.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
pub fn whole<const P: usize>(x: &[f32], order: &[usize], planes: &mut [i8]) -> (f32, f32) {
    let most = x.iter().fold(0f32, |a, x| if x.abs() > a || x.is_nan() { x.abs() } else { a });
    let top = ((1i32 << (7 * P)) - 1) as f32;
    // NaN and infinity have no whole numbers; their scale tells them on. What is too small to divide by is 0.
    let (scale, inverse) = match most.is_finite() {
        true if most > 0.0 && (top / most).is_finite() => (most / top, top / most),
        true => (0.0, 0.0),
        false => (f32::NAN, 0.0),
    };
    let mut sum = 0i32;
    for (x, at) in x.iter().zip(order) {
        let q = if inverse > 0.0 { (x * inverse).round_ties_even() as i32 } else { 0 };
        sum += q;
        for p in 0..P {
            let digit = if p + 1 == P { q >> (7 * p) } else { q >> (7 * p) & 127 };
            planes[p * CHUNK + at] = digit as i8;
        }
    }
    (scale, (f64::from(sum) * f64::from(scale)) as f32)
}
