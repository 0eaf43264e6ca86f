//! From a [`Doc`] to a [`Recipe`]: every table decoded, then what the tables say together checked.

use serde::de::DeserializeOwned;
use serde_json::{Map, Value as Json};

use crate::decode::Subtree;
use crate::diagnostic::{Diagnostic, Diagnostics};
use crate::doc::Doc;
use crate::part::{Adapter, Part};
use crate::path::{self, join};
use crate::recipe::{Memory, Model, Recipe, Top};
use crate::schema::stages_with;
use crate::stage::{
    ALIASES, EvalStage, GenerateStage, LogitsStage, MergeStage, Metric, Stage, TrainStage,
};
use crate::wording::{found, list, suggest};

impl Recipe {
    /// Reads the recipe of a document.
    ///
    /// Parts keep their settings as written; decode them with [`Doc::settings`] or [`Doc::complete`].
    ///
    /// # Errors
    /// Every mistake of the recipe that needs no knowledge of parts and models.
    pub fn read(doc: &Doc) -> Result<Recipe, Diagnostics> {
        let mut errors = Diagnostics::new();
        let top: Option<Top> = errors.take(
            Subtree::new(doc, "", "the recipe".into()).run(&doc.root, &serde_json::from_value),
        );
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
        let name = top
            .as_ref()
            .and_then(|top| top.name.clone())
            .unwrap_or_else(|| stem(doc));
        if let Err(why) = check_name(&name) {
            errors.push(doc.error_at("name", format!("a run cannot be called `{name}`"), why));
        }
        let begins = stage.first().is_none_or(|first| first.model().is_some());
        if doc.value("model").is_none() && !begins && doc.value("stage.0.model").is_none() {
            let title = "the first stage has no model to begin with";
            let help = "add `model = { source = \"…\" }` at the top of the recipe";
            errors.push(
                doc.error_at("stage.0", title, "begins with the recipe's `model`")
                    .help(help),
            );
        }
        let seed = top.map_or(0, |top| top.seed);
        errors.into_result(Recipe {
            name,
            seed,
            model,
            memory: memory.unwrap_or_default(),
            stage,
        })
    }
}

/// The recipe's file name without its ending, as a run's name.
fn stem(doc: &Doc) -> String {
    let stem = doc
        .file()
        .name()
        .file_stem()
        .map(|stem| stem.to_string_lossy().into_owned())
        .unwrap_or_default();
    let clean: String = stem
        .chars()
        .map(|c| {
            if c.is_control() || "/\\:".contains(c) {
                '-'
            } else {
                c
            }
        })
        .collect();
    if check_name(&clean).is_ok() {
        clean
    } else {
        "run".into()
    }
}

/// A run's name is a folder's name on every system.
fn check_name(name: &str) -> Result<(), String> {
    if name.is_empty() {
        return Err("it names a folder: give it at least one letter".into());
    }
    if name.starts_with('.') || name.trim() != name {
        return Err("it names a folder: begin with a letter or a digit".into());
    }
    if let Some(c) = name
        .chars()
        .find(|c| c.is_control() || "/\\:*?\"<>|".contains(*c))
    {
        return Err(format!(
            "it names a folder, which cannot have `{}`",
            c.escape_default()
        ));
    }
    if name.len() > 120 {
        Err("it names a folder: keep it below 120 bytes".into())
    } else {
        Ok(())
    }
}

