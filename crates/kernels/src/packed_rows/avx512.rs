//! Dot products of one packed row with one row of x in planes: VNNI.

use std::arch::x86_64::*;

use bytemuck::{Pod, Zeroable};

use super::GroupScales;
use crate::registers::first_lanes;

/// Codes that one step takes.
pub const CHUNK: usize = 64;

/// Codes that share a scale of x; the least group.
pub const HALF: usize = 32;

/// A weight of whole numbers.
pub struct Weight<'a, S> {
    pub codes: &'a [u8],
    /// Bytes of a row's codes.
    pub row_bytes: usize,
    /// One a group.
    pub scales: &'a [S],
    /// One a group, if they differ from the middle, which x knows.
    pub zeros: Option<&'a [f32]>,
    /// Groups of a row.
    pub groups: usize,
    /// Halves of chunks that a group spans.
    pub halves_of_group: usize,
    /// For each chunk the group of its first half.
    pub group_of: Vec<usize>,
    pub order: &'a Order,
}

/// A scale as it is stored.
pub trait Scale: Copy + Sync {
    /// Those of a weight.
    fn of(scales: GroupScales<'_>) -> &[Self];

    /// Its number.
    fn number(self) -> f32;

    /// Two scales, each at the sums of its half of a chunk: those of the second half are in `second`.
    ///
    /// # Safety
    /// AVX-512 was seen; `at` points at two.
    unsafe fn two(at: *const Self, lanes: (__m512i, u16)) -> __m512;
}

impl Scale for f32 {
    fn of(scales: GroupScales<'_>) -> &[f32] {
        if let GroupScales::F32(scales) = scales { scales } else { &[] }
    }

    #[inline(always)]
    fn number(self) -> f32 {
        self
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
    unsafe fn two(at: *const f32, (lanes, _): (__m512i, u16)) -> __m512 {
        // SAFETY: the caller's promise.
        let two = unsafe { at.cast::<f64>().read_unaligned() };
        _mm512_permutexvar_ps(lanes, _mm512_castpd_ps(_mm512_set1_pd(two)))
    }
}

/// The bits of a bf16.
impl Scale for u16 {
    fn of(scales: GroupScales<'_>) -> &[u16] {
        if let GroupScales::Bf16(scales) = scales { scales } else { &[] }
    }

    #[inline(always)]
    fn number(self) -> f32 {
        crate::bf16::widen(self)
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
    unsafe fn two(at: *const u16, (_, second): (__m512i, u16)) -> __m512 {
        // SAFETY: the caller's promise.
        let two = _mm512_set1_epi32(unsafe { at.cast::<i32>().read_unaligned() });
        // The first is a word's low half.
        let first = _mm512_slli_epi32::<16>(two);
        let high = _mm512_and_si512(two, _mm512_set1_epi32(!0xffff));
        _mm512_castsi512_ps(_mm512_mask_blend_epi32(second, first, high))
    }
}

impl<'a, S: Scale> Weight<'a, S> {
    pub fn of(w: &super::Grid<'a>, scales: &'a [S], row_bytes: usize, order: &'a Order) -> Self {
        let (k, r) = (w.shape.1, w.group / HALF);
        Weight {
            codes: w.packed,
            row_bytes,
            scales,
            zeros: Some(w.zeros).filter(|z| !z.is_empty()),
            groups: k / w.group,
            halves_of_group: r,
            group_of: (0..k.div_ceil(CHUNK)).map(|chunk| 2 * chunk / r).collect(),
            order,
        }
    }

