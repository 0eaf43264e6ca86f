//! The stages of a recipe. Each struct lists exactly the keys that its stage reads.

use schemars::JsonSchema;
use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value as Json;

use crate::bench::BenchStage;
use crate::bytes::Bytes;
use crate::part::{Adapter, Part, by_default, list, many, one, one_or_many, slot};
use crate::recipe::{Dtype, Model};
use crate::search::SearchStage;
pub use crate::train::{Batch, Checkpoint, Samples, TrainEval, TrainStage, TrainableDtype};

/// One `[[stage]]`.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
#[allow(clippy::large_enum_variant)] // a recipe has a handful of stages
pub enum Stage {
    /// Changes weights or adapters by gradient steps.
    Train(TrainStage),
    /// Continues prompts.
    Generate(GenerateStage),
    /// Folds the adapters in and writes a model.
    Merge(MergeStage),
    /// Measures on held data.
    Eval(EvalStage),
    /// Writes logits, loss and gradients of given inputs.
    Logits(LogitsStage),
    /// Tries a recipe with other values of some of its keys.
    Search(SearchStage),
    /// Makes the model smaller.
    Compress(CompressStage),
    /// Sets variants of a recipe side by side.
    Bench(BenchStage),
}

impl Stage {
    /// The names of all kinds.
    pub const KINDS: [&str; 8] =
        ["train", "generate", "merge", "eval", "logits", "search", "compress", "bench"];

    /// The `kind` as a recipe writes it.
    pub fn kind(&self) -> &'static str {
        match self {
            Stage::Train(_) => "train",
            Stage::Generate(_) => "generate",
            Stage::Merge(_) => "merge",
            Stage::Eval(_) => "eval",
            Stage::Logits(_) => "logits",
            Stage::Search(_) => "search",
            Stage::Compress(_) => "compress",
            Stage::Bench(_) => "bench",
        }
    }

    /// The recipe that the stage cooks with other values, for a stage that has no model of its own.
    pub fn tries(&self) -> Option<&str> {
        match self {
            Stage::Search(s) => Some(&s.recipe),
            Stage::Bench(s) => Some(&s.recipe),
            _ => None,
        }
    }

    /// The stage's own model, if it names one.
    pub fn model(&self) -> Option<&Model> {
        match self {
            Stage::Train(s) => s.model.as_ref(),
            Stage::Generate(s) => s.model.as_ref(),
            Stage::Merge(s) => s.model.as_ref(),
            Stage::Eval(s) => s.model.as_ref(),
            Stage::Logits(s) => s.model.as_ref(),
            Stage::Search(_) | Stage::Bench(_) => None,
            Stage::Compress(s) => s.model.as_ref(),
        }
    }

    /// The stage's own model, to be changed.
    pub fn model_mut(&mut self) -> Option<&mut Model> {
        match self {
            Stage::Train(s) => s.model.as_mut(),
            Stage::Generate(s) => s.model.as_mut(),
            Stage::Merge(s) => s.model.as_mut(),
            Stage::Eval(s) => s.model.as_mut(),
            Stage::Logits(s) => s.model.as_mut(),
            Stage::Search(_) | Stage::Bench(_) => None,
            Stage::Compress(s) => s.model.as_mut(),
        }
    }

    /// The adapters attached by the stage, to be changed.
    pub fn adapters_mut(&mut self) -> &mut [Adapter] {
        match self {
            Stage::Train(s) => &mut s.adapter,
            Stage::Generate(s) => &mut s.adapter,
            Stage::Merge(s) => &mut s.adapter,
            Stage::Eval(s) => &mut s.adapter,
            Stage::Logits(s) => &mut s.adapter,
            Stage::Search(_) | Stage::Compress(_) | Stage::Bench(_) => &mut [],
        }
    }

    /// How the stage stores frozen weights, where it says so.
    pub fn quantizer(&self) -> Option<&Part> {
        match self {
            Stage::Train(s) => s.quantizer.as_ref(),
            Stage::Generate(s) => s.quantizer.as_ref(),
            Stage::Eval(s) => s.quantizer.as_ref(),
            Stage::Logits(s) => s.quantizer.as_ref(),
            Stage::Merge(_) | Stage::Search(_) | Stage::Compress(_) | Stage::Bench(_) => None,
        }
    }

    /// What leaves fewer tokens, in order.
    pub fn reducers(&self) -> &[Part] {
        match self {
            Stage::Train(s) => &s.reducer,
            Stage::Eval(s) => &s.reducer,
            Stage::Logits(s) => &s.reducer,
            Stage::Generate(_)
            | Stage::Merge(_)
            | Stage::Search(_)
            | Stage::Compress(_)
            | Stage::Bench(_) => &[],
        }
    }

    /// Where weights live, in a stage that says so.
    pub fn placement(&self) -> Option<&Part> {
        match self {
            Stage::Train(s) => Some(&s.placement),
            Stage::Generate(s) => Some(&s.placement),
            Stage::Eval(s) => Some(&s.placement),
            Stage::Logits(s) => Some(&s.placement),
            Stage::Merge(_) | Stage::Search(_) | Stage::Compress(_) | Stage::Bench(_) => None,
        }
    }

    /// What tokens see, in a stage that says so.
    pub fn attention(&self) -> Option<&Part> {
        match self {
            Stage::Train(s) => s.attention.as_ref(),
            Stage::Generate(s) => s.attention.as_ref(),
            Stage::Eval(s) => s.attention.as_ref(),
            Stage::Logits(s) => s.attention.as_ref(),
            Stage::Merge(_) | Stage::Search(_) | Stage::Compress(_) | Stage::Bench(_) => None,
        }
    }

    /// The adapters attached by the stage.
    pub fn adapters(&self) -> &[Adapter] {
        match self {
            Stage::Train(s) => &s.adapter,
            Stage::Generate(s) => &s.adapter,
            Stage::Merge(s) => &s.adapter,
            Stage::Eval(s) => &s.adapter,
            Stage::Logits(s) => &s.adapter,
            Stage::Search(_) | Stage::Compress(_) | Stage::Bench(_) => &[],
        }
    }
}

