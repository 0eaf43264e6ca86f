//! The number type that every operation is generic over: `f32` for work, `f64` for checking.
//!
//! The exponential of `f32` is a polynomial of our own, because the C library's cannot be vectorised:
//!
//! exp(x) = 2ⁿ · eʳ      n = round(x / ln 2),  r = x − n·ln 2 ∈ [−0.35, 0.35],  eʳ by Taylor to r⁷
//!
//! Its error is at most 2 units in the last place over the whole range, subnormal results included.

use std::fmt::{Debug, Display};
use std::iter::Sum;
use std::ops::{Add, AddAssign, Div, DivAssign, Mul, MulAssign, Neg, Sub, SubAssign};

/// A floating-point number that the kernels compute in: `f32` or `f64`.
pub trait Real:
    Copy
    + Default
    + Send
    + Sync
    + PartialOrd
    + Debug
    + Display
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + Neg<Output = Self>
    + AddAssign
    + SubAssign
    + MulAssign
    + DivAssign
    + Sum
    + bytemuck::Pod
{
    /// 0.
    const ZERO: Self;
    /// 1.
    const ONE: Self;
    /// −∞, the start of a running maximum.
    const NEG_INFINITY: Self;

    /// The nearest value of this type.
    fn from_f64(x: f64) -> Self;
    /// The nearest value of this type.
    fn from_f32(x: f32) -> Self;
    /// The same value in double precision.
    fn to_f64(self) -> f64;
    /// eˣ; for `f32` the vectorisable polynomial of this module.
    fn exp(self) -> Self;
    /// Natural logarithm.
    fn ln(self) -> Self;
    /// Square root.
    fn sqrt(self) -> Self;
    /// Sine of an angle in radians.
    fn sin(self) -> Self;
    /// Cosine of an angle in radians.
    fn cos(self) -> Self;
    /// Hyperbolic tangent.
    fn tanh(self) -> Self;
    /// The error function.
    fn erf(self) -> Self;
    /// |x|.
    fn abs(self) -> Self;
    /// Neither infinite nor NaN.
    fn is_finite(self) -> bool;

    /// The slice as f32, if that is what it holds: lets generic code take a path made for f32.
    fn as_f32(x: &[Self]) -> Option<&[f32]>;
    /// As [`Real::as_f32`], to write to.
    fn as_f32_mut(x: &mut [Self]) -> Option<&mut [f32]>;

    /// The greater of two; `self` where `other` is NaN or where they are equal.
    #[inline(always)]
    fn max(self, other: Self) -> Self {
        if other > self { other } else { self }
    }

    /// The lesser of two; `self` where `other` is NaN or where they are equal.
    #[inline(always)]
    fn min(self, other: Self) -> Self {
        if other < self { other } else { self }
    }

    /// 1 / (1 + e⁻ˣ).
    #[inline(always)]
    fn sigmoid(self) -> Self {
        Self::ONE / (Self::ONE + (-self).exp())
    }
}

/// eˣ within 2 units in the last place, in straight-line code that vectorises.
#[inline(always)]
fn exp_f32(x: f32) -> f32 {
    const LN_2_HI: f32 = 355.0 / 512.0; // few bits, so that n · LN_2_HI is exact
    const LN_2_LO: f32 = -2.121_944_4e-4;
    const ROUND: f32 = 12_582_912.0; // 1.5 · 2²³: adding it leaves the rounded integer in the low bits
    // Outside these bounds the result is 0 or infinite anyway; NaN fails both tests and passes through.
    let x = if x < -104.0 { -104.0 } else { x };
    let x = if x > 89.0 { 89.0 } else { x };
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = (x - n * LN_2_HI) - n * LN_2_LO;
    let mut p = 1.0 / 5040.0;
    p = p * r + 1.0 / 720.0;
    p = p * r + 1.0 / 120.0;
    p = p * r + 1.0 / 24.0;
    p = p * r + 1.0 / 6.0;
    p = p * r + 0.5;
    let e = r * r * p + r + 1.0;
    // 2ⁿ in two factors, so that neither over- nor underflows before the product does.
    let n = shifted.to_bits().wrapping_sub(ROUND.to_bits()) as i32;
    let half = n >> 1;
    let rest = n.wrapping_sub(half);
    let power = |n: i32| f32::from_bits((n.wrapping_add(127) << 23) as u32);
    e * power(half) * power(rest)
}

