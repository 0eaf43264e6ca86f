//! CFSP: coarse, each block's share of channels by how far it turns the hidden state; fine, the channels of
//! a block by relative weights and activations.
//!
//! One forward pass over a small calibration set decides both; attention is not touched. A recovery by
//! LoRA may follow the same importance: the ranks are part of the report.
//!
//! Source: Wang et al. 2024, arXiv:2409.13199; sheet `cfsp`.

use anyhow::Result;
use ramekin_core::BadSetting;
use ramekin_registry::{Part, part};
use ramekin_slots::{BlockMetric, BlockStatistics, MlpWeights, Pruner};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value as Json, json};

use crate::budget::{keep_ratios, ranks, weights};
use crate::score::{LocalMetric, Normaliser, score};

part! { prune / "cfsp" => Cfsp, "cuts MLP channels, fewer in blocks that turn the hidden state more",
source = "arXiv:2409.13199; sheet cfsp", traits = [] }

/// How far a block moves the hidden state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum GlobalMetric {
    /// The angle, in half turns.
    #[default]
    Angular,
    /// 1 − cosine.
    Cosine,
    /// Mean squared difference.
    Mse,
    /// Mean absolute difference.
    Mae,
    /// The same for all.
    Constant,
}

/// Settings of `prune = { kind = "cfsp", … }`.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct CfspSettings {
    /// p: share of MLP channels that go, in (0, 1). Default: 0.2.
    pub pruning_ratio: f64,
    /// How much a block's importance counts, at least 0; 0 keeps the same share of every block. Default: 1.
    pub a: f64,
    /// Exponent of the activation inside the term of `down`. Default: 1.
    pub b: f64,
    /// Exponent of the activation that multiplies the score. Default: 1.
    pub c: f64,
    /// A block's importance: `angular`, `cosine`, `mse`, `mae` or `constant`. Default: `angular`.
    pub global_metrics: GlobalMetric,
    /// A channel's score: `three_w_one_wa`, `three_w_one_a`, `one_wa`, `one_a`, `wanda` or `magnitude`.
    /// Default: `three_w_one_wa`.
    pub local_metrics: LocalMetric,
    /// How weights are normalised: `relative`, or `released` as in the authors' code, where they cancel.
    /// Default: `relative`.
    pub normaliser: Normaliser,
    /// Whether widths are rounded to multiples of `block_size`. Default: true.
    pub cuda_friendly: bool,
    /// Channels of a block of widths. Default: 128.
    pub block_size: usize,
    /// Mean rank of a recovery by LoRA, for the ranks in the report; at least 1. Default: 8.
    pub recovery_rank: usize,
    /// `lora_alpha` of every block of the recovery. Default: twice the block's rank.
    pub recovery_alpha: Option<f64>,
    /// T: unit of a token's mean importance. Default: 13.107, which is 128 · 1024 / 10⁴.
    pub importance_temperature: f64,
}

impl Default for CfspSettings {
    fn default() -> Self {
        CfspSettings {
            pruning_ratio: 0.2,
            a: 1.0,
            b: 1.0,
            c: 1.0,
            global_metrics: GlobalMetric::Angular,
            local_metrics: LocalMetric::ThreeWOneWa,
            normaliser: Normaliser::Relative,
            cuda_friendly: true,
            block_size: 128,
            recovery_rank: 8,
            recovery_alpha: None,
            importance_temperature: 13.107,
        }
    }
}

/// The method.
pub struct Cfsp {
    settings: CfspSettings,
    importance: Vec<f64>,
    ratios: Vec<f64>,
    widths: Vec<usize>,
    before: Vec<usize>,
}

impl Part for Cfsp {
    type Settings = CfspSettings;

