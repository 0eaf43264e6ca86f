//! A recipe file with what is needed to explain its mistakes.

use std::path::{Path, PathBuf};

use anyhow::Result;
use ramekin_recipe::{Diagnostics, Doc, Recipe};

use crate::failure::Failure;

/// A recipe that is right as far as it can be told without a model.
pub struct Loaded {
    /// Its text with spans.
    pub doc: Doc,
    /// The recipe, every part's settings complete.
    pub recipe: Recipe,
    /// Folder that its relative paths start from.
    pub base_dir: PathBuf,
}

impl Loaded {
    /// Opens and validates a recipe.
    pub fn open(path: &Path, overrides: &[String]) -> Result<Self, Failure> {
        let doc = Doc::open(path, overrides)?;
        let recipe = ramekin_engine::read::recipe(&doc)?;
        let base_dir =
            path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new(".")).to_owned();
        Ok(Loaded { doc, recipe, base_dir })
    }

    /// Turns a mistake that knows its place in the recipe into a diagnostic that underlines it.
    pub fn explain<T>(&self, result: Result<T>) -> Result<T, Failure> {
        result.map_err(|e| match ramekin_engine::read::underlined(&self.doc, &e) {
            Some(diagnostic) => Failure::Recipe(Diagnostics::from(diagnostic)),
            None => Failure::Other(e),
        })
    }
}
