//! `kind = "search"`: a recipe as data.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use crate::part::{Part, one, slot};

/// `kind = "search"`: tries a recipe with other values of some of its keys.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SearchStage {
    /// A name for reports. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The recipe that is tried: a file, relative to this one.
    pub recipe: String,
    /// What is tried next.
    #[schemars(schema_with = "one::<{ slot::SEARCH }>")]
    pub search: Part,
    /// Keys of the recipe, as `--set` takes them, with a list of values or a range.
    pub space: BTreeMap<String, Values>,
    /// The figure of a trial's `summary.json` that is made better: `STAGE/KEY`, `0-train/eval.loss`.
    pub metric: String,
    /// Whether a smaller or a larger figure is better. Default: `min`.
    #[serde(default)]
    #[schemars(default)]
    pub goal: Goal,
}

/// The values of a key.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Values {
    /// One of these.
    List(Vec<Json>),
    /// A number within limits.
    Range(Range),
}

/// `{ min = 1e-5, max = 1e-2, log = true }`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Range {
    /// The smallest value.
    pub min: f64,
    /// The largest value.
    pub max: f64,
    /// Spreads draws evenly by logarithm. Default: false.
    #[serde(default)]
    pub log: bool,
    /// Whole numbers only. Default: false.
    #[serde(default)]
    pub integer: bool,
}

/// What is better.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Goal {
    /// A smaller figure.
    #[default]
    Min,
    /// A larger one.
    Max,
}