/// A figure of an evaluation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// The objective's own loss; for `sft` the mean cross-entropy of the active tokens, in nats.
    Loss,
    /// The exponential of the mean cross-entropy.
    Perplexity,
    /// Share of rows whose generated answer equals the expected one.
    ExactMatch,
    /// Share of rows that the objective gets right: classes, or answers preferred.
    Accuracy,
    /// Share of rows whose generated answer's last number is the expected one, within 0.001.
    Number,
    /// Share of rows whose generated answer's first letter from A to E is the expected one.
    Letter,
    /// Share of rows whose generated answer's first label (true, false, answer1, …) is the expected one.
    Choice,
}

/// `kind = "generate"`: one of `input`, `prompt` and `prompts` is needed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct GenerateStage {
    /// A name for reports. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The model to begin with. Default: what the stage before left, or the recipe's `[model]`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<Model>,
    /// How frozen weights are stored. Default: as loaded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "one::<{ slot::QUANTIZER }>")]
    pub quantizer: Option<Part>,
    /// Where weights live while they are not used. Default: `{ kind = "resident" }`.
    #[serde(default = "by_default::<{ slot::PLACEMENT }>")]
    #[schemars(schema_with = "one::<{ slot::PLACEMENT }>")]
    pub placement: Part,
    /// Which of the tokens before it a token sees. Default: as in its training, else what the model's config says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "one::<{ slot::ATTENTION }>")]
    pub attention: Option<Part>,
    /// Adapters to attach, in order. Default: none besides those of the stage before.
    #[serde(default, deserialize_with = "one_or_many")]
    #[schemars(schema_with = "many::<{ slot::ADAPTER }>")]
    pub adapter: Vec<Adapter>,
    /// Prompts as tokens: a safetensors file with `input_ids` and perhaps `attention_mask`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub input: Option<String>,
    /// One prompt as text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt: Option<String>,
    /// Several prompts as text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompts: Option<Vec<String>>,
    /// The longest answer, in tokens. Default: 64.
    #[serde(default = "answer_length")]
    #[schemars(range(min = 1))]
    pub max_new_tokens: u64,
    /// How tokens are chosen. Default: `{ kind = "greedy" }`.
    #[serde(default = "by_default::<{ slot::DECODE }>")]
    #[schemars(schema_with = "one::<{ slot::DECODE }>")]
    pub decode: Part,
    /// What the cache keeps. Default: `{ kind = "full" }`.
    #[serde(default = "by_default::<{ slot::KV }>")]
    #[schemars(schema_with = "one::<{ slot::KV }>")]
    pub kv: Part,
    /// Texts that end an answer. Default: only the model's own end.
    #[serde(default)]
    pub stop: Vec<String>,
    /// Whether prompts go through the chat template as a user's message. Default: false.
    #[serde(default)]
    pub chat: bool,
}

