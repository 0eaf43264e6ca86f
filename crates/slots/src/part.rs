//! What the registry keeps of a part: its name, settings, schema, source, traits and constructor.

use anyhow::Result;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value as Json;

use crate::{
    ActivationPolicy, Adapter, AttentionRule, Comm, Decoder, Estimator, GradientTransform, Hook, KvPolicy,
    Merger, Method, ModelFamily, Objective, Optimizer, Placement, Pruner, Quantizer, Schedule, Search,
    Selection, Track,
};

/// The places of a recipe that parts fill.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)]
pub enum Slot {
    Model,
    Quantizer,
    Adapter,
    Selection,
    Method,
    Estimator,
    Gradient,
    Optimizer,
    Schedule,
    Objective,
    Data,
    Activation,
    Placement,
    Attention,
    Kv,
    Reducer,
    Decode,
    Prune,
    Merge,
    Search,
    Comm,
    Hook,
    Track,
}

impl Slot {
    /// All slots, in the order of the reference.
    pub const ALL: [Slot; 23] = [
        Slot::Model,
        Slot::Quantizer,
        Slot::Adapter,
        Slot::Selection,
        Slot::Method,
        Slot::Estimator,
        Slot::Gradient,
        Slot::Optimizer,
        Slot::Schedule,
        Slot::Objective,
        Slot::Data,
        Slot::Activation,
        Slot::Placement,
        Slot::Attention,
        Slot::Kv,
        Slot::Reducer,
        Slot::Decode,
        Slot::Prune,
        Slot::Merge,
        Slot::Search,
        Slot::Comm,
        Slot::Hook,
        Slot::Track,
    ];

    /// The key in a recipe.
    pub fn name(self) -> &'static str {
        match self {
            Slot::Model => "model",
            Slot::Quantizer => "quantizer",
            Slot::Adapter => "adapter",
            Slot::Selection => "selection",
            Slot::Method => "method",
            Slot::Estimator => "estimator",
            Slot::Gradient => "gradient",
            Slot::Optimizer => "optimizer",
            Slot::Schedule => "schedule",
            Slot::Objective => "objective",
            Slot::Data => "data",
            Slot::Activation => "activation",
            Slot::Placement => "placement",
            Slot::Attention => "attention",
            Slot::Kv => "kv",
            Slot::Reducer => "reducer",
            Slot::Decode => "decode",
            Slot::Prune => "prune",
            Slot::Merge => "merge",
            Slot::Search => "search",
            Slot::Comm => "comm",
            Slot::Hook => "hook",
            Slot::Track => "track",
        }
    }
}

impl Slot {
    /// What its parts decide, in a few words.
    pub fn purpose(self) -> &'static str {
        match self {
            Slot::Model => "architectures, chosen by a model's `config.json`",
            Slot::Quantizer => "how frozen weights are stored",
            Slot::Adapter => "extra parameters at the sites of a model; a list, in order",
            Slot::Selection => "which weights of the base train, and when",
            Slot::Method => "a method that fills several slots at once",
            Slot::Estimator => "how a gradient is obtained",
            Slot::Gradient => "what lies between gradient and optimizer; a list, in order",
            Slot::Optimizer => "the update rule and its state",
            Slot::Schedule => "the learning rate by step",
            Slot::Objective => "the loss",
            Slot::Data => "rows to learn from or to measure on",
            Slot::Activation => "what survives from forward to backward",
            Slot::Placement => "where weights live while they are not used",
            Slot::Attention => "which of the tokens before it a token sees",
            Slot::Kv => "what a cache of keys and values keeps",
            Slot::Reducer => "fewer tokens between blocks; a list, in order",
            Slot::Decode => "from logits to tokens",
            Slot::Prune => "what of a model goes",
            Slot::Merge => "several models into one",
            Slot::Search => "which recipe is tried next",
            Slot::Comm => "several ranks that train as one",
            Slot::Hook => "reacts to the events of training; a list, in order",
            Slot::Track => "where figures go besides the run folder; a list",
        }
    }
}

/// What a part declares of itself; the plan refuses or warns by it and tests measure it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Trait {
    /// Folds into the base weight.
    Mergeable,
    /// A fresh one leaves the outputs bit-identical.
    IdentityAtStart,
    /// Gradients must flow through the whole backbone.
    NeedsBackboneBackward,
    /// Needs all gradients of a step at once.
    NeedsGlobalGradNorm,
    /// Decides what a block keeps between forward and backward.
    OwnsActivations,
    /// Keeps state from step to step.
    StatefulAcrossSteps,
    /// Holds weights that cannot train.
    FreezesBase,
    /// Leaves fewer tokens to the blocks that follow.
    ChangesTokenCount,
}

/// A part of any slot, made from its settings.
pub enum AnyPart {
    /// An architecture.
    Model(Box<dyn ModelFamily>),
    /// A storage of frozen weights.
    Quantizer(Box<dyn Quantizer>),
    /// Extra parameters.
    Adapter(Box<dyn Adapter>),
    /// What of the base trains, and when.
    Selection(Box<dyn Selection>),
    /// Parts of several slots.
    Method(Box<dyn Method>),
    /// How a gradient is obtained.
    Estimator(Box<dyn Estimator>),
    /// Reacts to events of training.
    Hook(Box<dyn Hook>),
    /// Where weights live.
    Placement(Box<dyn Placement>),
    /// Several ranks that train as one.
    Comm(Box<dyn Comm>),
    /// Which recipe is tried next.
    Search(Box<dyn Search>),
    /// Gradient to gradient.
    Gradient(Box<dyn GradientTransform>),
    /// An update rule.
    Optimizer(Box<dyn Optimizer>),
    /// A rate by step.
    Schedule(Box<dyn Schedule>),
    /// A loss.
    Objective(Box<dyn Objective>),
    /// What survives until backward.
    Activation(Box<dyn ActivationPolicy>),
    /// What a token sees.
    Attention(Box<dyn AttentionRule>),
    /// Fewer tokens: attaches as an adapter does, and may have parameters of its own.
    Reducer(Box<dyn Adapter>),
    /// What a cache keeps.
    Kv(Box<dyn KvPolicy>),
    /// Logits to token.
    Decode(Box<dyn Decoder>),
    /// Where figures go.
    Track(Box<dyn Track>),
    /// Which channels go.
    Prune(Box<dyn Pruner>),
    /// Several models into one.
    Merge(Box<dyn Merger>),
    /// A part that another crate reads by its settings alone (data).
    Declared,
}

/// A part's settings type with its constructor.
pub trait Part: Sized {
    /// The settings, as written in a recipe.
    type Settings: DeserializeOwned + Serialize + schemars::JsonSchema;

    /// Makes the part, checking values that need no model.
    ///
    /// # Errors
    /// [`ramekin_core::BadSetting`] naming the setting.
    fn new(settings: Self::Settings) -> Result<Self>;
}

/// One registered part. Made by the registry's `part!` macro.
pub struct PartEntry {
    /// Where it goes.
    pub slot: Slot,
    /// Its name in recipes.
    pub name: &'static str,
    /// What it is for, in a line.
    pub summary: &'static str,
    /// Paper or sheet.
    pub source: &'static str,
    /// Declared traits.
    pub traits: &'static [Trait],
    /// JSON Schema of the settings.
    pub schema: fn() -> schemars::Schema,
    /// Settings in, the same with every default filled in out.
    pub complete: fn(Json) -> Result<Json, serde_json::Error>,
    /// Settings in, part out.
    pub build: fn(Json) -> Result<AnyPart>,
}