    /// The numbers of a row's groups for the sixteen sums of a chunk, of which `second` are of its second half.
    ///
    /// # Safety
    /// AVX-512 was seen; `of` points at the row's groups, `lanes` at which half each sum is of.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
    unsafe fn spread<N: Scale>(
        &self,
        of: *const N,
        chunk: usize,
        whole: bool,
        lanes: (__m512i, u16),
    ) -> __m512 {
        // SAFETY: groups of this row; of the last chunk the second half may not be there.
        unsafe {
            let first = self.group_of[chunk];
            if self.halves_of_group == 1 && whole {
                return N::two(of.add(first), lanes);
            }
            let one = _mm512_set1_ps((*of.add(first)).number());
            if self.halves_of_group.is_multiple_of(2) {
                return one;
            }
            let next = ((2 * chunk + 1) / self.halves_of_group).min(self.groups - 1);
            _mm512_mask_blend_ps(lanes.1, one, _mm512_set1_ps((*of.add(next)).number()))
        }
    }
}

/// Σ over groups of scale · (Σ code·x − zero·Σ x) for R rows from `first` on, by 8, 4 or 2 bits.
///
/// # Safety
/// AVX-512 with VNNI was seen; the rows are there; x is as long as they.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma")]
pub unsafe fn dots<const BITS: u32, const P: usize, const R: usize, S: Scale>(
    w: &Weight<'_, S>,
    first: usize,
    x: &[Chunk<P>],
) -> [f32; R] {
    // SAFETY: masked to the codes that are there.
    unsafe {
        sums(w, first, x, CHUNK * BITS as usize / 8, |from, left| match BITS {
            8 => match left {
                64 => _mm512_loadu_si512(from.cast()),
                _ => _mm512_maskz_loadu_epi8((1u64 << left) - 1, from.cast()),
            },
            4 => {
                let both = match left {
                    32 => _mm256_loadu_si256(from.cast()),
                    _ => _mm256_maskz_loadu_epi8((1u32 << left) - 1, from.cast()),
                };
                let twice = _mm512_broadcast_i64x4(both);
                // The even codes in the lower half, the odd ones in the upper.
                let shifts = _mm512_set_epi64(
                    0x0004_0004_0004_0004,
                    0x0004_0004_0004_0004,
                    0x0004_0004_0004_0004,
                    0x0004_0004_0004_0004,
                    0,
                    0,
                    0,
                    0,
                );
                _mm512_and_si512(_mm512_srlv_epi16(twice, shifts), _mm512_set1_epi8(15))
            }
            _ => {
                let mask = first_lanes(left);
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
        })
    }
}

/// As [`dots`], by 3 bits.
///
/// # Safety
/// As there, with VBMI.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi,avx2,fma")]
pub unsafe fn dots_3<const P: usize, const R: usize, S: Scale>(
    w: &Weight<'_, S>,
    first: usize,
    x: &[Chunk<P>],
) -> [f32; R] {
    // Three bytes to each of eight lanes, then eight shifts of each lane.
    let spread: [u8; 64] = std::array::from_fn(|i| if i % 8 < 3 { (i / 8 * 3 + i % 8) as u8 } else { 63 });
    // SAFETY: as above; byte 63 of a load of 24 is zero.
    unsafe {
        let spread = _mm512_loadu_si512(spread.as_ptr().cast());
        let shifts = _mm512_set1_epi64(0x1512_0f0c_0906_0300);
        sums(w, first, x, 24, |from, left| {
            let bytes = _mm512_maskz_loadu_epi8((1u64 << left) - 1, from.cast());
            let lanes = _mm512_permutexvar_epi8(spread, bytes);
            _mm512_and_si512(_mm512_multishift_epi64_epi8(shifts, lanes), _mm512_set1_epi8(7))
        })
    }
}

/// Rows share what is loaded of x; each adds up in the same order for any R.
///
/// # Safety
/// AVX-512 with VNNI was seen; the rows are there; x is as long as they; `codes` gives as bytes the codes of a chunk,
/// of which so many bytes are there.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma")]
unsafe fn sums<const P: usize, const R: usize, S: Scale>(
    w: &Weight<'_, S>,
    first: usize,
    x: &[Chunk<P>],
    bytes: usize,
    codes: impl Fn(*const u8, usize) -> __m512i,
) -> [f32; R] {
    let mut totals = [_mm512_setzero_ps(); R];
    // SAFETY: rows and groups lie within the weight, chunks within x.
    unsafe {
        let rows: [*const u8; R] =
            std::array::from_fn(|r| w.codes[(first + r) * w.row_bytes..][..w.row_bytes].as_ptr());
        let groups = |r: usize| (first + r) * w.groups..(first + r + 1) * w.groups;
        let scales: [*const S; R] = std::array::from_fn(|r| w.scales[groups(r)].as_ptr());
        let zeros: Option<[*const f32; R]> = w.zeros.map(|z| std::array::from_fn(|r| z[groups(r)].as_ptr()));
        let lanes = (_mm512_loadu_si512(w.order.halves.as_ptr().cast()), w.order.second);
        // What the next rows hold at the same place, or further on where rows are short.
        let mut ahead = rows[0].wrapping_add((R * w.row_bytes).max(AHEAD));
        let mut ahead_scales = scales[0].wrapping_byte_add((R * w.groups * size_of::<S>()).max(AHEAD_SCALES));
        for (chunk, of_x) in x.iter().enumerate() {
            let whole = (chunk + 1) * bytes <= w.row_bytes;
            let plane = of_x.bytes.each_ref().map(|plane| _mm512_loadu_si512(plane.as_ptr().cast()));
            let less = of_x.less.each_ref().map(|less| _mm512_loadu_si512(less.as_ptr().cast()));
            let scale_of_x = _mm512_loadu_ps(of_x.scale.as_ptr());
            let left = if whole { bytes } else { w.row_bytes - chunk * bytes };
            _mm_prefetch::<_MM_HINT_T0>(ahead_scales.cast());
            ahead_scales = ahead_scales.wrapping_add(2 * R);
            for r in 0..R {
                let from = rows[r].add(chunk * bytes);
                _mm_prefetch::<_MM_HINT_T0>(ahead.cast());
                ahead = ahead.wrapping_add(bytes);
                let codes = codes(from, left);
                let mut low = _mm512_dpbusd_epi32(less[0], codes, plane[0]);
                if P > 1 {
                    let high = _mm512_dpbusd_epi32(_mm512_setzero_si512(), codes, plane[1]);
                    low = _mm512_add_epi32(low, _mm512_slli_epi32::<7>(high));
                }
                let mut value = _mm512_cvtepi32_ps(low);
                if P == 3 {
                    let top = _mm512_cvtepi32_ps(_mm512_dpbusd_epi32(less[1], codes, plane[P - 1]));
                    value = _mm512_fmadd_ps(top, _mm512_set1_ps(16384.0), value);
                }
                if let Some(zeros) = zeros {
                    let zero = w.spread(zeros[r], chunk, whole, lanes);
                    value = _mm512_fnmadd_ps(zero, _mm512_loadu_ps(of_x.sum.as_ptr()), value);
                }
                let scale = w.spread(scales[r], chunk, whole, lanes);
                totals[r] = _mm512_fmadd_ps(_mm512_mul_ps(value, scale_of_x), scale, totals[r]);
            }
        }
    }
    totals.map(|t| _mm512_reduce_add_ps(t))
}

/// Bytes by which codes are asked for before they are needed: rows lie one after the other.
pub const AHEAD: usize = 4096;

/// The same of scales.
const AHEAD_SCALES: usize = 1024;

/// Numbers of x as whole ones, each piece as the sixteen sums of a step have it, of four codes each.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Chunk<const P: usize> {
    /// Planes of seven bits, the lowest first, in the order of the codes' bytes; the highest has a sign.
    bytes: [[i8; CHUNK]; P],
    /// What one stands for.
    scale: [f32; 16],
    /// What the middle takes off a sum: of the two lowest planes, and of the third.
    less: [[i32; 16]; 2],
    /// The four numbers' sum.
    sum: [f32; 16],
}

// SAFETY: lines of 64 bytes of plain numbers, without padding.
unsafe impl<const P: usize> Zeroable for Chunk<P> {}
// SAFETY: as above.
unsafe impl<const P: usize> Pod for Chunk<P> {}

/// How the dot products have a chunk's codes: those that are `stride` apart lie side by side.
pub struct Order {
    /// Of a half, what the first and the second sixteen of it are there.
    from: [[i32; 16]; 2],
    /// Where eights of the first half go; those of the second lie `half` bytes behind.
    to: [usize; 4],
    half: usize,
    /// Which half each of the sixteen sums is of, and a mask of those of the second.
    halves: [i32; 16],
    second: u16,
}

impl Order {
    pub fn of(stride: usize) -> Self {
        let eights = 4 / stride; // that are `stride` apart
        let from = |place: usize| stride * (place / 8 % eights * 8 + place % 8) + place / 8 / eights;
        let half = HALF / stride;
        let halves: [i32; 16] = std::array::from_fn(|lane| (4 * lane / half % 2) as i32);
        Order {
            from: std::array::from_fn(|v| std::array::from_fn(|lane| from(16 * v + lane) as i32)),
            to: std::array::from_fn(|e| e / eights * 2 * half + e % eights * 8),
            half,
            halves,
            second: halves.iter().rev().fold(0, |mask, half| mask << 1 | *half as u16),
        }
    }
}

/// Up to 64 numbers, a multiple of 32, as whole ones; their sums are [`add_up`]'s.
///
/// # Safety
/// AVX-512 with VNNI was seen.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma")]
pub unsafe fn whole<const P: usize>(x: &[f32], order: &Order, to: &mut Chunk<P>) {
    let mut two = [0f32; 2];
    to.bytes = [[0; CHUNK]; P];
    // SAFETY: halves of 32 numbers, planes of 64 bytes, sixteen of everything else.
    unsafe {
        for (h, x) in x.chunks_exact(HALF).enumerate() {
            let x = [_mm512_loadu_ps(x.as_ptr()), _mm512_loadu_ps(x.as_ptr().add(16))];
            let most = _mm512_reduce_max_ps(_mm512_max_ps(_mm512_abs_ps(x[0]), _mm512_abs_ps(x[1])));
            let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(x[0], x[1]) != 0;
            let top = ((1i32 << (7 * P)) - 1) as f32;
            // NaN and infinity have no whole numbers; their scale tells them on. What is too small to divide by is 0.
            let (scale, inverse) = match !nan && most.is_finite() {
                true if most > 0.0 && (top / most).is_finite() => (most / top, top / most),
                true => (0.0, 0.0),
                false => (f32::NAN, 0.0),
            };
            two[h] = scale;
            if inverse == 0.0 {
                continue;
            }
            for (from, to_eights) in order.from.iter().zip(order.to.as_chunks::<2>().0) {
                let from = _mm512_loadu_si512(from.as_ptr().cast());
                let x = _mm512_permutex2var_ps(x[0], from, x[1]);
                let q = _mm512_cvtps_epi32(_mm512_mul_ps(x, _mm512_set1_ps(inverse)));
                for (p, plane) in to.bytes.iter_mut().enumerate() {
                    let digit = _mm512_srav_epi32(q, _mm512_set1_epi32(7 * p as i32));
                    let digit = match p + 1 == P {
                        true => digit,
                        false => _mm512_and_si512(digit, _mm512_set1_epi32(127)),
                    };
                    let digits = _mm512_cvtepi32_epi8(digit);
                    for (at, eight) in to_eights.iter().zip([digits, _mm_unpackhi_epi64(digits, digits)]) {
                        let at = &mut plane[h * order.half + at..][..8];
                        _mm_storel_epi64(at.as_mut_ptr().cast(), eight);
                    }
                }
            }
        }
        let [first, second] = two.map(|scale| _mm512_set1_ps(scale));
        let scale = _mm512_mask_blend_ps(order.second, first, second);
        _mm512_storeu_ps(to.scale.as_mut_ptr(), scale);
    }
}

/// The sums of whole numbers. Right after they were written in eights it would wait for them to reach the cache.
///
/// # Safety
/// AVX-512 with VNNI was seen.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma")]
pub unsafe fn add_up<const P: usize>(middle: i32, chunk: &mut Chunk<P>) {
    // SAFETY: planes of 64 bytes, sixteen of everything else.
    unsafe {
        let of = |p: usize| {
            let plane = _mm512_loadu_si512(chunk.bytes[p].as_ptr().cast());
            _mm512_dpbusd_epi32(_mm512_setzero_si512(), _mm512_set1_epi8(1), plane)
        };
        let second = if P > 1 { of(1) } else { _mm512_setzero_si512() };
        let low = _mm512_add_epi32(of(0), _mm512_slli_epi32::<7>(second));
        let high = if P == 3 { of(P - 1) } else { _mm512_setzero_si512() };
        let middle = _mm512_set1_epi32(-middle);
        for (less, of) in chunk.less.iter_mut().zip([low, high]) {
            _mm512_storeu_si512(less.as_mut_ptr().cast(), _mm512_mullo_epi32(of, middle));
        }
        let sum = _mm512_cvtepi32_ps(low);
        let sum = _mm512_fmadd_ps(_mm512_cvtepi32_ps(high), _mm512_set1_ps(16384.0), sum);
        _mm512_storeu_ps(chunk.sum.as_mut_ptr(), sum);
    }
}
