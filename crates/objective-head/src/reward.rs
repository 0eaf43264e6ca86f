//! A reward model from pairs.
//!
//! L = mean over pairs of −log σ(r_c − r_r − m) + c·(r_c + r_r)²          m a row's own `margin`, or 0
//!
//! Source: Bradley and Terry 1952; TRL `RewardTrainer`; sheet `objectives`, item 9.

use anyhow::Result;
use ramekin_core::BadSetting;
use ramekin_registry::{Part, part};
use ramekin_slots::{
    Figure, FlatBatch, Loss, Objective, ObjectiveAttach, ObjectiveContext, ObjectiveFile, Rows,
};
use ramekin_tape::ops;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::score::{Score, numbers};
use crate::{log_sigmoid, sigmoid};

part! { objective / "reward" => Reward, "a reward for whole answers, from pairs of a better and a worse one",
source = "TRL RewardTrainer; sheet objectives", traits = [NeedsBackboneBackward] }

/// Settings of `objective = { kind = "reward", … }`.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RewardSettings {
    /// Factor c that draws the rewards of a pair towards 0 together; 0.01 is common. Default: off.
    pub center_rewards_coefficient: Option<f64>,
}

/// The objective.
pub struct Reward {
    settings: RewardSettings,
    score: Score,
}

impl Part for Reward {
    type Settings = RewardSettings;

    fn new(settings: RewardSettings) -> Result<Self> {
        if let Some(c) = settings.center_rewards_coefficient
            && !(c.is_finite() && c >= 0.0)
        {
            let why = format!("is {c}; it must be 0 (off) or more");
            return Err(BadSetting::new("center_rewards_coefficient", why).into());
        }
        Ok(Reward { settings, score: Score::default() })
    }
}

impl Objective for Reward {
    fn rows(&self) -> Rows {
        Rows::Pairs
    }

    fn accuracy(&self) -> Option<&'static str> {
        Some("accuracy")
    }

    fn attach(&mut self, cx: &mut ObjectiveAttach<'_>) -> Result<()> {
        self.score.attach(cx, "kind", 1)
    }

    fn file(&self) -> ObjectiveFile {
        self.score.file(1, None)
    }

    fn counts(&self, flat: &FlatBatch, _labels: &[i64]) -> Vec<f64> {
        vec![(flat.segments.len() / 2) as f64]
    }

    fn loss(&self, cx: &ObjectiveContext<'_>) -> Result<Loss> {
        let r = self.score.outputs(cx)?;
        let c = self.settings.center_rewards_coefficient.unwrap_or(0.0);
        let scale = cx.scale(0);
        let (mut total, mut slope) = (0.0, Vec::new());
        let (mut right, mut margin, mut predictions) = (0.0, 0.0, Vec::new());
        for (i, pair) in numbers(&r)?.chunks_exact(2).enumerate() {
            let wanted = cx.targets.get(2 * i).and_then(|t| t.first()).map_or(0.0, |m| f64::from(*m));
            let (gap, sum) = (pair[0] - pair[1], pair[0] + pair[1]);
            total += scale * (c * sum * sum - log_sigmoid(gap - wanted));
            let pull = sigmoid(wanted - gap);
            slope.push(scale * (2.0 * c * sum - pull));
            slope.push(scale * (2.0 * c * sum + pull));
            right += f64::from(u8::from(gap > 0.0));
            predictions.push((i64::from(gap > 0.0), 1));
            margin += gap;
        }
        let count = (cx.flat.segments.len() / 2) as f64;
        let value = ops::known_slope(cx.tape, &r, total, slope)?;
        let figures = vec![
            Figure { name: "accuracy", sum: right, count },
            Figure { name: "margin", sum: margin, count },
        ];
        Ok(Loss { value, figures, predictions })
    }
}
