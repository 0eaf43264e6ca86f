//! What the keys of a stage must be together, beyond what each must be alone.

use serde_json::Value as Json;

use crate::bench::BenchStage;
use crate::diagnostic::{Diagnostic, Diagnostics};
use crate::doc::Doc;
use crate::part::{Adapter, Part};
use crate::path::join;
use crate::search::{SearchStage, Values};
use crate::stage::{ALIASES, CompressStage, EvalStage, GenerateStage, MergeStage, Metric, Stage, TrainStage};

/// What the keys of a stage must be together.
pub struct Check<'a> {
    /// The recipe.
    pub doc: &'a Doc,
    /// The path of the stage.
    pub at: &'a str,
}

/// Packed weights cannot train, and what trains follows from the stages before.
pub fn check_training(doc: &Doc, stages: &[Stage], errors: &mut Diagnostics) {
    let mut left = false;
    for (i, stage) in stages.iter().enumerate() {
        let brings = matches!(stage, Stage::Train(s) if s.method.is_some());
        let adapted = !stage.adapters().is_empty() || brings || left && stage.model().is_none();
        let (all, word) = match stage {
            Stage::Train(s) => {
                left = adapted && s.selection.is_none();
                if let Some(selection) = s.selection.as_ref().filter(|_| adapted) {
                    errors.push(beside_adapter(doc, i, stage, selection));
                }
                (!adapted && s.selection.is_none(), "kind")
            }
            Stage::Logits(s) => (!adapted && s.gradients, "gradients"),
            Stage::Compress(s) => {
                if adapted && let Some(part) = s.prune.as_ref().or(s.quantizer.as_ref()) {
                    let title = "a `compress` stage cannot begin with an adapter";
                    let label = "changes the weights that the adapter of the stage before stands on";
                    let found = doc.error_at(&part.path, title, label);
                    let place = |(before, stage): (usize, &Stage)| match stage {
                        Stage::Train(s) if s.method.is_some() => Some(format!("stage.{before}.method")),
                        _ if stage.adapters().is_empty() => None,
                        _ => Some(format!("stage.{before}.adapter.0")),
                    };
                    let found = match stages[..i].iter().enumerate().rev().find_map(place) {
                        Some(place) => found.label(doc.span(&place), "attaches the adapter"),
                        None => found,
                    };
                    errors.push(found.help("fold it in with a `merge` stage between"));
                }
                left = false;
                continue;
            }
            Stage::Merge(_) => {
                left = false;
                continue;
            }
            _ => continue,
        };
        if let Some(quantizer) = stage.quantizer().filter(|_| all) {
            let other = format!("stage.{i}.{word}");
            let found = doc.conflict(
                "a quantizer cannot go with training every weight",
                (&quantizer.path, "packs the weights, which then cannot train"),
                (&other, "without an `adapter` wants gradients of every weight"),
            );
            errors.push(found.help("add `adapter = [{ kind = \"lora\", … }]`, or leave `quantizer` out"));
        }
    }
}

/// A model whose tokens are merged continues no text.
pub fn check_reducers(doc: &Doc, stages: &[Stage], errors: &mut Diagnostics) {
    let mut carried: Option<&Part> = None;
    for stage in stages {
        if stage.model().is_some() {
            carried = None;
        }
        carried = stage.reducers().first().or(carried);
        if let (Stage::Generate(s), Some(part)) = (stage, carried) {
            let title = format!("`reducer/{}` cannot go with a stage that generates", part.kind);
            let place = |part: &Part, label: &str| (part.path.clone(), label.to_owned());
            errors.push(doc.mistake(
                title,
                &[
                    place(part, "merges tokens of a model that sees all of an image"),
                    place(&s.decode, "asks for the next token of a text"),
                    place(&s.kv, "keeps what came before it"),
                ],
            ));
        }
    }
}

