//! Compressed adapters: `adapter_delta.safetensors` in the place of `adapter_model.safetensors`.
//!
//! Its numbers are counted from zeros, from ones, or from the adapter's own initial values, which are drawn
//! again from the seed and the owner that are noted.

use std::collections::HashMap;
use std::path::Path;

use anyhow::{Context, Result};
use ramekin_core::{Array, Category, DType, UserError};
use ramekin_slots::{Adapter, WeightInfo, WeightSource};
use ramekin_store::delta::Delta;

use crate::blueprint::Blueprint;
use crate::digest;

/// The file's name in an adapter's folder.
pub const FILE: &str = "adapter_delta.safetensors";

/// A compressed adapter's file.
pub struct Sparse {
    delta: Delta,
}

impl Sparse {
    /// The file of a folder, if there is one and no dense one.
    ///
    /// # Errors
    /// If it is damaged.
    pub fn find(folder: &Path) -> Result<Option<Self>> {
        let file = folder.join(FILE);
        if folder.join("adapter_model.safetensors").exists() || !file.exists() {
            return Ok(None);
        }
        Ok(Some(Sparse { delta: Delta::open(&file)? }))
    }

    /// Seed and owner of the initial values, where numbers are counted from them.
    pub fn start(&self) -> Option<(u64, String)> {
        let extra = &self.delta.extra;
        (extra["reference"] == "start").then_some(())?;
        Some((extra["seed"].as_u64()?, extra["owner"].as_str()?.to_owned()))
    }

    /// Refuses another base than the one it was made for.
    ///
    /// # Errors
    /// [`UserError`] with both digests.
    pub fn check_base(&self, plan: &Blueprint) -> Result<()> {
        if self.delta.base.sha256.is_empty() {
            return Ok(());
        }
        let (origin, config) = plan.config()?;
        let found = digest::tensors(&mut *plan.weights(&origin, &config)?)?;
        if found == self.delta.base.sha256 {
            return Ok(());
        }
        let (made, here) = (short(&self.delta.base.sha256), short(&found));
        Err(UserError::new(format!(
            "the compressed adapter was made for the base `{}` with digest {made}; `{}` has {here}",
            self.delta.base.label, plan.model.source
        ))
        .in_file(self.delta.path())
        .help("attach it to the base it was made for")
        .into())
    }

    /// The adapter's tensors; `adapter` is attached and still as it was drawn.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn source(&self, adapter: &dyn Adapter) -> Result<Expanded> {
        let drawn: HashMap<String, Array> = adapter.file("")?.tensors.into_iter().collect();
        let reference = self.delta.extra["reference"].as_str().unwrap_or_default().to_owned();
        let mut tensors = Vec::new();
        for (name, dims) in self.delta.tensors() {
            let Some(start) = drawn.get(name).filter(|a| a.dims() == dims) else {
                let what = format!("the tensor `{name}` {dims:?} fits nothing in this model");
                return Err(UserError::new(what).in_file(self.delta.path()).into());
            };
            let mut numbers: Vec<f64> = match reference.as_str() {
                "start" => start.to_f32()?.into_iter().map(f64::from).collect(),
                "one" => vec![1.0; start.len()],
                _ => vec![0.0; start.len()],
            };
            let mut delta = vec![0.0; numbers.len()];
            self.delta.entries(name)?.context("a tensor that is listed")?.fill(0, &mut delta)?;
            numbers.iter_mut().zip(&delta).for_each(|(x, d)| *x += d);
            let numbers: Vec<f32> = numbers.into_iter().map(|x| x as f32).collect();
            tensors.push((name.clone(), Array::from_vec(numbers, dims, Category::Workspace)?));
        }
        Ok(Expanded { tensors, label: self.delta.path().display().to_string() })
    }
}

/// A digest's beginning, for messages.
pub fn short(sha: &str) -> &str {
    sha.get(..12).unwrap_or(sha)
}

/// Tensors in memory.
pub struct Expanded {
    /// By name.
    pub tensors: Vec<(String, Array)>,
    /// For messages.
    pub label: String,
}

impl WeightSource for Expanded {
    fn info(&self, name: &str) -> Option<WeightInfo> {
        let (_, array) = self.tensors.iter().find(|(n, _)| n == name)?;
        Some(WeightInfo { dims: array.dims().to_vec(), dtype: DType::F32 })
    }

    fn read(&mut self, name: &str, _: &[usize]) -> Result<Array> {
        let found = self.tensors.iter().position(|(n, _)| n == name).context("no such tensor")?;
        Ok(self.tensors[found].1.clone())
    }

    fn names(&self) -> Vec<String> {
        self.tensors.iter().map(|(n, _)| n.clone()).collect()
    }

    fn label(&self) -> String {
        self.label.clone()
    }
}