fn read_model(doc: &Doc, at: &str, errors: &mut Diagnostics) -> Option<Model> {
    if let Some(Json::String(source)) = doc.value(at) {
        let label = format!("write `model = {{ source = {source:?} }}`");
        errors.push(doc.error_at(at, "`model` is a table", label));
        return None;
    }
    let model: Model = errors.take(doc.decode(at, "model"))?;
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
    for (path, written) in [
        (&config, model.config.is_some()),
        (&tokenizer, model.tokenizer.is_some()),
    ] {
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
            errors.push(doc.error_at(
                "stage",
                "the recipe has no stage",
                "add `[[stage]]` with a `kind`",
            ));
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
    let mut stage = match kind.as_str() {
        Some("train") => Stage::Train(decode(doc, at, "train", table, errors)?),
        Some("generate") => {
            Stage::Generate(decode::<GenerateStage>(doc, at, "generate", table, errors)?)
        }
        Some("merge") => Stage::Merge(decode::<MergeStage>(doc, at, "merge", table, errors)?),
        Some("eval") => Stage::Eval(decode::<EvalStage>(doc, at, "eval", table, errors)?),
        Some("logits") => Stage::Logits(decode::<LogitsStage>(doc, at, "logits", table, errors)?),
        Some(other) => {
            let label = match suggest(other, Stage::KINDS) {
                Some(near) => format!("did you mean `{near}`?   all: {}", list(Stage::KINDS)),
                None => format!("expected one of {}", list(Stage::KINDS)),
            };
            errors.push(doc.error_at(&kind_path, format!("no stage is called `{other}`"), label));
            return None;
        }
        None => {
            let label = format!(
                "expected one of {}, found {}",
                list(Stage::KINDS),
                found(&kind)
            );
            errors.push(doc.error_at(&kind_path, "a stage's `kind` is a name in quotes", label));
            return None;
        }
    };
    let check = Check { doc, at };
    match &mut stage {
        Stage::Train(s) => check.train(s, errors),
        Stage::Generate(s) => check.generate(s, errors),
        Stage::Eval(s) => check.eval(s, errors),
        Stage::Merge(_) | Stage::Logits(_) => {}
    }
    place_parts(&mut stage, at);
    check.parts(&mut stage, errors);
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
    errors.take(subtree.run(&Json::Object(table), &serde_json::from_value))
}

/// Tells every part where it stands.
fn place_parts(stage: &mut Stage, at: &str) {
    let place = |part: &mut Part, key: &str| part.path = format!("{at}.{key}");
    let adapters = |list: &mut [Adapter]| {
        for (i, adapter) in list.iter_mut().enumerate() {
            let here = format!("{at}.adapter.{i}");
            match adapter {
                Adapter::New(part) => part.path = here,
                Adapter::Saved { path, .. } => *path = here,
            }
        }
    };
    match stage {
        Stage::Train(s) => {
            s.quantizer.iter_mut().for_each(|p| place(p, "quantizer"));
            adapters(&mut s.adapter);
            s.gradient
                .iter_mut()
                .enumerate()
                .for_each(|(i, p)| place(p, &format!("gradient.{i}")));
            place(&mut s.optimizer, "optimizer");
            place(&mut s.schedule, "schedule");
            place(&mut s.objective, "objective");
            place(&mut s.activation, "activation");
            place(&mut s.data, "data");
            s.eval
                .iter_mut()
                .for_each(|e| place(&mut e.data, "eval.data"));
            s.samples
                .iter_mut()
                .for_each(|s| place(&mut s.decode, "samples.decode"));
            s.track
                .iter_mut()
                .enumerate()
                .for_each(|(i, p)| place(p, &format!("track.{i}")));
        }
        Stage::Generate(s) => {
            s.quantizer.iter_mut().for_each(|p| place(p, "quantizer"));
            adapters(&mut s.adapter);
            place(&mut s.decode, "decode");
            place(&mut s.kv, "kv");
        }
        Stage::Merge(s) => adapters(&mut s.adapter),
        Stage::Eval(s) => {
            s.quantizer.iter_mut().for_each(|p| place(p, "quantizer"));
            adapters(&mut s.adapter);
            place(&mut s.data, "data");
            place(&mut s.decode, "decode");
            place(&mut s.kv, "kv");
        }
        Stage::Logits(s) => {
            s.quantizer.iter_mut().for_each(|p| place(p, "quantizer"));
            adapters(&mut s.adapter);
        }
    }
}

/// What the keys of a stage must be together.
struct Check<'a> {
    doc: &'a Doc,
    at: &'a str,
}

