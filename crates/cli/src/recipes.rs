//! Reading a recipe with the registry's parts, and underlining what parts refuse later.

use std::path::{Path, PathBuf};

use anyhow::Result;
use ramekin_core::{BadRecipe, BadSetting};
use ramekin_recipe::{Diagnostic, Diagnostics, Doc, Part, Recipe};
use ramekin_registry::{Slot, find, names};
use serde_json::{Map, Value as Json};

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
        let recipe = Recipe::read_with(&doc, |slot, part| complete(&doc, slot, part))?;
        let base_dir =
            path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new(".")).to_owned();
        Ok(Loaded { doc, recipe, base_dir })
    }

    /// Turns a mistake that knows its place in the recipe into a diagnostic that underlines it.
    pub fn explain<T>(&self, result: Result<T>) -> Result<T, Failure> {
        result.map_err(|e| match self.underlined(&e) {
            Some(diagnostic) => Failure::Recipe(Diagnostics::from(diagnostic)),
            None => Failure::Other(e),
        })
    }

    fn underlined(&self, error: &anyhow::Error) -> Option<Diagnostic> {
        error.chain().find_map(|cause| {
            if let Some(bad) = cause.downcast_ref::<BadSetting>() {
                return Some(self.doc.bad_setting(bad.part.as_ref()?, &bad.setting, &bad.message));
            }
            let bad = cause.downcast_ref::<BadRecipe>()?;
            let found = self.doc.mistake(&bad.message, &bad.places);
            Some(Diagnostic { help: bad.help.clone(), ..found })
        })
    }
}

fn slot_of(name: &str) -> Option<Slot> {
    Slot::ALL.into_iter().find(|s| s.name() == name)
}

/// A part's settings with every default; what is wrong with them is underlined.
fn complete(doc: &Doc, slot: &'static str, part: &Part) -> Result<Map<String, Json>, Diagnostics> {
    let Some(known) = slot_of(slot) else { return Ok(part.settings.clone()) };
    let Ok(entry) = find(known, &part.kind) else {
        return Err(doc.unknown_part(slot, part, &names(known)).into());
    };
    let full = doc.complete(slot, part, |settings| (entry.complete)(settings))?;
    if let Err(e) = (entry.build)(full.clone())
        && let Some(bad) = e.chain().find_map(|c| c.downcast_ref::<BadSetting>())
    {
        return Err(doc.bad_setting(&part.path, &bad.setting, &bad.message).into());
    }
    Ok(full.as_object().cloned().unwrap_or_default())
}
