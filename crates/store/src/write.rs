//! Writing safetensors, one tensor at a time.
//!
//! Tensors lie in the order of the public library (widest dtype first, then by
//! name) behind a header padded to 8 bytes, so that every tensor is aligned.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use candle_core::{CpuStorage, DType, Device, Storage, Tensor};
use ramekin_core::Array;
use safetensors::Dtype;
use serde_json::{Map, json};

use crate::disk::{Disk, FileWriter};

/// The metadata of files that `save_pretrained` writes.
pub const PT: &[(&str, &str)] = &[("format", "pt")];

/// The numbers of one tensor.
#[derive(Clone, Debug)]
pub enum Data {
    /// A candle tensor, written in its own dtype.
    Tensor(Tensor),
    /// Bytes as they go to disk.
    Raw {
        /// Their number type.
        dtype: Dtype,
        /// Dimensions, outermost first.
        shape: Vec<usize>,
        /// `dtype × shape` bytes, little endian.
        bytes: Vec<u8>,
    },
}

impl From<Tensor> for Data {
    fn from(tensor: Tensor) -> Data {
        Data::Tensor(tensor)
    }
}

impl From<&Tensor> for Data {
    fn from(tensor: &Tensor) -> Data {
        Data::Tensor(tensor.clone())
    }
}

impl From<&Array> for Data {
    fn from(array: &Array) -> Data {
        Data::Tensor(array.tensor().clone())
    }
}

/// Name, dtype and shape of a tensor still to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spec {
    /// Its name in the file.
    pub name: String,
    /// Its number type in the file.
    pub dtype: Dtype,
    /// Dimensions, outermost first.
    pub shape: Vec<usize>,
}

impl Spec {
    /// What `data` is, under this name.
    ///
    /// # Errors
    /// If safetensors has no such dtype, or raw bytes do not fill their shape.
    pub fn of(name: &str, data: &Data) -> Result<Spec> {
        let spec = match data {
            Data::Tensor(t) => Spec {
                name: name.to_owned(),
                dtype: to_stored(t.dtype())
                    .with_context(|| format!("tensor `{name}` of {:?} cannot be written", t.dtype()))?,
                shape: t.dims().to_vec(),
            },
            Data::Raw { dtype, shape, bytes } => {
                let spec = Spec { name: name.to_owned(), dtype: *dtype, shape: shape.clone() };
                let wanted = spec.bytes()?;
                ensure!(
                    wanted == bytes.len() as u64,
                    "tensor `{name}`, {dtype} {shape:?}, needs {wanted} bytes, not {}",
                    bytes.len()
                );
                spec
            }
        };
        Ok(spec)
    }

    /// Its size in bytes.
    ///
    /// # Errors
    /// If the numbers do not fill whole bytes or cannot be counted.
    pub fn bytes(&self) -> Result<u64> {
        self.shape
            .iter()
            .try_fold(self.dtype.bitsize() as u64, |n, d| n.checked_mul(*d as u64))
            .filter(|bits| bits % 8 == 0)
            .map(|bits| bits / 8)
            .with_context(|| {
                format!("tensor `{}`, {} {:?}, has no size in bytes", self.name, self.dtype, self.shape)
            })
    }
}

/// The safetensors name of a candle dtype, if it has one.
pub fn to_stored(dtype: DType) -> Option<Dtype> {
    Some(match dtype {
        DType::U8 => Dtype::U8,
        DType::U32 => Dtype::U32,
        DType::I16 => Dtype::I16,
        DType::I32 => Dtype::I32,
        DType::I64 => Dtype::I64,
        DType::BF16 => Dtype::BF16,
        DType::F16 => Dtype::F16,
        DType::F32 => Dtype::F32,
        DType::F64 => Dtype::F64,
        DType::F8E4M3 => Dtype::F8_E4M3,
        _ => return None,
    })
}

/// Writes one safetensors file whole: aside, synced, renamed into place.
///
/// # Errors
/// [`crate::DiskError`] with path and bytes needed; a duplicate name; a dtype
/// that safetensors does not have.
pub fn write_safetensors(
    path: impl AsRef<Path>,
    tensors: &[(String, Data)],
    metadata: &[(&str, &str)],
) -> Result<()> {
    let path = path.as_ref();
    crate::atomic::write_file_on(&Disk::default(), path, |w| stream(w, tensors, metadata))
}

/// Writes a model into `dir` as `model.safetensors`, or, beyond
/// `max_shard_bytes`, as `model-0000i-of-0000N.safetensors` with
/// `model.safetensors.index.json`. Shards are filled in the order of `specs`
/// (a tensor larger than a shard gets one of its own); `produce` is asked for
/// each tensor when its turn comes, so that one at a time is in memory.
/// Returns the names of the files.
///
/// # Errors
/// As [`write_safetensors`]; what `produce` returns; a tensor that is not what its spec says.
pub fn write_sharded(
    dir: impl AsRef<Path>,
    specs: &[Spec],
    max_shard_bytes: u64,
    metadata: &[(&str, &str)],
    mut produce: impl FnMut(&str) -> Result<Data>,
) -> Result<Vec<String>> {
    let dir = dir.as_ref();
    let mut shards: Vec<Vec<&Spec>> = vec![Vec::new()];
    let (mut filled, mut total) = (0u64, 0u64);
    for spec in specs {
        let bytes = spec.bytes()?;
        if filled > 0 && filled.saturating_add(bytes) > max_shard_bytes {
            shards.push(Vec::new());
            filled = 0;
        }
        filled += bytes;
        total += bytes;
        shards.last_mut().context("no shard")?.push(spec);
    }
    let mut files = Vec::new();
    let mut weight_map = BTreeMap::new();
    let disk = Disk::default();
    for (i, shard) in shards.iter().enumerate() {
        let file = match shards.len() {
            1 => "model.safetensors".to_owned(),
            n => format!("model-{:05}-of-{n:05}.safetensors", i + 1),
        };
        crate::atomic::write_file_on(&disk, &dir.join(&file), |w| {
            stream_specs(w, shard, metadata, |name| produce(name).map(Kept::Own))
        })?;
        for spec in shard {
            let twice = weight_map.insert(spec.name.as_str(), file.clone());
            ensure!(twice.is_none(), "there are two tensors `{}` to write", spec.name);
        }
        files.push(file);
    }
    if shards.len() > 1 {
        let index = json!({"metadata": {"total_size": total}, "weight_map": weight_map});
        let name = "model.safetensors.index.json";
        crate::atomic::write_atomic(dir.join(name), &serde_json::to_vec_pretty(&index)?)?;
        files.push(name.to_owned());
    }
    Ok(files)
}

