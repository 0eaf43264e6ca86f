//! Sparse differences from a base, in few bits: a safetensors file of its own kind.
//!
//! ```text
//! metadata  format "ramekin-sparse-delta", version "1", codec, golomb_parameter, base, base_sha256,
//!           tensors "[[name, [dims…]], …]", extra: JSON of whoever wrote it
//! codes     U8   positions and signs of each tensor, each from a whole byte on
//! offsets   U64  first byte of each tensor's codes, and the end of the last one's
//! counts    U64  entries of each tensor that are not zero
//! scales    F32  the size of those entries: one for all tensors, or one a tensor
//! values    F32  instead of `scales`: every entry's own value, in order
//! ```
//!
//! | codec | positions and signs |
//! |---|---|
//! | `golomb` | the gap to the entry before, Golomb-coded, then a bit that is 1 for a negative entry |
//! | `bitmask` | a bit mask of the positive entries, then one of the negative ones |
//! | `raw` | 2·position + sign, in 4 bytes, or 8 where a tensor has 2³¹ numbers and more |
//!
//! A base is known by the SHA-256 of its tensors, so that a difference is never added to another one.

pub mod golomb;
mod ternary;
mod write;

use std::path::Path;

use anyhow::{Context, Result};
use ramekin_core::UserError;
use serde_json::Value as Json;

use self::golomb::BitReader;
pub use self::ternary::Ternary;
pub use self::write::{Base, DeltaWriter};
use crate::Index;

/// The `format` entry of the metadata.
pub const FORMAT: &str = "ramekin-sparse-delta";

/// How positions and signs are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Codec {
    /// Golomb-coded gaps.
    Golomb,
    /// Two bit masks.
    Bitmask,
    /// Positions as they are.
    Raw,
}

impl Codec {
    const ALL: [(Codec, &'static str); 3] =
        [(Codec::Golomb, "golomb"), (Codec::Bitmask, "bitmask"), (Codec::Raw, "raw")];

    /// The name in files.
    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|(c, _)| *c == self).map_or("", |(_, n)| n)
    }
}

/// Bytes a position takes in the `raw` codec.
fn raw_width(len: usize) -> usize {
    if (len as u64) < 1 << 31 { 4 } else { 8 }
}

/// An opened file of sparse differences; codes are read a tensor at a time.
pub struct Delta {
    index: Index,
    codec: Codec,
    parameter: u32,
    /// The base.
    pub base: Base,
    /// What the writer added.
    pub extra: Json,
    tensors: Vec<(String, Vec<usize>)>,
    offsets: Vec<u64>,
    counts: Vec<u64>,
    scales: Option<Vec<f32>>,
}

impl Delta {
    /// Whether a file says that it is one of these.
    pub fn is_one(index: &Index) -> bool {
        index.metadata().get("format").is_some_and(|f| f == FORMAT)
    }

    /// Opens a file.
    ///
    /// # Errors
    /// [`UserError`] naming the file where it is something else or contradicts itself.
    pub fn open(path: impl AsRef<Path>) -> Result<Delta> {
        let index = Index::open(path.as_ref())?;
        let wrong = |what: String| UserError::new(what).in_file(index.path());
        if !Self::is_one(&index) {
            return Err(wrong("holds no sparse differences".to_owned()).into());
        }
        let text = |key: &str| {
            index.metadata().get(key).cloned().ok_or_else(|| wrong(format!("lacks `{key}` in its metadata")))
        };
        let codec = text("codec")?;
        let codec = Codec::ALL.iter().find(|(_, n)| *n == codec).map(|(c, _)| *c);
        let codec = codec.ok_or_else(|| wrong("has a codec that is not known here".to_owned()))?;
        let parameter: u32 = text("golomb_parameter")?.parse().unwrap_or(u32::MAX);
        let tensors: Vec<(String, Vec<usize>)> = serde_json::from_str(&text("tensors")?)
            .map_err(|e| wrong(format!("has a list of tensors that cannot be read: {e}")))?;
        let offsets = integers(&index, "offsets")?;
        let counts = integers(&index, "counts")?;
        let scales = if index.contains("scales") { Some(index.read_f32("scales")?) } else { None };
        let codes = index.tensor_info("codes")?.bytes;
        let total: Option<u64> = counts.iter().try_fold(0u64, |n, c| n.checked_add(*c));
        let sizes = tensors.iter().map(|(_, dims)| dims.iter().try_fold(1usize, |n, d| n.checked_mul(*d)));
        let sound = parameter <= 62
            && offsets.len() == tensors.len() + 1
            && counts.len() == tensors.len()
            && offsets.first() == Some(&0)
            && offsets.is_sorted()
            && offsets.last() == Some(&codes)
            && sizes.zip(&counts).all(|(size, count)| size.is_some_and(|n| *count <= n as u64))
            && match &scales {
                Some(scales) => scales.len() == 1 || scales.len() == tensors.len(),
                None => index.tensor_info("values")?.len() as u64 == total.unwrap_or(u64::MAX),
            }
            && scales.iter().flatten().all(|s| s.is_finite());
        if !sound {
            return Err(wrong(
                "contradicts itself: its tensors, counts and codes do not fit together".to_owned(),
            )
            .help("the file is damaged: fetch or write it again")
            .into());
        }
        let base = Base { label: text("base")?, sha256: text("base_sha256")? };
        let extra = serde_json::from_str(&text("extra")?).unwrap_or(Json::Null);
        Ok(Delta { index, codec, parameter, base, extra, tensors, offsets, counts, scales })
    }

