//! Weight sources over files.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result};
use candle_core::Tensor;
use ramekin_core::{Array, Category};
use ramekin_slots::{WeightInfo, WeightSource};
use ramekin_store::Index;

/// The tensors of a safetensors file or of a folder with a (sharded) model.
pub struct FileSource {
    index: Index,
}

impl FileSource {
    /// Opens headers only.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        Ok(FileSource { index: Index::open(path)? })
    }

    /// Bytes of all tensors.
    pub fn bytes(&self) -> u64 {
        self.index.total_bytes()
    }

    /// What an index holds under a name.
    pub fn info_of(index: &Index, name: &str) -> Option<WeightInfo> {
        if !index.contains(name) {
            return None;
        }
        let info = index.tensor_info(name).ok()?;
        let dtype = candle_core::DType::try_from(info.dtype).ok()?;
        Some(WeightInfo { dims: info.shape.clone(), dtype })
    }
}

impl WeightSource for FileSource {
    fn info(&self, name: &str) -> Option<WeightInfo> {
        Self::info_of(&self.index, name)
    }

    fn read(&mut self, name: &str, _dims: &[usize]) -> Result<Array> {
        Array::from_tensor(self.index.read(name)?, Category::Workspace)
    }

    fn names(&self) -> Vec<String> {
        self.index.names().map(str::to_owned).collect()
    }

    fn label(&self) -> String {
        self.index.path().display().to_string()
    }
}

/// Tensors that are in memory already, such as the built-in model's.
pub struct MemorySource {
    tensors: BTreeMap<String, Tensor>,
    label: String,
}

impl MemorySource {
    /// Reads a whole safetensors file from bytes.
    pub fn from_bytes(bytes: &[u8], label: &str) -> Result<Self> {
        let tensors = candle_core::safetensors::load_buffer(bytes, &candle_core::Device::Cpu)
            .with_context(|| format!("`{label}` is damaged"))?;
        Ok(MemorySource { tensors: tensors.into_iter().collect(), label: label.to_owned() })
    }

    /// A tensor.
    ///
    /// # Errors
    /// If there is none of this name.
    pub fn tensor(&self, name: &str) -> Result<&Tensor> {
        self.tensors.get(name).with_context(|| format!("`{}` has no `{name}`", self.label))
    }

    /// Bytes of all tensors.
    pub fn bytes(&self) -> u64 {
        self.tensors.values().map(|t| (t.elem_count() * t.dtype().size_in_bytes()) as u64).sum()
    }
}

impl WeightSource for MemorySource {
    fn info(&self, name: &str) -> Option<WeightInfo> {
        self.tensors.get(name).map(|t| WeightInfo { dims: t.dims().to_vec(), dtype: t.dtype() })
    }

    fn read(&mut self, name: &str, _dims: &[usize]) -> Result<Array> {
        Array::from_tensor(self.tensor(name)?.copy()?, Category::Workspace)
    }

    fn names(&self) -> Vec<String> {
        self.tensors.keys().cloned().collect()
    }

    fn label(&self) -> String {
        self.label.clone()
    }
}
