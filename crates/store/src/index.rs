//! Reading tensors one at a time from a file or a sharded model.
//!
//! Opening reads headers only. Reading copies a tensor's bytes from its offset
//! into memory of its own (no mapping), so that resident memory is what is held.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::fs::{self, File};
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result};
use bytemuck::Pod;
use candle_core::{DType, Device, Tensor, WithDType};
use half::{bf16, f16};
use ramekin_core::{UserError, suggest};
use safetensors::Dtype;
use serde::de::{self, Deserialize, Deserializer, MapAccess, Visitor};

use crate::header::{Header, TensorInfo};

const SINGLE: &str = "model.safetensors";
const SHARDED: &str = "model.safetensors.index.json";

/// The tensors of a model, by name, wherever their files are.
pub struct Index {
    root: PathBuf,
    files: Vec<File>,
    tensors: BTreeMap<String, (usize, TensorInfo)>,
    metadata: BTreeMap<String, String>,
    unlisted: Vec<String>,
}

impl Index {
    /// Opens a `.safetensors` file, an `.index.json`, or a folder with
    /// `model.safetensors`, with `model.safetensors.index.json`, or with exactly
    /// one `.safetensors` file (looked for in this order, as transformers does).
    ///
    /// # Errors
    /// [`UserError`] naming file and tensor if something is missing, broken or lies.
    pub fn open(path: impl AsRef<Path>) -> Result<Index> {
        let path = path.as_ref();
        let file = if path.is_dir() { find(path)? } else { path.to_owned() };
        if file.extension().is_some_and(|e| e == "json") {
            Self::open_sharded(&file)
        } else {
            Self::open_single(&file)
        }
    }

    fn open_single(path: &Path) -> Result<Index> {
        let (file, header) = open_file(path)?;
        let tensors = header.tensors.into_iter().map(|(n, t)| (n, (0, t))).collect();
        Ok(Index {
            root: path.to_owned(),
            files: vec![file],
            tensors,
            metadata: header.metadata,
            unlisted: Vec::new(),
        })
    }

    fn open_sharded(path: &Path) -> Result<Index> {
        let text = fs::read(path)
            .map_err(|e| UserError::new(format!("cannot read the index: {e}")).in_file(path))?;
        let map: ShardIndex = serde_json::from_slice(&text)
            .map_err(|e| UserError::new(format!("cannot understand the index: {e}")).in_file(path))?;
        let folder = path.parent().unwrap_or(Path::new("."));
        let mut index = Index {
            root: path.to_owned(),
            files: Vec::new(),
            tensors: BTreeMap::new(),
            metadata: BTreeMap::new(),
            unlisted: Vec::new(),
        };
        let lies = |what: String| UserError::new(format!("the index lies: {what}")).in_file(path);
        // File by file, so that each header is read once.
        let mut by_file: BTreeMap<String, HashSet<String>> = BTreeMap::new();
        for (tensor, file) in map.weight_map.0 {
            by_file.entry(file).or_default().insert(tensor);
        }
        for (name, mut wanted) in by_file {
            let mut parts = Path::new(&name).components();
            let plain = matches!(parts.next(), Some(Component::Normal(_))) && parts.next().is_none();
            if !plain {
                let what = format!("`{name}` is no name of a file beside it");
                return Err(lies(what).into());
            }
            let shard = folder.join(&name);
            if !shard.is_file() {
                let some = wanted.iter().min().cloned().unwrap_or_default();
                let what = format!("`{name}`, which should hold `{some}`, is not there");
                return Err(lies(what).help("fetch the missing file").into());
            }
            let (file, header) = open_file(&shard)?;
            let at = index.files.len();
            index.files.push(file);
            index.metadata.extend(header.metadata);
            for (tensor, info) in header.tensors {
                if wanted.remove(&tensor) {
                    index.tensors.insert(tensor, (at, info));
                } else {
                    index.unlisted.push(tensor);
                }
            }
            if let Some(tensor) = wanted.iter().min() {
                return Err(lies(format!("`{name}` does not hold tensor `{tensor}`")).into());
            }
        }
        Ok(index)
    }

    /// The file that was opened: the safetensors file or the index.
    pub fn path(&self) -> &Path {
        &self.root
    }

