//! What a recipe may write under `data`, and the options all kinds share.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Result;
use ramekin_core::{BadSetting, UserError, suggest};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

/// How a row's keys are read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// Decided by the keys of the first row; the run says what was chosen.
    #[default]
    Auto,
    /// `messages`: a list of `role` and `content`, perhaps `tools` beside it.
    Messages,
    /// `conversations`: a list of `from` and `value`, perhaps `system` and `tools` beside it.
    Sharegpt,
    /// `instruction` and `output`, perhaps `input`, `system` and `history`.
    Alpaca,
    /// `prompt` and `completion`, both text or both lists of messages.
    PromptCompletion,
    /// `text`.
    Text,
    /// `chosen` and `rejected`, perhaps `prompt`, all text or all lists of messages; perhaps `margin`.
    /// Without `prompt` it is what both begin with.
    Preference,
    /// `text` and `label`: a class, classes or values.
    Classification,
}

impl Format {
    /// The name in a recipe.
    pub fn name(self) -> &'static str {
        match self {
            Format::Auto => "auto",
            Format::Messages => "messages",
            Format::Sharegpt => "sharegpt",
            Format::Alpaca => "alpaca",
            Format::PromptCompletion => "prompt_completion",
            Format::Text => "text",
            Format::Preference => "preference",
            Format::Classification => "classification",
        }
    }
}

/// How examples share rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Packing {
    /// Best fit decreasing: whole examples, each attending to itself only.
    #[default]
    Bfd,
    /// The same after cutting long examples into pieces instead of truncating them.
    BfdSplit,
    /// One stream cut every `max_length` tokens; examples see their neighbours.
    Wrapped,
}

/// Which end of an example survives when it is too long.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Truncation {
    /// The first `max_length` tokens stay.
    #[default]
    KeepStart,
    /// The last `max_length` tokens stay.
    KeepEnd,
}

/// What is one example of plain text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TextUnit {
    /// Each line that is not blank.
    #[default]
    Line,
    /// Each file.
    File,
    /// All files as one stream, packed `wrapped` whatever `packing` says.
    Whole,
}

/// One path or several; a folder stands for its files with the kind's ending, by name.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(untagged, expecting = "expected a path or a list of paths")]
pub enum PathList {
    /// One file or folder.
    One(PathBuf),
    /// Several, read in this order.
    Many(Vec<PathBuf>),
}

impl PathList {
    /// The paths in order.
    pub fn iter(&self) -> impl Iterator<Item = &Path> {
        match self {
            PathList::One(p) => std::slice::from_ref(p),
            PathList::Many(p) => p,
        }
        .iter()
        .map(PathBuf::as_path)
    }
}

/// Which examples are held out of training.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Split {
    /// Share of the examples, from the end of the data, that are for evaluation
    /// only: above 0 and below 1. One stream of text is split by its length.
    pub dev: f64,
}

/// The options that every kind made of text shares, whatever their source.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)] // each is documented where a recipe sets it
pub struct Preparation {
    pub format: Format,
    pub columns: BTreeMap<String, String>,
    pub template: Option<String>,
    pub max_length: usize,
    pub packing: bool,
    pub packing_strategy: Packing,
    pub completion_only_loss: Option<bool>,
    pub assistant_only_loss: bool,
    pub truncation_mode: Truncation,
    pub shuffle: bool,
    pub skip_rows: usize,
    pub max_rows: Option<usize>,
    pub split: Option<Split>,
    pub label_names: Vec<String>,
}

impl Default for Preparation {
    fn default() -> Self {
        Preparation {
            format: Format::Auto,
            columns: BTreeMap::new(),
            template: None,
            max_length: default_max_length(),
            packing: false,
            packing_strategy: Packing::Bfd,
            completion_only_loss: None,
            assistant_only_loss: false,
            truncation_mode: Truncation::KeepStart,
            shuffle: true,
            skip_rows: 0,
            max_rows: None,
            split: None,
            label_names: Vec::new(),
        }
    }
}

