//! `kind = "merge"`: adapters folded into their base, or several models of one base put together.
//!
//! | module | does |
//! |---|---|
//! | `fold` | adapters into their base, with a certificate |
//! | `inputs` | what `models` names: found, looked at, held against the base |
//! | `models` | models put together tensor by tensor, written, reloaded and compared |
//! | `adapter` | one adapter compressed as it is |
//! | `judge` | candidates measured on held rows |

mod adapter;
pub mod fold;
mod inputs;
mod judge;
mod models;

use anyhow::Result;
use ramekin_core::BadSetting;
use ramekin_plan::Bill;
use ramekin_recipe::MergeStage;
use ramekin_slots::Origin;
use serde_json::Value as Json;

use crate::blueprint::Blueprint;
use crate::parts;
use crate::run::StageContext;

/// The stage's bill.
pub fn bill(name: &str, s: &MergeStage, plan: &Blueprint) -> Result<Bill> {
    if s.models.is_empty() { fold::bill(name, s, plan) } else { models::bill(name, s, plan) }
}

/// Runs the stage.
pub fn run(cx: &mut StageContext<'_>, s: &MergeStage, plan: &Blueprint) -> Result<Json> {
    let ramekin_recipe::MergeFormat::Safetensors = s.format;
    if s.models.is_empty() {
        return fold::run(cx, s, plan);
    }
    let merger = parts::merger(&s.method)?;
    let found = inputs::find(cx, s, plan)?;
    if let (Some(origin), [one]) = (merger.adapter_origin(), found.as_slice())
        && let inputs::Kind::Adapters(folders) = &one.kind
    {
        return adapter::run(cx, s, plan, merger, origin, one, folders);
    }
    if merger.adapter_origin().is_some_and(|o| o != Origin::Known) {
        let why =
            "counts one adapter's own numbers; models that are put together are counted from their base";
        return Err(BadSetting::new("reference", why).of(s.method.path.clone()).into());
    }
    models::run(cx, s, plan, merger, found)
}