macro_rules! real {
    ($t:ident, $exp:path, $as_f32:expr, $as_f32_mut:expr) => {
        impl Real for $t {
            const ZERO: Self = 0.0;
            const ONE: Self = 1.0;
            const NEG_INFINITY: Self = $t::NEG_INFINITY;

            #[inline(always)]
            fn from_f64(x: f64) -> Self {
                x as $t
            }
            #[inline(always)]
            fn from_f32(x: f32) -> Self {
                x as $t
            }
            #[inline(always)]
            fn to_f64(self) -> f64 {
                self as f64
            }
            #[inline(always)]
            fn exp(self) -> Self {
                $exp(self)
            }
            #[inline(always)]
            fn ln(self) -> Self {
                $t::ln(self)
            }
            #[inline(always)]
            fn sqrt(self) -> Self {
                $t::sqrt(self)
            }
            #[inline(always)]
            fn sin(self) -> Self {
                $t::sin(self)
            }
            #[inline(always)]
            fn cos(self) -> Self {
                $t::cos(self)
            }
            #[inline(always)]
            fn tanh(self) -> Self {
                $t::tanh(self)
            }
            #[inline]
            fn erf(self) -> Self {
                libm::erf(self as f64) as $t
            }
            #[inline(always)]
            fn abs(self) -> Self {
                $t::abs(self)
            }
            #[inline(always)]
            fn is_finite(self) -> bool {
                $t::is_finite(self)
            }
            #[inline(always)]
            fn as_f32(x: &[Self]) -> Option<&[f32]> {
                $as_f32(x)
            }
            #[inline(always)]
            fn as_f32_mut(x: &mut [Self]) -> Option<&mut [f32]> {
                $as_f32_mut(x)
            }
        }
    };
}
real!(f32, exp_f32, Some, Some);
real!(f64, f64::exp, |_| None, |_| None);

#[cfg(test)]
mod tests {
    use super::*;

    /// Distance in representable numbers between two positive floats.
    fn ulps(a: f32, b: f32) -> u32 {
        a.to_bits().abs_diff(b.to_bits())
    }

    #[test]
    fn exp_is_within_two_ulps_of_the_truth() {
        let mut worst = 0;
        let mut x = -104.5f32;
        while x < 89.5 {
            let truth = (x as f64).exp() as f32;
            worst = worst.max(ulps(Real::exp(x), truth));
            x += 0.000_37;
        }
        for bits in (0..0x4300_0000u32).step_by(4099) {
            for x in [f32::from_bits(bits), -f32::from_bits(bits)] {
                worst = worst.max(ulps(Real::exp(x), (x as f64).exp() as f32));
            }
        }
        assert!(worst <= 2, "{worst} ulps");
    }

    #[test]
    fn exp_at_the_edges() {
        assert_eq!(Real::exp(0.0f32), 1.0);
        assert_eq!(Real::exp(-0.0f32), 1.0);
        assert_eq!(Real::exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(Real::exp(f32::INFINITY), f32::INFINITY);
        assert_eq!(Real::exp(f32::MIN), 0.0);
        assert_eq!(Real::exp(f32::MAX), f32::INFINITY);
        assert!(Real::exp(f32::NAN).is_nan());
    }

    #[test]
    fn sigmoid_saturates_without_nan() {
        assert_eq!(Real::sigmoid(-1e30f32), 0.0);
        assert_eq!(Real::sigmoid(1e30f32), 1.0);
        assert_eq!(Real::sigmoid(0.0f64), 0.5);
    }
}
