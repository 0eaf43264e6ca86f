//! Round to nearest: an even grid of 2, 3, 4 or 8 bits, one scale (and zero) a group of inputs.
//!
//! asymmetric:  lo = min(w, 0), hi = max(w, 0), scale = (hi − lo)/(2ᵇ − 1), zero = round(−lo/scale)
//! symmetric:   hi = max|w|, lo = −hi, zero = 2ᵇ⁻¹; at 8 bits over a whole row scale = hi/127 (int8 by row)
//! q = clamp(round(w/scale) + zero, 0, 2ᵇ − 1),  ŵ = scale · (q − zero)        halves round to even
//!
//! Layout: each row is a bit stream of its own, padded to a whole byte; code j takes the bits
//! b·j … b·j + b − 1, bit 0 being the lowest of the row's first byte. So 4 bits are two codes a byte, the
//! even one in the low half; 3 bits are eight codes in three bytes; 2 bits are four codes a byte. Scales
//! and zeros are f32, row by row, one a group; a symmetric weight stores no zeros. Scales in bf16 are rounded up, so that
//! a group's greatest weight still has a code, and then the grid is theirs: a step is at most 1/128 wider.
//!
//! Cost: b + 32/g bits a weight symmetric, b + 64/g asymmetric; 16/g less with scales in bf16.
//! Source: the grid of Frantar et al. 2022, arXiv:2210.17323, with lo = −hi also for a group without
//! negative weights, which the authors' code cuts at half its range.

use ramekin_kernels::Real;
use ramekin_kernels::packed::{affine, min_max, pack_bits, round_affine, stream_bytes, unpack_bits};
use ramekin_kernels::packed_rows::{Grid, GroupScales};
use rayon::prelude::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::codec::{ByteTensor, CodecError, check_weight, decode_as};

/// How to pack.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct RtnSpec {
    /// Bits a weight: 2, 3, 4 or 8.
    pub bits: u32,
    /// Inputs that share a scale; −1 for the whole row.
    pub group_size: i64,
    /// Whether the grid lies symmetrically about 0.
    pub sym: bool,
    /// What scales are stored as.
    #[serde(default)]
    pub scale_dtype: ScaleDtype,
}

/// What scales are stored as.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ScaleDtype {
    /// 32 bits.
    #[default]
    F32,
    /// 16 bits.
    Bf16,
}

impl ScaleDtype {
    fn bytes(self) -> usize {
        match self {
            ScaleDtype::F32 => 4,
            ScaleDtype::Bf16 => 2,
        }
    }
}

/// Scales as they are stored.
#[derive(Clone, Debug, PartialEq)]
pub enum RtnScales {
    /// In f32.
    F32(Vec<f32>),
    /// The bits of bf16.
    Bf16(Vec<u16>),
}

impl RtnScales {
    fn of(scales: Vec<f32>, dtype: ScaleDtype) -> Self {
        match dtype {
            ScaleDtype::F32 => RtnScales::F32(scales),
            // What `grid` gave are numbers of bf16.
            ScaleDtype::Bf16 => RtnScales::Bf16(scales.iter().map(|s| (s.to_bits() >> 16) as u16).collect()),
        }
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.as_stored().len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Scale i.
    ///
    /// # Panics
    /// If there are not so many.
    pub fn at(&self, i: usize) -> f32 {
        match self {
            RtnScales::F32(scales) => scales[i],
            RtnScales::Bf16(bits) => ramekin_kernels::bf16::widen(bits[i]),
        }
    }

    fn as_stored(&self) -> GroupScales<'_> {
        match self {
            RtnScales::F32(scales) => GroupScales::F32(scales),
            RtnScales::Bf16(bits) => GroupScales::Bf16(bits),
        }
    }
}

impl Default for RtnSpec {
    /// Four bits, groups of 128, symmetric, scales in f32.
    fn default() -> Self {
        RtnSpec { bits: 4, group_size: 128, sym: true, scale_dtype: ScaleDtype::F32 }
    }
}

impl RtnSpec {
    /// Inputs of a group of a weight with `columns` inputs.
    ///
    /// # Errors
    /// [`CodecError::Bits`], [`CodecError::GroupSize`].
    pub fn group(&self, columns: usize) -> Result<usize, CodecError> {
        if !matches!(self.bits, 2 | 3 | 4 | 8) {
            return Err(CodecError::Bits(self.bits));
        }
        let bad = CodecError::GroupSize { group_size: self.group_size, columns };
        match self.group_size {
            -1 => Ok(columns.max(1)),
            g => match usize::try_from(g) {
                Ok(g) if g > 0 && columns.is_multiple_of(g) => Ok(g),
                _ => Err(bad),
            },
        }
    }

    /// The greatest code.
    fn top(&self) -> f32 {
        ((1u32 << self.bits) - 1) as f32
    }

    /// The code of 0 in a symmetric grid.
    fn middle(&self) -> f32 {
        (1u32 << (self.bits - 1)) as f32
    }