/// A selection trains the base, an adapter stands on a base that stays.
fn beside_adapter(doc: &Doc, i: usize, stage: &Stage, selection: &Part) -> Diagnostic {
    let trains = (&*selection.path, "trains weights of the base");
    let (title, place) = match stage {
        Stage::Train(s) if s.method.is_some() => {
            ("a selection cannot go with a method", Some(format!("stage.{i}.method")))
        }
        _ if stage.adapters().is_empty() => ("a selection cannot go with an adapter", None),
        _ => ("a selection cannot go with an adapter", Some(format!("stage.{i}.adapter.0"))),
    };
    let found = match place {
        Some(other) => doc.conflict(title, (&other, "stands on a base that stays as it is"), trains),
        None => doc.error_at(trains.0, title, "the stage before leaves an adapter on the base"),
    };
    found.help("train them in stages of their own, with a `merge` stage between")
}

impl Check<'_> {
    /// Everything about a stage whose parts know where they stand.
    pub fn stage(&self, stage: &Stage, errors: &mut Diagnostics) {
        match stage {
            Stage::Train(s) => self.train(s, errors),
            Stage::Generate(s) => self.generate(s, errors),
            Stage::Eval(s) => self.eval(s, errors),
            Stage::Search(s) => self.search(s, errors),
            Stage::Merge(s) => self.merge(s, errors),
            Stage::Compress(s) => self.compress(s, errors),
            Stage::Bench(s) => self.bench(s, errors),
            Stage::Logits(_) => {}
        }
        self.adapters(stage, errors);
    }

    /// The path of a setting under the spelling that was written.
    fn path(&self, name: &str) -> String {
        let (table, key) =
            name.rsplit_once('.').map_or((self.at.to_owned(), name), |(t, k)| (join(self.at, t), k));
        let spellings =
            ALIASES.iter().filter(|(_, canonical, _)| *canonical == key).map(|(_, _, alias)| *alias);
        let path = |key: &str| join(&table, key);
        spellings.map(path).find(|p| self.doc.value(p).is_some()).unwrap_or_else(|| path(key))
    }

    fn refuse(&self, name: &str, why: &str) -> Diagnostic {
        let path = self.path(name);
        let written = path.strip_prefix(self.at).map_or(name, |rest| rest.trim_start_matches('.'));
        let value = self.doc.value(&path).map_or("this".into(), Json::to_string);
        self.doc.error_at(&path, format!("`{written}` cannot be `{value}`"), why)
    }

    fn positive(&self, name: &str, value: Option<u64>, errors: &mut Diagnostics) {
        if value == Some(0) {
            errors.push(self.refuse(name, "must be at least 1"));
        }
    }

    fn metrics(&self, name: &str, metrics: &[Metric], errors: &mut Diagnostics) {
        if metrics.is_empty() {
            errors.push(
                self.refuse(name, "name at least one: `loss`, `perplexity`, `exact_match`, `accuracy`"),
            );
        }
    }

    /// Two settings of which one must go.
    fn rivals(&self, one: &str, other: &str, title: &str) -> Diagnostic {
        let labels = (format!("says `{one}`"), format!("says `{other}`"));
        self.doc
            .conflict(title, (&self.path(one), &labels.0), (&self.path(other), &labels.1))
            .help("keep one of them")
    }

    fn train(&self, s: &TrainStage, errors: &mut Diagnostics) {
        match (s.steps, s.epochs) {
            (Some(_), Some(_)) => {
                errors.push(self.rivals("epochs", "steps", "a stage ends by steps or by epochs, not both"))
            }
            // A selection may set the length; whether it does shows only when it is made.
            (None, None) if s.selection.is_none() => {
                let title = "a `train` stage needs `steps` or `epochs`";
                errors.push(self.doc.error_at(&self.path("kind"), title, "add `steps = …` or `epochs = …`"));
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
        self.positive("batch.micro_batch_size", Some(s.batch.micro_batch_size), errors);
        self.positive("batch.gradient_accumulation_steps", s.batch.gradient_accumulation_steps, errors);
        if s.batch.tokens.is_some() && s.batch.gradient_accumulation_steps.is_some() {
            let title = "`tokens` sets the accumulation, and so does `gradient_accumulation_steps`";
            errors.push(self.rivals("batch.gradient_accumulation_steps", "batch.tokens", title));
        }
        self.positive("checkpoint.every", s.checkpoint.every, errors);
        self.positive("checkpoint.keep", Some(s.checkpoint.keep), errors);
        if let Some(eval) = &s.eval {
            self.positive("eval.every", eval.every, errors);
            self.positive("eval.max_rows", eval.max_rows, errors);
            self.positive("eval.max_new_tokens", Some(eval.max_new_tokens), errors);
            self.metrics("eval.metrics", &eval.metrics, errors);
            if eval.data.is_none() && !s.data.settings.contains_key("split") {
                let label = "give it `data`, or hold rows of the stage's `data` out: `split = { dev = 0.1 }`";
                errors.push(self.doc.error_at(&self.path("eval"), "`eval` has no rows", label));
            }
        }
        if let Some(samples) = &s.samples {
            self.positive("samples.every", samples.every, errors);
            self.positive("samples.max_new_tokens", Some(samples.max_new_tokens), errors);
            if samples.prompts.is_empty() {
                errors.push(self.refuse("samples.prompts", "give at least one prompt"));
            }
        }
    }

    fn generate(&self, s: &GenerateStage, errors: &mut Diagnostics) {
        let written =
            [("input", s.input.is_some()), ("prompt", s.prompt.is_some()), ("prompts", s.prompts.is_some())];
        let written: Vec<&str> =
            written.into_iter().filter(|(_, there)| *there).map(|(key, _)| key).collect();
        match written.as_slice() {
            [] => {
                let title = "a `generate` stage needs `prompt`, `prompts` or `input`";
                errors.push(self.doc.error_at(&self.path("kind"), title, "add `prompt = \"…\"`"));
            }
            [_] => {}
            [first, second, ..] => {
                errors.push(self.rivals(second, first, "a `generate` stage has one source of prompts"))
            }
        }
        if s.prompts.as_ref().is_some_and(Vec::is_empty) {
            errors.push(self.refuse("prompts", "give at least one prompt"));
        }
        if s.chat && s.input.is_some() {
            let title = "`chat` cannot go with `input`";
            let (chat, input) = (self.path("chat"), self.path("input"));
            errors.push(self.doc.conflict(
                title,
                (&chat, "puts text into a template"),
                (&input, "holds tokens"),
            ));
        }
        self.positive("max_new_tokens", Some(s.max_new_tokens), errors);
    }

    fn search(&self, s: &SearchStage, errors: &mut Diagnostics) {
        if s.space.is_empty() {
            errors.push(self.refuse("space", "name at least one key with its values"));
        }
        for (key, values) in &s.space {
            let name = format!("space.{}", crate::path::show(&[key]));
            match values {
                Values::List(all) if all.is_empty() => {
                    errors.push(self.refuse(&name, "give at least one value"));
                }
                Values::Range(r) if !(r.min < r.max && r.min.is_finite() && r.max.is_finite()) => {
                    errors.push(self.refuse(&name, "`min` must be below `max`"));
                }
                Values::Range(r) if r.log && r.min <= 0.0 => {
                    errors.push(self.refuse(&name, "a logarithmic range needs a `min` above 0"));
                }
                _ => {}
            }
        }
    }

    fn bench(&self, s: &BenchStage, errors: &mut Diagnostics) {
        self.positive("rounds", Some(s.rounds), errors);
        if s.variant.is_empty() {
            errors.push(self.refuse("variant", "add `[[stage.variant]]` with `name` and `set`"));
        }
        for (i, v) in s.variant.iter().enumerate() {
            let name = |i: usize| join(&join(&join(self.at, "variant"), &i.to_string()), "name");
            let at = name(i);
            if v.name.trim().is_empty() {
                errors.push(self.doc.error_at(
                    &at,
                    "a variant needs a name",
                    "expected what the row is called",
                ));
            } else if let Some(first) = s.variant[..i].iter().position(|w| w.name == v.name) {
                let title = format!("two variants are called `{}`", v.name);
                let (here, there) = ((&*at, "the same name again"), (&*name(first), "the first one"));
                errors.push(self.doc.conflict(title, here, there));
            }
        }
    }

    fn eval(&self, s: &EvalStage, errors: &mut Diagnostics) {
        self.metrics("metrics", &s.metrics, errors);
        self.positive("max_rows", s.max_rows, errors);
        self.positive("max_new_tokens", Some(s.max_new_tokens), errors);
    }

    fn merge(&self, s: &MergeStage, errors: &mut Diagnostics) {
        for (i, input) in s.models.iter().enumerate() {
            let at = join(&join(self.at, "models"), &i.to_string());
            match (&input.source, input.stage) {
                (Some(_), Some(_)) => {
                    let (source, stage) = (join(&at, "source"), join(&at, "stage"));
                    let title = "a model has one origin";
                    let found = self.doc.conflict(title, (&stage, "names one"), (&source, "names another"));
                    errors.push(found.help("keep one of them"));
                }
                (None, None) => {
                    let label = "add `source = \"…\"`, or `stage = N` of an earlier stage";
                    errors.push(self.doc.error_at(
                        &at,
                        "an entry of `models` needs `source` or `stage`",
                        label,
                    ));
                }
                (None, Some(n)) => self.earlier(&join(&at, "stage"), n, errors),
                (Some(source), None) if source.is_empty() => {
                    let label = "expected a folder, a file, `hf:ORG/NAME` or `builtin:NAME`";
                    errors.push(self.doc.error_at(&join(&at, "source"), "`source` is empty", label));
                }
                (Some(_), None) => {}
            }
        }
        if s.models.is_empty() {
            for (key, written) in [("base", s.base.is_some()), ("control", !s.control.is_empty())] {
                if written {
                    let path = self.path(key);
                    errors.push(self.doc.error_at_key(
                        &path,
                        format!("`{key}` is never read"),
                        "add `models = […]`",
                    ));
                }
            }
        } else if s.base.is_some() && s.model.is_some() {
            errors.push(self.rivals("base", "model", "`base` is the model to begin with, and so is `model`"));
        }
    }

    /// A stage that runs before this one and leaves a model or an adapter.
    fn earlier(&self, path: &str, n: u64, errors: &mut Diagnostics) {
        let own: u64 = self.at.rsplit('.').next().and_then(|i| i.parse().ok()).unwrap_or(0);
        let kind = self.doc.value(&format!("stage.{n}.kind")).and_then(Json::as_str);
        let why = if n >= own {
            format!("must be the number of a stage before this one, which is number {own}, counted from 0")
        } else {
            match kind {
                Some("train" | "merge" | "compress") | None => return,
                Some(other) => format!("is a stage `{other}`, which leaves no model"),
            }
        };
        errors.push(self.doc.error_at(path, format!("`stage` cannot be `{n}`"), why));
    }

    fn compress(&self, s: &CompressStage, errors: &mut Diagnostics) {
        if s.prune.is_none() && s.quantizer.is_none() {
            let title = "a `compress` stage needs `prune` or `quantizer`";
            errors.push(self.doc.error_at(&self.path("kind"), title, "add `prune = { kind = \"cfsp\" }`"));
        }
        self.positive("nsamples", Some(s.nsamples), errors);
        if s.seqlen < 2 {
            errors.push(self.refuse("seqlen", "must be at least 2: a token predicts the next"));
        }
        if s.pad && s.prune.is_none() {
            errors.push(self.doc.error_at_key(
                &self.path("pad"),
                "`pad` is never read",
                "add `prune = { … }`",
            ));
        }
    }

    /// A saved adapter has a folder.
    fn adapters(&self, stage: &Stage, errors: &mut Diagnostics) {
        for adapter in stage.adapters() {
            if let Adapter::Saved { folder, path } = adapter
                && folder.is_empty()
            {
                let label = "expected a folder with `adapter_config.json`";
                let title = "`load` names no folder";
                errors.push(self.doc.error_at(&join(path, "load"), title, label));
            }
        }
    }
}
