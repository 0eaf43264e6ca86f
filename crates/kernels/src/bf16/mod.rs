//! Products in bf16: operands rounded to eight bits of mantissa, sums in f32.
//!
//! forward:         y[m×n] = r(x)[m×k] · wᵀ + b        w: n×k = out×in, in bf16
//! backward_input:  gx[m×k] (+)= r(g)[m×n] · w          r: to the nearest bf16, ties to even
//!
//! What PyTorch does with a bf16 model, but for the sums' order. The units that multiply bf16 (AMX tiles, AVX-512
//! dot products) are found at run time ([`unit()`]); where there is none, callers widen `w` and multiply in f32.
//!
//! A weight is cut into panels of 32 outputs whose pairs of numbers lie as the units want them, one panel at
//! a time and never as a whole; the rows of `x` are rounded into tiles of 16×32 once.

#[cfg(target_arch = "x86_64")]
mod amx;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod chance;
mod few;
mod pack;
mod product;
#[cfg(test)]
mod tests;

pub use chance::round_by_chance;
pub use pack::{round_all, widen_all, widen_into};
pub use product::{backward_input, forward};

use crate::cpu::{self, Cpu};

/// Outputs of a panel; two tiles of 16.
const PANEL: usize = 32;

/// Rows of a tile of `x`.
const TILE: usize = 16;

/// Numbers of the inner dimension that one step takes; both operands are filled up to it with zeros.
const STEP: usize = 32;

/// Rows that take the path of dot products, whose results do not depend on how many come together.
pub use crate::matmul::FEW_ROWS;

/// A frozen `out×in` weight whose rows can be had in bf16.
pub trait Bf16Rows: Sync {
    /// Rows of the weight: outputs of the layer.
    fn out_features(&self) -> usize;
    /// Columns of the weight: inputs of the layer.
    fn in_features(&self) -> usize;
    /// Fills `out` with the bits of the `out.len() / in_features` rows that start at row `first`.
    fn rows(&self, first: usize, out: &mut [u16]);
    /// The whole weight's bits, row-major, where it is stored that way.
    fn as_dense(&self) -> Option<&[u16]> {
        None
    }
}

/// What multiplies bf16 here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// AMX: tiles of 16×32 by 32×16.
    Tiles,
    /// AVX-512 BF16: 16 dot products of two at once.
    Dots,
}

/// The unit of this machine; `None` where products in f32 are faster.
pub fn unit() -> Option<Unit> {
    match cpu::found() {
        Cpu::Amx => Some(Unit::Tiles),
        Cpu::Avx512Bf16 => Some(Unit::Dots),
        _ => None,
    }
}

/// Whether the system lets this process use tiles of bf16.
#[cfg(target_arch = "x86_64")]
pub(crate) fn tiles_allowed() -> bool {
    amx::allowed()
}

/// The bits of the nearest bf16, ties to even; NaN stays NaN. Straight-line code that vectorises.
#[inline(always)]
pub fn round(x: f32) -> u16 {
    let bits = x.to_bits();
    let near = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
    if x.is_nan() { (bits >> 16) as u16 | 0x40 } else { near as u16 }
}

/// The f32 of bf16's bits.
pub fn widen(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// The same written down directly.
pub mod reference {
    use super::{round, widen};

    fn exact(x: &[f32]) -> Vec<f64> {
        x.iter().map(|x| f64::from(widen(round(*x)))).collect()
    }

    /// `y[m×n] = r(x)[m×k] · w[n×k]ᵀ` in f64.
    pub fn forward(m: usize, n: usize, k: usize, x: &[f32], w: &[u16]) -> Vec<f64> {
        let w: Vec<f64> = w.iter().map(|b| f64::from(widen(*b))).collect();
        crate::matmul::reference::nt(m, n, k, &exact(x), &w)
    }

    /// `gx[m×k] = r(g)[m×n] · w[n×k]` in f64.
    pub fn backward_input(m: usize, n: usize, k: usize, g: &[f32], w: &[u16]) -> Vec<f64> {
        let w: Vec<f64> = w.iter().map(|b| f64::from(widen(*b))).collect();
        crate::matmul::reference::nn(m, n, k, &exact(g), &w)
    }
}
