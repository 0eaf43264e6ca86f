//! The stage that trains, and the tables in it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::part::{Adapter, Part, by_default, many, one, one_or_many, slot};
use crate::recipe::Model;
use crate::stage::{Metric, answer_length, data_or_path, data_or_path_schema, loss, yes};

/// How matrices are held that train.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum TrainableDtype {
    /// 32-bit floats.
    F32,
    /// 16-bit floats with f32's exponent; what is below their spacing is added by chance.
    Bf16,
}

/// `kind = "train"`: without an adapter everything trains.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TrainStage {
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
    /// Adapters to train, in order. Default: none, all weights train.
    #[serde(default, deserialize_with = "one_or_many")]
    #[schemars(schema_with = "many::<{ slot::ADAPTER }>")]
    pub adapter: Vec<Adapter>,
    /// What leaves fewer tokens to the blocks that follow, of which there can be one. Default: nothing.
    #[serde(default, deserialize_with = "one_or_many", skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "many::<{ slot::REDUCER }>")]
    pub reducer: Vec<Part>,
    /// Which weights of the base train, and when. Default: none with an adapter, else all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "one::<{ slot::SELECTION }>")]
    pub selection: Option<Part>,
    /// How matrices of the base are held that train: `f32`, or `bf16` in half the memory, where updates are rounded by
    /// chance; the latter for estimators that walk nothing back. Default: `f32`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trainable_dtype: Option<TrainableDtype>,
    /// A method that brings parts of several slots, such as an adapter with an activation policy. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "one::<{ slot::METHOD }>")]
    pub method: Option<Part>,
    /// How a gradient is obtained. Default: `{ kind = "backprop" }`.
    #[serde(default = "by_default::<{ slot::ESTIMATOR }>")]
    #[schemars(schema_with = "one::<{ slot::ESTIMATOR }>")]
    pub estimator: Part,
    /// Transforms between gradient and optimizer, in order. Default: none.
    #[serde(default, deserialize_with = "one_or_many")]
    #[schemars(schema_with = "many::<{ slot::GRADIENT }>")]
    pub gradient: Vec<Part>,
    /// The update rule. Default: `{ kind = "adamw" }`.
    #[serde(default = "by_default::<{ slot::OPTIMIZER }>")]
    #[schemars(schema_with = "one::<{ slot::OPTIMIZER }>")]
    pub optimizer: Part,
    /// The learning rate by step. Default: `{ kind = "constant" }`.
    #[serde(default = "by_default::<{ slot::SCHEDULE }>")]
    #[schemars(schema_with = "one::<{ slot::SCHEDULE }>")]
    pub schedule: Part,
    /// The loss. Default: `{ kind = "sft" }`.
    #[serde(default = "by_default::<{ slot::OBJECTIVE }>")]
    #[schemars(schema_with = "one::<{ slot::OBJECTIVE }>")]
    pub objective: Part,
    /// What survives from forward to backward. Default: `{ kind = "keep" }`.
    #[serde(default = "by_default::<{ slot::ACTIVATION }>")]
    #[schemars(schema_with = "one::<{ slot::ACTIVATION }>")]
    pub activation: Part,
    /// Several ranks that train as one, each with its share of a step's micro-batches. Default: none, one alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "one::<{ slot::COMM }>")]
    pub comm: Option<Part>,
    /// The rows to learn from.
    #[schemars(schema_with = "one::<{ slot::DATA }>")]
    pub data: Part,
    /// How rows make an optimizer step.
    #[serde(default)]
    pub batch: Batch,
    /// Optimizer steps. One of `steps` and `epochs` is needed.
    #[serde(default, alias = "max_steps", skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub steps: Option<u64>,
    /// Passes over the data; may be a fraction.
    #[serde(default, alias = "num_train_epochs", skip_serializing_if = "Option::is_none")]
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub epochs: Option<f64>,
    /// Gradients are scaled down to this global norm; 0 turns it off. Default: 1.
    #[serde(default = "max_grad_norm")]
    #[schemars(range(min = 0))]
    pub max_grad_norm: f64,
    /// Whether each tensor is updated, and its gradient freed, as soon as backward has completed it: the same
    /// numbers with one gradient alive at a time. Needs one micro-batch a step and `max_grad_norm = 0`. Default: false.
    #[serde(default)]
    pub fused_optimizer: bool,
    /// Measuring on held data while training. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eval: Option<TrainEval>,
    /// When to save the state, and how many to keep.
    #[serde(default)]
    pub checkpoint: Checkpoint,
    /// Optimizer steps between updates of the progress shown; `metrics.jsonl` has every step. Default: 1.
    #[serde(default = "every_step", alias = "logging_steps")]
    #[schemars(range(min = 1))]
    pub log_every: u64,
    /// Whether the stage checks masks, packing, accumulation and gradients before step 1. Default: true.
    #[serde(default = "yes")]
    pub audit: bool,
    /// Texts written while training, before and after at least. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub samples: Option<Samples>,
    /// What reacts to the events of training, in order. Default: nothing.
    #[serde(default, deserialize_with = "one_or_many", skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "many::<{ slot::HOOK }>")]
    pub hook: Vec<Part>,
    /// Where figures go besides the run folder's own files. Default: nowhere.
    #[serde(default, deserialize_with = "one_or_many", skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "many::<{ slot::TRACK }>")]
    pub track: Vec<Part>,
}

