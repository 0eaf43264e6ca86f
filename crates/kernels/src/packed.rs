//! Packed codes to numbers and back: what quantisers need of the processor.
//!
//! table4:  out\[i\] = table[nibble(i)] · scale(block of i)       the even entry is a byte's high half
//! affine:  out\[i\] = scale · (code\[i\] − zero)                    codes in a little-endian bit stream
//! offset:  out\[i\] = least + scale · code\[i\]                     the same
//!
//! All in f32, each operation rounded by itself, so every instruction set gives the same bits. Sources: the nibble order
//! is bitsandbytes' (Dettmers et al. 2023, arXiv:2305.14314).

use crate::wide::{Isa, isa, wide};

/// Entries `first..first + out.len()` of a table-coded weight.
///
/// * `packed`: two codes a byte, entry 2j in the high half of byte j
/// * `scales`: one factor a block of `block` entries; `scales[0]` is that of the block of entry `first`
///
/// # Panics
/// If `packed` or `scales` is too short, or `block` is 0.
pub fn table4(packed: &[u8], first: usize, block: usize, table: &[f32; 16], scales: &[f32], out: &mut [f32]) {
    let mut at = first;
    let mut out = out;
    let mut scales = scales.iter();
    while !out.is_empty() {
        let n = (block - at % block).min(out.len());
        let (now, rest) = out.split_at_mut(n);
        let scale = *scales.next().expect("a scale for every block");
        let odd = at % 2;
        if odd == 1 {
            now[0] = table[(packed[at / 2] & 15) as usize] * scale;
        }
        pairs(&packed[(at + odd) / 2..], table, scale, &mut now[odd..]);
        at += n;
        out = rest;
    }
}

/// `out[i] = table[nibble i of packed] · scale`
#[inline]
fn pairs(packed: &[u8], table: &[f32; 16], scale: f32, out: &mut [f32]) {
    match isa() {
        // SAFETY: `isa` has seen the features that each of these is compiled for.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => unsafe { x86::pairs_avx512(packed, table, scale, out) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => unsafe { x86::pairs_avx2(packed, table, scale, out) },
        _ => pairs_plain(packed, table, scale, out),
    }
}

