//! [`pair`](super::pair) of sixteen pairs a register, of several registers step by step: each step waits for the one
//! before, and a processor sees no further ahead than some two chains of them.

use std::arch::x86_64::*;
use std::array::from_fn;

use super::{ARTANH, HALF_ROOT, LN_2, MANTISSA, SIN_COS, TAU, UNIT};

/// The first and the second number of each pair.
#[inline]
#[target_feature(enable = "avx512f,avx512dq")]
pub(crate) fn pairs<const N: usize>(a: [__m512i; N], b: [__m512i; N]) -> [(__m512, __m512); N] {
    let radius = minus_twice_ln(a).map(|x| _mm512_sqrt_ps(x));
    let turns = sin_cos_turns(b);
    from_fn(|l| (_mm512_mul_ps(radius[l], turns[l].1), _mm512_mul_ps(radius[l], turns[l].0)))
}

/// −2 ln u: what is −2 times something there is made so at once, which changes no rounding.
#[inline]
#[target_feature(enable = "avx512f,avx512dq")]
fn minus_twice_ln<const N: usize>(a: [__m512i; N]) -> [__m512; N] {
    let (f, i) = (|x: f32| _mm512_set1_ps(x), |x: u32| _mm512_set1_epi32(x as i32));
    let upper = a.map(|a| _mm512_movepi32_mask(a));
    let near: [_; N] = from_fn(|l| _mm512_mask_xor_epi32(a[l], upper[l], a[l], i(!0)));
    let near = near.map(|n| _mm512_add_ps(_mm512_cvtepi32_ps(n), f(0.5)));
    let small = near.map(|n| _mm512_mul_ps(n, f(UNIT)));
    let x: [_; N] = from_fn(|l| _mm512_mask_sub_ps(small[l], upper[l], f(1.0), small[l]));
    let above = x.map(|x| _mm512_sub_epi32(_mm512_castps_si512(x), i(HALF_ROOT)));
    let e = above.map(|above| _mm512_srai_epi32::<23>(above));
    let left = above.map(|above| _mm512_add_epi32(_mm512_and_si512(above, i(MANTISSA)), i(HALF_ROOT)));
    let left = left.map(|left| _mm512_sub_ps(_mm512_castsi512_ps(left), f(1.0)));
    let d: [_; N] = from_fn(|l| {
        let none = _mm512_testn_epi32_mask(e[l], e[l]);
        _mm512_mask_xor_ps(left[l], none, small[l], f(-0.0))
    });
    let s = d.map(|d| _mm512_div_ps(d, _mm512_add_ps(f(2.0), d)));
    let q = s.map(|s| _mm512_mul_ps(s, s));
    let mut series = [f(ARTANH.0); N];
    for odd in ARTANH.1 {
        series = from_fn(|l| _mm512_add_ps(_mm512_mul_ps(series[l], q[l]), f(1.0 / odd)));
    }
    let series: [_; N] = from_fn(|l| _mm512_mul_ps(q[l], series[l]));
    let s = s.map(|s| _mm512_mul_ps(f(-4.0), s));
    let rest: [_; N] = from_fn(|l| _mm512_add_ps(s[l], _mm512_mul_ps(s[l], series[l])));
    from_fn(|l| _mm512_add_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(e[l]), f(-2.0 * LN_2)), rest[l]))
}

/// Sine and cosine.
#[inline]
#[target_feature(enable = "avx512f,avx512dq")]
fn sin_cos_turns<const N: usize>(b: [__m512i; N]) -> [(__m512, __m512); N] {
    let (f, i) = (|x: f32| _mm512_set1_ps(x), |x: u32| _mm512_set1_epi32(x as i32));
    // The two bits of the quarter, where they are: at the top.
    let quarter = b.map(|b| _mm512_add_epi32(b, i(1 << 29)));
    let x: [_; N] = from_fn(|l| _mm512_sub_epi32(b[l], _mm512_and_si512(quarter[l], i(3 << 30))));
    let x = x.map(|x| _mm512_mul_ps(_mm512_cvtepi32_ps(x), f(TAU * UNIT)));
    let q = x.map(|x| _mm512_mul_ps(x, x));
    let (mut s, mut c) = ([f(SIN_COS.0.0); N], [f(SIN_COS.0.1); N]);
    for (odd, even) in SIN_COS.1 {
        s = from_fn(|l| _mm512_add_ps(_mm512_mul_ps(s[l], q[l]), f(1.0 / odd)));
        c = from_fn(|l| _mm512_add_ps(_mm512_mul_ps(c[l], q[l]), f(1.0 / even)));
    }
    let s: [_; N] = from_fn(|l| _mm512_add_ps(x[l], _mm512_mul_ps(x[l], _mm512_mul_ps(q[l], s[l]))));
    let c: [_; N] = from_fn(|l| _mm512_sub_ps(_mm512_mul_ps(q[l], c[l]), f(0.5)));
    let c: [_; N] = from_fn(|l| _mm512_add_ps(f(1.0), _mm512_mul_ps(q[l], c[l])));
    from_fn(|l| {
        let odd = _mm512_test_epi32_mask(quarter[l], i(1 << 30));
        let (sin, cos) = (_mm512_mask_mov_ps(s[l], odd, c[l]), _mm512_mask_mov_ps(c[l], odd, s[l]));
        // 0x78: x ^ (y & z).
        let flipped = |x: __m512, by: __m512i| {
            let x = _mm512_ternarylogic_epi32::<0x78>(_mm512_castps_si512(x), by, i(1 << 31));
            _mm512_castsi512_ps(x)
        };
        (flipped(sin, quarter[l]), flipped(cos, _mm512_add_epi32(quarter[l], i(1 << 30))))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_pair_to_the_bit() {
        if crate::cpu::widest(crate::cpu::Cpu::Amx) < crate::cpu::Cpu::Avx512 {
            return crate::testing::skipped("AVX-512 is not here");
        }
        // Where a branch, an octave or a quarter changes, and everywhere else.
        let edges =
            (0..32).flat_map(|bit| [-2i32, -1, 0, 1, 2].map(|off| (1u32 << bit).wrapping_add_signed(off)));
        let edges: Vec<u32> = edges.flat_map(|w| [w, !w]).collect();
        let all = (0..1_000_000u32).map(|i| i.wrapping_mul(2_654_435_761));
        let words: Vec<u32> = all.chain(edges.iter().copied()).collect();
        let others: Vec<u32> = words.iter().map(|w| w.rotate_left(13) ^ 0x5bd1_e995).collect();
        let same = |a: &[u32], b: &[u32]| {
            for (a, b) in a.as_chunks::<32>().0.iter().zip(b.as_chunks::<32>().0) {
                // SAFETY: registers and arrays of the same size, any bits allowed; the features were seen.
                let found: [([f32; 16], [f32; 16]); 2] = unsafe {
                    let of = |x: &[u32; 32]| std::mem::transmute::<[u32; 32], [__m512i; 2]>(*x);
                    pairs(of(a), of(b)).map(|pair| std::mem::transmute::<(__m512, __m512), _>(pair))
                };
                for l in 0..32 {
                    let want = super::super::pair(a[l], b[l]);
                    let got = (found[l / 16].0[l % 16], found[l / 16].1[l % 16]);
                    assert_eq!((got.0.to_bits(), got.1.to_bits()), (want.0.to_bits(), want.1.to_bits()));
                }
            }
        };
        same(&words, &others);
        same(&others, &words);
        same(&edges, &edges);
    }
}
