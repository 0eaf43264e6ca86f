//! TOVA: token omission via attention.
//!
//! a_j = mean over all query heads of A[newest query, j];  keep the `cache_size` entries with the largest a
//!
//! One set for all heads of a layer, another for each layer. Nothing is protected: the newest entry may
//! go, and a sink stays only by its score. A prompt attends in full and is reduced once, by its last query.
//!
//! Source: Oren et al. 2024, arXiv:2401.06104.

use anyhow::Result;
use ramekin_core::BadSetting;
use ramekin_lanes::{Look, Prompt, Rule, Trigger, refuse_narrow_windows, top};
use ramekin_registry::{Part, part};
use ramekin_slots::{KvShape, ModelFacts};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::h2o::lightest;
use crate::policy;

part! {
    kv / "tova" => Tova, "keeps what the newest token looks at most",
    source = "arXiv:2401.06104", traits = []
}

/// Settings of `kv = { kind = "tova", … }`.
#[derive(Clone, Debug, Deserialize, JsonSchema, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct TovaSettings {
    /// Entries kept, in tokens; at least 1.
    pub cache_size: usize,
}

impl Default for TovaSettings {
    fn default() -> Self {
        TovaSettings { cache_size: 512 }
    }
}

/// The rule.
#[derive(Clone)]
pub struct Tova {
    cache_size: usize,
}

impl Part for Tova {
    type Settings = TovaSettings;

    fn new(settings: TovaSettings) -> Result<Self> {
        if settings.cache_size == 0 {
            return Err(BadSetting::new("cache_size", "is 0; it must be at least 1").into());
        }
        Ok(Tova { cache_size: settings.cache_size })
    }
}

impl Tova {
    fn fits(&self, facts: &ModelFacts, shape: KvShape) -> Result<()> {
        refuse_narrow_windows(facts, "tova", shape.capacity)
    }
}

impl Rule for Tova {
    fn trigger(&self) -> Trigger {
        Trigger::After
    }

    fn looks_back(&self, prompt: usize) -> usize {
        usize::from(prompt > self.cache_size)
    }

    fn keep(&self, prompt: &Prompt<'_>) -> Option<Vec<Vec<usize>>> {
        if prompt.len <= self.cache_size {
            return None;
        }
        let all = prompt.votes_by_lane(1, |a, b| a + b).remove(0);
        Some(vec![top(&all, self.cache_size); prompt.kv_heads])
    }

    fn kept(&self, _: usize, _: usize, lanes: usize, prompt: usize) -> usize {
        lanes * prompt.min(self.cache_size)
    }

    fn limit(&self, _: usize) -> Option<usize> {
        Some(self.cache_size)
    }

    fn victims(&self, look: &Look<'_>) -> Vec<usize> {
        let mut all = vec![0.0f32; look.weights.first().map_or(0, Vec::len)];
        for lane in look.weights {
            all.iter_mut().zip(lane).for_each(|(a, w)| *a += w);
        }
        vec![lightest(&all); look.weights.len()]
    }
}

policy!(Tova);
