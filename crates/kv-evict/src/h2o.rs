//! H2O: heavy hitters plus recent entries.
//!
//! s_j = Σ_i A_ij over all queries i so far;  keep the `recent` newest and, of the others, the `heavy`
//! with the largest s.
//!
//! Each key head decides for itself, by the sums over the query heads that it serves. Scores of what
//! stays go on adding up; what was dropped never returns. Budgets are counts, or shares of the prompt:
//! heavy = ⌊heavy_ratio·n⌋, recent = ⌊recent_ratio·n⌋ (at least one entry is kept).
//!
//! Source: Zhang et al. 2023, arXiv:2306.14048.

use anyhow::Result;
use ramekin_core::BadSetting;
use ramekin_lanes::{Look, Prompt, Rule, Trigger, refuse_narrow_windows, top};
use ramekin_registry::{Part, part};
use ramekin_slots::{KvShape, ModelFacts};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Positions, policy};

part! {
    kv / "h2o" => H2o, "keeps what was looked at most, and the newest entries",
    source = "arXiv:2306.14048", traits = []
}

/// Settings of `kv = { kind = "h2o", … }`.
#[derive(Clone, Debug, Deserialize, JsonSchema, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct H2oSettings {
    /// Heavy hitters kept, as a share of the prompt, 0 to 1.
    pub heavy_ratio: f64,
    /// Newest entries kept, as a share of the prompt, 0 to 1.
    pub recent_ratio: f64,
    /// Heavy hitters kept, in tokens, instead of `heavy_ratio`. Absent by default.
    pub hh_size: Option<usize>,
    /// Newest entries kept, in tokens, instead of `recent_ratio`. Absent by default.
    pub recent_size: Option<usize>,
    /// Whether keys are turned by their true position or by their slot in the cache.
    pub positions: Positions,
}

const RATIO: f64 = 0.1;

impl Default for H2oSettings {
    fn default() -> Self {
        H2oSettings {
            heavy_ratio: RATIO,
            recent_ratio: RATIO,
            hh_size: None,
            recent_size: None,
            positions: Positions::Original,
        }
    }
}

/// The rule.
#[derive(Clone)]
pub struct H2o(H2oSettings);

impl Part for H2o {
    type Settings = H2oSettings;

    fn new(s: H2oSettings) -> Result<Self> {
        for (name, ratio, size_name, size) in [
            ("heavy_ratio", s.heavy_ratio, "hh_size", s.hh_size),
            ("recent_ratio", s.recent_ratio, "recent_size", s.recent_size),
        ] {
            if !(0.0..=1.0).contains(&ratio) {
                return Err(BadSetting::new(name, format!("is {ratio}; it must be 0 to 1")).into());
            }
            if size.is_some() && ratio != RATIO {
                let message =
                    format!("stands beside `{name}`, which says the same another way; leave one out");
                return Err(BadSetting::new(size_name, message).into());
            }
        }
        match (s.hh_size, s.recent_size) {
            (None, None) if s.heavy_ratio + s.recent_ratio == 0.0 => {
                return Err(
                    BadSetting::new("heavy_ratio", "is 0 as `recent_ratio` is: nothing is kept").into()
                );
            }
            (None, None) if s.heavy_ratio + s.recent_ratio >= 1.0 => {
                ramekin_core::say!(
                    "  warning: `heavy_ratio` and `recent_ratio` make {} together: nothing of a prompt is dropped",
                    s.heavy_ratio + s.recent_ratio
                );
            }
            (Some(0), Some(0)) => {
                return Err(BadSetting::new("hh_size", "is 0 as `recent_size` is: nothing is kept").into());
            }
            (Some(_), None) => {
                return Err(BadSetting::new("hh_size", "needs `recent_size` beside it").into());
            }
            (None, Some(_)) => {
                return Err(BadSetting::new("recent_size", "needs `hh_size` beside it").into());
            }
            _ => {}
        }
        Ok(H2o(s))
    }
}

impl H2o {
    /// Heavy hitters and newest entries kept after a prompt of n tokens.
    fn budgets(&self, n: usize) -> (usize, usize) {
        let share = |ratio: f64| (ratio * n as f64).floor() as usize;
        let heavy = self.0.hh_size.unwrap_or_else(|| share(self.0.heavy_ratio));
        let recent = self.0.recent_size.unwrap_or_else(|| share(self.0.recent_ratio));
        // A short prompt's shares may both be 0; a token attends to itself.
        (heavy, if heavy + recent == 0 { 1 } else { recent })
    }

