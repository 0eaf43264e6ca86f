//! A model's tensors piece by piece, as f64.

use std::ops::Range;

use anyhow::{Context, Result};
use candle_core::DType;
use half::{bf16, f16};
use ramekin_core::UserError;
use ramekin_slots::{WeightInfo, WeightSource};
use ramekin_store::{Dtype, Index};

use crate::inputs::Origin;
use crate::source::{FileSource, MemorySource};

/// Where pieces come from.
pub enum Reader {
    /// Files, read where the piece lies.
    File(Index),
    /// The binary.
    Memory(MemorySource),
}

impl Reader {
    /// The tensors of a model's folder or of a built-in model.
    ///
    /// # Errors
    /// If there are none, or only fresh ones.
    pub fn open(origin: &Origin) -> Result<Self> {
        match origin {
            Origin::Folder(folder) => Ok(Reader::File(Index::open(folder)?)),
            Origin::Builtin(b) => {
                let bytes = b.file("model.safetensors").context("a built-in model without weights")?;
                Ok(Reader::Memory(MemorySource::from_bytes(bytes, &format!("builtin:{}", b.name))?))
            }
            Origin::Init => {
                Err(UserError::new("fresh weights are no base: nothing was tuned from them").into())
            }
        }
    }

    /// Every name, sorted.
    pub fn names(&self) -> Vec<String> {
        match self {
            Reader::File(index) => index.names().map(str::to_owned).collect(),
            Reader::Memory(memory) => memory.names(),
        }
    }

    /// Shape and type of a tensor.
    pub fn info(&self, name: &str) -> Option<WeightInfo> {
        match self {
            Reader::File(index) => FileSource::info_of(index, name),
            Reader::Memory(memory) => memory.info(name),
        }
    }

    /// Where this is, for messages.
    pub fn label(&self) -> String {
        match self {
            Reader::File(index) => index.path().display().to_string(),
            Reader::Memory(memory) => memory.label(),
        }
    }

    /// The numbers of a tensor in this range.
    ///
    /// # Errors
    /// [`UserError`] if they are no floats, or not all are finite.
    pub fn piece(&self, name: &str, range: Range<usize>) -> Result<Vec<f64>> {
        let found = match self {
            Reader::File(index) => file_piece(index, name, range)?,
            Reader::Memory(memory) => memory.piece(name, range)?,
        };
        let Some(numbers) = found else {
            return Err(UserError::new(format!("the tensor `{name}` holds no floats"))
                .in_file(self.label())
                .help("packed weights cannot be merged: merge first, quantise the result")
                .into());
        };
        finite(name, &self.label(), &numbers)?;
        Ok(numbers)
    }
}

/// Refuses numbers that are not finite.
pub fn finite(name: &str, label: &str, numbers: &[f64]) -> Result<()> {
    if numbers.iter().all(|x| x.is_finite()) {
        return Ok(());
    }
    Err(UserError::new(format!("the tensor `{name}` holds numbers that are not finite"))
        .in_file(label)
        .help("the file is damaged or the training that wrote it diverged")
        .into())
}

fn file_piece(index: &Index, name: &str, range: Range<usize>) -> Result<Option<Vec<f64>>> {
    fn read<T: bytemuck::Pod + Into<f64>>(
        index: &Index,
        name: &str,
        range: Range<usize>,
    ) -> Result<Vec<f64>> {
        let mut raw = vec![T::zeroed(); range.len()];
        index.read_into(name, (range.start * size_of::<T>()) as u64, bytemuck::cast_slice_mut(&mut raw))?;
        Ok(raw.into_iter().map(Into::into).collect())
    }
    Ok(Some(match index.tensor_info(name)?.dtype {
        Dtype::F32 => read::<f32>(index, name, range)?,
        Dtype::F64 => read::<f64>(index, name, range)?,
        Dtype::BF16 => read::<bf16>(index, name, range)?,
        Dtype::F16 => read::<f16>(index, name, range)?,
        _ => return Ok(None),
    }))
}

impl MemorySource {
    fn piece(&self, name: &str, range: Range<usize>) -> Result<Option<Vec<f64>>> {
        let tensor = self.tensor(name)?;
        if !matches!(tensor.dtype(), DType::F32 | DType::F64 | DType::BF16 | DType::F16) {
            return Ok(None);
        }
        let flat = tensor.flatten_all()?.narrow(0, range.start, range.len())?;
        Ok(Some(flat.to_dtype(DType::F64)?.to_vec1()?))
    }
}