/// Writes tensors that are already in memory.
pub(crate) fn stream(
    w: &mut FileWriter,
    tensors: &[(String, Data)],
    metadata: &[(&str, &str)],
) -> Result<()> {
    let specs: Vec<Spec> = tensors.iter().map(|(n, d)| Spec::of(n, d)).collect::<Result<_>>()?;
    let by_name: BTreeMap<&str, &Data> = tensors.iter().map(|(n, d)| (n.as_str(), d)).collect();
    stream_specs(w, &specs.iter().collect::<Vec<_>>(), metadata, |name| {
        by_name.get(name).map(|d| Kept::Lent(d)).context("no such tensor")
    })
}

/// Writes tensors that are made when their turn comes.
pub(crate) fn stream_as_made(
    w: &mut FileWriter,
    specs: &[Spec],
    mut produce: impl FnMut(&str) -> Result<Data>,
) -> Result<()> {
    stream_specs(w, &specs.iter().collect::<Vec<_>>(), &[], |name| produce(name).map(Kept::Own))
}

enum Kept<'a> {
    Own(Data),
    Lent(&'a Data),
}

fn stream_specs<'a>(
    w: &mut FileWriter,
    specs: &[&Spec],
    metadata: &[(&str, &str)],
    mut produce: impl FnMut(&str) -> Result<Kept<'a>>,
) -> Result<()> {
    let mut sorted = specs.to_vec();
    sorted.sort_by(|a, b| b.dtype.cmp(&a.dtype).then_with(|| a.name.cmp(&b.name)));
    let mut header = Map::new();
    if !metadata.is_empty() {
        let texts: Map<_, _> = metadata.iter().map(|(k, v)| ((*k).into(), json!(v))).collect();
        header.insert("__metadata__".into(), texts.into());
    }
    let (mut offset, mut names) = (0u64, HashSet::new());
    for spec in &sorted {
        ensure!(names.insert(&spec.name), "there are two tensors `{}` to write", spec.name);
        ensure!(spec.name != "__metadata__", "no tensor may be called `__metadata__`");
        let end = offset + spec.bytes()?;
        let entry = json!({
            "dtype": spec.dtype.to_string(), "shape": spec.shape, "data_offsets": [offset, end],
        });
        header.insert(spec.name.clone(), entry);
        offset = end;
    }
    let mut text = serde_json::to_vec(&header)?;
    text.resize(text.len().next_multiple_of(8), b' ');
    w.put(&(text.len() as u64).to_le_bytes())?;
    w.put(&text)?;
    for spec in sorted {
        let kept = produce(&spec.name)?;
        let data = match &kept {
            Kept::Own(data) => data,
            Kept::Lent(data) => data,
        };
        let made = Spec::of(&spec.name, data)?;
        ensure!(
            made == *spec,
            "tensor `{}` was announced as {} {:?} and came as {} {:?}",
            spec.name,
            spec.dtype,
            spec.shape,
            made.dtype,
            made.shape
        );
        put_data(w, data)?;
    }
    Ok(())
}

fn put_data(w: &mut FileWriter, data: &Data) -> Result<()> {
    let tensor = match data {
        Data::Raw { bytes, .. } => return Ok(w.put(bytes)?),
        Data::Tensor(tensor) => tensor.to_device(&Device::Cpu)?.contiguous()?,
    };
    let (storage, layout) = tensor.storage_and_layout();
    let Storage::Cpu(storage) = &*storage else { anyhow::bail!("a tensor did not come to the CPU") };
    let range = layout.start_offset()..layout.start_offset() + tensor.elem_count();
    // The bytes of this tensor's part of a storage that may be larger.
    macro_rules! put {
        ($v:expr) => {
            w.put(bytemuck::cast_slice(&$v[range]))?
        };
    }
    match storage {
        CpuStorage::U8(v) => put!(v),
        CpuStorage::U32(v) => put!(v),
        CpuStorage::I16(v) => put!(v),
        CpuStorage::I32(v) => put!(v),
        CpuStorage::I64(v) => put!(v),
        CpuStorage::BF16(v) => put!(v),
        CpuStorage::F16(v) => put!(v),
        CpuStorage::F32(v) => put!(v),
        CpuStorage::F64(v) => put!(v),
        CpuStorage::F8E4M3(v) => {
            w.put(&v[range].iter().map(|x| x.to_bits()).collect::<Vec<u8>>())?;
        }
        _ => anyhow::bail!("a tensor of {:?} cannot be written", tensor.dtype()),
    }
    Ok(())
}

#[cfg(test)]
#[path = "write_tests.rs"]
mod tests;