/// `kind = "merge"`: folds adapters in, or puts several models of one base together, and writes a model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MergeStage {
    /// A name for reports. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The model to begin with. Default: what the stage before left, or the recipe's `[model]`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<Model>,
    /// Adapters to attach before merging. Default: none besides those of the stage before.
    #[serde(default, deserialize_with = "one_or_many")]
    #[schemars(schema_with = "many::<{ slot::ADAPTER }>")]
    pub adapter: Vec<Adapter>,
    /// How models are put together. Default: `{ kind = "lora" }`, which folds the attached adapters in.
    #[serde(default = "by_default::<{ slot::MERGE }>")]
    #[schemars(schema_with = "one::<{ slot::MERGE }>")]
    pub method: Part,
    /// What is put together: tuned models, adapters or files of sparse differences. Default: none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub models: Vec<MergeInput>,
    /// The model that all of them were tuned from: `hf:ORG/NAME`, a folder or `builtin:NAME`.
    /// Default: the stage's own `model`, else the recipe's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<String>,
    /// Held rows of tasks that no model was tuned for, where a method asks what is kept of them. Default: none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "list::<{ slot::DATA }>")]
    pub control: Vec<Part>,
    /// The file format. Default: `safetensors`.
    #[serde(default)]
    #[schemars(default)]
    pub format: MergeFormat,
    /// The type of the written weights. Default: that of the model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dtype: Option<Dtype>,
    /// The largest file: `5GB`, `2GiB`. Default: `5GB`.
    #[serde(default = "shard")]
    pub max_shard_size: Bytes,
}

/// An entry of `models`: one of `source` and `stage` is needed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MergeInput {
    /// `hf:ORG/NAME`, `builtin:NAME`, the folder of a model or adapter, or a file of sparse differences.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// Instead: the number of an earlier stage of this recipe, whose model or adapter is meant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stage: Option<u64>,
    /// How much the model counts; negative takes away what it learnt. Default: 1.
    #[serde(default = "weight_one")]
    pub weight: f64,
    /// Held rows of the model's own task, where a method chooses settings by them. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "one::<{ slot::DATA }>")]
    pub data: Option<Part>,
}

/// What a merge writes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum MergeFormat {
    /// A Hugging Face model folder.
    #[default]
    Safetensors,
}

/// `kind = "compress"`: makes the model smaller; one of `prune` and `quantizer` at least is needed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CompressStage {
    /// A name for reports. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The model to begin with. Default: what the stage before left, or the recipe's `[model]`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<Model>,
    /// Which channels go. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "one::<{ slot::PRUNE }>")]
    pub prune: Option<Part>,
    /// How the stages after this one store frozen weights; after pruning. Default: as they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "one::<{ slot::QUANTIZER }>")]
    pub quantizer: Option<Part>,
    /// The rows of the calibration pass, on which the loss is measured before and after.
    #[schemars(schema_with = "one::<{ slot::DATA }>")]
    pub data: Part,
    /// Samples of the calibration pass. Default: 128.
    #[serde(default = "calibration_samples")]
    #[schemars(range(min = 1))]
    pub nsamples: u64,
    /// Tokens of each; it is filled with whole rows, the last one cut, which do not see each other. Default: 1024.
    #[serde(default = "calibration_length")]
    #[schemars(range(min = 2))]
    pub seqlen: u64,
    /// Whether blocks of different widths are filled up with zeros to the widest, so that public loaders
    /// read the model. Default: false.
    #[serde(default)]
    pub pad: bool,
    /// The type of the written weights. Default: that of the model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dtype: Option<Dtype>,
    /// The largest file: `5GB`, `2GiB`. Default: `5GB`.
    #[serde(default = "shard")]
    pub max_shard_size: Bytes,
}

