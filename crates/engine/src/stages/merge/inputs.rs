//! What `models` names: found, looked at, and held against the base before anything is computed.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use ramekin_core::{BadRecipe, Meter, UserError, meter};
use ramekin_recipe::{Adapter, MergeInput, MergeStage, Model, Part};
use ramekin_slots::MergedTensor;
use ramekin_store::Index;
use ramekin_store::delta::Delta;
use serde_json::Value as Json;

use super::super::save;
use crate::assembly::Assembly;
use crate::blueprint::{Blueprint, Loading};
use crate::inputs::Origin;
use crate::reader::Reader;
use crate::run::{StageContext, plain_model};
use crate::sparse::short;
use crate::vectors::{Task, TaskSource, same_tensors};
use crate::{blame, digest};

/// An entry of `models` that was found.
pub struct Found {
    /// How the recipe calls it.
    pub label: String,
    /// Its place in the recipe.
    pub path: String,
    /// How much it counts.
    pub weight: f64,
    /// What it is.
    pub kind: Kind,
}

/// What an entry of `models` is.
pub enum Kind {
    /// A model.
    Model(Origin),
    /// Adapters, attached together, in folders.
    Adapters(Vec<PathBuf>),
    /// A file of sparse differences.
    Delta(PathBuf),
}

/// Finds every entry.
///
/// # Errors
/// What is not there.
pub fn find(cx: &StageContext<'_>, s: &MergeStage, plan: &Blueprint) -> Result<Vec<Found>> {
    let each = |(i, input): (usize, &MergeInput)| {
        let path = format!("stage.{}.models.{i}", cx.index);
        let (label, kind) = match (&input.source, input.stage) {
            (Some(source), _) => (source.clone(), named(source, plan, &path)?),
            (None, Some(n)) => (format!("stage {n}"), left_by(cx, n as usize, &path)?),
            (None, None) => anyhow::bail!("an entry without origin"), // the recipe's reader refuses that
        };
        Ok(Found { label, path, weight: input.weight, kind })
    };
    s.models.iter().enumerate().map(each).collect()
}

fn named(source: &str, plan: &Blueprint, path: &str) -> Result<Kind> {
    let file = plan.base_dir.join(source);
    if file.is_file() {
        if file.extension().is_some_and(|e| e == "safetensors") && Delta::is_one(&Index::open(&file)?) {
            return Ok(Kind::Delta(file));
        }
        let message = format!("`{source}` is no file of sparse differences");
        let help = "name the folder of a model or adapter, or a file that `compeft` wrote";
        return Err(BadRecipe::new(message).at(format!("{path}.source"), "").help(help).into());
    }
    if file.join("adapter_config.json").exists() {
        return Ok(Kind::Adapters(vec![file]));
    }
    let model = Model { path: path.to_owned(), ..plain_model(source) };
    let origin = Origin::find(&model, &plan.base_dir).map_err(|e| blame::source(&model, e))?;
    Ok(Kind::Model(origin))
}

/// What an earlier stage of this run left in its folder.
fn left_by(cx: &StageContext<'_>, n: usize, path: &str) -> Result<Kind> {
    let stage = &cx.recipe.stage[n];
    let dir = cx.options.out.join("stages").join(format!("{n}-{}", stage.kind()));
    if dir.join("adapter/adapter_config.json").exists() {
        let more = (1..).map(|i| dir.join(format!("adapter-{i}"))).take_while(|f| f.is_dir());
        return Ok(Kind::Adapters(std::iter::once(dir.join("adapter")).chain(more).collect()));
    }
    if dir.join("model/config.json").exists() {
        return Ok(Kind::Model(Origin::Folder(dir.join("model"))));
    }
    let message = format!("stage {n} left neither a model nor an adapter in `{}`", dir.display());
    Err(BadRecipe::new(message).at(format!("{path}.stage"), "").into())
}

/// The base: its shapes, what of it is merged, and its digest.
pub struct BaseModel {
    /// Shapes, config, tokenizer and files.
    pub shapes: Assembly,
    /// The tensors.
    pub tensors: Vec<MergedTensor>,
    /// Digest of the tensors.
    pub sha256: String,
    /// The merger's name, for messages.
    method: String,
    /// Tensors of files that models of this shape have no use for.
    unused: HashSet<String>,
    config: Json,
}

impl BaseModel {
    /// Reads the base once.
    ///
    /// # Errors
    /// What is wrong with its files.
    pub fn open(plan: &Blueprint, method: &Part) -> Result<Self> {
        let (origin, config) = plan.config()?;
        let sha256 = digest::tensors(&mut *plan.weights(&origin, &config)?)?;
        let shapes = {
            let _aside = meter::scope(Meter::new()); // nothing of it is held
            plan.load(Loading::Shapes)?
        };
        let tensors = tensors(&shapes)?;
        let mut unused: HashSet<String> = shapes.unused.iter().cloned().collect();
        for site in shapes.sites.linears() {
            if site.is_tied() {
                unused.insert(format!("{}.weight", site.path));
            }
        }
        Ok(BaseModel { shapes, tensors, sha256, method: method.kind.clone(), unused, config })
    }

