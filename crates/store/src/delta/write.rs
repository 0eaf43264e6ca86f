//! Writing sparse differences, a tensor after the other, its numbers piece after piece.

use std::path::Path;

use anyhow::{Result, bail, ensure};
use serde_json::{Value as Json, json};

use super::golomb::{self, BitWriter};
use super::{Codec, FORMAT, raw_width};
use crate::{Data, Dtype, write_safetensors};

/// What a difference belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Base {
    /// How the base is called, for readers.
    pub label: String,
    /// SHA-256 of its tensors.
    pub sha256: String,
}

/// A file of sparse differences in the making.
pub struct DeltaWriter {
    codec: Codec,
    parameter: u32,
    base: Base,
    extra: Json,
    tensors: Vec<(String, Vec<usize>)>,
    codes: Vec<u8>,
    offsets: Vec<u64>,
    counts: Vec<u64>,
    scales: Vec<f32>,
    values: Vec<f32>,
    open: Option<Open>,
}

/// The tensor whose numbers are coming.
struct Open {
    len: usize,
    seen: usize,
    next: usize,
    scale: Option<f32>,
    bits: BitWriter,
    bytes: Vec<u8>,
}

impl DeltaWriter {
    /// An empty file for differences in which about this share of numbers is not zero.
    pub fn new(codec: Codec, density: f64, base: Base, extra: Json) -> Self {
        DeltaWriter {
            codec,
            parameter: golomb::parameter(density),
            base,
            extra,
            tensors: Vec::new(),
            codes: Vec::new(),
            offsets: vec![0],
            counts: Vec::new(),
            scales: Vec::new(),
            values: Vec::new(),
            open: None,
        }
    }

    /// The next tensor; with a `scale` every entry is that, or its negative.
    ///
    /// # Errors
    /// If the tensor before it has not had all its numbers.
    pub fn begin(&mut self, name: &str, dims: &[usize], scale: Option<f32>) -> Result<()> {
        self.end()?;
        let len = dims.iter().product();
        let masks =
            if self.codec == Codec::Bitmask { vec![0; 2 * usize::div_ceil(len, 8)] } else { Vec::new() };
        self.tensors.push((name.to_owned(), dims.to_vec()));
        self.counts.push(0);
        self.scales.extend(scale);
        self.open = Some(Open { len, seen: 0, next: 0, scale, bits: BitWriter::default(), bytes: masks });
        Ok(())
    }

    /// The next numbers of the tensor.
    ///
    /// # Errors
    /// If there are too many, or an entry is not of the scale's size.
    pub fn push(&mut self, numbers: &[f64]) -> Result<()> {
        let (Some(open), Some(count)) = (&mut self.open, self.counts.last_mut()) else {
            bail!("numbers of no tensor")
        };
        ensure!(open.seen + numbers.len() <= open.len, "more numbers than the tensor has");
        for (i, x) in numbers.iter().enumerate().filter(|(_, x)| **x != 0.0) {
            let position = open.seen + i;
            let negative = *x < 0.0;
            match open.scale {
                Some(s) => ensure!(x.abs() == f64::from(s.abs()), "{x} is neither 0 nor ±{s}"),
                None => self.values.push(*x as f32),
            }
            let negative = negative != open.scale.is_some_and(|s| s < 0.0);
            match self.codec {
                Codec::Golomb => {
                    open.bits.gap((position - open.next) as u64, self.parameter);
                    open.bits.put(negative);
                }
                Codec::Bitmask => {
                    let from = if negative { open.len.div_ceil(8) } else { 0 };
                    open.bytes[from + position / 8] |= 1 << (position % 8);
                }
                Codec::Raw => {
                    let code = ((position as u64) << 1 | u64::from(negative)).to_le_bytes();
                    open.bytes.extend(&code[..raw_width(open.len)]);
                }
            }
            open.next = position + 1;
            *count += 1;
        }
        open.seen += numbers.len();
        Ok(())
    }

    fn end(&mut self) -> Result<()> {
        let Some(open) = self.open.take() else { return Ok(()) };
        ensure!(open.seen == open.len, "a tensor of {} numbers had {}", open.len, open.seen);
        self.codes.extend(if self.codec == Codec::Golomb { open.bits.bytes() } else { open.bytes });
        self.offsets.push(self.codes.len() as u64);
        Ok(())
    }

    /// Entries so far that are not zero.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Writes the file; returns its bytes.
    ///
    /// # Errors
    /// [`crate::DiskError`]; if some tensors have a scale and others have none.
    pub fn finish(mut self, path: impl AsRef<Path>) -> Result<u64> {
        self.end()?;
        let count = self.tensors.len();
        let raw = |dtype, shape: usize, bytes: &[u8]| Data::Raw {
            dtype,
            shape: vec![shape],
            bytes: bytes.to_vec(),
        };
        let mut tensors = vec![
            ("codes".to_owned(), raw(Dtype::U8, self.codes.len(), &self.codes)),
            ("offsets".to_owned(), raw(Dtype::U64, count + 1, bytemuck::cast_slice(&self.offsets))),
            ("counts".to_owned(), raw(Dtype::U64, count, bytemuck::cast_slice(&self.counts))),
        ];
        if self.scales.is_empty() {
            tensors.push((
                "values".to_owned(),
                raw(Dtype::F32, self.values.len(), bytemuck::cast_slice(&self.values)),
            ));
        } else {
            ensure!(
                self.values.is_empty() && self.scales.len() == count,
                "some tensors have a scale, others none"
            );
            if self.scales.iter().all(|s| *s == self.scales[0]) {
                self.scales.truncate(1);
            }
            tensors.push((
                "scales".to_owned(),
                raw(Dtype::F32, self.scales.len(), bytemuck::cast_slice(&self.scales)),
            ));
        }
        let list = json!(self.tensors).to_string();
        let extra = self.extra.to_string();
        let parameter = self.parameter.to_string();
        let metadata = [
            ("format", FORMAT),
            ("version", "1"),
            ("codec", self.codec.name()),
            ("golomb_parameter", &parameter),
            ("base", &self.base.label),
            ("base_sha256", &self.base.sha256),
            ("tensors", &list),
            ("extra", &extra),
        ];
        write_safetensors(path.as_ref(), &tensors, &metadata)?;
        Ok(std::fs::metadata(path)?.len())
    }
}