/// `kind = "eval"`: measures on held data.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EvalStage {
    /// A name for reports. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The model to begin with. Default: what the stage before left, or the recipe's `[model]`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<Model>,
    /// How frozen weights are stored. Default: as loaded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "one::<{ slot::QUANTIZER }>")]
    pub quantizer: Option<Part>,
    /// Where weights live while they are not used. Default: `{ kind = "resident" }`.
    #[serde(default = "by_default::<{ slot::PLACEMENT }>")]
    #[schemars(schema_with = "one::<{ slot::PLACEMENT }>")]
    pub placement: Part,
    /// Which of the tokens before it a token sees. Default: as in its training, else what the model's config says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "one::<{ slot::ATTENTION }>")]
    pub attention: Option<Part>,
    /// Adapters to attach, in order. Default: none besides those of the stage before.
    #[serde(default, deserialize_with = "one_or_many")]
    #[schemars(schema_with = "many::<{ slot::ADAPTER }>")]
    pub adapter: Vec<Adapter>,
    /// What leaves fewer tokens to the blocks that follow, of which there can be one. Default: nothing.
    #[serde(default, deserialize_with = "one_or_many", skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "many::<{ slot::REDUCER }>")]
    pub reducer: Vec<Part>,
    /// The held rows.
    #[schemars(schema_with = "one::<{ slot::DATA }>")]
    pub data: Part,
    /// The loss, and what it tells besides. Default: `{ kind = "sft" }`.
    #[serde(default = "by_default::<{ slot::OBJECTIVE }>")]
    #[schemars(schema_with = "one::<{ slot::OBJECTIVE }>")]
    pub objective: Part,
    /// What is measured. Default: `["loss"]`.
    #[serde(default = "loss")]
    pub metrics: Vec<Metric>,
    /// The longest answer of metrics that generate, in tokens. Default: 64.
    #[serde(default = "answer_length")]
    #[schemars(range(min = 1))]
    pub max_new_tokens: u64,
    /// How tokens are chosen by metrics that generate. Default: `{ kind = "greedy" }`.
    #[serde(default = "by_default::<{ slot::DECODE }>")]
    #[schemars(schema_with = "one::<{ slot::DECODE }>")]
    pub decode: Part,
    /// What the cache keeps. Default: `{ kind = "full" }`.
    #[serde(default = "by_default::<{ slot::KV }>")]
    #[schemars(schema_with = "one::<{ slot::KV }>")]
    pub kv: Part,
    /// Rows used, from the start. Default: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub max_rows: Option<u64>,
}

/// `kind = "logits"`: writes `logits.safetensors` for given inputs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LogitsStage {
    /// A name for reports. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The model to begin with. Default: what the stage before left, or the recipe's `[model]`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<Model>,
    /// How frozen weights are stored. Default: as loaded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "one::<{ slot::QUANTIZER }>")]
    pub quantizer: Option<Part>,
    /// Where weights live while they are not used. Default: `{ kind = "resident" }`.
    #[serde(default = "by_default::<{ slot::PLACEMENT }>")]
    #[schemars(schema_with = "one::<{ slot::PLACEMENT }>")]
    pub placement: Part,
    /// Which of the tokens before it a token sees. Default: as in its training, else what the model's config says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "one::<{ slot::ATTENTION }>")]
    pub attention: Option<Part>,
    /// Adapters to attach, in order. Default: none besides those of the stage before.
    #[serde(default, deserialize_with = "one_or_many")]
    #[schemars(schema_with = "many::<{ slot::ADAPTER }>")]
    pub adapter: Vec<Adapter>,
    /// What leaves fewer tokens to the blocks that follow, of which there can be one. Default: nothing.
    #[serde(default, deserialize_with = "one_or_many", skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "many::<{ slot::REDUCER }>")]
    pub reducer: Vec<Part>,
    /// A safetensors file with `input_ids` and perhaps `attention_mask` and `labels`, or with `pixel_values` and
    /// perhaps `labels`.
    pub input: String,
    /// Whether gradients of the mean loss are written too. Default: false.
    #[serde(default)]
    pub gradients: bool,
}

/// Every other spelling that is read, by the table it belongs to and the canonical name.
pub(crate) const ALIASES: [(&str, &str, &str); 7] = [
    ("TrainStage", "steps", "max_steps"),
    ("TrainStage", "epochs", "num_train_epochs"),
    ("TrainStage", "log_every", "logging_steps"),
    ("Batch", "micro_batch_size", "per_device_train_batch_size"),
    ("TrainEval", "every", "eval_steps"),
    ("Checkpoint", "every", "save_steps"),
    ("Checkpoint", "keep", "save_total_limit"),
];

/// Reads a data part, or a path alone, which leaves `kind` empty for [`crate::Recipe::read`] to fill.
pub(crate) fn data_or_path<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Part>, D::Error> {
    match Json::deserialize(deserializer)? {
        Json::String(path) => Ok(Some(Part::at_path(path))),
        table => Part::deserialize(table).map(Some).map_err(D::Error::custom),
    }
}

pub(crate) fn data_or_path_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
    let part = one::<{ slot::DATA }>(generator);
    schemars::json_schema!({ "anyOf": [{ "type": "string" }, part] })
}

pub(crate) fn loss() -> Vec<Metric> {
    vec![Metric::Loss]
}

pub(crate) fn answer_length() -> u64 {
    64
}

pub(crate) fn yes() -> bool {
    true
}

fn weight_one() -> f64 {
    1.0
}

fn calibration_samples() -> u64 {
    128
}

fn calibration_length() -> u64 {
    1024
}

fn shard() -> Bytes {
    Bytes(5_000_000_000)
}
