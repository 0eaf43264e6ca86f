//! Adapters that were saved: their configs, their tensors, and the heads that objectives left among them.

use std::path::Path;

use anyhow::{Context, Result};
use ramekin_core::{Array, Category, UserError};
use ramekin_registry::{AnyPart, Slot, find, load_adapter};
use ramekin_slots::{Adapter, WeightInfo, WeightSource};
use serde_json::Value as Json;

use crate::blueprint::unreachable_slot;
use crate::source::FileSource;

/// A tensor of a file, or its shape.
pub fn read(file: &mut FileSource, name: &str, shape_only: bool) -> Result<Array> {
    let info = file.info(name).with_context(|| format!("`{}` has no `{name}`", file.label()))?;
    if shape_only {
        return Array::shape_only(&info.dims, info.dtype, Category::Workspace);
    }
    file.read(name, &info.dims)
}

/// Prefix of a base model's tensors in PEFT's files.
const PEFT: &str = "base_model.model.";

/// Modules that PEFT saves whole with adapters of sequence classifiers.
const HEADS: [&str; 2] = ["classifier", "score"];

/// An adapter's file without the head of a sequence classifier, which is an objective's.
pub struct Headless(FileSource);

impl Headless {
    /// The tensors of a saved adapter's folder.
    ///
    /// # Errors
    /// If they cannot be read.
    pub fn open(folder: &Path) -> Result<Self> {
        FileSource::open(folder.join("adapter_model.safetensors")).map(Headless)
    }

    fn is_head(name: &str) -> bool {
        let module = name.strip_prefix(PEFT).and_then(|n| n.rsplit_once('.'));
        module.is_some_and(|(m, _)| HEADS.contains(&m))
    }

    /// The heads by their names in a model's files.
    ///
    /// # Errors
    /// If one cannot be read.
    pub fn heads(&mut self, shape_only: bool) -> Result<Vec<(String, Array)>> {
        let names: Vec<String> = self.0.names().into_iter().filter(|n| Self::is_head(n)).collect();
        let all =
            names.into_iter().map(|n| Ok((n[PEFT.len()..].to_owned(), read(&mut self.0, &n, shape_only)?)));
        all.collect()
    }
}

impl WeightSource for Headless {
    fn info(&self, name: &str) -> Option<WeightInfo> {
        self.0.info(name)
    }

    fn read(&mut self, name: &str, dims: &[usize]) -> Result<Array> {
        self.0.read(name, dims)
    }

    fn names(&self) -> Vec<String> {
        self.0.names().into_iter().filter(|n| !Self::is_head(n)).collect()
    }

    fn label(&self) -> String {
        self.0.label()
    }
}

/// Whether a folder holds a saved reducer.
///
/// # Errors
/// If it holds nothing that can be read.
pub fn is_reducer(folder: &Path) -> Result<bool> {
    Ok(find(Slot::Reducer, &saved_kind(folder)?).is_ok())
}

/// The name of the part that a folder holds.
///
/// # Errors
/// If it holds nothing that can be read.
pub fn saved_kind(folder: &Path) -> Result<String> {
    Ok(saved_adapter(folder)?.0)
}

/// The adapter that a folder's `adapter_config.json` describes, not attached.
pub fn saved_adapter(folder: &Path) -> Result<(String, Box<dyn Adapter>)> {
    let file = folder.join("adapter_config.json");
    let text = std::fs::read_to_string(&file)
        .map_err(|e| UserError::new(format!("cannot read the adapter's config: {e}")).in_file(&file))?;
    let mut config: Json = serde_json::from_str(&text)
        .map_err(|e| UserError::new(format!("is no JSON: {e}")).at_line(&file, e.line()))?;
    if config["task_type"] == "SEQ_CLS"
        && let Some(modules) = config["modules_to_save"].as_array_mut()
    {
        modules.retain(|m| !m.as_str().is_some_and(|m| HEADS.contains(&m)));
        // A head that the objective keeps is no setting of the adapter, which may know no such key.
        if modules.is_empty()
            && let Some(config) = config.as_object_mut()
        {
            config.remove("modules_to_save");
        }
    }
    match load_adapter(&config)? {
        (name, AnyPart::Adapter(a) | AnyPart::Reducer(a)) => Ok((name.to_owned(), a)),
        _ => unreachable_slot("adapter"),
    }
}
