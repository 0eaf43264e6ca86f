//! AdaKV: the heads of a layer share one budget and the head that needs more gets more.
//!
//! c_h = how many of the G·B largest pooled votes of all G key heads fall to head h
//! B_h = round((1 − α)·c_h + α·B)        or, with `safeguard = "floor"`, ⌊α·B⌋ sure and the rest by vote
//!
//! Taking the layer's largest G·B votes minimises the bound on what the layer's output loses.
//! Each head keeps its B_h best and the window; lanes then differ in length.
//!
//! Source: Feng et al. 2024, arXiv:2407.11550; votes as in SnapKV, the floor as in kvpress.

use anyhow::Result;
use ramekin_core::BadSetting;
use ramekin_lanes::{Prompt, Rule, refuse_narrow_windows, top};
use ramekin_registry::{Part, part};
use ramekin_slots::{KvShape, ModelFacts};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::window::{GqaReduce, Pooling, Window};
use crate::{by_head, by_layer, policy};

part! {
    kv / "ada" => Ada, "keeps of a prompt what its last tokens looked at, shared out among heads",
    source = "arXiv:2407.11550", traits = []
}

/// How a head is kept from losing everything.
#[derive(Clone, Copy, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Safeguard {
    /// Budgets are mixed with the uniform one and rounded.
    Mix,
    /// Every head's best ⌊α·B⌋ stay, the rest goes by vote; totals are exact.
    Floor,
}

/// Settings of `kv = { kind = "ada", … }`.
#[derive(Clone, Debug, Deserialize, JsonSchema, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct AdaSettings {
    /// Entries a head keeps of the prompt in the mean over heads, the window included, in tokens.
    pub base_capacity: usize,
    /// Last tokens of the prompt that vote and stay; at least 1, below `base_capacity`.
    pub window: usize,
    /// Neighbours whose votes are pooled; odd.
    pub kernel: usize,
    /// How they are pooled.
    pub pooling: Pooling,
    /// Share of the budget that is the same for all heads, 0 to 1; 1 is SnapKV.
    pub alpha: f64,
    /// How that share is given.
    pub safeguard: Safeguard,
    /// How the votes of query heads that share a key head are brought together: "mean" or "max".
    pub gqa_reduce: GqaReduce,
    /// With a value the layers' budgets fall with depth as in `pyramid`, this steep. Absent by default.
    pub beta: Option<usize>,
}

impl Default for AdaSettings {
    fn default() -> Self {
        AdaSettings {
            base_capacity: 1024,
            window: 32,
            kernel: 7,
            pooling: Pooling::Max,
            alpha: 0.2,
            safeguard: Safeguard::Mix,
            gqa_reduce: GqaReduce::Mean,
            beta: None,
        }
    }
}

/// The rule.
#[derive(Clone)]
pub struct Ada {
    window: Window,
    budget: usize,
    alpha: f64,
    safeguard: Safeguard,
    beta: Option<usize>,
}

impl Part for Ada {
    type Settings = AdaSettings;

    fn new(s: AdaSettings) -> Result<Self> {
        let window = Window { size: s.window, kernel: s.kernel, pooling: s.pooling, reduce: s.gqa_reduce };
        window.check(s.base_capacity, ["base_capacity", "window", "kernel"])?;
        if !(0.0..=1.0).contains(&s.alpha) {
            return Err(BadSetting::new("alpha", format!("is {}; it must be 0 to 1", s.alpha)).into());
        }
        if s.gqa_reduce == GqaReduce::None {
            let message = "is \"none\"; budgets are of key heads: take \"mean\" or \"max\"";
            return Err(BadSetting::new("gqa_reduce", message).into());
        }
        if s.beta == Some(0) {
            return Err(BadSetting::new("beta", "is 0; it must be at least 1").into());
        }
        let (alpha, safeguard, beta) = (s.alpha, s.safeguard, s.beta);
        Ok(Ada { window, budget: s.base_capacity - s.window, alpha, safeguard, beta })
    }
}

impl Ada {
    fn fits(&self, facts: &ModelFacts, shape: KvShape) -> Result<()> {
        refuse_narrow_windows(facts, "ada", shape.capacity)
    }

    /// Entries before the window that a head keeps in the mean; `None` where the prompt stays whole.
    fn layer(&self, layer: usize, layers: usize, n: usize) -> Option<usize> {
        let w = self.window.size;
        (n > self.budget + w).then(|| match self.beta {
            None => self.budget,
            Some(beta) => by_layer(layers, self.budget, beta, n, w, true)[layer],
        })
    }

    /// Each head's budget.
    fn heads(&self, scores: &[Vec<f32>], budget: usize) -> Vec<usize> {
        let before = scores.first().map_or(0, Vec::len);
        match self.safeguard {
            Safeguard::Mix => by_head(scores, budget)
                .into_iter()
                .map(|c| (1.0 - self.alpha) * c as f64 + self.alpha * budget as f64)
                .map(|b| (b.round() as usize).min(before))
                .collect(),
            Safeguard::Floor => {
                let sure = (self.alpha * budget as f64).floor() as usize;
                let mut lifted = scores.to_vec();
                for row in &mut lifted {
                    let best = top(row, sure);
                    best.into_iter().for_each(|j| row[j] = f32::INFINITY);
                }
                by_head(&lifted, budget)
            }
        }
    }
}

impl Rule for Ada {
    fn looks_back(&self, prompt: usize) -> usize {
        if prompt > self.budget + self.window.size { self.window.size } else { 0 }
    }

    fn selects(&self) -> bool {
        true
    }

    fn keep(&self, prompt: &Prompt<'_>) -> Option<Vec<Vec<usize>>> {
        let budget = self.layer(prompt.layer, prompt.layers, prompt.len)?;
        let scores = self.window.scores(prompt);
        let budgets = self.heads(&scores, budget);
        Some(self.window.select(&scores, &budgets, prompt.len))
    }

    fn kept(&self, layer: usize, layers: usize, lanes: usize, prompt: usize) -> usize {
        lanes * self.layer(layer, layers, prompt).map_or(prompt, |b| b + self.window.size)
    }
}

policy!(Ada);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_safeguards_give_a_flat_head_more() {
        let scores = vec![vec![9.0, 0.1, 0.1, 0.1, 0.1, 0.1], vec![1.0, 1.1, 1.2, 1.3, 1.4, 1.5]];
        let ada = |alpha, safeguard| {
            let s = AdaSettings { base_capacity: 4, window: 1, alpha, safeguard, ..Default::default() };
            Ada::new(s).unwrap().heads(&scores, 3)
        };
        assert_eq!(ada(0.0, Safeguard::Mix), [1, 5]);
        assert_eq!(ada(0.5, Safeguard::Mix), [2, 4]);
        assert_eq!(ada(1.0, Safeguard::Mix), [3, 3]);
        assert_eq!(ada(0.7, Safeguard::Floor), [2, 4]);
        assert_eq!(ada(1.0, Safeguard::Floor), [3, 3]);
    }
}