/// How rows make an optimizer step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Batch {
    /// Tokens of an optimizer step, as nearly as whole micro-batches allow; sets the accumulation. Default: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub tokens: Option<u64>,
    /// Rows of one forward and backward. Default: 8.
    #[serde(alias = "per_device_train_batch_size")]
    #[schemars(range(min = 1))]
    pub micro_batch_size: u64,
    /// Micro-batches of an optimizer step, on each rank where there are several. Default: 1, or what `tokens` asks for.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub gradient_accumulation_steps: Option<u64>,
}

impl Default for Batch {
    fn default() -> Self {
        Batch { tokens: None, micro_batch_size: 8, gradient_accumulation_steps: None }
    }
}

/// Measuring on held data while training.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TrainEval {
    /// Optimizer steps between measurements. Default: only before the first step and after the last.
    #[serde(default, alias = "eval_steps", skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub every: Option<u64>,
    /// The held rows: a part, or a path that is read the way the stage's own data is.
    /// Default: what `split` of the stage's own data holds out.
    #[serde(default, deserialize_with = "data_or_path", skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "data_or_path_schema")]
    pub data: Option<Part>,
    /// What is measured. Default: `["loss"]`.
    #[serde(default = "loss")]
    pub metrics: Vec<Metric>,
    /// Rows used, from the start. Default: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub max_rows: Option<u64>,
    /// The longest answer of metrics that generate, in tokens. Default: 64.
    #[serde(default = "answer_length")]
    #[schemars(range(min = 1))]
    pub max_new_tokens: u64,
}

/// When to save the state, and how many to keep.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Checkpoint {
    /// Optimizer steps between checkpoints. Default: only when interrupted and at the end.
    #[serde(alias = "save_steps", skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub every: Option<u64>,
    /// Newest checkpoints that survive. Default: 2.
    #[serde(alias = "save_total_limit")]
    #[schemars(range(min = 1))]
    pub keep: u64,
}

impl Default for Checkpoint {
    fn default() -> Self {
        Checkpoint { every: None, keep: 2 }
    }
}

/// Texts written while training.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Samples {
    /// What is continued.
    pub prompts: Vec<String>,
    /// Optimizer steps between samples. Default: only before the first step and after the last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub every: Option<u64>,
    /// The longest answer, in tokens. Default: 64.
    #[serde(default = "answer_length")]
    #[schemars(range(min = 1))]
    pub max_new_tokens: u64,
    /// How tokens are chosen. Default: `{ kind = "greedy" }`.
    #[serde(default = "by_default::<{ slot::DECODE }>")]
    #[schemars(schema_with = "one::<{ slot::DECODE }>")]
    pub decode: Part,
}

fn max_grad_norm() -> f64 {
    1.0
}

fn every_step() -> u64 {
    1
}
