//! `lora`: attached adapters folded into their base.
//!
//! W ← W + s·B A, or whatever the adapter's own `fold` says; the engine does it linear by linear.
//!
//! Source: Hu et al. 2021, arXiv:2106.09685, section 4.1.

use anyhow::{Result, bail};
use ramekin_registry::{Part, part};
use ramekin_slots::{Judge, Merger, Piece, TaskVectors};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

part! { merge / "lora" => Fold, "folds the attached adapters, of any kind, into the base",
source = "arXiv:2106.09685", traits = [] }

/// `merge = { method = { kind = "lora" } }` has no settings.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct FoldSettings {}

/// The method.
pub struct Fold;

impl Part for Fold {
    type Settings = FoldSettings;

    fn new(_: FoldSettings) -> Result<Self> {
        Ok(Fold)
    }
}

impl Merger for Fold {
    fn folds_adapters(&self) -> bool {
        true
    }

    fn table_bytes(&self, _: usize) -> u64 {
        0
    }

    fn prepare(&mut self, _: &dyn TaskVectors, _: &mut dyn Judge) -> Result<Json> {
        bail!("`lora` folds adapters, not task vectors")
    }

    fn merge(&self, _: &Piece<'_>, _: &mut [f64]) -> Result<()> {
        bail!("`lora` folds adapters, not task vectors")
    }
}
