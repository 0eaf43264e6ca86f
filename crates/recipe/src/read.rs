//! From a [`Doc`] to a [`Recipe`]: every table decoded, then what the tables say together checked.

use serde::de::DeserializeOwned;
use serde_json::{Map, Value as Json};

use crate::check::{Check, check_reducers, check_training};
use crate::decode::Subtree;
use crate::diagnostic::Diagnostics;
use crate::doc::Doc;
use crate::part::{Adapter, Part};
use crate::path::{self, join};
use crate::recipe::{Memory, Model, Recipe, Top};
use crate::schema::stages_with;
use crate::stage::Stage;
use crate::wording::{found, list, suggest};

impl Recipe {
    /// Reads the recipe of a document.
    ///
    /// Parts keep their settings as written; decode them with [`Doc::settings`] or [`Doc::complete`].
    ///
    /// # Errors
    /// Every mistake of the recipe that needs no knowledge of parts and models.
    pub fn read(doc: &Doc) -> Result<Recipe, Diagnostics> {
        Recipe::read_with(doc, |_, part| Ok(part.settings.clone()))
    }

    /// As [`Recipe::read`], with the parts' settings completed, so that their mistakes are reported with the others.
    ///
    /// `complete` gets each part with its slot and returns its full settings; see [`Doc::complete`]
    /// and [`Doc::unknown_part`] for the mistakes.
    ///
    /// # Errors
    /// Every mistake of the recipe, and every one that `complete` finds.
    pub fn read_with(
        doc: &Doc,
        mut complete: impl FnMut(&'static str, &Part) -> Result<Map<String, Json>, Diagnostics>,
    ) -> Result<Recipe, Diagnostics> {
        let mut errors = Diagnostics::new();
        let (top, mistakes) =
            Subtree::new(doc, "", "the recipe".into()).salvage(&doc.root, &serde_json::from_value::<Top>);
        errors.extend(mistakes);
        let clear = errors.is_empty();
        let model = match doc.value("model") {
            Some(_) => read_model(doc, "model", &mut errors),
            None => None,
        };
        let memory = errors.take(doc.decode::<Memory>("memory", "memory"));
        if let Some(memory) = &memory
            && memory.budget.is_none()
            && !memory.allow.is_empty()
        {
            errors.push(doc.error_at_key(
                "memory.allow",
                "`memory.allow` is never read",
                "add `budget = \"…\"`",
            ));
        }
        let stage = read_stages(doc, &mut errors);
        if errors.is_empty() {
            check_training(doc, &stage, &mut errors);
            check_reducers(doc, &stage, &mut errors);
        }
        let name = top.as_ref().and_then(|top| top.name.clone()).unwrap_or_else(|| stem(doc));
        if let Err(why) = check_name(&name) {
            errors.push(doc.error_at("name", format!("a run cannot be called `{name}`"), why));
        }
        // A top that has mistakes may have the model under a misspelt name.
        let begins = ["model", "stage.0.model"].iter().any(|path| doc.value(path).is_some());
        let tries = stage.first().is_some_and(|s| s.tries().is_some());
        if clear && doc.value("stage.0").is_some() && !begins && !tries {
            let title = "the first stage has no model to begin with";
            let help = "add `model = { source = \"…\" }` at the top of the recipe";
            errors.push(doc.error_at("stage.0", title, "begins with the recipe's `model`").help(help));
        }
        let seed = top.map_or(0, |top| top.seed);
        let memory = memory.unwrap_or_default();
        let mut recipe = Recipe { name, seed, model, memory, stage };
        for (slot, part) in recipe.parts_mut() {
            if let Some(settings) = errors.take(complete(slot, part)) {
                part.settings = settings;
                without_null(&mut part.settings);
            }
        }
        errors.sort();
        errors.into_result(recipe)
    }
}

/// TOML has no null: a setting that is not set is not there.
fn without_null(table: &mut Map<String, Json>) {
    table.retain(|_, value| !value.is_null());
    table.values_mut().filter_map(Json::as_object_mut).for_each(without_null);
}

/// The recipe's file name without its ending, as a run's name.
fn stem(doc: &Doc) -> String {
    let stem =
        doc.file().name().file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
    let clean: String =
        stem.chars().map(|c| if c.is_control() || "/\\:".contains(c) { '-' } else { c }).collect();
    if check_name(&clean).is_ok() { clean } else { "run".into() }
}

/// A run's name is a folder's name on every system.
fn check_name(name: &str) -> Result<(), String> {
    if name.is_empty() {
        return Err("it names a folder: give it at least one letter".into());
    }
    if name.starts_with('.') || name.trim() != name {
        return Err("it names a folder: begin with a letter or a digit".into());
    }
    if let Some(c) = name.chars().find(|c| c.is_control() || "/\\:*?\"<>|".contains(*c)) {
        return Err(format!("it names a folder, which cannot have `{}`", c.escape_default()));
    }
    if name.len() > 120 { Err("it names a folder: keep it below 120 bytes".into()) } else { Ok(()) }
}

fn read_model(doc: &Doc, at: &str, errors: &mut Diagnostics) -> Option<Model> {
    if let Some(Json::String(source)) = doc.value(at) {
        let label = format!("write `model = {{ source = {source:?} }}`");
        errors.push(doc.error_at(at, "`model` is a table", label));
        return None;
    }
    let mut model: Model = errors.take(doc.decode(at, "model"))?;
    at.clone_into(&mut model.path);
    let [source, config, tokenizer, revision] =
        ["source", "config", "tokenizer", "revision"].map(|key| join(at, key));
    let init = model.source == "init";
    if model.source.is_empty() {
        let allowed = "expected `hf:ORG/NAME`, a folder, `builtin:NAME` or `init`";
        errors.push(doc.error_at(&source, "`model` cannot take an empty `source`", allowed));
    }
    if init && model.config.is_none() {
        let label = "fresh weights need `config`: the path of a `config.json`, or a table";
        errors.push(doc.error_at(&source, "`model` needs `config`", label));
    }
    for (path, written) in [(&config, model.config.is_some()), (&tokenizer, model.tokenizer.is_some())] {
        if written && !init {
            let key = path::parse_own(path).pop().unwrap_or_default();
            let title = format!("`{key}` cannot go with a model that has its own");
            errors.push(doc.conflict(
                title,
                (path, "is read only with `source = \"init\"`"),
                (&source, "brings its own"),
            ));
        }
    }
    if model.revision.is_some() && !model.source.starts_with("hf:") && !model.source.is_empty() {
        let label = "is read only with `source = \"hf:…\"`";
        errors.push(doc.conflict(
            "`revision` cannot go with this source",
            (&revision, label),
            (&source, "has no revisions"),
        ));
    }
    Some(model)
}

fn read_stages(doc: &Doc, errors: &mut Diagnostics) -> Vec<Stage> {
    let stages = match doc.value("stage") {
        Some(Json::Array(stages)) if !stages.is_empty() => stages,
        Some(Json::Object(_)) => {
            errors.push(doc.error_at("stage", "`stage` is a list", "write `[[stage]]`"));
            return Vec::new();
        }
        Some(Json::Array(_)) | None => {
            errors.push(doc.error_at("stage", "the recipe has no stage", "add `[[stage]]` with a `kind`"));
            return Vec::new();
        }
        Some(other) => {
            let label = format!("expected `[[stage]]` tables, found {}", found(other));
            errors.push(doc.error_at("stage", "`stage` is a list", label));
            return Vec::new();
        }
    };
    stages
        .iter()
        .enumerate()
        .filter_map(|(i, value)| read_stage(doc, &format!("stage.{i}"), value, errors))
        .collect()
}

fn read_stage(doc: &Doc, at: &str, value: &Json, errors: &mut Diagnostics) -> Option<Stage> {
    let Json::Object(table) = value else {
        let label = format!("expected a table with a `kind`, found {}", found(value));
        errors.push(doc.error_at(at, "a stage is a table", label));
        return None;
    };
    let mut table = table.clone();
    let Some(kind) = table.shift_remove("kind") else {
        let label = format!("add `kind = …`: {}", list(Stage::KINDS));
        errors.push(doc.error_at(at, "a stage needs `kind`", label));
        return None;
    };
    let kind_path = join(at, "kind");
    // A model of the stage's own is read as the recipe's is, so that its mistakes read alike.
    if table.contains_key("model") && read_model(doc, &join(at, "model"), errors).is_none() {
        table.shift_remove("model");
    }
    let mistakes = errors.len();
    let mut stage = match kind.as_str() {
        Some("train") => Stage::Train(decode(doc, at, "train", table, errors)?),
        Some("generate") => Stage::Generate(decode(doc, at, "generate", table, errors)?),
        Some("merge") => Stage::Merge(decode(doc, at, "merge", table, errors)?),
        Some("eval") => Stage::Eval(decode(doc, at, "eval", table, errors)?),
        Some("logits") => Stage::Logits(decode(doc, at, "logits", table, errors)?),
        Some("search") => Stage::Search(decode(doc, at, "search", table, errors)?),
        Some("compress") => Stage::Compress(decode(doc, at, "compress", table, errors)?),
        Some("bench") => Stage::Bench(decode(doc, at, "bench", table, errors)?),
        Some(other) => {
            let label = match suggest(other, Stage::KINDS) {
                Some(near) => format!("did you mean `{near}`?   all: {}", list(Stage::KINDS)),
                None => format!("expected one of {}", list(Stage::KINDS)),
            };
            errors.push(doc.error_at(&kind_path, format!("no stage is called `{other}`"), label));
            return None;
        }
        None => {
            let label = format!("expected one of {}, found {}", list(Stage::KINDS), found(&kind));
            errors.push(doc.error_at(&kind_path, "a stage's `kind` is a name in quotes", label));
            return None;
        }
    };
    place_parts(&mut stage, at);
    // Entries at fault were left out of the stage: what they would have said is not held against it.
    if errors.len() == mistakes {
        Check { doc, at }.stage(&stage, errors);
    }
    fill_in(&mut stage);
    Some(stage)
}

fn decode<T: DeserializeOwned>(
    doc: &Doc,
    at: &str,
    kind: &str,
    table: Map<String, Json>,
    errors: &mut Diagnostics,
) -> Option<T> {
    let article = if kind.starts_with('e') { "an" } else { "a" };
    let mut subtree = Subtree::new(doc, at, format!("{article} `{kind}` stage"));
    let elsewhere = |key: &str| {
        let stages = stages_with(key);
        (!stages.is_empty()).then(|| format!("is read by {}", list(stages)))
    };
    subtree.elsewhere = Some(&elsewhere);
    let (stage, mistakes) = subtree.salvage(&Json::Object(table), &serde_json::from_value);
    errors.extend(mistakes);
    stage
}

/// What follows from other keys of the stage.
fn fill_in(stage: &mut Stage) {
    let Stage::Train(s) = stage else { return };
    if s.batch.tokens.is_none() {
        s.batch.gradient_accumulation_steps.get_or_insert(1);
    }
    // A path alone: the stage's own data, read from another file.
    if let Some(data) = s.eval.as_mut().and_then(|e| e.data.as_mut())
        && data.is_path()
    {
        let Part { settings, path, .. } = std::mem::replace(data, s.data.clone());
        // Which rows are taken is said of the training file alone.
        for key in ["split", "skip_rows", "max_rows"] {
            data.settings.shift_remove(key);
        }
        data.settings.extend(settings);
        data.path = path;
    }
}

/// Tells every part, and the stage's own model, where it stands.
fn place_parts(stage: &mut Stage, at: &str) {
    if let Some(model) = stage.model_mut() {
        model.path = join(at, "model");
    }
    for placed in stage.parts_mut() {
        placed.part.path = format!("{at}.{}", placed.key); // a key of two steps is not one to be quoted
    }
    for (i, adapter) in stage.adapters_mut().iter_mut().enumerate() {
        if let Adapter::Saved { path, .. } = adapter {
            *path = format!("{at}.adapter.{i}");
        }
    }
}
