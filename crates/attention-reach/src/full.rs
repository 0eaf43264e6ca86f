//! `full`: a token sees everything before it in its document.

use anyhow::Result;
use ramekin_registry::{Part, part};
use ramekin_slots::AttentionRule;
use ramekin_tape::ops::Reach;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

part! { attention / "full" => Full, "a token sees all of its document before it, even where the config has a window",
source = "arXiv:1706.03762", traits = [] }

/// `attention = { kind = "full" }` has no settings.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct FullSettings {}

/// The rule.
pub struct Full;

impl Part for Full {
    type Settings = FullSettings;

    fn new(_: FullSettings) -> Result<Self> {
        Ok(Full)
    }
}

impl AttentionRule for Full {
    fn reach(&self, _: usize, _: Reach) -> Reach {
        Reach::ALL
    }
}