fn pairs_plain(packed: &[u8], table: &[f32; 16], scale: f32, out: &mut [f32]) {
    for (pair, byte) in out.chunks_mut(2).zip(packed) {
        pair[0] = table[(byte >> 4) as usize] * scale;
        if let Some(second) = pair.get_mut(1) {
            *second = table[(byte & 15) as usize] * scale;
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    /// Sixteen codes a step: eight bytes are spread over eight 64-bit lanes, the high half of each byte
    /// goes to the lower 32 bits and the low half to the upper, and one permutation looks all up.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
    pub fn pairs_avx512(packed: &[u8], table: &[f32; 16], scale: f32, out: &mut [f32]) {
        let (chunks, rest) = out.as_chunks_mut::<16>();
        let (bytes, more) = packed.split_at(8 * chunks.len());
        // SAFETY: the table holds sixteen values, each step reads eight bytes and writes sixteen values.
        unsafe {
            let table = _mm512_loadu_ps(table.as_ptr());
            let scale = _mm512_set1_ps(scale);
            for (out, bytes) in chunks.iter_mut().zip(bytes.as_chunks::<8>().0) {
                let bytes = _mm512_cvtepu8_epi64(_mm_loadl_epi64(bytes.as_ptr().cast()));
                // The permutation reads the low four bits of each 32-bit lane and no others.
                let codes = _mm512_or_si512(_mm512_srli_epi64::<4>(bytes), _mm512_slli_epi64::<32>(bytes));
                let values = _mm512_mul_ps(_mm512_permutexvar_ps(codes, table), scale);
                _mm512_storeu_ps(out.as_mut_ptr(), values);
            }
        }
        super::pairs_plain(more, table, scale, rest);
    }

    /// As [`pairs_avx512`], eight codes a step from the two halves of the table.
    #[target_feature(enable = "avx2,fma")]
    pub fn pairs_avx2(packed: &[u8], table: &[f32; 16], scale: f32, out: &mut [f32]) {
        let (chunks, rest) = out.as_chunks_mut::<8>();
        let (bytes, more) = packed.split_at(4 * chunks.len());
        // SAFETY: as above with half the width.
        unsafe {
            let low = _mm256_loadu_ps(table.as_ptr());
            let high = _mm256_loadu_ps(table.as_ptr().add(8));
            let scale = _mm256_set1_ps(scale);
            for (out, bytes) in chunks.iter_mut().zip(bytes.as_chunks::<4>().0) {
                let bytes = _mm256_cvtepu8_epi64(_mm_cvtsi32_si128(i32::from_le_bytes(*bytes)));
                let codes = _mm256_or_si256(_mm256_srli_epi64::<4>(bytes), _mm256_slli_epi64::<32>(bytes));
                // The look-up reads three bits; the fourth, moved to the sign, picks the half.
                let half = _mm256_castsi256_ps(_mm256_slli_epi32::<28>(codes));
                let values = _mm256_blendv_ps(
                    _mm256_permutevar8x32_ps(low, codes),
                    _mm256_permutevar8x32_ps(high, codes),
                    half,
                );
                _mm256_storeu_ps(out.as_mut_ptr(), _mm256_mul_ps(values, scale));
            }
        }
        super::pairs_plain(more, table, scale, rest);
    }
}

/// Bytes of `n` codes of `bits` bits in a bit stream of their own.
pub const fn stream_bytes(n: usize, bits: u32) -> usize {
    (n * bits as usize).div_ceil(8)
}

/// Writes codes of `bits` (2, 3, 4 or 8) bits one after the other, lowest bits first: code j takes the
/// bits `bits·j..bits·(j + 1)` of the stream, bit 0 being the lowest of byte 0. Spare bits are 0.
///
/// # Panics
/// If `packed` is not [`stream_bytes`] long or `bits` another number.
pub fn pack_bits(codes: &[u8], bits: u32, packed: &mut [u8]) {
    assert_eq!(packed.len(), stream_bytes(codes.len(), bits), "`packed` must fit the codes");
    match bits {
        8 => packed.copy_from_slice(codes),
        2..=4 => {
            // Eight codes are a whole number of bytes.
            for (codes, packed) in codes.chunks(8).zip(packed.chunks_mut(bits as usize)) {
                let word = codes.iter().rev().fold(0u32, |word, code| word << bits | u32::from(*code));
                packed.copy_from_slice(&word.to_le_bytes()[..packed.len()]);
            }
        }
        _ => panic!("codes of {bits} bits"),
    }
}

/// Reads `codes.len()` codes from the start of a bit stream written by [`pack_bits`].
///
/// # Panics
/// If `packed` is too short or `bits` not 2, 3, 4 or 8.
pub fn unpack_bits(packed: &[u8], bits: u32, codes: &mut [u8]) {
    let packed = &packed[..stream_bytes(codes.len(), bits)];
    match bits {
        8 => codes.copy_from_slice(packed),
        4 => unpack_4(packed, codes),
        3 => unpack_3(packed, codes),
        2 => unpack_2(packed, codes),
        _ => panic!("codes of {bits} bits"),
    }
}

/// The last code of an interval that is no whole number of bytes, for the tails below.
fn unpack_tail(packed: &[u8], bits: u32, codes: &mut [u8]) {
    for (j, code) in codes.iter_mut().enumerate() {
        let bit = j * bits as usize;
        let word = u16::from_le_bytes([packed[bit / 8], *packed.get(bit / 8 + 1).unwrap_or(&0)]);
        *code = (word >> (bit % 8)) as u8 & ((1 << bits) - 1);
    }
}

wide! {
    fn unpack_4[](packed: &[u8], codes: &mut [u8]) {
        let (pairs, rest) = codes.as_chunks_mut::<2>();
        for (pair, byte) in pairs.iter_mut().zip(packed) {
            *pair = [byte & 15, byte >> 4];
        }
        let done = pairs.len();
        unpack_tail(&packed[done..], 4, rest);
    }

    fn unpack_3[](packed: &[u8], codes: &mut [u8]) {
        let (eights, rest) = codes.as_chunks_mut::<8>();
        for (eight, bytes) in eights.iter_mut().zip(packed.as_chunks::<3>().0) {
            let word = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], 0]);
            for (j, code) in eight.iter_mut().enumerate() {
                *code = (word >> (3 * j)) as u8 & 7;
            }
        }
        let done = eights.len() * 3;
        unpack_tail(&packed[done..], 3, rest);
    }

    fn unpack_2[](packed: &[u8], codes: &mut [u8]) {
        let (fours, rest) = codes.as_chunks_mut::<4>();
        for (four, byte) in fours.iter_mut().zip(packed) {
            *four = [byte & 3, byte >> 2 & 3, byte >> 4 & 3, byte >> 6];
        }
        let done = fours.len();
        unpack_tail(&packed[done..], 2, rest);
    }

    /// `out[i] = scale · (codes[i] − zero)`
    pub fn affine[](codes: &[u8], scale: f32, zero: f32, out: &mut [f32]) {
        for (out, code) in out.iter_mut().zip(codes) {
            *out = scale * (f32::from(*code) - zero);
        }
    }

    /// `out[i] = least + scale · codes[i]`
    pub fn offset[](codes: &[u8], scale: f32, least: f32, out: &mut [f32]) {
        for (out, code) in out.iter_mut().zip(codes) {
            *out = least + scale * f32::from(*code);
        }
    }

    /// `codes[i] = clamp(round(x[i] / scale) + zero, 0, top)`, halves rounded to even.
    pub fn round_affine[](x: &[f32], scale: f32, zero: f32, top: f32, codes: &mut [u8]) {
        for (code, x) in codes.iter_mut().zip(x) {
            let q = (*x / scale).round_ties_even() + zero;
            let q = if q < 0.0 { 0.0 } else { q };
            let q = if q > top { top } else { q };
            // SAFETY: within 0..=255 by the two lines above; x is finite by the caller's promise, and a
            // NaN would fail both tests, which is why it is tested once more.
            *code = if q >= 0.0 { unsafe { q.to_int_unchecked::<i32>() as u8 } } else { 0 };
        }
    }

    /// Index of the nearest of sixteen ascending codes for each `x · inv`, given the fifteen midpoints; a
    /// value on a midpoint goes to the lower code.
    pub fn nearest_of_16[](x: &[f32], inv: f32, midpoints: &[f32; 15], codes: &mut [u8]) {
        for (code, x) in codes.iter_mut().zip(x) {
            let v = *x * inv;
            let mut above = 0i32;
            for m in midpoints {
                above += i32::from(v > *m);
            }
            *code = above as u8;
        }
    }

    /// Least and greatest entry; (+∞, −∞) of nothing.
    pub fn min_max[](x: &[f32]) -> (f32, f32) {
        let (chunks, rest) = x.as_chunks::<16>();
        let (mut lo, mut hi) = ([f32::INFINITY; 16], [f32::NEG_INFINITY; 16]);
        for c in chunks {
            for l in 0..16 {
                lo[l] = if c[l] < lo[l] { c[l] } else { lo[l] };
                hi[l] = if c[l] > hi[l] { c[l] } else { hi[l] };
            }
        }
        let lo = lo.iter().chain(rest).fold(f32::INFINITY, |a, x| if *x < a { *x } else { a });
        let hi = hi.iter().chain(rest).fold(f32::NEG_INFINITY, |a, x| if *x > a { *x } else { a });
        (lo, hi)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::normal;

    fn bytes(seed: u64, n: usize) -> Vec<u8> {
        normal::<f32>(seed, n).iter().map(|x| (x * 1e4) as i32 as u8).collect()
    }

    fn table() -> [f32; 16] {
        normal(9, 16).try_into().expect("sixteen")
    }

    proptest! {
        #[test]
        fn table_look_up_is_its_rule(first in 0usize..100, n in 0usize..400, block in prop::sample::select(vec![32usize, 64, 7])) {
            let (packed, t) = (bytes(1, (first + n).div_ceil(2)), table());
            let scales = normal::<f32>(2, (first + n).div_ceil(block));
            let mut out = vec![f32::NAN; n];
            table4(&packed, first, block, &t, &scales[(first / block).min(scales.len())..], &mut out);
            for (i, out) in out.iter().enumerate() {
                let e = first + i;
                let code = if e.is_multiple_of(2) { packed[e / 2] >> 4 } else { packed[e / 2] & 15 };
                prop_assert_eq!(*out, t[code as usize] * scales[e / block]);
            }
        }

        #[test]
        fn bit_streams_round_trip(n in 0usize..200, bits in prop::sample::select(vec![2u32, 3, 4, 8]), seed: u64) {
            let top = ((1u32 << bits) - 1) as u8;
            let codes: Vec<u8> = bytes(seed, n).iter().map(|c| c & top).collect();
            let mut packed = vec![0xaa; stream_bytes(n, bits)];
            pack_bits(&codes, bits, &mut packed);
            let mut back = vec![0xaa; n];
            unpack_bits(&packed, bits, &mut back);
            prop_assert_eq!(&back, &codes);
            let bit = |i: usize| packed[i / 8] >> (i % 8) & 1;
            for (j, code) in codes.iter().enumerate() {
                let read = (0..bits as usize).fold(0, |c, b| c | bit(j * bits as usize + b) << b);
                prop_assert_eq!(read, *code);
            }
        }

        #[test]
        fn rounding_is_its_rule(x in prop::collection::vec(-3.0f32..3.0, 0..80), zero in 0u8..16) {
            let (scale, zero) = (0.1f32, f32::from(zero));
            let mut codes = vec![0xaa; x.len()];
            round_affine(&x, scale, zero, 15.0, &mut codes);
            for (x, c) in x.iter().zip(&codes) {
                prop_assert_eq!(f32::from(*c), ((x / scale).round_ties_even() + zero).clamp(0.0, 15.0));
            }
            let mut back = vec![f32::NAN; x.len()];
            affine(&codes, scale, zero, &mut back);
            prop_assert!(back.iter().zip(&codes).all(|(b, c)| *b == scale * (f32::from(*c) - zero)));
            offset(&codes, scale, zero, &mut back);
            prop_assert!(back.iter().zip(&codes).all(|(b, c)| *b == zero + scale * f32::from(*c)));
        }

        #[test]
        fn nearest_and_extremes(x in prop::collection::vec(-2.0f32..2.0, 0..80)) {
            let midpoints: [f32; 15] = std::array::from_fn(|i| (i as f32 - 7.0) / 8.0);
            let mut codes = vec![0xaa; x.len()];
            nearest_of_16(&x, 0.5, &midpoints, &mut codes);
            for (x, c) in x.iter().zip(&codes) {
                prop_assert_eq!(*c as usize, midpoints.iter().filter(|m| x * 0.5 > **m).count());
            }
            let (lo, hi) = min_max(&x);
            prop_assert_eq!(lo, x.iter().copied().fold(f32::INFINITY, f32::min));
            prop_assert_eq!(hi, x.iter().copied().fold(f32::NEG_INFINITY, f32::max));
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn every_instruction_set_gives_the_same_bits() {
        let (packed, t) = (bytes(1, 101), table());
        for n in [0, 1, 2, 7, 8, 15, 16, 17, 200, 201] {
            let mut want = vec![f32::NAN; n];
            pairs_plain(&packed, &t, 0.3, &mut want);
            let mut got = vec![f32::NAN; n];
            if isa() != Isa::Baseline {
                // SAFETY: AVX2 is there by the line above.
                unsafe { x86::pairs_avx2(&packed, &t, 0.3, &mut got) };
                assert_eq!(got, want);
            }
            if isa() == Isa::Avx512 {
                got.fill(f32::NAN);
                // SAFETY: AVX-512 is there by the line above.
                unsafe { x86::pairs_avx512(&packed, &t, 0.3, &mut got) };
                assert_eq!(got, want);
            }
        }
    }
}
