//! What can be seen of every stage before the first one begins: that the files the recipe names are there.

use std::path::{Component, Path, PathBuf};

use anyhow::Result;
use ramekin_core::BadRecipe;
use ramekin_data::DataSettings;
use ramekin_recipe::{
    Adapter, BenchStage, Config, MergeStage, Model, Part, Recipe, SearchStage, Stage, Tokenizer,
};
use ramekin_slots::ModelRef;
use serde_json::Value as Json;

use crate::blame::{key, present, source};
use crate::compat;
use crate::inputs::Origin;
use crate::parts;
use crate::run::plain_model;

/// Looks at the stages from number `first` on.
///
/// # Errors
/// A model, adapter, data or input file that is not there, underlined in the recipe.
pub fn check(recipe: &Recipe, base_dir: &Path, out: Option<&Path>, first: usize) -> Result<()> {
    let out = out.map(std::path::absolute).transpose()?;
    let look = Look { base_dir, out };
    if first == 0
        && let Some(model) = &recipe.model
    {
        look.model(model)?;
    }
    for (index, stage) in recipe.stage.iter().enumerate().skip(first) {
        look.stage(index, stage)?;
    }
    compat::merges(recipe)
}

struct Look<'a> {
    base_dir: &'a Path,
    /// Files in the run folder may be made by a stage before.
    out: Option<PathBuf>,
}