    fn new(s: CfspSettings) -> Result<Self> {
        let number = |name: &str, x: f64, good: bool, allowed: &str| {
            let why = format!("is {x}; it must be {allowed}");
            if x.is_finite() && good { Ok(()) } else { Err(BadSetting::new(name, why)) }
        };
        number(
            "pruning_ratio",
            s.pruning_ratio,
            s.pruning_ratio > 0.0 && s.pruning_ratio < 1.0,
            "above 0 and below 1",
        )?;
        number("a", s.a, s.a >= 0.0, "at least 0")?;
        number("b", s.b, s.b >= 0.0, "at least 0")?;
        number("c", s.c, s.c >= 0.0, "at least 0")?;
        number(
            "importance_temperature",
            s.importance_temperature,
            s.importance_temperature > 0.0,
            "above 0",
        )?;
        if let Some(alpha) = s.recovery_alpha {
            number("recovery_alpha", alpha, alpha > 0.0, "above 0")?;
        }
        for (name, n) in [("block_size", s.block_size), ("recovery_rank", s.recovery_rank)] {
            if n == 0 {
                return Err(BadSetting::new(name, "is 0; it must be at least 1").into());
            }
        }
        Ok(Cfsp {
            settings: s,
            importance: Vec::new(),
            ratios: Vec::new(),
            widths: Vec::new(),
            before: Vec::new(),
        })
    }
}

impl Cfsp {
    fn importance(&self, block: &BlockStatistics) -> f64 {
        let metric = match self.settings.global_metrics {
            GlobalMetric::Angular => BlockMetric::Angular,
            GlobalMetric::Cosine => BlockMetric::Cosine,
            GlobalMetric::Mse => BlockMetric::Mse,
            GlobalMetric::Mae => BlockMetric::Mae,
            GlobalMetric::Constant => return 1.0,
        };
        block.moved.iter().find(|(m, _)| *m == metric).map_or(0.0, |(_, x)| *x)
    }

    /// Channels of a block of `m` at this share.
    fn width(&self, m: usize, ratio: f64) -> Result<usize, BadSetting> {
        let s = &self.settings;
        let g = s.block_size;
        if !s.cuda_friendly {
            // Products such as 128 · 0.5 do not lose one by rounding.
            let n = (m as f64 * ratio * (1.0 + 1e-12)).floor() as usize;
            let why = || format!("is {}, which leaves a block of {m} channels none", s.pruning_ratio);
            return if n == 0 { Err(BadSetting::new("pruning_ratio", why())) } else { Ok(n.min(m)) };
        }
        if m < g {
            let why = format!(
                "is {g}, more than the {m} channels of a block; lower it or set `cuda_friendly = false`"
            );
            return Err(BadSetting::new("block_size", why));
        }
        let n = ((m as f64 * ratio + g as f64 / 2.0) / g as f64).floor() as usize * g;
        if n == 0 || n > m {
            let why = format!(
                "is {g}, which makes {n} of a block of {m} channels that should keep {:.1}; lower it or set `cuda_friendly = false`",
                m as f64 * ratio
            );
            return Err(BadSetting::new("block_size", why));
        }
        Ok(n)
    }
}

impl Pruner for Cfsp {
    fn widths(&mut self, blocks: &[BlockStatistics], widths: &[usize]) -> Result<Vec<usize>> {
        let s = &self.settings;
        self.importance = blocks.iter().map(|b| self.importance(b)).collect();
        self.ratios = keep_ratios(&self.importance, s.pruning_ratio, s.a, s.importance_temperature);
        self.before = widths.to_vec();
        let widths = widths.iter().zip(&self.ratios).map(|(m, ratio)| self.width(*m, *ratio));
        self.widths = widths.collect::<Result<_, _>>()?;
        Ok(self.widths.clone())
    }

    fn scores(&self, block: &BlockStatistics, mlp: &MlpWeights) -> Result<Vec<f64>> {
        let s = &self.settings;
        score(s.local_metrics, s.normaliser, (s.b, s.c), &block.norms, mlp)
    }

    fn report(&self) -> Json {
        let s = &self.settings;
        let ranks = ranks(&weights(&self.importance, s.a, s.importance_temperature), s.recovery_rank);
        let (mut rank_pattern, mut alpha_pattern) = (Map::new(), Map::new());
        for (l, r) in ranks.iter().enumerate() {
            let blocks = format!("layers\\.{l}\\..*");
            alpha_pattern.insert(blocks.clone(), json!(s.recovery_alpha.unwrap_or(2.0 * *r as f64)));
            rank_pattern.insert(blocks, json!(r));
        }
        let sum = |w: &[usize]| w.iter().sum::<usize>() as f64;
        json!({
            "importance": self.importance,
            "keep_ratios": self.ratios,
            "widths": self.widths,
            "widths_before": self.before,
            "removed": 1.0 - sum(&self.widths) / sum(&self.before).max(1.0),
            "recovery": { "rank_pattern": rank_pattern, "alpha_pattern": alpha_pattern },
        })
    }
}