    /// An entry as a task, after every check.
    ///
    /// # Errors
    /// [`UserError`] if it has another tokenizer, other tensors or another base.
    pub fn task(&self, plan: &Blueprint, found: Found) -> Result<Task> {
        let Found { label, weight, kind, .. } = found;
        let source = match kind {
            Kind::Model(origin) => {
                self.alike(&origin, &label)?;
                self.tuned_from_this(&digest::beside(&origin), &label)?;
                let reader = Reader::open(&origin)?;
                same_tensors(&self.tensors, &reader, &self.unused, &label)?;
                TaskSource::Model(reader)
            }
            Kind::Delta(file) => {
                let delta = Delta::open(&file)?;
                self.fits(&delta)?;
                TaskSource::Delta(Box::new(delta))
            }
            Kind::Adapters(folders) => TaskSource::Adapters(Box::new(self.adapters(plan, &folders, &label)?)),
        };
        Ok(Task { label, weight, source })
    }

    /// The adapters on a base of shapes.
    fn adapters(&self, plan: &Blueprint, folders: &[PathBuf], label: &str) -> Result<Assembly> {
        for folder in folders {
            self.tuned_from_this(&digest::beside_in(folder), label)?;
        }
        let adapters = folders
            .iter()
            .map(|f| {
                Ok(Adapter::Saved { folder: f.canonicalize()?.display().to_string(), path: String::new() })
            })
            .collect::<Result<Vec<_>>>()?;
        let assembly = Blueprint { adapters, ..plan.clone() }.load(Loading::AdaptersAlone)?;
        for attached in &assembly.adapters {
            if let Some(why) = attached.adapter.unmergeable() {
                let message = format!(
                    "`merge/{}` adds differences of weights, and `{label}`, an `adapter/{}`, is none: {why}",
                    self.method, attached.kind
                );
                return Err(UserError::new(message).into());
            }
        }
        if let Some(path) = assembly.sites.new_biases()?.first() {
            let what = format!("`{label}` gives `{path}` a bias, which the base has not");
            let help = "fold it into its base with `method = { kind = \"lora\" }` instead";
            return Err(UserError::new(what).help(help).into());
        }
        let tied = |l: &&ramekin_slots::LinearSite| l.adapter_count() > 0 && l.is_tied();
        if let Some(site) = assembly.sites.linears().iter().find(tied) {
            return Err(UserError::new(format!(
                "`{label}` adapts `{}`, which shares its weight with the embedding",
                site.path
            ))
            .help("fold it into its base with `method = { kind = \"lora\" }` instead")
            .into());
        }
        Ok(assembly)
    }

    fn fits(&self, delta: &Delta) -> Result<()> {
        let wrong = |what: String| UserError::new(what).in_file(delta.path());
        if delta.base.sha256 != self.sha256 {
            let (made, here) = (short(&delta.base.sha256), short(&self.sha256));
            return Err(wrong(format!(
                "holds differences from the base `{}` with digest {made}; `{}` has {here}",
                delta.base.label, self.shapes.label
            ))
            .help("set `base` to the model it was made from")
            .into());
        }
        for (name, dims) in delta.tensors() {
            if !self.tensors.iter().any(|t| t.name == *name && t.dims == *dims) {
                return Err(wrong(format!("has a tensor `{name}` {dims:?} that the base has not")).into());
            }
        }
        Ok(())
    }

    fn tuned_from_this(&self, beside: &Json, label: &str) -> Result<()> {
        let bases = digest::bases(beside);
        if bases.is_empty() || bases.contains(&self.sha256) {
            return Ok(());
        }
        let (made, here) = (short(&bases[0]), short(&self.sha256));
        Err(UserError::new(format!(
            "`{label}` was tuned from a base with digest {made}; `{}` has {here}",
            self.shapes.label
        ))
        .help("set `base` to the model that all of them were tuned from")
        .into())
    }

    /// Same kind of model, same tokenizer.
    fn alike(&self, origin: &Origin, label: &str) -> Result<()> {
        let config = origin.config(&plain_model(label), Path::new("."))?;
        for key in ["model_type", "tie_word_embeddings"] {
            let (here, base) = (&config[key], &self.config[key]);
            let off = |v: &Json| v.is_null() || v == false;
            if here != base && !(off(here) && off(base)) {
                let base_label = &self.shapes.label;
                let what =
                    format!("`{label}` has `{key}` {here} in its config; the base `{base_label}` has {base}");
                return Err(UserError::new(what).into());
            }
        }
        let own = origin.file("tokenizer.json").map(|text| vocabulary(&text));
        let base = self.shapes.origin.file("tokenizer.json").map(|text| vocabulary(&text));
        if let (Some(own), Some(base)) = (own, base)
            && own != base
        {
            return Err(UserError::new(format!(
                "`{label}` has another tokenizer than the base `{}`: the same ids mean other tokens",
                self.shapes.label
            ))
            .help("only models with one vocabulary can be merged")
            .into());
        }
        Ok(())
    }
}

/// What of a `tokenizer.json` says which id means which token.
fn vocabulary(text: &[u8]) -> (Json, Json) {
    let json: Json = serde_json::from_slice(text).unwrap_or(Json::Null);
    (json["model"]["vocab"].clone(), json["added_tokens"].clone())
}

/// The tensors of a model's files, with those before the first block marked.
pub fn tensors(shapes: &Assembly) -> Result<Vec<MergedTensor>> {
    let ledger = shapes.ledger.borrow();
    let numbered = |name: &str| name.split('.').any(|step| step.parse::<usize>().is_ok());
    let before: HashSet<&str> =
        ledger.entries().iter().map(|e| e.name.as_str()).take_while(|n| !numbered(n)).collect();
    let (_, specs) = save::layout(shapes, shapes.dtype).context("the base's tensors")?;
    Ok(specs
        .into_iter()
        .map(|s| MergedTensor { early: before.contains(s.name.as_str()), name: s.name, dims: s.shape })
        .collect())
}
