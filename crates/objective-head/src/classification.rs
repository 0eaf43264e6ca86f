//! Classes of whole sequences.
//!
//! one class: L = mean_s −log softmax(z_s)[y_s]
//! several:   L = mean_{s,k} −t log σ(z) − (1 − t) log σ(−z)          t ∈ {0, 1}
//!
//! Source: transformers' `ForSequenceClassification`; sheet `objectives`, item 9.

use anyhow::{Result, ensure};
use ramekin_core::BadSetting;
use ramekin_registry::{Part, part};
use ramekin_slots::{
    Figure, FlatBatch, Loss, Objective, ObjectiveAttach, ObjectiveContext, ObjectiveFile, Rows,
};
use ramekin_tape::{Value, ops};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::score::{Score, numbers};
use crate::{log_sigmoid, sigmoid};

part! { objective / "classification" => Classification, "classes of whole sequences, from a new head on the last token",
source = "transformers ForSequenceClassification; sheet objectives", traits = [NeedsBackboneBackward] }

/// What a label is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ProblemType {
    /// One class, by its number from 0.
    #[default]
    SingleLabelClassification,
    /// For every class 1 or 0, as a list.
    MultiLabelClassification,
}

/// Settings of `objective = { kind = "classification", … }`.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ClassificationSettings {
    /// Classes, at least 2 where a label is one of them.
    pub num_labels: usize,
    /// Whether a label is one class (`single_label_classification`) or a list of 0 and 1
    /// (`multi_label_classification`).
    pub problem_type: ProblemType,
}

impl Default for ClassificationSettings {
    fn default() -> Self {
        ClassificationSettings { num_labels: 2, problem_type: ProblemType::default() }
    }
}

/// The objective.
pub struct Classification {
    settings: ClassificationSettings,
    score: Score,
}

impl Part for Classification {
    type Settings = ClassificationSettings;

    fn new(settings: ClassificationSettings) -> Result<Self> {
        let least = if settings.problem_type == ProblemType::SingleLabelClassification { 2 } else { 1 };
        if settings.num_labels < least {
            let why = format!("is {}; it must be at least {least}", settings.num_labels);
            return Err(BadSetting::new("num_labels", why).into());
        }
        Ok(Classification { settings, score: Score::default() })
    }
}

impl Classification {
    fn single(&self, cx: &ObjectiveContext<'_>) -> Result<Loss> {
        let z = self.score.outputs(cx)?;
        let k = self.settings.num_labels;
        let sequences = cx.flat.segments.len();
        let mut labels = vec![0i64; sequences];
        let mut predictions = Vec::new();
        if !z.array().is_shape_only() {
            ensure!(cx.targets.len() == sequences, "{} labels for {sequences} sequences", cx.targets.len());
            for ((label, target), row) in labels.iter_mut().zip(cx.targets).zip(numbers(&z)?.chunks(k)) {
                self.check_target(target).map_err(|why| anyhow::anyhow!("a label {why}"))?;
                *label = target[0] as i64;
                let best = (0..k).fold(0, |best, i| if row[i] > row[best] { i } else { best });
                predictions.push((best as i64, *label));
            }
        }
        let value = ops::cross_entropy(cx.tape, z, &labels, cx.scale(0), ops::CrossEntropy::default())?;
        Ok(told(value, predictions, sequences))
    }

    fn multi(&self, cx: &ObjectiveContext<'_>) -> Result<Loss> {
        let z = self.score.outputs(cx)?;
        let k = self.settings.num_labels;
        let scale = cx.scale(0) / k as f64;
        let (mut total, mut slope, mut predictions) = (0.0, Vec::new(), Vec::new());
        for (row, target) in numbers(&z)?.chunks(k).zip(cx.targets) {
            self.check_target(target).map_err(|why| anyhow::anyhow!("a label {why}"))?;
            let right = row.iter().zip(target).all(|(z, t)| (*z > 0.0) == (*t > 0.5));
            predictions.push((i64::from(right), 1));
            for (z, t) in row.iter().zip(target) {
                let t = f64::from(*t);
                total -= scale * (t * log_sigmoid(*z) + (1.0 - t) * log_sigmoid(-z));
                slope.push(scale * (sigmoid(*z) - t));
            }
        }
        let value = ops::known_slope(cx.tape, &z, total, slope)?;
        Ok(told(value, predictions, cx.flat.segments.len()))
    }
}

/// The loss with the share of rows that are right.
fn told(value: Value, predictions: Vec<(i64, i64)>, sequences: usize) -> Loss {
    let right = predictions.iter().filter(|(found, wanted)| found == wanted).count();
    let accuracy = Figure { name: "accuracy", sum: right as f64, count: sequences as f64 };
    Loss { value, figures: vec![accuracy], predictions }
}

impl Objective for Classification {
    fn rows(&self) -> Rows {
        Rows::Targets
    }

    fn accuracy(&self) -> Option<&'static str> {
        Some("accuracy")
    }

    fn check_target(&self, target: &[f32]) -> Result<(), String> {
        let k = self.settings.num_labels;
        match self.settings.problem_type {
            ProblemType::SingleLabelClassification => match target {
                [x] if x.fract() == 0.0 && *x >= 0.0 && (*x as usize) < k => Ok(()),
                [x] => Err(format!("is {x}; with `num_labels = {k}` it is a whole number below {k}")),
                several => Err(format!(
                    "has {} numbers; one class has one (several: `problem_type = \"multi_label_classification\"`)",
                    several.len()
                )),
            },
            ProblemType::MultiLabelClassification if target.len() != k => {
                Err(format!("has {} numbers; with `num_labels = {k}` it is a list of {k}", target.len()))
            }
            ProblemType::MultiLabelClassification => {
                match target.iter().find(|x| !(0.0..=1.0).contains(*x)) {
                    Some(x) => Err(format!("holds {x}; each number is in [0, 1]")),
                    None => Ok(()),
                }
            }
        }
    }

    fn attach(&mut self, cx: &mut ObjectiveAttach<'_>) -> Result<()> {
        self.score.attach(cx, "num_labels", self.settings.num_labels)
    }

    fn file(&self) -> ObjectiveFile {
        let name = match self.settings.problem_type {
            ProblemType::SingleLabelClassification => "single_label_classification",
            ProblemType::MultiLabelClassification => "multi_label_classification",
        };
        self.score.file(self.settings.num_labels, Some(name))
    }

    fn counts(&self, flat: &FlatBatch, _labels: &[i64]) -> Vec<f64> {
        vec![flat.segments.len() as f64]
    }

    fn loss(&self, cx: &ObjectiveContext<'_>) -> Result<Loss> {
        match self.settings.problem_type {
            ProblemType::SingleLabelClassification => self.single(cx),
            ProblemType::MultiLabelClassification => self.multi(cx),
        }
    }
}
