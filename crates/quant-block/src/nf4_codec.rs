//! NF4: four-bit codes at the quantiles of a normal distribution, one scale a block.
//!
//! code = nearest(w / absmax(block)),  ŵ = NF4\[code\] · absmax(block)
//!
//! The weight is flattened row by row and cut into blocks of `block_size`; a block may cross rows, the last
//! may be short. Entry 2i is the high half of byte i, entry 2i + 1 the low half. Double quantisation
//! stores absmax − offset, offset the mean, in the signed dynamic 8-bit code with one f32 scale for each 256 blocks.
//!
//! Cost at block 64: 4.5 bits a weight, 4.127 with double quantisation.
//! Source: Dettmers et al. 2023, arXiv:2305.14314; codes, ties and file layout as in bitsandbytes.

use std::sync::Arc;

use ramekin_kernels::Real;
use ramekin_kernels::packed::{min_max, nearest_of_16, table4};
use ramekin_kernels::packed_rows::{Scales, Table};
use rayon::prelude::*;

use crate::codec::{CodecError, check_weight, decode_as};
use crate::dynamic_code::{nearest, signed};

/// The sixteen values, ascending.
pub const NF4: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

/// Blocks that share one scale of the double quantisation.
pub const NESTED_BLOCK: usize = 256;

/// Entries that are encoded by one task: a multiple of every block size.
const TASK: usize = 16 * 1024;

/// How to pack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Nf4Spec {
    /// Entries that share a scale: a power of two from 32 to 4096.
    pub block_size: usize,
    /// Whether the scales are packed to 8 bits.
    pub double_quant: bool,
}

impl Default for Nf4Spec {
    /// Blocks of 64 with packed scales, as in QLoRA.
    fn default() -> Self {
        Nf4Spec { block_size: 64, double_quant: true }
    }
}

/// The scales of the blocks.
#[derive(Clone, Debug, PartialEq)]
pub enum Absmax {
    /// One f32 a block.
    Plain(Vec<f32>),
    /// `map[codes[b]] · absmax[b / 256] + offset`
    Nested {
        /// One byte a block.
        codes: Vec<u8>,
        /// One scale for each 256 blocks.
        absmax: Vec<f32>,
        /// The mean that was taken off before.
        offset: f32,
        /// What the bytes stand for: the signed dynamic code, or what a file says.
        map: Arc<[f32; 256]>,
    },
}

impl Absmax {
    /// Number of blocks.
    pub fn blocks(&self) -> usize {
        match self {
            Absmax::Plain(absmax) => absmax.len(),
            Absmax::Nested { codes, .. } => codes.len(),
        }
    }

    /// The scale of block `b`.
    pub fn at(&self, b: usize) -> f32 {
        match self {
            Absmax::Plain(absmax) => absmax[b],
            Absmax::Nested { codes, absmax, offset, map } => {
                map[codes[b] as usize] * absmax[b / NESTED_BLOCK] + offset
            }
        }
    }

    fn bytes(&self) -> u64 {
        let count = match self {
            Absmax::Plain(absmax) => 4 * absmax.len(),
            // The usual map is shared by all weights, one from a file is not.
            Absmax::Nested { codes, absmax, map, .. } => {
                codes.len() + 4 * absmax.len() + 4 + if Arc::ptr_eq(map, signed()) { 0 } else { 1024 }
            }
        };
        count as u64
    }

    fn nest(plain: &[f32]) -> Absmax {
        let mean = plain.iter().map(|a| f64::from(*a)).sum::<f64>() / plain.len().max(1) as f64;
        let offset = mean as f32;
        let mut codes = Vec::with_capacity(plain.len());
        let mut absmax = Vec::with_capacity(plain.len().div_ceil(NESTED_BLOCK));
        for block in plain.chunks(NESTED_BLOCK) {
            let largest = block.iter().fold(0f32, |a, x| a.max((x - offset).abs()));
            let inv = inverse(largest);
            codes.extend(block.iter().map(|x| nearest(signed(), ((x - offset) * inv).clamp(-1.0, 1.0))));
            absmax.push(largest);
        }
        Absmax::Nested { codes, absmax, offset, map: signed().clone() }
    }
}

/// 1/x, of a size that multiplies safely where x is 0 or subnormal.
fn inverse(x: f32) -> f32 {
    1.0 / x.max(1e-38)
}

/// The values halfway between neighbouring codes.
fn midpoints() -> [f32; 15] {
    std::array::from_fn(|i| (NF4[i] + NF4[i + 1]) / 2.0)
}

/// A packed `[out, in]` weight.
#[derive(Clone, Debug, PartialEq)]
pub struct Nf4Data {
    /// Two codes a byte, `⌈out·in / 2⌉` bytes.
    pub packed: Vec<u8>,
    /// One scale a block.
    pub absmax: Absmax,
    /// Entries of a block.
    pub block_size: usize,
    /// Outputs and inputs.
    pub shape: (usize, usize),
}