impl Check<'_> {
    /// The path of a setting under the spelling that was written.
    fn path(&self, name: &str) -> String {
        let (table, key) = name
            .rsplit_once('.')
            .map_or((self.at.to_owned(), name), |(t, k)| (join(self.at, t), k));
        let spellings = ALIASES
            .iter()
            .filter(|(_, canonical, _)| *canonical == key)
            .map(|(_, _, alias)| *alias);
        let path = |key: &str| join(&table, key);
        spellings
            .map(path)
            .find(|p| self.doc.value(p).is_some())
            .unwrap_or_else(|| path(key))
    }

    fn refuse(&self, name: &str, why: &str) -> Diagnostic {
        let path = self.path(name);
        let written = path
            .strip_prefix(self.at)
            .map_or(name, |rest| rest.trim_start_matches('.'));
        let value = self.doc.value(&path).map_or("this".into(), Json::to_string);
        self.doc
            .error_at(&path, format!("`{written}` cannot be `{value}`"), why)
    }

    fn positive(&self, name: &str, value: Option<u64>, errors: &mut Diagnostics) {
        if value == Some(0) {
            errors.push(self.refuse(name, "must be at least 1"));
        }
    }

    fn metrics(&self, name: &str, metrics: &[Metric], errors: &mut Diagnostics) {
        if metrics.is_empty() {
            errors.push(self.refuse(
                name,
                "name at least one: `loss`, `perplexity`, `exact_match`",
            ));
        }
    }

    /// Two settings of which one must go.
    fn rivals(&self, one: &str, other: &str, title: &str) -> Diagnostic {
        let labels = (format!("says `{one}`"), format!("says `{other}`"));
        self.doc
            .conflict(
                title,
                (&self.path(one), &labels.0),
                (&self.path(other), &labels.1),
            )
            .help("keep one of them")
    }

    fn train(&self, s: &mut TrainStage, errors: &mut Diagnostics) {
        match (s.steps, s.epochs) {
            (Some(_), Some(_)) => errors.push(self.rivals(
                "epochs",
                "steps",
                "a stage ends by steps or by epochs, not both",
            )),
            (None, None) => {
                let title = "a `train` stage needs `steps` or `epochs`";
                errors.push(self.doc.error_at(
                    &join(self.at, "kind"),
                    title,
                    "add `steps = …` or `epochs = …`",
                ));
            }
            _ => {}
        }
        self.positive("steps", s.steps, errors);
        if s.epochs.is_some_and(|epochs| epochs <= 0.0) {
            errors.push(self.refuse("epochs", "must be more than 0"));
        }
        if s.max_grad_norm < 0.0 {
            errors.push(self.refuse("max_grad_norm", "must be 0 (off) or more"));
        }
        self.positive("log_every", Some(s.log_every), errors);
        self.positive("batch.tokens", s.batch.tokens, errors);
        self.positive(
            "batch.micro_batch_size",
            Some(s.batch.micro_batch_size),
            errors,
        );
        self.positive(
            "batch.gradient_accumulation_steps",
            s.batch.gradient_accumulation_steps,
            errors,
        );
        match (s.batch.tokens, s.batch.gradient_accumulation_steps) {
            (Some(_), Some(_)) => {
                let title =
                    "`tokens` sets the accumulation, and so does `gradient_accumulation_steps`";
                errors.push(self.rivals(
                    "batch.gradient_accumulation_steps",
                    "batch.tokens",
                    title,
                ));
            }
            (None, None) => s.batch.gradient_accumulation_steps = Some(1),
            _ => {}
        }
        self.positive("checkpoint.every", s.checkpoint.every, errors);
        self.positive("checkpoint.keep", Some(s.checkpoint.keep), errors);
        if let Some(eval) = &mut s.eval {
            self.positive("eval.every", eval.every, errors);
            self.positive("eval.max_rows", eval.max_rows, errors);
            self.positive("eval.max_new_tokens", Some(eval.max_new_tokens), errors);
            self.metrics("eval.metrics", &eval.metrics, errors);
            if eval.data.kind.is_empty()
                && self
                    .doc
                    .value(&join(self.at, "eval.data"))
                    .is_some_and(Json::is_string)
            {
                let path = eval.data.settings.shift_remove("path");
                eval.data = s.data.clone();
                eval.data
                    .settings
                    .extend(path.map(|path| ("path".to_owned(), path)));
            }
        }
        if let Some(samples) = &s.samples {
            self.positive("samples.every", samples.every, errors);
            self.positive(
                "samples.max_new_tokens",
                Some(samples.max_new_tokens),
                errors,
            );
            if samples.prompts.is_empty() {
                errors.push(self.refuse("samples.prompts", "give at least one prompt"));
            }
        }
    }

    fn generate(&self, s: &GenerateStage, errors: &mut Diagnostics) {
        let written = [
            ("input", s.input.is_some()),
            ("prompt", s.prompt.is_some()),
            ("prompts", s.prompts.is_some()),
        ];
        let written: Vec<&str> = written
            .into_iter()
            .filter(|(_, there)| *there)
            .map(|(key, _)| key)
            .collect();
        match written.as_slice() {
            [] => {
                let title = "a `generate` stage needs `prompt`, `prompts` or `input`";
                errors.push(self.doc.error_at(
                    &join(self.at, "kind"),
                    title,
                    "add `prompt = \"…\"`",
                ));
            }
            [_] => {}
            [first, second, ..] => errors.push(self.rivals(
                second,
                first,
                "a `generate` stage has one source of prompts",
            )),
        }
        if s.prompts.as_ref().is_some_and(Vec::is_empty) {
            errors.push(self.refuse("prompts", "give at least one prompt"));
        }
        if s.chat && s.input.is_some() {
            let title = "`chat` cannot go with `input`";
            let (chat, input) = (join(self.at, "chat"), join(self.at, "input"));
            errors.push(self.doc.conflict(
                title,
                (&chat, "puts text into a template"),
                (&input, "holds tokens"),
            ));
        }
        self.positive("max_new_tokens", Some(s.max_new_tokens), errors);
    }

    fn eval(&self, s: &EvalStage, errors: &mut Diagnostics) {
        self.metrics("metrics", &s.metrics, errors);
        self.positive("max_rows", s.max_rows, errors);
        self.positive("max_new_tokens", Some(s.max_new_tokens), errors);
    }

    /// An empty kind is no name; a nameless folder is no adapter.
    fn parts(&self, stage: &mut Stage, errors: &mut Diagnostics) {
        for adapter in stage.adapters() {
            if let Adapter::Saved { folder, path } = adapter
                && folder.is_empty()
            {
                let title = "`adapter` cannot load from ``";
                errors.push(self.doc.error_at(
                    &join(path, "load"),
                    title,
                    "expected a folder with `adapter_config.json`",
                ));
            }
        }
    }
}