    /// Scale and zero of a group.
    fn grid(&self, w: &[f32]) -> (f32, f32) {
        let (lo, hi) = min_max(w);
        let (lo, hi) = (f64::from(lo.min(0.0)), f64::from(hi.max(0.0)));
        let (lo, hi) = if self.sym { (-hi.max(-lo), hi.max(-lo)) } else { (lo, hi) };
        let int8_row = self.bits == 8 && self.sym && self.group_size == -1;
        let steps = if int8_row { 254.0 } else { f64::from(self.top()) };
        let mut scale = ((hi - lo) / steps) as f32;
        let mut lo = lo as f32;
        if scale < f32::MIN_POSITIVE {
            // All zero, or too small for a scale: then everything rounds to the code of 0.
            (lo, scale) = (-1.0, (2.0 / steps) as f32);
        }
        if self.scale_dtype == ScaleDtype::Bf16 {
            scale = f32::from_bits((scale.to_bits() + 0xffff) & !0xffff);
        }
        let zero = if self.sym { self.middle() } else { (-lo / scale).round_ties_even().min(self.top()) };
        (scale, zero)
    }
}

/// A packed `[out, in]` weight.
#[derive(Clone, Debug, PartialEq)]
pub struct RtnData {
    /// Codes, each row a bit stream padded to a whole byte.
    pub packed: Vec<u8>,
    /// One scale a group, row by row.
    pub scales: RtnScales,
    /// One zero a group, row by row; empty for a symmetric weight.
    pub zeros: Vec<f32>,
    /// How it was packed.
    pub spec: RtnSpec,
    /// Outputs and inputs.
    pub shape: (usize, usize),
}

/// Bytes that [`RtnData::encode`] will hold for a weight of this shape, without the weight.
///
/// # Errors
/// [`CodecError::Bits`], [`CodecError::GroupSize`]; [`CodecError::Length`] for a shape beyond the address space.
pub fn packed_bytes((rows, columns): (usize, usize), spec: RtnSpec) -> Result<u64, CodecError> {
    let groups = columns / spec.group(columns)?;
    rows.checked_mul(columns).ok_or(CodecError::Length { got: 0, rows, columns })?;
    let of_group = spec.scale_dtype.bytes() + if spec.sym { 0 } else { 4 };
    Ok((rows * (stream_bytes(columns, spec.bits) + groups * of_group)) as u64)
}

impl RtnData {
    /// Packs a dense row-major weight.
    ///
    /// # Errors
    /// [`CodecError::Bits`], [`CodecError::GroupSize`], [`CodecError::Length`], and
    /// [`CodecError::NotFinite`] with the place.
    pub fn encode(w: &[f32], shape: (usize, usize), spec: RtnSpec) -> Result<Self, CodecError> {
        let (rows, columns) = shape;
        let group = spec.group(columns)?;
        check_weight(w, shape)?;
        let (groups, row_bytes) = (columns / group, stream_bytes(columns, spec.bits));
        let mut packed = vec![0u8; rows * row_bytes];
        let mut scales = vec![0f32; rows * groups];
        let mut zeros = vec![0f32; if spec.sym { 0 } else { rows * groups }];
        if columns > 0 {
            let row = |((packed, w), scales): ((&mut [u8], &[f32]), &mut [f32])| {
                let mut codes = vec![0u8; columns];
                let mut zeros = Vec::with_capacity(groups);
                for ((codes, w), s) in codes.chunks_mut(group).zip(w.chunks(group)).zip(scales) {
                    let (scale, zero) = spec.grid(w);
                    round_affine(w, scale, zero, spec.top(), codes);
                    *s = scale;
                    zeros.push(zero);
                }
                pack_bits(&codes, spec.bits, packed);
                zeros
            };
            let rows = packed
                .par_chunks_mut(row_bytes)
                .zip(w.par_chunks(columns))
                .zip(scales.par_chunks_mut(groups))
                .with_min_len((16 * 1024 / columns).max(1));
            if spec.sym {
                rows.for_each(|r| drop(row(r)));
            } else {
                rows.zip(zeros.par_chunks_mut(groups)).for_each(|(r, zeros)| zeros.copy_from_slice(&row(r)));
            }
        }
        Ok(RtnData { packed, scales: RtnScales::of(scales, spec.scale_dtype), zeros, spec, shape })
    }

    /// Fills `out` with the `out.len() / in` rows that start at `first_row`. In f64 the same numbers.
    ///
    /// # Panics
    /// If the rows reach past the weight.
    pub fn rows_into<T: Real>(&self, first_row: usize, out: &mut [T]) {
        let (rows, columns) = self.shape;
        if columns == 0 {
            return;
        }
        assert!(first_row + out.len() / columns <= rows, "rows past the weight");
        let group = if self.spec.group_size == -1 { columns } else { self.spec.group_size as usize };
        let (groups, row_bytes) = (columns / group, stream_bytes(columns, self.spec.bits));
        let mut codes = vec![0u8; columns];
        for (r, out) in out.chunks_exact_mut(columns).enumerate() {
            let row = first_row + r;
            unpack_bits(&self.packed[row * row_bytes..(row + 1) * row_bytes], self.spec.bits, &mut codes);
            decode_as(out, |at, out| {
                let mut at = at;
                let mut out = out;
                while !out.is_empty() {
                    let g = row * groups + at / group;
                    let (now, rest) = out.split_at_mut((group - at % group).min(out.len()));
                    let zero = self.zeros.get(g).copied().unwrap_or(self.spec.middle());
                    affine(&codes[at..at + now.len()], self.scales.at(g), zero, now);
                    at += now.len();
                    out = rest;
                }
            });
        }
    }