/// Bytes that [`Nf4Data::encode`] will hold for a weight of this shape, without the weight.
///
/// # Errors
/// [`CodecError::BlockSize`]; [`CodecError::Length`] for a shape beyond the address space.
pub fn packed_bytes((rows, columns): (usize, usize), spec: Nf4Spec) -> Result<u64, CodecError> {
    check_block_size(spec.block_size)?;
    let n = rows.checked_mul(columns).ok_or(CodecError::Length { got: 0, rows, columns })?;
    let blocks = n.div_ceil(spec.block_size);
    let scales = if spec.double_quant { blocks + 4 * blocks.div_ceil(NESTED_BLOCK) + 4 } else { 4 * blocks };
    Ok((n.div_ceil(2) + scales) as u64)
}

pub(crate) fn check_block_size(block_size: usize) -> Result<(), CodecError> {
    let known = block_size.is_power_of_two() && (32..=4096).contains(&block_size);
    if known { Ok(()) } else { Err(CodecError::BlockSize(block_size)) }
}

impl Nf4Data {
    /// Packs a dense row-major weight.
    ///
    /// # Errors
    /// [`CodecError::BlockSize`], [`CodecError::Length`], and [`CodecError::NotFinite`] with the place.
    pub fn encode(w: &[f32], shape: (usize, usize), spec: Nf4Spec) -> Result<Self, CodecError> {
        check_block_size(spec.block_size)?;
        check_weight(w, shape)?;
        let mut packed = vec![0u8; w.len().div_ceil(2)];
        let mut absmax = vec![0f32; w.len().div_ceil(spec.block_size)];
        let midpoints = midpoints();
        packed
            .par_chunks_mut(TASK / 2)
            .zip(absmax.par_chunks_mut(TASK / spec.block_size))
            .zip(w.par_chunks(TASK))
            .for_each(|((packed, absmax), w)| {
                let mut codes = [7u8; 4096]; // 7 is 0: the half byte behind an odd end
                let bytes = packed.chunks_mut(spec.block_size / 2);
                for ((packed, absmax), w) in bytes.zip(absmax).zip(w.chunks(spec.block_size)) {
                    let (lo, hi) = min_max(w);
                    *absmax = hi.max(-lo);
                    nearest_of_16(w, inverse(*absmax), &midpoints, &mut codes[..w.len()]);
                    codes[w.len()..].iter_mut().take(1).for_each(|c| *c = 7);
                    for (byte, pair) in packed.iter_mut().zip(codes.as_chunks::<2>().0) {
                        *byte = pair[0] << 4 | pair[1];
                    }
                }
            });
        let absmax = if spec.double_quant { Absmax::nest(&absmax) } else { Absmax::Plain(absmax) };
        Ok(Nf4Data { packed, absmax, block_size: spec.block_size, shape })
    }

    /// Fills `out` with the `out.len() / in` rows that start at `first_row`. In f64 the same numbers.
    ///
    /// # Panics
    /// If the rows reach past the weight.
    pub fn rows_into<T: Real>(&self, first_row: usize, out: &mut [T]) {
        let start = first_row * self.shape.1;
        assert!(start + out.len() <= self.shape.0 * self.shape.1, "rows past the weight");
        decode_as(out, |at, out| self.entries(start + at, out));
    }

    /// Entries `first..` of the flattened weight.
    fn entries(&self, first: usize, out: &mut [f32]) {
        // Scales of at most this many blocks at a time are unpacked beside the codes.
        const BLOCKS: usize = 256;
        let mut scales = [0f32; BLOCKS];
        let mut first = first;
        let mut out = out;
        while !out.is_empty() {
            let block = first / self.block_size;
            let end = (block + BLOCKS) * self.block_size;
            let (now, rest) = out.split_at_mut((end - first).min(out.len()));
            let blocks = (first + now.len()).div_ceil(self.block_size) - block;
            for (b, scale) in scales[..blocks].iter_mut().enumerate() {
                *scale = self.absmax.at(block + b);
            }
            table4(&self.packed, first, self.block_size, &NF4, &scales, now);
            first += now.len();
            out = rest;
        }
    }

    /// For kernels that read it in place.
    pub fn layout(&self) -> Table<'_> {
        let scales = match &self.absmax {
            Absmax::Plain(all) => Scales::Plain(all),
            Absmax::Nested { codes, absmax, offset, map } => {
                Scales::Nested { codes, map, absmax, offset: *offset }
            }
        };
        let (packed, block, shape) = (&self.packed, self.block_size, self.shape);
        Table { packed, table: &NF4, block, scales, shape }
    }

    /// Bytes held.
    pub fn bytes(&self) -> u64 {
        self.packed.len() as u64 + self.absmax.bytes()
    }
}

#[cfg(test)]
#[path = "nf4_tests.rs"]
mod tests;