impl Look<'_> {
    fn stage(&self, index: usize, stage: &Stage) -> Result<()> {
        if let Some(model) = stage.model() {
            self.model(model)?;
        }
        for adapter in stage.adapters() {
            if let Adapter::Saved { folder, path } = adapter {
                self.file(&format!("{path}.load"), Path::new(folder), "folder")?;
            }
        }
        let input = |file: &str| self.file(&format!("stage.{index}.input"), Path::new(file), "file");
        match stage {
            Stage::Train(s) => {
                self.others(parts::objective(&s.objective)?.models(), &s.objective)?;
                self.data(&s.data)?;
                s.eval.iter().filter_map(|e| e.data.as_ref()).try_for_each(|d| self.data(d))
            }
            Stage::Eval(s) => {
                self.others(parts::objective(&s.objective)?.models(), &s.objective)?;
                self.data(&s.data)
            }
            Stage::Generate(s) => {
                self.others(parts::decoder(&s.decode)?.models(), &s.decode)?;
                s.input.iter().try_for_each(|file| input(file))
            }
            Stage::Logits(s) => input(&s.input),
            Stage::Search(SearchStage { recipe, .. }) | Stage::Bench(BenchStage { recipe, .. }) => {
                self.file(&format!("stage.{index}.recipe"), Path::new(recipe), "file")
            }
            Stage::Compress(s) => self.data(&s.data),
            Stage::Merge(s) => self.merge(index, s),
        }
    }

    /// The models that a part names in its settings.
    fn others(&self, models: Vec<(impl std::fmt::Display, ModelRef)>, part: &Part) -> Result<()> {
        for (setting, model) in models {
            let mut choice = plain_model(&model.source);
            choice.path = format!("{}.{setting}", part.path);
            self.model(&choice)?;
            if let Some(folder) = &model.adapter {
                self.file(&format!("{}.{setting}.adapter", part.path), Path::new(folder), "folder")?;
            }
        }
        Ok(())
    }

    /// Methods either fold adapters or take models; what they take has to be there.
    fn merge(&self, index: usize, s: &MergeStage) -> Result<()> {
        let at = format!("stage.{index}");
        let method = (format!("{at}.method"), &s.method.kind);
        let folds = parts::merger(&s.method)?.folds_adapters();
        if folds && !s.models.is_empty() {
            let found = BadRecipe::new(format!("`{}` cannot go with `models`", method.1))
                .at(format!("{at}.models"), "names models to put together")
                .at(method.0, "folds attached adapters");
            return Err(found.help("write `method = { kind = \"task-arithmetic\" }`").into());
        }
        if !folds && s.models.is_empty() {
            let found = BadRecipe::new(format!("`{}` needs `models`", method.1))
                .at(method.0, "puts models together, and none are named");
            return Err(found.help("add `models = [{ source = \"FOLDER\" }, …]`").into());
        }
        if let (false, Some(adapter)) = (folds, s.adapter.first()) {
            let place = match adapter {
                Adapter::New(part) => &part.path,
                Adapter::Saved { path, .. } => path,
            };
            let found = BadRecipe::new(format!("`{}` cannot go with `adapter`", method.1))
                .at(place, "is attached to the model")
                .at(method.0, "puts models together");
            return Err(found.help("name the adapter in `models`: `{ source = \"FOLDER\" }`").into());
        }
        if let Some(base) = &s.base {
            let model = Model { path: at.clone(), ..crate::run::plain_model(base) };
            self.model(&model).map_err(|e| rename(e, &format!("{at}.source"), &format!("{at}.base")))?;
        }
        for (i, input) in s.models.iter().enumerate() {
            let path = format!("{at}.models.{i}");
            if let Some(source) = &input.source {
                let file = self.base_dir.join(source);
                if !file.is_file() && !file.join("adapter_config.json").exists() {
                    self.model(&Model { path, ..crate::run::plain_model(source) })?;
                }
            }
            input.data.iter().try_for_each(|data| self.data(data))?;
        }
        s.control.iter().try_for_each(|data| self.data(data))
    }

    fn model(&self, model: &Model) -> Result<()> {
        if let Some(Config::Path(path)) = &model.config {
            self.file(&key(model, "config"), Path::new(path), "file")?;
        }
        match &model.tokenizer {
            Some(Tokenizer::File { path }) => {
                self.file(&key(model, "tokenizer.path"), Path::new(path), "file or folder")?;
            }
            Some(Tokenizer::Learn { data: Some(data), .. }) if !data.starts_with("builtin:") => {
                self.file(&key(model, "tokenizer.data"), Path::new(data), "file")?;
            }
            _ => {}
        }
        // Asking the hub may mean a download: that waits for its stage.
        if model.source.starts_with("hf:") || self.made_here(Path::new(&model.source)) {
            return Ok(());
        }
        Origin::find(model, self.base_dir).map(drop).map_err(|e| source(model, e))
    }

    fn data(&self, part: &Part) -> Result<()> {
        let settings = parts::data_settings(part)?;
        let listed = part.settings.get("path").is_some_and(Json::is_array);
        for (i, path) in settings.paths().into_iter().enumerate() {
            let at = if listed { format!("{}.path.{i}", part.path) } else { format!("{}.path", part.path) };
            let what = if matches!(settings, DataSettings::Tokens(_)) { "file" } else { "file or folder" };
            self.file(&at, path, what)?;
        }
        Ok(())
    }

    fn file(&self, place: &str, written: &Path, what: &str) -> Result<()> {
        if self.made_here(written) { Ok(()) } else { present(place, written, self.base_dir, what) }
    }

    fn made_here(&self, written: &Path) -> bool {
        let path = std::path::absolute(self.base_dir.join(written));
        matches!((&self.out, path), (Some(out), Ok(path)) if lexical(&path).starts_with(lexical(out)))
    }
}

/// The same mistake of a key under another name.
fn rename(error: anyhow::Error, from: &str, to: &str) -> anyhow::Error {
    match error.downcast::<BadRecipe>() {
        Ok(mut bad) => {
            bad.places
                .iter_mut()
                .filter(|(place, _)| place == from)
                .for_each(|(place, _)| to.clone_into(place));
            bad.into()
        }
        Err(e) => e,
    }
}

/// The path with every `..` taken back; what lies there need not exist.
fn lexical(path: &Path) -> PathBuf {
    let mut plain = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => {
                plain.pop();
            }
            Component::CurDir => {}
            other => plain.push(other),
        }
    }
    plain
}
