//! The top of a recipe: name, seed, model, memory and the stages.

use schemars::JsonSchema;
use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value as Json};

use crate::bytes::Bytes;
use crate::part::Part;
use crate::stage::Stage;

/// A whole recipe.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Recipe {
    /// Name of the run and of its folder under `runs/`; by default the recipe file's name.
    pub name: String,
    /// Seed of every random number of the run.
    pub seed: u64,
    /// The model of the first stage; every later stage begins with what the one before left.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<Model>,
    /// The budget and what may be changed to meet it.
    pub memory: Memory,
    /// What is done, in order.
    pub stage: Vec<Stage>,
}

/// What the top of a recipe file may hold, for reading and for the schema.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "Ramekin recipe")]
#[allow(dead_code)] // the tables are decoded one by one, so that each mistake is found
pub(crate) struct Top {
    /// Name of the run and of its folder under `runs/`. Default: the recipe file's name without `.toml`.
    #[serde(default)]
    pub name: Option<String>,
    /// Seed of every random number of the run. Default: 0.
    #[serde(default)]
    #[schemars(default)]
    pub seed: u64,
    /// The model of the first stage.
    #[serde(default)]
    #[schemars(with = "Option<Model>")]
    pub model: Option<Json>,
    /// The memory budget.
    #[serde(default)]
    #[schemars(with = "Option<Memory>")]
    pub memory: Option<Json>,
    /// What is done, in order.
    #[serde(default)]
    #[schemars(with = "Vec<Stage>")]
    pub stage: Option<Json>,
}

/// Which model, and in which type.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Model {
    /// `hf:ORG/NAME`, a folder, `builtin:NAME`, or `init` for fresh weights from `config`.
    pub source: String,
    /// The type weights are held and multiplied in. Default: the type that the files store; f32 for `init`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dtype: Option<Dtype>,
    /// Branch, tag or commit of a `hf:` source. Default: `main`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
    /// The architecture of `source = "init"`: path of a `config.json`, or its content as a table.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config: Option<Config>,
    /// The tokenizer of `source = "init"`: an existing one, or one learnt from text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokenizer: Option<Tokenizer>,
    /// Where it stands in the recipe (`model`, `stage.1.model`); empty for one that no recipe names.
    #[serde(skip)]
    pub path: String,
}

/// A type of numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    /// 32-bit IEEE floats.
    F32,
    /// 16-bit floats with f32's exponent.
    Bf16,
    /// 16-bit IEEE floats.
    F16,
}

impl Dtype {
    /// The name in recipes.
    pub fn name(self) -> &'static str {
        match self {
            Dtype::F32 => "f32",
            Dtype::Bf16 => "bf16",
            Dtype::F16 => "f16",
        }
    }
}

/// An architecture in Hugging Face's words.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
#[serde(untagged)]
pub enum Config {
    /// Path of a `config.json`.
    Path(String),
    /// The content of one.
    Table(Map<String, Json>),
}

impl<'de> Deserialize<'de> for Config {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Json::deserialize(deserializer)? {
            Json::String(path) => Ok(Config::Path(path)),
            Json::Object(table) => Ok(Config::Table(table)),
            _ => Err(D::Error::custom("expected the path of a `config.json`, or its content as a table")),
        }
    }
}

/// Where the tokenizer of fresh weights comes from.
///
/// `{ path = "FILE_OR_FOLDER" }`, or `{ kind = "char" | "bpe", data = "FILE", vocab_size = N }`.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Tokenizer {
    /// An existing one: a `tokenizer.json`, or a folder that has one.
    File {
        /// The file or folder as written.
        path: String,
    },
    /// A new one, learnt from text.
    Learn {
        /// How text is cut.
        kind: TokenizerKind,
        /// The text file; without it, the data of the first train stage.
        #[serde(skip_serializing_if = "Option::is_none")]
        data: Option<String>,
        /// Entries of a `bpe` vocabulary, special tokens included; `char` takes every character it meets.
        #[serde(skip_serializing_if = "Option::is_none")]
        vocab_size: Option<usize>,
    },
}

/// How a learnt tokenizer cuts text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum TokenizerKind {
    /// One token a character.
    Char,
    /// Byte-level byte-pair encoding.
    Bpe,
}

/// The table as written, before it is known which of the two forms it is.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct TokenizerTable {
    /// An existing tokenizer: a `tokenizer.json`, or a folder that has one.
    #[serde(default)]
    path: Option<String>,
    /// A new tokenizer: how it cuts text.
    #[serde(default)]
    kind: Option<TokenizerKind>,
    /// The text file that a new tokenizer learns from. Default: the data of the first train stage.
    #[serde(default)]
    data: Option<String>,
    /// Entries of a new `bpe` vocabulary, special tokens included.
    #[serde(default)]
    vocab_size: Option<usize>,
}

impl<'de> Deserialize<'de> for Tokenizer {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let TokenizerTable { path, kind, data, vocab_size } =
            TokenizerTable::deserialize(Json::deserialize(deserializer)?).map_err(D::Error::custom)?;
        let wrong = |text: &str| Err(D::Error::custom(text));
        match (path, kind) {
            (None, None) => wrong("needs `path` of a tokenizer, or `kind` of a new one: `char` or `bpe`"),
            (Some(path), None) if data.is_none() && vocab_size.is_none() => Ok(Tokenizer::File { path }),
            (Some(_), None) => wrong("`data` and `vocab_size` belong to a new tokenizer, which has a `kind`"),
            // nanoGPT-like recipes say `path` for the text; one word for one thing is kinder to the reader.
            (Some(_), Some(_)) => wrong(
                "`path` names an existing tokenizer, `kind` a new one: the text to learn from is `data`",
            ),
            (None, Some(TokenizerKind::Bpe)) if vocab_size.is_none() => wrong("`bpe` needs `vocab_size`"),
            (None, Some(TokenizerKind::Char)) if vocab_size.is_some() => {
                wrong("`char` takes every character it meets: `vocab_size` belongs to `bpe`")
            }
            (None, Some(kind)) => Ok(Tokenizer::Learn { kind, data, vocab_size }),
        }
    }
}

impl JsonSchema for Tokenizer {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Tokenizer".into()
    }

    fn json_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
        TokenizerTable::json_schema(generator)
    }
}

/// The budget and what may be changed to meet it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Memory {
    /// The most memory that the run may hold at once: `6GiB`, `512MiB`, or bytes. Default: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budget: Option<Bytes>,
    /// What the planner may change so that the run fits. Default: nothing.
    #[serde(default)]
    pub allow: Vec<Allow>,
}

/// What a planner may change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Allow {
    /// Recompute activations instead of keeping them.
    Checkpoint,
    /// Fewer rows at once, more accumulation; the optimizer step stays the same.
    MicroBatchSize,
    /// Store frozen weights in fewer bits.
    Quantizer,
}

impl Allow {
    /// How recipes write it.
    pub fn name(self) -> &'static str {
        match self {
            Allow::Checkpoint => "checkpoint",
            Allow::MicroBatchSize => "micro_batch_size",
            Allow::Quantizer => "quantizer",
        }
    }
}

impl Recipe {
    /// Every part of the recipe with its slot, stage by stage; settings and kinds may be changed.
    ///
    /// The data of an evaluation inside a train stage counts as a part of slot `data`.
    pub fn parts_mut(&mut self) -> Vec<(&'static str, &mut Part)> {
        let parts = self.stage.iter_mut().flat_map(Stage::parts_mut);
        parts.map(|placed| (placed.slot, placed.part)).collect()
    }
}