    /// Names and dimensions, in the order of the file.
    pub fn tensors(&self) -> &[(String, Vec<usize>)] {
        &self.tensors
    }

    /// The file.
    pub fn path(&self) -> &Path {
        self.index.path()
    }

    /// Bytes of codes, scales and values.
    pub fn bytes(&self) -> u64 {
        self.index.total_bytes()
    }

    /// The entries of a tensor that are not zero, in order; `None` if there is no such tensor.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn entries(&self, name: &str) -> Result<Option<Entries>> {
        let Some(t) = self.tensors.iter().position(|(n, _)| n == name) else { return Ok(None) };
        let mut codes = vec![0; (self.offsets[t + 1] - self.offsets[t]) as usize];
        self.index.read_into("codes", self.offsets[t], &mut codes)?;
        let count = self.counts[t] as usize;
        let size = match &self.scales {
            Some(scales) => Size::Scale(scales[if scales.len() == 1 { 0 } else { t }]),
            None => {
                let mut values = vec![0f32; count];
                let before: u64 = self.counts[..t].iter().sum();
                self.index.read_into("values", 4 * before, bytemuck::cast_slice_mut(&mut values))?;
                Size::Each(values)
            }
        };
        let len = self.tensors[t].1.iter().product();
        Ok(Some(Entries {
            file: format!("tensor `{name}` of `{}`", self.path().display()),
            codes,
            codec: self.codec,
            parameter: self.parameter,
            size,
            len,
            count,
            taken: 0,
            next: 0,
            at: 0,
            peeked: None,
        }))
    }

    /// A tensor as signs and a scale; `None` where entries have values of their own.
    ///
    /// # Errors
    /// As [`Delta::entries`].
    pub fn ternary(&self, name: &str) -> Result<Option<Ternary>> {
        let Some(mut entries) = self.entries(name)? else { return Ok(None) };
        let Size::Scale(scale) = entries.size else { return Ok(None) };
        let mut dense = vec![0.0; entries.len];
        entries.fill(0, &mut dense)?;
        Ok(Some(Ternary::new(dense, f64::from(scale))))
    }
}

fn integers(index: &Index, name: &str) -> Result<Vec<u64>> {
    let info = index.tensor_info(name)?;
    if info.dtype != crate::Dtype::U64 {
        return Err(UserError::new(format!("has `{name}` of {}, not U64", info.dtype))
            .in_file(index.path())
            .into());
    }
    let mut out = vec![0u64; info.len()];
    index.read_into(name, 0, bytemuck::cast_slice_mut(&mut out))?;
    Ok(out)
}

enum Size {
    Scale(f32),
    Each(Vec<f32>),
}

/// The entries of one tensor that are not zero, from the first to the last.
pub struct Entries {
    file: String,
    codes: Vec<u8>,
    codec: Codec,
    parameter: u32,
    size: Size,
    len: usize,
    count: usize,
    taken: usize,
    /// The first position that the next entry can have.
    next: usize,
    /// Bits read.
    at: usize,
    peeked: Option<(usize, f32)>,
}

impl Entries {
    /// The next entry's position and value.
    ///
    /// # Errors
    /// If the codes end too early or lead beyond the tensor.
    pub fn advance(&mut self) -> Result<Option<(usize, f32)>> {
        if let Some(entry) = self.peeked.take() {
            return Ok(Some(entry));
        }
        if self.taken == self.count {
            return Ok(None);
        }
        let found = match self.codec {
            Codec::Golomb => self.golomb(),
            Codec::Bitmask => self.bitmask(),
            Codec::Raw => self.raw(),
        };
        let (position, negative) = found
            .filter(|(p, _)| *p >= self.next && *p < self.len)
            .with_context(|| format!("the codes of {} are damaged", self.file))?;
        let value = match &self.size {
            Size::Scale(s) => {
                if negative {
                    -s
                } else {
                    *s
                }
            }
            Size::Each(values) => values[self.taken],
        };
        self.taken += 1;
        self.next = position + 1;
        Ok(Some((position, value)))
    }

    fn golomb(&mut self) -> Option<(usize, bool)> {
        let mut reader = BitReader::new(&self.codes, self.at);
        let gap = usize::try_from(reader.gap(self.parameter)?).ok()?;
        let negative = reader.take()?;
        self.at = reader.position();
        Some((self.next.checked_add(gap)?, negative))
    }

    fn bitmask(&self) -> Option<(usize, bool)> {
        let width = self.len.div_ceil(8);
        let bit = |mask: &[u8], i: usize| Some(mask.get(i / 8)? >> (i % 8) & 1 == 1);
        for i in self.next..self.len {
            if bit(&self.codes, i)? {
                return Some((i, false));
            }
            if bit(self.codes.get(width..)?, i)? {
                return Some((i, true));
            }
        }
        None
    }

    fn raw(&self) -> Option<(usize, bool)> {
        let width = raw_width(self.len);
        let mut code = [0; 8];
        code[..width].copy_from_slice(self.codes.get(self.taken * width..(self.taken + 1) * width)?);
        let code = u64::from_le_bytes(code);
        Some((usize::try_from(code >> 1).ok()?, code & 1 == 1))
    }

    /// Writes the numbers from `start` on, as many as `out` takes, zeros included; calls must go forward.
    ///
    /// # Errors
    /// As [`Entries::advance`].
    pub fn fill(&mut self, start: usize, out: &mut [f64]) -> Result<()> {
        out.fill(0.0);
        while let Some((position, value)) = self.advance()? {
            if position >= start + out.len() {
                self.peeked = Some((position, value));
                break;
            }
            if position >= start {
                out[position - start] = f64::from(value);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
