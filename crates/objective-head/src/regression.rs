//! Values of whole sequences.
//!
//! L = mean_{s,k} (z − t)²
//!
//! Source: transformers' `ForSequenceClassification` with `problem_type = "regression"`; sheet `objectives`, item 9.

use anyhow::Result;
use ramekin_core::BadSetting;
use ramekin_registry::{Part, part};
use ramekin_slots::{FlatBatch, Loss, Objective, ObjectiveAttach, ObjectiveContext, ObjectiveFile, Rows};
use ramekin_tape::ops;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::score::{Score, numbers};

part! { objective / "regression" => Regression, "values of whole sequences, from a new head on the last token",
source = "transformers ForSequenceClassification; sheet objectives", traits = [NeedsBackboneBackward] }

/// Settings of `objective = { kind = "regression", … }`.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RegressionSettings {
    /// Values of a sequence.
    pub num_labels: usize,
}

impl Default for RegressionSettings {
    fn default() -> Self {
        RegressionSettings { num_labels: 1 }
    }
}

/// The objective.
pub struct Regression {
    settings: RegressionSettings,
    score: Score,
}

impl Part for Regression {
    type Settings = RegressionSettings;

    fn new(settings: RegressionSettings) -> Result<Self> {
        if settings.num_labels == 0 {
            return Err(BadSetting::new("num_labels", "is 0; it must be at least 1").into());
        }
        Ok(Regression { settings, score: Score::default() })
    }
}

impl Objective for Regression {
    fn rows(&self) -> Rows {
        Rows::Targets
    }

    fn check_target(&self, target: &[f32]) -> Result<(), String> {
        let k = self.settings.num_labels;
        if target.len() != k {
            return Err(format!("has {} numbers; `num_labels` is {k}", target.len()));
        }
        match target.iter().find(|x| !x.is_finite()) {
            Some(x) => Err(format!("is {x}, which is no finite number")),
            None => Ok(()),
        }
    }

    fn attach(&mut self, cx: &mut ObjectiveAttach<'_>) -> Result<()> {
        self.score.attach(cx, "num_labels", self.settings.num_labels)
    }

    fn file(&self) -> ObjectiveFile {
        self.score.file(self.settings.num_labels, Some("regression"))
    }

    fn counts(&self, flat: &FlatBatch, _labels: &[i64]) -> Vec<f64> {
        vec![flat.segments.len() as f64]
    }

    fn loss(&self, cx: &ObjectiveContext<'_>) -> Result<Loss> {
        let z = self.score.outputs(cx)?;
        let k = self.settings.num_labels;
        let scale = cx.scale(0) / k as f64;
        let (mut total, mut slope) = (0.0, Vec::new());
        for (row, target) in numbers(&z)?.chunks(k).zip(cx.targets) {
            self.check_target(target).map_err(|why| anyhow::anyhow!("a label {why}"))?;
            for (z, t) in row.iter().zip(target) {
                let off = z - f64::from(*t);
                total += scale * off * off;
                slope.push(scale * 2.0 * off);
            }
        }
        Ok(ops::known_slope(cx.tape, &z, total, slope)?.into())
    }
}
