//! `resident`: every weight stays in memory.

use std::sync::Arc;

use anyhow::Result;
use ramekin_core::Param;
use ramekin_registry::{Part, part};
use ramekin_slots::{PackedWeight, Placement, Sites};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

part! { placement / "resident" => Resident, "every weight stays in memory", source = "plain loading", traits = [] }

/// `placement = { kind = "resident" }` has no settings.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ResidentSettings {}

/// The placement.
pub struct Resident;

impl Part for Resident {
    type Settings = ResidentSettings;

    fn new(_: ResidentSettings) -> Result<Self> {
        Ok(Resident)
    }
}

impl Placement for Resident {
    fn is_resident(&self) -> bool {
        true
    }

    fn adopt_param(&self, _: usize, _: &Arc<Param>) -> Result<()> {
        Ok(())
    }

    fn adopt_packed(
        &self,
        _: usize,
        _: &str,
        weight: Arc<dyn PackedWeight>,
    ) -> Result<Arc<dyn PackedWeight>> {
        Ok(weight)
    }

    fn acquire(&self, _: usize, _: &Sites) -> Result<()> {
        Ok(())
    }

    fn release(&self, _: usize, _: &Sites) -> Result<()> {
        Ok(())
    }
}