    /// All names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// How many tensors there are.
    pub fn len(&self) -> usize {
        self.tensors.len()
    }

    /// Whether there is no tensor at all.
    pub fn is_empty(&self) -> bool {
        self.tensors.is_empty()
    }

    /// Whether there is a tensor of this name.
    pub fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// Bytes of all tensors.
    pub fn total_bytes(&self) -> u64 {
        self.tensors.values().map(|(_, t)| t.bytes).sum()
    }

    /// The `__metadata__` of the file, or of all shards together.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// Tensors that lie in a shard without being in the index; they are not read.
    pub fn unlisted(&self) -> &[String] {
        &self.unlisted
    }

    /// Where a tensor lies and what it is.
    ///
    /// # Errors
    /// [`UserError`] with the nearest name if there is none of this name.
    pub fn tensor_info(&self, name: &str) -> Result<&TensorInfo> {
        Ok(&self.find(name)?.1)
    }

    fn find(&self, name: &str) -> Result<&(usize, TensorInfo)> {
        self.tensors.get(name).ok_or_else(|| {
            let error = UserError::new(format!("there is no tensor `{name}`")).in_file(&self.root);
            match suggest(name, self.names()) {
                Some(near) => error.help(format!("the nearest name is `{near}`")).into(),
                None => error.into(),
            }
        })
    }

    /// Copies `out.len()` bytes of a tensor, from `start` bytes into it.
    ///
    /// # Errors
    /// If there is no such tensor or range, or the file has shrunk since it was opened.
    pub fn read_into(&self, name: &str, start: u64, out: &mut [u8]) -> Result<()> {
        let (file, info) = self.find(name)?;
        let end = start.checked_add(out.len() as u64);
        anyhow::ensure!(
            end.is_some_and(|e| e <= info.bytes),
            "tensor `{name}` has {} bytes, not {start} + {}",
            info.bytes,
            out.len()
        );
        read_at(&self.files[*file], out, info.offset + start)
            .with_context(|| format!("cannot read tensor `{name}` of `{}`", info.file.display()))
    }

    /// A tensor's bytes as they are stored.
    ///
    /// # Errors
    /// As [`Index::read_into`].
    pub fn read_bytes(&self, name: &str) -> Result<Vec<u8>> {
        self.read_vec(name)
    }

    fn read_vec<T: Pod>(&self, name: &str) -> Result<Vec<T>> {
        let bytes = self.find(name)?.1.bytes as usize;
        let mut data = vec![T::zeroed(); bytes / size_of::<T>()];
        self.read_into(name, 0, bytemuck::cast_slice_mut(&mut data))?;
        Ok(data)
    }

    /// A tensor in its stored dtype, on the CPU; `BOOL` comes as `U8`.
    ///
    /// # Errors
    /// As [`Index::read_into`]; [`UserError`] if candle has no such dtype.
    pub fn read(&self, name: &str) -> Result<Tensor> {
        match self.find(name)?.1.dtype {
            Dtype::U8 | Dtype::BOOL => self.read_as::<u8>(name),
            Dtype::U32 => self.read_as::<u32>(name),
            Dtype::I16 => self.read_as::<i16>(name),
            Dtype::I32 => self.read_as::<i32>(name),
            Dtype::I64 => self.read_as::<i64>(name),
            Dtype::BF16 => self.read_as::<bf16>(name),
            Dtype::F16 => self.read_as::<f16>(name),
            Dtype::F32 => self.read_as::<f32>(name),
            Dtype::F64 => self.read_as::<f64>(name),
            Dtype::F8_E4M3 => {
                let shape = &self.find(name)?.1.shape;
                let bytes = self.read_bytes(name)?;
                Ok(Tensor::from_raw_buffer(&bytes, DType::F8E4M3, shape, &Device::Cpu)?)
            }
            other => Err(self.unreadable(name, other, "a tensor")),
        }
    }

    fn read_as<T: Pod + WithDType>(&self, name: &str) -> Result<Tensor> {
        let shape = self.find(name)?.1.shape.as_slice();
        Ok(Tensor::from_vec(self.read_vec::<T>(name)?, shape, &Device::Cpu)?)
    }

    fn unreadable(&self, name: &str, dtype: Dtype, wanted: &str) -> anyhow::Error {
        UserError::new(format!("tensor `{name}` has dtype {dtype}, which cannot be read as {wanted}"))
            .in_file(&self.root)
            .into()
    }

