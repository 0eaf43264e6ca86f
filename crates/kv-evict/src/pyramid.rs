//! PyramidKV: more entries for the layers near the embedding, fewer above.
//!
//! b_l falls in a line from 2B − ⌊B/β⌋ to ⌊B/β⌋, B = max_capacity − window; the choice inside a layer is
//! SnapKV's. Prompts of fewer than 2B tokens give every layer B.
//!
//! Source: Cai et al. 2024, arXiv:2406.02069. Steps are floored there, which keeps up to L(L−1)/2 entries
//! more than L·B; here the line is rounded to sum to L·B unless `exact_total` is false.

use anyhow::Result;
use ramekin_core::BadSetting;
use ramekin_lanes::{Prompt, Rule, refuse_narrow_windows};
use ramekin_registry::{Part, part};
use ramekin_slots::{KvShape, ModelFacts};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::window::{GqaReduce, Pooling, Window};
use crate::{by_layer, policy};

part! {
    kv / "pyramid" => Pyramid, "keeps of a prompt what its last tokens looked at, less of it with depth",
    source = "arXiv:2406.02069", traits = []
}

/// Settings of `kv = { kind = "pyramid", … }`.
#[derive(Clone, Debug, Deserialize, JsonSchema, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct PyramidSettings {
    /// Entries a head keeps of the prompt in the mean over layers, the window included, in tokens.
    pub max_capacity: usize,
    /// Last tokens of the prompt that vote and stay; at least 1, below `max_capacity`.
    pub window: usize,
    /// How steep: the last layer keeps a `beta`-th of the mean; at least 1, where all keep the same.
    pub beta: usize,
    /// Neighbours whose votes are pooled; odd.
    pub kernel: usize,
    /// How they are pooled.
    pub pooling: Pooling,
    /// Whether the layers' budgets sum to layers · (`max_capacity` − `window`), or steps are floored as released.
    pub exact_total: bool,
}

impl Default for PyramidSettings {
    fn default() -> Self {
        PyramidSettings {
            max_capacity: 320,
            window: 64,
            beta: 20,
            kernel: 5,
            pooling: Pooling::Avg,
            exact_total: true,
        }
    }
}

/// The rule.
#[derive(Clone)]
pub struct Pyramid {
    window: Window,
    budget: usize,
    beta: usize,
    exact: bool,
}

impl Part for Pyramid {
    type Settings = PyramidSettings;

    fn new(s: PyramidSettings) -> Result<Self> {
        let window = Window { size: s.window, kernel: s.kernel, pooling: s.pooling, reduce: GqaReduce::Mean };
        window.check(s.max_capacity, ["max_capacity", "window", "kernel"])?;
        if s.beta == 0 {
            return Err(BadSetting::new("beta", "is 0; it must be at least 1").into());
        }
        Ok(Pyramid { window, budget: s.max_capacity - s.window, beta: s.beta, exact: s.exact_total })
    }
}

impl Pyramid {
    fn fits(&self, facts: &ModelFacts, shape: KvShape) -> Result<()> {
        refuse_narrow_windows(facts, "pyramid", shape.capacity)
    }

    /// Entries before the window that a layer keeps; `None` where the prompt stays whole.
    fn layer(&self, layer: usize, layers: usize, n: usize) -> Option<usize> {
        let w = self.window.size;
        let all = || by_layer(layers, self.budget, self.beta, n, w, self.exact);
        (n > self.budget + w).then(|| all()[layer])
    }
}

impl Rule for Pyramid {
    fn looks_back(&self, prompt: usize) -> usize {
        if prompt > self.budget + self.window.size { self.window.size } else { 0 }
    }

    fn selects(&self) -> bool {
        true
    }

    fn keep(&self, prompt: &Prompt<'_>) -> Option<Vec<Vec<usize>>> {
        let budget = self.layer(prompt.layer, prompt.layers, prompt.len)?;
        let scores = self.window.scores(prompt);
        let budgets = vec![budget; scores.len()];
        Some(self.window.select(&scores, &budgets, prompt.len))
    }

    fn kept(&self, layer: usize, layers: usize, lanes: usize, prompt: usize) -> usize {
        lanes * self.layer(layer, layers, prompt).map_or(prompt, |b| b + self.window.size)
    }
}

policy!(Pyramid);
