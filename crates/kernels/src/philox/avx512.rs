//! [`fill_u32`](super::Stream::fill_u32) and, of the words while they are in registers, normal numbers.
//!
//! A word lies in the low half of a lane of 64 bits, so that products are of 32 bits by 32; what is in the high half is
//! never read.

use std::arch::x86_64::*;
use std::array::from_fn;

use super::{MULTIPLIERS, ROUNDS, Stream, WEYL};
use crate::box_muller;

/// Counters in a register.
const LANES: usize = 8;

/// Chains of rounds side by side: more have no room in the registers.
const CHAINS: usize = 4;

/// Counters at once.
pub(super) const BATCH: usize = CHAINS * LANES;

type Words = [[__m512i; CHAINS]; 4];

/// The four words of counters `counter`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
fn rounds(stream: &Stream, counter: [__m512i; CHAINS]) -> Words {
    let of = |word: u32| _mm512_set1_epi64(i64::from(word));
    // The high word in the low half: four such moves go at once, shifts two at a time.
    let high = |x: __m512i| _mm512_castps_si512(_mm512_movehdup_ps(_mm512_castsi512_ps(x)));
    let multipliers = MULTIPLIERS.map(of);
    let (mut a, mut b) = (counter, counter.map(high));
    let (mut c, mut d) = ([of(stream.id as u32); CHAINS], [of((stream.id >> 32) as u32); CHAINS]);
    let [mut k0, mut k1] = stream.key;
    for _ in 0..ROUNDS {
        for l in 0..CHAINS {
            let (p, q) = (_mm512_mul_epu32(a[l], multipliers[0]), _mm512_mul_epu32(c[l], multipliers[1]));
            // 0x96: the exclusive or of three.
            (a[l], b[l]) = (_mm512_ternarylogic_epi64::<0x96>(high(q), b[l], of(k0)), q);
            (c[l], d[l]) = (_mm512_ternarylogic_epi64::<0x96>(high(p), d[l], of(k1)), p);
        }
        k0 = k0.wrapping_add(WEYL[0]);
        k1 = k1.wrapping_add(WEYL[1]);
    }
    [a, b, c, d]
}

/// x in the low halves and y in the high ones.
#[inline]
#[target_feature(enable = "avx512f")]
fn both(x: __m512i, y: __m512i) -> __m512i {
    _mm512_castps_si512(_mm512_mask_moveldup_ps(_mm512_castsi512_ps(x), 0xaaaa, _mm512_castsi512_ps(y)))
}

/// Whole batches of counters from `first` on, as [`fill_batches`](super::fill_batches).
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
pub(super) fn words(stream: &Stream, first: u64, batches: &mut [[u32; 4 * BATCH]]) {
    let mut counter = counters(first, _mm512_set_epi64(7, 6, 5, 4, 3, 2, 1, 0));
    for batch in batches {
        let [a, b, c, d] = rounds(stream, counter);
        for (l, eight) in batch.as_chunks_mut::<{ 4 * LANES }>().0.iter_mut().enumerate() {
            // Two words a lane, then the four of a counter side by side, then counters in order.
            let (ab, cd) = (both(a[l], b[l]), both(c[l], d[l]));
            let halves = [
                _mm512_permutex2var_epi64(ab, _mm512_set_epi64(11, 3, 10, 2, 9, 1, 8, 0), cd),
                _mm512_permutex2var_epi64(ab, _mm512_set_epi64(15, 7, 14, 6, 13, 5, 12, 4), cd),
            ];
            for (to, x) in eight.as_chunks_mut::<16>().0.iter_mut().zip(halves) {
                // SAFETY: sixteen words.
                unsafe { _mm512_storeu_si512(to.as_mut_ptr().cast(), x) };
            }
        }
        counter = next(counter);
    }
}

/// `std` times the normal numbers of whole batches of counters from `first` on.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
pub(super) fn normals(stream: &Stream, first: u64, std: f32, batches: &mut [[f32; 4 * BATCH]]) {
    // Counters in the order in which unpacking leaves them.
    let lanes = _mm512_set_epi64(7, 3, 6, 2, 5, 1, 4, 0);
    let mut counter = counters(first, lanes);
    let std = _mm512_set1_ps(std);
    for batch in batches {
        let [a, b, c, d] = rounds(stream, counter);
        let pairs =
            box_muller::avx512::pairs::<CHAINS>(from_fn(|l| both(a[l], c[l])), from_fn(|l| both(b[l], d[l])));
        for (eight, (first, second)) in batch.as_chunks_mut::<{ 4 * LANES }>().0.iter_mut().zip(pairs) {
            let halves = [_mm512_unpacklo_ps(first, second), _mm512_unpackhi_ps(first, second)];
            for (to, z) in eight.as_chunks_mut::<16>().0.iter_mut().zip(halves) {
                // SAFETY: sixteen numbers.
                unsafe { _mm512_storeu_ps(to.as_mut_ptr(), _mm512_mul_ps(std, z)) };
            }
        }
        counter = next(counter);
    }
}

/// Counters from `first` on, eight a register in the order of `lanes`.
#[inline]
#[target_feature(enable = "avx512f")]
fn counters(first: u64, lanes: __m512i) -> [__m512i; CHAINS] {
    from_fn(|l| {
        let first = first.wrapping_add((l * LANES) as u64);
        _mm512_add_epi64(_mm512_set1_epi64(first as i64), lanes)
    })
}

/// Those of the next batch.
#[inline]
#[target_feature(enable = "avx512f")]
fn next(counter: [__m512i; CHAINS]) -> [__m512i; CHAINS] {
    counter.map(|c| _mm512_add_epi64(c, _mm512_set1_epi64(BATCH as i64)))
}
