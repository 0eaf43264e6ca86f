//! SnapKV: once, after the prompt, each head keeps what the prompt's last tokens looked at.
//!
//! keep = top-(C − w) of pooled votes on the entries before the window, and the window of w itself
//!
//! The prompt's own output is untouched, entries keep the rotation of their true positions, and what
//! comes later is never dropped: a decoding step costs C + t entries whatever the prompt's length.
//! The choice belongs to the question at the prompt's end; a second question needs the whole cache again.
//!
//! Source: Li et al. 2024, arXiv:2404.14469.

use anyhow::Result;
use ramekin_core::BadSetting;
use ramekin_lanes::{Prompt, Rule, refuse_narrow_windows};
use ramekin_registry::{Part, part};
use ramekin_slots::{KvShape, ModelFacts};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::policy;
use crate::window::{GqaReduce, Pooling, Window};

part! {
    kv / "snapkv" => SnapKv, "keeps of a prompt what its last tokens looked at",
    source = "arXiv:2404.14469", traits = []
}

/// Settings of `kv = { kind = "snapkv", … }`.
#[derive(Clone, Debug, Deserialize, JsonSchema, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct SnapKvSettings {
    /// Last tokens of the prompt that vote and stay; at least 1.
    pub window_size: usize,
    /// Entries a head keeps of the prompt, the window included, in tokens; above `window_size`.
    pub max_capacity_prompt: usize,
    /// Neighbours whose votes are pooled; odd.
    pub kernel_size: usize,
    /// How they are pooled.
    pub pooling: Pooling,
    /// How the votes of query heads that share a key head are brought together.
    pub gqa_reduce: GqaReduce,
    /// Share of the prompt that is dropped, 0 to below 1, instead of `max_capacity_prompt`. Absent by default.
    pub compression_ratio: Option<f64>,
}

const CAPACITY: usize = 2048;

impl Default for SnapKvSettings {
    fn default() -> Self {
        SnapKvSettings {
            window_size: 32,
            max_capacity_prompt: CAPACITY,
            kernel_size: 5,
            pooling: Pooling::Avg,
            gqa_reduce: GqaReduce::Mean,
            compression_ratio: None,
        }
    }
}

/// The rule.
#[derive(Clone)]
pub struct SnapKv {
    window: Window,
    capacity: usize,
    ratio: Option<f64>,
}

impl Part for SnapKv {
    type Settings = SnapKvSettings;

    fn new(s: SnapKvSettings) -> Result<Self> {
        let window =
            Window { size: s.window_size, kernel: s.kernel_size, pooling: s.pooling, reduce: s.gqa_reduce };
        let capacity = if s.compression_ratio.is_some() { usize::MAX } else { s.max_capacity_prompt };
        window.check(capacity, ["max_capacity_prompt", "window_size", "kernel_size"])?;
        if let Some(ratio) = s.compression_ratio {
            if !(0.0..1.0).contains(&ratio) {
                let message = format!("is {ratio}; it must be from 0 to below 1");
                return Err(BadSetting::new("compression_ratio", message).into());
            }
            if s.max_capacity_prompt != CAPACITY {
                let message =
                    "stands beside `max_capacity_prompt`, which says the same another way; leave one out";
                return Err(BadSetting::new("compression_ratio", message).into());
            }
        }
        Ok(SnapKv { window, capacity: s.max_capacity_prompt, ratio: s.compression_ratio })
    }
}

impl SnapKv {
    /// Entries kept of n, the window included.
    fn capacity(&self, n: usize) -> usize {
        let kept = self.ratio.map_or(self.capacity, |r| (n as f64 * (1.0 - r)).round() as usize);
        kept.max(self.window.size).min(n)
    }

    fn fits(&self, facts: &ModelFacts, shape: KvShape) -> Result<()> {
        refuse_narrow_windows(facts, "snapkv", shape.capacity)
    }
}

impl Rule for SnapKv {
    fn looks_back(&self, prompt: usize) -> usize {
        if self.capacity(prompt) < prompt { self.window.size } else { 0 }
    }

    fn selects(&self) -> bool {
        true
    }

    fn keep(&self, prompt: &Prompt<'_>) -> Option<Vec<Vec<usize>>> {
        let capacity = self.capacity(prompt.len);
        if capacity >= prompt.len {
            return None;
        }
        let scores = self.window.scores(prompt);
        let budgets = vec![capacity - self.window.size; scores.len()];
        Some(self.window.select(&scores, &budgets, prompt.len))
    }

    fn kept(&self, _: usize, _: usize, lanes: usize, prompt: usize) -> usize {
        lanes * self.capacity(prompt)
    }

    fn by_query_head(&self) -> bool {
        self.window.reduce == GqaReduce::None
    }
}

policy!(SnapKv);

/// The paper's reason for the method: of the entries that a token gives more than `theta` of its weight,
/// the share that was kept; `None` where there are none.
///
/// * `weights`: the token's attention over the whole prompt, from a full cache
/// * `kept`: what the policy kept of it, ascending
pub fn hit_rate(weights: &[f32], kept: &[u32], theta: f32) -> Option<f64> {
    let wanted: Vec<u32> =
        weights.iter().enumerate().filter(|(_, w)| **w > theta).map(|(j, _)| j as u32).collect();
    let hits = wanted.iter().filter(|j| kept.binary_search(j).is_ok()).count();
    (!wanted.is_empty()).then(|| hits as f64 / wanted.len() as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capacity_by_count_or_share() {
        let small = SnapKvSettings { window_size: 2, max_capacity_prompt: 7, ..Default::default() };
        let small = SnapKv::new(small).unwrap();
        assert_eq!((small.capacity(5), small.capacity(100)), (5, 7));
        let share = SnapKvSettings { window_size: 4, compression_ratio: Some(0.75), ..Default::default() };
        let share = SnapKv::new(share).unwrap();
        assert_eq!((share.capacity(3), share.capacity(10), share.capacity(100)), (3, 4, 25));
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let refused = |s: SnapKvSettings, what: &str| {
            let error = SnapKv::new(s).err().expect("refused").to_string();
            assert!(error.contains(what), "{error}");
        };
        refused(SnapKvSettings { window_size: 2048, ..Default::default() }, "below `max_capacity_prompt`");
        refused(SnapKvSettings { window_size: 0, ..Default::default() }, "at least 1");
        refused(SnapKvSettings { kernel_size: 4, ..Default::default() }, "odd");
        refused(SnapKvSettings { kernel_size: 0, ..Default::default() }, "odd");
        refused(SnapKvSettings { compression_ratio: Some(1.0), ..Default::default() }, "below 1");
        let both =
            SnapKvSettings { compression_ratio: Some(0.5), max_capacity_prompt: 64, ..Default::default() };
        refused(both, "leave one out");
    }

    #[test]
    fn hits_are_counted_above_theta() {
        assert_eq!(hit_rate(&[0.5, 0.04, 0.3, 0.16], &[0, 1, 3], 0.05), Some(2.0 / 3.0));
        assert_eq!(hit_rate(&[0.5, 0.5], &[0], 0.6), None);
    }
}
