//! The rows of a stage.

use std::path::Path;

use anyhow::Result;
use ramekin_data::{DataSettings, Dataset, Rows};
use ramekin_recipe::Part;

use super::tokens::TokenFile;
use crate::assembly::Assembly;
use crate::{blame, parts};

/// A data part's rows, which must be such as an objective learns from.
pub fn load(assembly: &Assembly, part: &Part, base_dir: &Path, rows: Rows) -> Result<Dataset> {
    let settings = parts::data_settings(part)?;
    if let DataSettings::Tokens(t) = &settings {
        if rows != Rows::Tokens {
            let message = format!("the objective learns from rows with {}", rows.words());
            let label = "a file of tokens has none".to_owned();
            return Err(blame::at(&format!("{}.kind", part.path), message, label, None));
        }
        let path = base_dir.join(&t.path);
        let file = TokenFile::read(&path, assembly.model.facts())?;
        let name = path.display().to_string();
        let mut data = file.dataset(name)?;
        data.shuffle = !t.repeat;
        return Ok(data);
    }
    let facts = assembly.model.facts();
    if let (Some(images), DataSettings::Builtin(b)) = (facts.images, &settings)
        && b.name == ramekin_data::tiny::GLYPHS
        && rows == Rows::Tokens
    {
        return parts::placed(part, ramekin_data::tiny::glyphs(b, images, facts.vocab_size));
    }
    if facts.images.is_some() {
        let message = format!("`{}` reads images", facts.model_type);
        let label = format!("`{}` gives text; give it `kind = \"tokens\"` with `pixel_values`", part.kind);
        return Err(blame::at(&format!("{}.kind", part.path), message, label, None));
    }
    parts::placed(part, settings.load_rows(assembly.tokenizer()?, base_dir, rows))
}

/// More bytes of text than these are not tokenised for a plan, which shall be there at once.
const READ_FOR_PLAN: u64 = 2 << 20;

/// Whether a plan reads the rows; else it bills the upper bound that the settings give.
pub fn is_small(settings: &DataSettings, base_dir: &Path) -> bool {
    if matches!(settings, DataSettings::Tokens(t) if t.repeat) {
        return true; // the file is one batch, and needs no tokenising
    }
    let size = match settings {
        DataSettings::Builtin(b) => b.bytes_about(),
        _ => settings
            .paths()
            .iter()
            .map(|p| std::fs::metadata(base_dir.join(p)).map_or(u64::MAX, |m| m.len()))
            .fold(0u64, u64::saturating_add),
    };
    size <= READ_FOR_PLAN
}
