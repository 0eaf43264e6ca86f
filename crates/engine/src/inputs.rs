//! Where a model's files come from, and its tokenizer.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use ramekin_core::UserError;
use ramekin_data::{BpeTraining, Tokenizer};
use ramekin_recipe::{Config, Model, Tokenizer as TokenizerChoice, TokenizerKind};
use serde_json::Value as Json;

use crate::builtin::{self, Builtin};
use crate::digest;

/// Fields of a model's config that public files have no place for: they lie in `ramekin.json` beside it.
pub const OWN_FIELDS: [&str; 1] = ["intermediate_sizes"];

/// The place of a model's files.
#[derive(Clone)]
pub enum Origin {
    /// A folder in Hugging Face layout.
    Folder(PathBuf),
    /// Inside the binary.
    Builtin(&'static Builtin),
    /// Nowhere yet: fresh weights.
    Init,
}

impl Origin {
    /// Finds, and for `hf:` sources fetches, the files.
    pub fn find(model: &Model, base_dir: &Path) -> Result<Self> {
        if model.source == "init" {
            return Ok(Origin::Init);
        }
        match ramekin_hub::resolve(&model.source, model.revision.as_deref(), base_dir)? {
            ramekin_hub::Located::Builtin(name) => Ok(Origin::Builtin(builtin::find(&name)?)),
            ramekin_hub::Located::Folder { folder, .. } => Ok(Origin::Folder(folder)),
        }
    }

    /// How files that refer to this model shall call it.
    pub fn label(&self, model: &Model) -> String {
        match self {
            Origin::Folder(folder) => match model.source.strip_prefix("hf:") {
                Some(name) => name.to_owned(),
                None => folder.display().to_string(),
            },
            _ => model.source.clone(),
        }
    }

    /// The content of a file of the model's folder, if it is there.
    pub fn file(&self, name: &str) -> Option<Vec<u8>> {
        match self {
            Origin::Folder(folder) => std::fs::read(folder.join(name)).ok(),
            Origin::Builtin(b) => b.file(name).map(<[u8]>::to_vec),
            Origin::Init => None,
        }
    }

    /// The file that the config is read from; `None` where it is inside the binary or the recipe.
    pub fn config_file(&self, model: &Model, base_dir: &Path) -> Option<PathBuf> {
        match (self, &model.config) {
            (Origin::Folder(folder), _) => Some(folder.join("config.json")),
            (Origin::Init, Some(Config::Path(path))) => Some(base_dir.join(path)),
            _ => None,
        }
    }

    /// `config.json`.
    pub fn config(&self, model: &Model, base_dir: &Path) -> Result<Json> {
        let (label, text) = match self {
            Origin::Folder(folder) => {
                let path = folder.join("config.json");
                let text = std::fs::read(&path).map_err(|e| {
                    UserError::new(format!("cannot read the model's config: {e}"))
                        .in_file(&path)
                        .help("a model is a folder in Hugging Face layout, `hf:ORG/NAME` or `builtin:tiny`")
                })?;
                (path, text)
            }
            Origin::Builtin(b) => (
                PathBuf::from(format!("builtin:{}/config.json", b.name)),
                b.file("config.json").context("a built-in model without config")?.to_vec(),
            ),
            Origin::Init => match &model.config {
                Some(Config::Table(table)) => return Ok(Json::Object(table.clone())),
                Some(Config::Path(path)) => {
                    let path = base_dir.join(path);
                    let text = std::fs::read(&path)
                        .map_err(|e| UserError::new(format!("cannot read the config: {e}")).in_file(&path))?;
                    (path, text)
                }
                None => return Err(UserError::new("`source = \"init\"` needs `config`").into()),
            },
        };
        let mut config: Json = serde_json::from_slice(&text)
            .map_err(|e| UserError::new(format!("is no JSON: {e}")).at_line(label, e.line()))?;
        if let (Some(map), Json::Object(beside)) = (config.as_object_mut(), digest::beside(self)) {
            map.extend(beside.into_iter().filter(|(key, _)| OWN_FIELDS.contains(&key.as_str())));
        }
        Ok(config)
    }
}

/// The tokenizer that belongs to the model; `None` where there is none.
pub fn tokenizer(model: &Model, origin: &Origin, base_dir: &Path) -> Result<Option<Arc<Tokenizer>>> {
    let found = match (origin, &model.tokenizer) {
        (_, Some(TokenizerChoice::File { path })) => Some(Tokenizer::from_folder(&base_dir.join(path))?),
        (_, Some(TokenizerChoice::Learn { kind, data, vocab_size })) => {
            Some(learn(*kind, data.as_deref(), *vocab_size, base_dir)?)
        }
        (Origin::Folder(folder), None) if folder.join("tokenizer.json").exists() => {
            Some(Tokenizer::from_folder(folder)?)
        }
        (Origin::Builtin(b), None) => Some(Tokenizer::from_files(&format!("builtin:{}", b.name), |name| {
            Ok(b.file(name).map(<[u8]>::to_vec))
        })?),
        _ => None,
    };
    Ok(found.map(Arc::new))
}

fn learn(kind: TokenizerKind, data: Option<&str>, size: Option<usize>, base_dir: &Path) -> Result<Tokenizer> {
    let Some(data) = data else {
        return Err(UserError::new("a tokenizer that is learnt needs `data`")
            .help("give the path of a text, or \"builtin:text\"")
            .into());
    };
    let text = if data.starts_with("builtin:") {
        let mut text = String::new();
        for document in ramekin_data::tiny::text(0, 2_000_000) {
            text.push_str(&document);
            text.push('\n');
        }
        text
    } else {
        let path = base_dir.join(data);
        std::fs::read_to_string(&path)
            .map_err(|e| UserError::new(format!("cannot read the tokenizer's text: {e}")).in_file(&path))?
    };
    match kind {
        TokenizerKind::Char => Tokenizer::characters(&text),
        TokenizerKind::Bpe => {
            let how = BpeTraining { vocab_size: size.unwrap_or(1024), ..BpeTraining::default() };
            Tokenizer::train_bpe(text.lines().map(str::to_owned).collect::<Vec<_>>().into_iter(), &how)
        }
    }
}
