//! `kind = "bench"`: variants of a recipe side by side.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

/// `kind = "bench"`: cooks variants of a recipe and sets memory and speed side by side, planned and measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BenchStage {
    /// A name for reports. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The recipe that is varied: a file, relative to this one.
    pub recipe: String,
    /// The number of that recipe's stage whose figures are shown. Default: 0.
    #[serde(default)]
    pub stage: u64,
    /// Runs of every variant, in turn; speeds are medians over them. Default: 1.
    #[serde(default = "one_round")]
    #[schemars(range(min = 1))]
    pub rounds: u64,
    /// Whether a variant stands on the one before it, so that the table is a ladder. Default: false.
    #[serde(default)]
    pub cumulative: bool,
    /// What is compared, in the order of the table.
    pub variant: Vec<Variant>,
}

/// `[[stage.variant]]`: a row of the table.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Variant {
    /// What the row is called.
    pub name: String,
    /// Keys of the recipe, as `--set` takes them, with their values. Default: none, the recipe as it is.
    #[serde(default)]
    pub set: BTreeMap<String, Json>,
}

fn one_round() -> u64 {
    1
}
