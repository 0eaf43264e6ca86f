//! Rounding by chance: to the upper neighbour with the probability of the remainder.
//!
//! bits = ⌊(bits of x + r) / 2¹⁶⌋, r uniform in [0, 2¹⁶): the mean over draws is x, so that steps below half a spacing
//! add up instead of being lost. Source: Gupta et al. 2015, arXiv:1502.02551.

use crate::philox::Stream;
use crate::wide::wide;

/// Numbers whose draws exist at once.
const PIECE: usize = 512;

/// The bits of `x`, number i of which draws at place `first + i`. What is no number stays none; a finite number stays
/// finite.
///
/// # Panics
/// If `out` is not as long as `x`.
pub fn round_by_chance(x: &[f32], first: u64, stream: &Stream, out: &mut [u16]) {
    assert_eq!(x.len(), out.len(), "{} numbers into {}", x.len(), out.len());
    let mut words = [0u32; PIECE / 2 + 1];
    for (p, (x, out)) in x.chunks(PIECE).zip(out.chunks_mut(PIECE)).enumerate() {
        let at = first + (p * PIECE) as u64;
        // Two draws a word, the even one in its lower half.
        let skipped = (at % 2) as usize;
        stream.fill_u32(at / 2, &mut words[..(skipped + x.len()).div_ceil(2)]);
        let draws: &[u16] = bytemuck::cast_slice(&words);
        with_draws(x, &draws[skipped..][..x.len()], out);
    }
}

wide! {
    fn with_draws[](x: &[f32], draws: &[u16], out: &mut [u16]) {
        for ((out, x), draw) in out.iter_mut().zip(x).zip(draws) {
            let bits = x.to_bits();
            let size = bits & 0x7fff_ffff;
            // Beyond the largest of bf16 there is infinity alone.
            let up = (size + u32::from(*draw)).min(0x7f7f_ffff);
            let size = if size >= 0x7f80_0000 { size | u32::from(size > 0x7f80_0000) << 22 } else { up };
            *out = ((bits & 0x8000_0000 | size) >> 16) as u16;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bf16::widen;

    #[test]
    fn the_mean_is_the_number() {
        let stream = Stream::new(5, 6);
        for x in [1.0f32, 1.003, -0.7771, 3.1e-5, -1e-40, 0.0] {
            let n = 1 << 16;
            let mut out = vec![0; n];
            round_by_chance(&vec![x; n], 0, &stream, &mut out);
            let all: Vec<f64> = out.iter().map(|b| f64::from(widen(*b))).collect();
            let below = f32::from_bits(x.to_bits() & 0xffff_0000);
            let above = f32::from_bits((x.to_bits() & 0xffff_0000) + 0x1_0000);
            let spacing = f64::from((above - below).abs());
            assert!(all.iter().all(|y| *y == f64::from(below) || *y == f64::from(above)));
            let mean = all.iter().sum::<f64>() / n as f64;
            // Five standard errors of a coin.
            assert!((mean - f64::from(x)).abs() < 5.0 * 0.5 / 256.0 * spacing, "{x}: {mean}");
            if below == x {
                assert!(out.iter().all(|b| widen(*b) == x), "{x} is one of bf16's");
            }
        }
    }

    #[test]
    fn a_part_is_rounded_as_in_the_whole() {
        let stream = Stream::new(7, 8);
        let x: Vec<f32> = (0..3000).map(|i| (i as f32 * 0.7).sin()).collect();
        let mut whole = vec![0; x.len()];
        round_by_chance(&x, 11, &stream, &mut whole);
        for (from, to) in [(0, 1), (1, 700), (513, 2999), (1024, 3000)] {
            let mut part = vec![0; to - from];
            round_by_chance(&x[from..to], 11 + from as u64, &stream, &mut part);
            assert_eq!(part, whole[from..to]);
        }
    }

    #[test]
    fn what_is_no_number_stays_none() {
        let x = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, f32::MIN, f32::from_bits(0x7f80_0001)];
        for place in 0..50 {
            let mut out = [0; 6];
            round_by_chance(&x, place * 6, &Stream::new(1, 1), &mut out);
            let y = out.map(widen);
            assert!(y[0].is_nan() && y[5].is_nan());
            assert_eq!((y[1], y[2]), (f32::INFINITY, f32::NEG_INFINITY));
            assert!(y[3].is_finite() && y[3] > 3e38 && y[4].is_finite() && y[4] < -3e38);
        }
    }
}