    fn fits(&self, facts: &ModelFacts, shape: KvShape) -> Result<()> {
        let (heavy, recent) = self.budgets(shape.prompt);
        let (slots, known) = (heavy.saturating_add(recent).saturating_add(1), facts.max_position_embeddings);
        if self.by_slot() && slots > known {
            let message =
                format!("is \"slot\" with {slots} slots; the model knows {known} positions: keep fewer");
            return Err(BadSetting::new("positions", message).into());
        }
        refuse_narrow_windows(facts, "h2o", shape.capacity)
    }
}

impl Rule for H2o {
    fn trigger(&self) -> Trigger {
        Trigger::After
    }

    fn looks_back(&self, prompt: usize) -> usize {
        prompt
    }

    fn keep(&self, prompt: &Prompt<'_>) -> Option<Vec<Vec<usize>>> {
        let (heavy, recent) = self.budgets(prompt.len);
        if prompt.len <= heavy + recent {
            return None;
        }
        let older = prompt.len - recent;
        let kept = |scores: Vec<f32>| {
            let mut kept = top(&scores[..older], heavy);
            kept.extend(older..prompt.len);
            kept
        };
        Some(prompt.votes_by_lane(prompt.kv_heads, |a, b| a + b).into_iter().map(kept).collect())
    }

    fn kept(&self, _: usize, _: usize, lanes: usize, prompt: usize) -> usize {
        let (heavy, recent) = self.budgets(prompt);
        lanes * prompt.min(heavy + recent)
    }

    fn limit(&self, prompt: usize) -> Option<usize> {
        let (heavy, recent) = self.budgets(prompt);
        Some(heavy.saturating_add(recent))
    }

    fn victims(&self, look: &Look<'_>) -> Vec<usize> {
        let (_, recent) = self.budgets(look.prompt);
        look.scores.iter().map(|s| lightest(&s[..s.len() - recent])).collect()
    }

    fn accumulates(&self) -> bool {
        true
    }

    fn by_slot(&self) -> bool {
        self.0.positions == Positions::Slot
    }
}

/// The index of the smallest; of equal ones the higher, so that the lower stays.
pub(crate) fn lightest(scores: &[f32]) -> usize {
    let smallest = scores.iter().enumerate().min_by(|(i, a), (j, b)| a.total_cmp(b).then(j.cmp(i)));
    smallest.map_or(0, |(i, _)| i)
}

policy!(H2o);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn budgets_are_shares_of_the_prompt_or_counts() {
        let shares = H2o::new(H2oSettings { recent_ratio: 0.25, ..Default::default() }).unwrap();
        assert_eq!(shares.budgets(47), (4, 11));
        assert_eq!(shares.budgets(3), (0, 1));
        let counts = H2oSettings { hh_size: Some(4), recent_size: Some(3), ..Default::default() };
        assert_eq!(H2o::new(counts).unwrap().budgets(1000), (4, 3));
    }

    #[test]
    fn contradictions_are_refused() {
        let refused = |s: H2oSettings, what: &str| {
            let error = H2o::new(s).err().expect("refused").to_string();
            assert!(error.contains(what), "{error}");
        };
        refused(H2oSettings { heavy_ratio: 1.5, ..Default::default() }, "0 to 1");
        refused(H2oSettings { heavy_ratio: 0.0, recent_ratio: 0.0, ..Default::default() }, "nothing is kept");
        refused(
            H2oSettings { hh_size: Some(0), recent_size: Some(0), ..Default::default() },
            "nothing is kept",
        );
        refused(H2oSettings { hh_size: Some(4), ..Default::default() }, "needs `recent_size`");
        let both =
            H2oSettings { hh_size: Some(4), recent_size: Some(3), heavy_ratio: 0.2, ..Default::default() };
        refused(both, "leave one out");
    }

    #[test]
    fn of_equal_scores_the_lower_index_stays() {
        assert_eq!(lightest(&[2.0, 1.0, 3.0, 1.0]), 3);
    }
}
