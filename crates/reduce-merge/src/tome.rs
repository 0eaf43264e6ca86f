//! Token merging: the most alike tokens become the mean of the patches they stand for.
//!
//! m = mean over heads of the keys; the r tokens at even places that are most like one at an odd place go
//! there; x ← Σ s x / Σ s, s ← Σ s. With proportional attention the scores of key j get + log s_j.
//!
//! Matching carries no gradient; merging does. There is nothing to train.
//!
//! Source: Bolya et al. 2023, arXiv:2210.09461 (facebookresearch/ToMe); sheet `pyra`, items 1, 2 and 5.

use std::rc::Rc;
use std::sync::Arc;

use anyhow::Result;
use ramekin_core::Param;
use ramekin_peft::{own_fields, settings, whole_config};
use ramekin_registry::{AnyPart, Part, part};
use ramekin_slots::{Adapter, AdapterFile, AttachContext, Forward, Keys, Reduced, Reducer, WeightSource};
use ramekin_tape::Value;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use crate::matched::{Matched, Rule};
use crate::schedule::{Schedule, check_protected};

part! { reducer / "tome" => Tome, "merges the tokens of an image that are most alike, in every block",
source = "arXiv:2210.09461; sheet pyra", traits = [ChangesTokenCount], from_peft = Tome::from_peft }

/// Settings of `reducer = [{ kind = "tome", … }]`.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct TomeSettings {
    /// Tokens that go in each block, as a list; `low` and `high` are published ones for 197 tokens.
    pub schedule: Schedule,
    /// Whether attention counts a token as often as it stands for patches.
    pub prop_attn: bool,
    /// Leading tokens that never go: 1 (class), or 2 with a distillation token.
    pub protected: usize,
}

impl Default for TomeSettings {
    fn default() -> Self {
        TomeSettings { schedule: Schedule::default(), prop_attn: true, protected: 1 }
    }
}

/// The part.
pub struct Tome(TomeSettings);

impl Part for Tome {
    type Settings = TomeSettings;

    fn new(settings: TomeSettings) -> Result<Self> {
        check_protected(settings.protected)?;
        Ok(Tome(settings))
    }
}

impl Tome {
    /// The part that a saved config describes, if it is this one's.
    pub fn from_peft(config: &Json) -> Option<Result<AnyPart>> {
        (config["peft_type"].as_str() == Some("TOME")).then(|| {
            let own = own_fields(config, "tome", &[])?;
            Ok(AnyPart::Reducer(Box::new(Tome::new(settings(&own)?)?)))
        })
    }
}

impl Adapter for Tome {
    fn attach(&mut self, cx: &mut AttachContext<'_>) -> Result<Vec<String>> {
        let s = &self.0;
        let schedule = s.schedule.of(cx.facts, s.protected, "tome")?;
        let names = blocks(&schedule);
        let rule = Rule { schedule, protected: s.protected, counts: s.prop_attn };
        cx.sites.around().attach_reducer(Rc::new(Merge(rule)))?;
        Ok(names)
    }

    fn load(&mut self, _: &mut dyn WeightSource) -> Result<()> {
        Ok(()) // there are no tensors
    }

    fn file(&self, base: &str) -> Result<AdapterFile> {
        let config = whole_config(serde_json::to_value(&self.0)?, "TOME", base);
        Ok(AdapterFile { config, tensors: Vec::new(), extra: Json::Null })
    }

    fn params(&self) -> Vec<(String, Arc<Param>)> {
        Vec::new()
    }

    fn unmergeable(&self) -> Option<String> {
        Some(STAYS.to_owned())
    }
}

/// Why a reducer cannot be folded in.
pub(crate) const STAYS: &str = "a reducer changes what the blocks are given and has no place in their weights; \
                                leave it beside the merged model";

/// The blocks in which tokens go.
pub(crate) fn blocks(schedule: &[usize]) -> Vec<String> {
    let some = schedule.iter().enumerate().filter(|(_, r)| **r > 0);
    some.map(|(i, r)| format!("block {i}: {r} tokens")).collect()
}

struct Merge(Rule);

impl Reducer for Merge {
    fn schedule(&self) -> &[usize] {
        &self.0.schedule
    }

    fn counts(&self) -> bool {
        self.0.counts
    }

    fn reduce(&self, fx: &Forward, block: usize, h: &Value, keys: &Keys<'_>) -> Result<Reduced> {
        let matched = Matched::of(fx, &self.0, block, keys)?;
        Ok(Reduced { h: matched.mean(fx, h)?, rows: matched.plan.to.to_vec() })
    }
}