    /// A tensor's numbers as f32, row-major; of F32, BF16, F16 and F64 tensors.
    /// Needs no second copy beyond a tile.
    ///
    /// # Errors
    /// As [`Index::read_into`]; [`UserError`] for another dtype.
    pub fn read_f32(&self, name: &str) -> Result<Vec<f32>> {
        match self.find(name)?.1.dtype {
            Dtype::F32 => self.read_vec::<f32>(name),
            Dtype::BF16 => self.convert::<bf16>(name, bf16::to_f32),
            Dtype::F16 => self.convert::<f16>(name, f16::to_f32),
            Dtype::F64 => self.convert::<f64>(name, |x| x as f32),
            other => Err(self.unreadable(name, other, "floats")),
        }
    }

    fn convert<T: Pod>(&self, name: &str, to_f32: impl Fn(T) -> f32) -> Result<Vec<f32>> {
        const TILE: usize = 1 << 16;
        let count = self.find(name)?.1.len();
        let mut out = Vec::with_capacity(count);
        let mut tile = vec![T::zeroed(); TILE.min(count)];
        while out.len() < count {
            let n = tile.len().min(count - out.len());
            let start = (out.len() * size_of::<T>()) as u64;
            self.read_into(name, start, bytemuck::cast_slice_mut(&mut tile[..n]))?;
            out.extend(tile[..n].iter().map(|x| to_f32(*x)));
        }
        Ok(out)
    }
}

fn open_file(path: &Path) -> Result<(File, Header)> {
    let file = File::open(path)
        .map_err(|e| UserError::new(format!("`{}` cannot be opened: {e}", path.display())).in_file(path))?;
    let header = Header::read_open(path, &file)?;
    Ok((file, header))
}

/// The file of a folder to begin with.
fn find(folder: &Path) -> Result<PathBuf> {
    for name in [SINGLE, SHARDED] {
        if folder.join(name).is_file() {
            return Ok(folder.join(name));
        }
    }
    let mut all: Vec<PathBuf> = fs::read_dir(folder)
        .with_context(|| format!("cannot list `{}`", folder.display()))?
        .filter_map(|e| Some(e.ok()?.path()))
        .collect();
    all.sort();
    let weights = |p: &&PathBuf| p.extension().is_some_and(|e| e == "safetensors");
    let mut found = all.iter().filter(weights);
    if let (Some(one), None) = (found.next(), found.next()) {
        return Ok(one.clone());
    }
    let names: Vec<_> = all
        .iter()
        .filter_map(|p| p.file_name())
        .map(|n| format!("`{}`", n.to_string_lossy()))
        .take(12)
        .collect();
    let there = if names.is_empty() { "nothing".into() } else { names.join(", ") };
    Err(UserError::new(format!("neither `{SINGLE}` nor `{SHARDED}` is there, but {there}"))
        .in_file(folder)
        .into())
}

#[cfg(unix)]
fn read_at(file: &File, out: &mut [u8], offset: u64) -> std::io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, out, offset)
}

#[cfg(windows)]
fn read_at(file: &File, mut out: &mut [u8], mut offset: u64) -> std::io::Result<()> {
    while !out.is_empty() {
        let n = std::os::windows::fs::FileExt::seek_read(file, out, offset)?;
        if n == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        (out, offset) = (&mut out[n..], offset + n as u64);
    }
    Ok(())
}

#[derive(serde::Deserialize)]
struct ShardIndex {
    weight_map: WeightMap,
}

/// Tensor name and file of each entry; a name that is there twice is refused.
struct WeightMap(BTreeMap<String, String>);

impl<'de> Deserialize<'de> for WeightMap {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = WeightMap;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object with a file name for each tensor")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<WeightMap, A::Error> {
                let mut out = BTreeMap::new();
                while let Some((tensor, file)) = map.next_entry::<String, String>()? {
                    if let Some(before) = out.insert(tensor.clone(), file) {
                        let what = format!("`{tensor}` is there twice, first in `{before}`");
                        return Err(de::Error::custom(what));
                    }
                }
                Ok(WeightMap(out))
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

#[cfg(test)]
#[path = "index_tests.rs"]
mod tests;
