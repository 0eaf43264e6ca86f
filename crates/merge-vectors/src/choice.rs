//! Settings that are a value, or several of which held rows choose one.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// One value, or a grid.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(untagged)]
pub enum OneOrMany {
    /// This value.
    One(f64),
    /// One of these, chosen on held rows.
    Many(Vec<f64>),
}

impl OneOrMany {
    /// The values in the order they were written.
    pub fn values(&self) -> Vec<f64> {
        match self {
            OneOrMany::One(x) => vec![*x],
            OneOrMany::Many(all) => all.clone(),
        }
    }
}
