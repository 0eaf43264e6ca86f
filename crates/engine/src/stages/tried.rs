//! A recipe that another one cooks with other values of some of its keys: what `search` and `bench` share.

use std::path::{Path, PathBuf};

use anyhow::Result;
use ramekin_core::{BadRecipe, UserError};
use ramekin_plan::Bill;
use ramekin_recipe::{Doc, Recipe};

use crate::read;
use crate::run::{Options, RunOutcome, StageContext, plan};

/// The recipe with these values.
pub struct Tried {
    recipe: Recipe,
    /// Where its paths start from.
    folder: PathBuf,
    /// Its text with all defaults.
    resolved: String,
}

impl Tried {
    /// Reads the recipe that stage `index` of a kind names, a path from `base_dir`, with each `K=V` of `overrides`.
    ///
    /// # Errors
    /// Mistakes in it, by the name of its file; if it would try recipes itself.
    pub fn load(
        (index, kind): (usize, &str),
        file: &str,
        base_dir: &Path,
        overrides: &[String],
    ) -> Result<Self> {
        let written = file;
        let file = base_dir.join(file);
        let wrong = |text: String| -> anyhow::Error { UserError::new(text).in_file(&file).into() };
        let doc = Doc::open(&file, overrides).map_err(|e| wrong(e.render(false)))?;
        let recipe = read::recipe(&doc).map_err(|e| wrong(e.render(false)))?;
        if let Some(inner) = recipe.stage.iter().find(|s| s.tries().is_some()) {
            let title = format!("a {kind} cannot try a recipe that tries recipes itself");
            let label = format!("`{written}` has a stage of kind `{}`", inner.kind());
            return Err(BadRecipe::new(title).at(format!("stage.{index}.recipe"), label).into());
        }
        let folder = file.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new(".")).to_owned();
        let resolved = ramekin_recipe::resolved(&recipe);
        Ok(Tried { recipe, folder, resolved })
    }

    /// Its bills.
    pub fn plan(&self) -> Result<Vec<Bill>> {
        plan(&self.recipe, &self.folder)
    }

    /// The kinds of its stages.
    pub fn kinds(&self) -> Vec<&'static str> {
        self.recipe.stage.iter().map(|s| s.kind()).collect()
    }

    /// Cooks it into `out`, or reads what was cooked there before.
    ///
    /// # Errors
    /// What goes wrong in it.
    pub fn cook(self, cx: &StageContext<'_>, out: PathBuf) -> Result<RunOutcome> {
        let resume = out.join("recipe.toml").exists();
        let stop = cx.options.stop.clone();
        let options = Options { out, base_dir: self.folder, resume, stop, resolved: self.resolved };
        crate::run(&self.recipe, &options)
    }
}

/// Rows of cells, each column as wide as its widest cell; columns from `right` on stand to the right.
pub fn columns(rows: &[Vec<String>], right: usize) -> String {
    let width = |c: usize| rows.iter().filter_map(|r| r.get(c)).map(|x| x.chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..rows.first().map_or(0, Vec::len)).map(width).collect();
    let mut out = String::new();
    for row in rows {
        let cell = |(c, (text, w)): (usize, (&String, &usize))| match c < right {
            true => format!("{text:<w$}"),
            false => format!("{text:>w$}"),
        };
        let line: Vec<String> = row.iter().zip(&widths).enumerate().map(cell).collect();
        out.push_str("  ");
        out.push_str(line.join("  ").trim_end());
        out.push('\n');
    }
    out
}