    /// For kernels that read it in place.
    pub fn layout(&self) -> Grid<'_> {
        let RtnData { packed, scales, zeros, spec, shape } = self;
        let group = if spec.group_size == -1 { shape.1.max(1) } else { spec.group_size as usize };
        let scales = scales.as_stored();
        Grid { packed, bits: spec.bits, group, scales, zeros, middle: spec.middle(), shape: *shape }
    }

    /// Bytes held.
    pub fn bytes(&self) -> u64 {
        (self.packed.len() + self.spec.scale_dtype.bytes() * self.scales.len() + 4 * self.zeros.len()) as u64
    }

    /// Tensors for a file: `NAME.codes`, `NAME.scales`, `NAME.zeros` (asymmetric only) and `NAME.rtn`, which is
    /// JSON of bits, group_size, sym and shape. No public package has this layout.
    pub fn to_tensors(&self, weight: &str) -> Vec<ByteTensor> {
        let (rows, columns) = self.shape;
        let named = |suffix: &str| format!("{weight}.{suffix}");
        let groups = self.scales.len() / rows.max(1);
        let state = State { spec: self.spec, shape: [rows, columns] };
        let state = serde_json::to_vec(&state).unwrap_or_default(); // numbers and a flag: cannot fail
        let row_bytes = stream_bytes(columns, self.spec.bits);
        let mut tensors = vec![
            ByteTensor::u8(named("codes"), vec![rows, row_bytes], self.packed.clone()),
            match &self.scales {
                RtnScales::F32(scales) => ByteTensor::f32(named("scales"), vec![rows, groups], scales),
                RtnScales::Bf16(bits) => ByteTensor::bf16(named("scales"), vec![rows, groups], bits),
            },
        ];
        if !self.spec.sym {
            tensors.push(ByteTensor::f32(named("zeros"), vec![rows, groups], &self.zeros));
        }
        tensors.push(ByteTensor::u8(named(STATE), vec![state.len()], state));
        tensors
    }

    /// Reads what [`RtnData::to_tensors`] made; `get` finds a tensor by its name.
    ///
    /// # Errors
    /// [`CodecError::Missing`], [`CodecError::Tensor`] or [`CodecError::Content`], naming the tensor.
    pub fn from_tensors(weight: &str, get: impl Fn(&str) -> Option<ByteTensor>) -> Result<Self, CodecError> {
        let find = |suffix: &str| {
            let name = format!("{weight}.{suffix}");
            get(&name).ok_or(CodecError::Missing(name))
        };
        let tensor = find(STATE)?;
        let name = tensor.name.clone();
        let bad = |why: String| CodecError::Content { name: name.clone(), why };
        let len = tensor.bytes.len();
        let State { spec, shape: [rows, columns] } =
            serde_json::from_slice(&tensor.into_u8(len)?).map_err(|e| bad(e.to_string()))?;
        let groups = columns / spec.group(columns).map_err(|e| bad(e.to_string()))?;
        if rows.checked_mul(columns).is_none_or(|n| n > isize::MAX as usize / 8) {
            return Err(bad(format!("`shape` is {rows}×{columns}, more than any file holds")));
        }
        let packed = find("codes")?.into_u8(rows * stream_bytes(columns, spec.bits))?;
        let scales = match spec.scale_dtype {
            ScaleDtype::F32 => RtnScales::F32(find("scales")?.into_f32(rows * groups)?),
            ScaleDtype::Bf16 => RtnScales::Bf16(find("scales")?.into_bf16(rows * groups)?),
        };
        let zeros = if spec.sym { Vec::new() } else { find("zeros")?.into_f32(rows * groups)? };
        if let Some(z) = zeros.iter().find(|z| z.fract() != 0.0 || !(0.0..=spec.top()).contains(*z)) {
            let why = format!("holds {z}; zeros are whole numbers from 0 to {}", spec.top());
            return Err(CodecError::Content { name: format!("{weight}.zeros"), why });
        }
        Ok(RtnData { packed, scales, zeros, spec, shape: (rows, columns) })
    }
}

const STATE: &str = "rtn";

/// What a file says beside the tensors.
#[derive(Deserialize, Serialize)]
struct State {
    #[serde(flatten)]
    spec: RtnSpec,
    shape: [usize; 2],
}

#[cfg(test)]
#[path = "rtn_tests.rs"]
mod tests;