impl Preparation {
    /// Values that are wrong whatever the data.
    ///
    /// # Errors
    /// [`BadSetting`] naming the setting.
    pub fn check(&self) -> Result<(), BadSetting> {
        if self.packing && self.max_length == 0 {
            return Err(BadSetting::new("packing", "needs a row length; give `max_length` a value above 0"));
        }
        if self.max_length == 1 {
            return Err(BadSetting::new(
                "max_length",
                "is 1, and one token predicts nothing; it must be 0 or at least 2",
            ));
        }
        if self.max_rows == Some(0) {
            return Err(BadSetting::new(
                "max_rows",
                "is 0; it must be at least 1, leave it out for all rows",
            ));
        }
        if let Some(split) = self.split
            && !(split.dev > 0.0 && split.dev < 1.0)
        {
            return Err(BadSetting::new(
                "split.dev",
                format!("is {}; it is a share above 0 and below 1, such as 0.1", split.dev),
            ));
        }
        Ok(())
    }
}

fn default_max_length() -> usize {
    1024
}

fn yes() -> bool {
    true
}

fn is_none<T>(value: &Option<T>) -> bool {
    value.is_none()
}

/// Writes a settings struct: its own fields, then the shared ones.
macro_rules! settings {
    ($(#[$meta:meta])* $name:ident { $($(#[$field_meta:meta])* $field:ident: $type:ty,)* }) => {
        $(#[$meta])*
        #[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
        #[serde(deny_unknown_fields)]
        pub struct $name {
            $($(#[$field_meta])* pub $field: $type,)*
            /// How a row's keys are read; `auto` decides by the first row.
            #[serde(default)]
            pub format: Format,
            /// From the format's key to the data's own column, as in
            /// `{ prompt = "question", completion = "answer" }`. A value with
            /// `{column}` in it is a pattern: `"Q: {question}\nA: "`.
            #[serde(default)]
            pub columns: BTreeMap<String, String>,
            /// Chat template to use instead of the tokenizer's: `chatml`, a
            /// `.jinja` file beside the recipe, or the template itself.
            #[serde(default, skip_serializing_if = "is_none")]
            pub template: Option<String>,
            /// Tokens of the longest row; 0 sets no limit and forbids packing. Default 1024.
            #[serde(default = "default_max_length", alias = "max_seq_length", alias = "sequence_len")]
            pub max_length: usize,
            /// Whether several examples share a row.
            #[serde(default)]
            pub packing: bool,
            /// How they share it.
            #[serde(default)]
            pub packing_strategy: Packing,
            /// Whether only completions are trained. Unset: yes where the data
            /// has prompts and completions.
            #[serde(default, skip_serializing_if = "is_none")]
            pub completion_only_loss: Option<bool>,
            /// Whether only the assistant's turns are trained, for chat data.
            #[serde(default)]
            pub assistant_only_loss: bool,
            /// Which end of an example survives when it is longer than `max_length`.
            #[serde(default)]
            pub truncation_mode: Truncation,
            /// Whether each epoch has an order of its own. Default true.
            #[serde(default = "yes")]
            pub shuffle: bool,
            /// Rows left out from the start of the data.
            #[serde(default)]
            pub skip_rows: usize,
            /// Rows read after those at most.
            #[serde(default, skip_serializing_if = "is_none")]
            pub max_rows: Option<usize>,
            /// Examples held out for evaluation, as in `{ dev = 0.1 }`.
            #[serde(default, skip_serializing_if = "is_none")]
            pub split: Option<Split>,
            /// Names of classes, in order, where labels are names instead of numbers from 0.
            #[serde(default, skip_serializing_if = "Vec::is_empty")]
            pub label_names: Vec<String>,
        }

        impl $name {
            /// The options that all kinds share.
            pub fn preparation(&self) -> Preparation {
                Preparation {
                    format: self.format,
                    columns: self.columns.clone(),
                    template: self.template.clone(),
                    max_length: self.max_length,
                    packing: self.packing,
                    packing_strategy: self.packing_strategy,
                    completion_only_loss: self.completion_only_loss,
                    assistant_only_loss: self.assistant_only_loss,
                    truncation_mode: self.truncation_mode,
                    shuffle: self.shuffle,
                    skip_rows: self.skip_rows,
                    max_rows: self.max_rows,
                    split: self.split,
                    label_names: self.label_names.clone(),
                }
            }
        }
    };
}

settings! {
    /// Settings of `data = { kind = "jsonl", … }`: one JSON object a line.
    JsonlSettings {
        /// The `.jsonl` file, a folder of them, or a list.
        path: PathList,
    }
}

settings! {
    /// Settings of `data = { kind = "json", … }`: a JSON array of objects.
    JsonSettings {
        /// The `.json` file, a folder of them, or a list.
        path: PathList,
    }
}

settings! {
    /// Settings of `data = { kind = "csv", … }`: comma or tab separated values.
    CsvSettings {
        /// The `.csv` or `.tsv` file, a folder of them, or a list.
        path: PathList,
        /// The character between fields. Unset: a tab in `.tsv` files, else a comma.
        #[serde(default, skip_serializing_if = "is_none")]
        delimiter: Option<char>,
        /// Whether the first line names the columns. Otherwise they are called `0`, `1`, ….
        #[serde(default = "yes")]
        header: bool,
        /// Whether `"` quotes a field. Unset: not in `.tsv` files, else yes.
        #[serde(default, skip_serializing_if = "is_none")]
        quotes: Option<bool>,
    }
}

settings! {
    /// Settings of `data = { kind = "text", … }`: plain UTF-8 text.
    TextSettings {
        /// The `.txt` file, a folder of them, or a list.
        path: PathList,
        /// What is one example.
        #[serde(default)]
        unit: TextUnit,
    }
}

settings! {
    /// Settings of `data = { kind = "builtin", … }`: text and tasks that the project writes itself.
    BuiltinSettings {
        /// Which text or task: `tiny-text`, `records`, `counts`, `preferences`, `colours`, or `glyphs` (images).
        name: String,
        /// Seed of what is written; the same seed writes the same rows.
        #[serde(default)]
        seed: u64,
        /// Bytes of text, for `tiny-text`. Default 4 000 000.
        #[serde(default = "default_bytes")]
        bytes: usize,
        /// Rows, for tasks. Default 2000.
        #[serde(default = "default_rows")]
        rows: usize,
        /// Whether to write the task's held-out rows, which no training row repeats.
        #[serde(default)]
        held_out: bool,
    }
}

impl BuiltinSettings {
    /// About how many bytes of text this writes.
    pub fn bytes_about(&self) -> u64 {
        // A row of a task is a sentence or two with their answer.
        if self.name == "tiny-text" { self.bytes as u64 } else { self.rows as u64 * 120 }
    }
}

fn default_bytes() -> usize {
    4_000_000
}

fn default_rows() -> usize {
    2000
}

/// Settings of `data = { kind = "tokens", … }`: a safetensors file with
/// `input_ids` and perhaps `attention_mask` and `labels`, all `[rows, length]`.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TokensSettings {
    /// The `.safetensors` file: `input_ids` and perhaps `attention_mask` and `labels`, or `pixel_values` and
    /// `labels` for a model of images.
    pub path: PathBuf,
    /// Whether every step takes all of the file's rows, in order; else they are dealt out like any other rows.
    #[serde(default = "yes")]
    pub repeat: bool,
}

/// Any kind's settings.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub enum DataSettings {
    Jsonl(JsonlSettings),
    Json(JsonSettings),
    Csv(CsvSettings),
    Text(TextSettings),
    Builtin(BuiltinSettings),
    Tokens(TokensSettings),
}

impl DataSettings {
    /// The kinds, as recipes name them.
    pub const KINDS: [&'static str; 6] = ["jsonl", "json", "csv", "text", "builtin", "tokens"];

    /// Settings of this kind from their JSON, without the key `kind`.
    ///
    /// # Errors
    /// An unknown kind, an unknown or missing setting, a value of a wrong type or range.
    pub fn from_json(kind: &str, settings: Json) -> Result<Self> {
        let this = match kind {
            "jsonl" => DataSettings::Jsonl(serde_json::from_value(settings)?),
            "json" => DataSettings::Json(serde_json::from_value(settings)?),
            "csv" => DataSettings::Csv(serde_json::from_value(settings)?),
            "text" => DataSettings::Text(serde_json::from_value(settings)?),
            "builtin" => DataSettings::Builtin(serde_json::from_value(settings)?),
            "tokens" => DataSettings::Tokens(serde_json::from_value(settings)?),
            other => {
                let error = UserError::new(format!("there is no data kind `{other}`"));
                return Err(match suggest(other, Self::KINDS) {
                    Some(near) => error.help(format!("did you mean `{near}`?")),
                    None => error.help(format!("there are: {}", Self::KINDS.join(", "))),
                }
                .into());
            }
        };
        this.check()?;
        Ok(this)
    }

    /// Settings for a bare path, by its ending: `.jsonl`, `.json`, `.csv`, `.tsv`, `.safetensors`, otherwise text.
    pub fn from_path(path: &Path) -> Result<Self> {
        let ending = path.extension().map(|e| e.to_string_lossy().to_lowercase()).unwrap_or_default();
        let kind = match ending.as_str() {
            "jsonl" | "ndjson" => "jsonl",
            "json" => "json",
            "csv" | "tsv" => "csv",
            "safetensors" => "tokens",
            _ => "text",
        };
        Self::from_json(kind, serde_json::json!({ "path": path }))
    }

    /// The kind's name in recipes.
    pub fn kind(&self) -> &'static str {
        match self {
            DataSettings::Jsonl(_) => "jsonl",
            DataSettings::Json(_) => "json",
            DataSettings::Csv(_) => "csv",
            DataSettings::Text(_) => "text",
            DataSettings::Builtin(_) => "builtin",
            DataSettings::Tokens(_) => "tokens",
        }
    }

    /// The options that all kinds but `tokens` share.
    pub fn preparation(&self) -> Option<Preparation> {
        Some(match self {
            DataSettings::Jsonl(s) => s.preparation(),
            DataSettings::Json(s) => s.preparation(),
            DataSettings::Csv(s) => s.preparation(),
            DataSettings::Text(s) => {
                let mut p = s.preparation();
                if s.unit == TextUnit::Whole {
                    (p.packing, p.packing_strategy) = (true, Packing::Wrapped);
                }
                p
            }
            DataSettings::Builtin(s) => s.preparation(),
            DataSettings::Tokens(_) => return None,
        })
    }

    /// The files or folders that the settings name, as written.
    pub fn paths(&self) -> Vec<&Path> {
        match self {
            DataSettings::Jsonl(s) => s.path.iter().collect(),
            DataSettings::Json(s) => s.path.iter().collect(),
            DataSettings::Csv(s) => s.path.iter().collect(),
            DataSettings::Text(s) => s.path.iter().collect(),
            DataSettings::Tokens(s) => vec![&s.path],
            DataSettings::Builtin(_) => Vec::new(),
        }
    }

    /// Values that are wrong whatever the files hold.
    ///
    /// # Errors
    /// [`BadSetting`] naming the setting.
    pub fn check(&self) -> Result<(), BadSetting> {
        if let DataSettings::Csv(s) = self
            && s.delimiter.is_some_and(|d| !d.is_ascii() || d == '"' || d == '\n' || d == '\r')
        {
            return Err(BadSetting::new(
                "delimiter",
                "must be one ASCII character other than a quote or a line end",
            ));
        }
        if let DataSettings::Builtin(s) = self {
            crate::tiny::check(s)?;
        }
        if self.paths().iter().any(|p| p.as_os_str().is_empty()) {
            return Err(BadSetting::new("path", "is empty"));
        }
        self.preparation().map_or(Ok(()), |p| p.check())
    }
}
