//! Standard normal numbers of pairs of random words, the same bits everywhere.
//!
//! With u = (a + ½)/2³² and v = b/2³²: z = √(−2 ln u) · (cos 2πv, sin 2πv).
//!
//! Nothing but sums, products, quotients and roots of f32, each rounded by itself, and integers: every processor, and a
//! GPU, gives the same bits. Words are reduced as integers first, so that nothing is lost where u is next to 1 or where
//! a sine or cosine is next to 0: a result errs by at most [`ULPS`] of its units in the last place.
//!
//! Source: Box & Muller 1958, "A note on the generation of random normal deviates".

use std::f32::consts::{LN_2, SQRT_2, TAU};

use crate::Real;
use crate::wide::wide;

#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512;

/// The most units in the last place that a number of [`pair`] is off.
pub const ULPS: f64 = 5.0;

const UNIT: f32 = 1.0 / 4_294_967_296.0;
const HALF_ROOT: u32 = (SQRT_2 / 2.0).to_bits();
const MANTISSA: u32 = (1 << 23) - 1;

/// artanh's series: the coefficient of the highest power, then the denominators of the others downwards.
const ARTANH: (f32, [f32; 3]) = (1.0 / 9.0, [7.0, 5.0, 3.0]);

/// The series of sine and cosine in the same way.
const SIN_COS: ((f32, f32), [(f32, f32); 3]) =
    ((1.0 / 362_880.0, -1.0 / 3_628_800.0), [(-5040.0, 40_320.0), (120.0, -720.0), (-6.0, 24.0)]);

/// The normal numbers of two words, by way of the plain reference's formula.
#[inline(always)]
pub fn pair(a: u32, b: u32) -> (f32, f32) {
    let radius = (-2.0 * ln_of_word(a)).sqrt();
    let (sin, cos) = sin_cos_turn(b);
    (radius * cos, radius * sin)
}

/// ln((a + ½)/2³²) = e·ln 2 + 2·artanh(d/(2 + d)) where (a + ½)/2³² = (1 + d)·2ᵉ and 1 + d is from √½ to √2.
#[inline(always)]
fn ln_of_word(a: u32) -> f32 {
    // From ½ on, the distance to 1 is what is exact.
    let upper = a >> 31 == 1;
    let small = ((if upper { !a } else { a }) as i32 as f32 + 0.5) * UNIT;
    let x = if upper { 1.0 - small } else { small };
    // As many steps of √2's octaves as lie between, and what is left of the number.
    let above = x.to_bits().wrapping_sub(HALF_ROOT) as i32;
    let e = above >> 23;
    let left = f32::from_bits((above as u32 & MANTISSA).wrapping_add(HALF_ROOT)) - 1.0;
    let d = if e == 0 { -small } else { left };
    let s = d / (2.0 + d);
    let q = s * s;
    let mut series = ARTANH.0;
    for odd in ARTANH.1 {
        series = series * q + 1.0 / odd;
    }
    let twice = s + s;
    e as f32 * LN_2 + (twice + twice * (q * series))
}

/// Sine and cosine of b/2³² of a full turn: Taylor's series about the nearest quarter.
#[inline(always)]
fn sin_cos_turn(b: u32) -> (f32, f32) {
    let quarter = b.wrapping_add(1 << 29) >> 30;
    let x = b.wrapping_sub(quarter << 30) as i32 as f32 * (TAU * UNIT);
    let q = x * x;
    let (mut s, mut c) = SIN_COS.0;
    for (odd, even) in SIN_COS.1 {
        s = s * q + 1.0 / odd;
        c = c * q + 1.0 / even;
    }
    let (s, c) = (x + x * (q * s), 1.0 + q * (q * c - 0.5));
    let (sin, cos) = if quarter & 1 == 1 { (c, s) } else { (s, c) };
    let minus = |x: f32, flip: u32| f32::from_bits(x.to_bits() ^ (flip & 2) << 30);
    (minus(sin, quarter), minus(cos, quarter.wrapping_add(1)))
}

wide! {
    /// `out[2j], out[2j + 1] = std · pair(words[2j], words[2j + 1])`, the products in `T`.
    pub(crate) fn fill[T: Real](words: &[u32], std: f64, out: &mut [T]) {
        const PAIRS: usize = 16;
        let std = T::from_f64(std);
        let of = |z: f32| std * T::from_f64(f64::from(z));
        let (batches, rest) = out.as_chunks_mut::<{ 2 * PAIRS }>();
        let (words, more) = words.as_chunks::<{ 2 * PAIRS }>();
        for (out, words) in batches.iter_mut().zip(words) {
            let (mut first, mut second) = ([0.0f32; PAIRS], [0.0f32; PAIRS]);
            for l in 0..PAIRS {
                (first[l], second[l]) = pair(words[2 * l], words[2 * l + 1]);
            }
            for l in 0..PAIRS {
                (out[2 * l], out[2 * l + 1]) = (of(first[l]), of(second[l]));
            }
        }
        for (out, words) in rest.chunks_exact_mut(2).zip(more.chunks_exact(2)) {
            let (first, second) = pair(words[0], words[1]);
            (out[0], out[1]) = (of(first), of(second));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exact(a: u32, b: u32) -> (f64, f64) {
        let radius = (-2.0 * ((f64::from(a) + 0.5) / 4_294_967_296.0).ln()).sqrt();
        let (sin, cos) = (f64::from(b) * (std::f64::consts::TAU / 4_294_967_296.0)).sin_cos();
        (radius * cos, radius * sin)
    }

    #[test]
    fn numbers_are_the_formula_s() {
        let edges =
            [0, 1, 1 << 29, (1 << 29) - 1, 1 << 30, 1 << 31, (1 << 31) - 1, 3 << 30, u32::MAX - 1, u32::MAX];
        let words = || (0..2_000_000u32).map(|i| i.wrapping_mul(2_654_435_761)).chain(edges);
        let mut worst = 0.0f64;
        for (a, b) in
            words().zip(words().map(|w| w.rotate_left(13) ^ 0x5bd1_e995)).chain(edges.map(|e| (e, e)))
        {
            let (z, x) = (pair(a, b), exact(a, b));
            for (z, x) in [(z.0, x.0), (z.1, x.1)] {
                let unit = 2f64.powi(x.abs().max(1e-6).log2().floor() as i32 - 23);
                worst = worst.max((f64::from(z) - x).abs() / unit);
            }
        }
        assert!(worst <= ULPS, "{worst} units in the last place");
    }

    #[test]
    fn filling_is_pair_by_pair() {
        let words: Vec<u32> = (0..200u32).map(|i| i.wrapping_mul(2_654_435_761)).collect();
        for n in [0, 2, 30, 32, 34, 200] {
            let mut out = vec![0.0f32; n];
            fill(&words[..n], 1.0, &mut out);
            for (z, w) in out.chunks(2).zip(words.chunks(2)) {
                assert_eq!((z[0], z[1]), pair(w[0], w[1]));
            }
        }
    }
}
