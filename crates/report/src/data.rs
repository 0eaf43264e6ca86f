//! What the report page is made from. The engine fills it in; nothing here computes.

use ramekin_core::Traffic;
use serde::{Deserialize, Serialize};

use crate::metrics::{EvalLine, Mem, StepLine};

/// How a run ended.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It went through.
    #[default]
    Done,
    /// It goes on.
    Running,
    /// It was stopped with its state saved.
    Interrupted,
    /// It failed, with this message.
    Failed(String),
}

/// A figure for the top of the page.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Figure {
    /// What it is: `exact match`.
    pub label: String,
    /// Its value as it is to be read: `4 % → 91 %`.
    pub value: String,
    /// A remark below it; may be empty.
    pub note: String,
}

impl Figure {
    /// A figure with a remark, which may be empty.
    pub fn new(label: impl Into<String>, value: impl Into<String>, note: impl Into<String>) -> Figure {
        Figure { label: label.into(), value: value.into(), note: note.into() }
    }
}

/// One result of the audit before step 1.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Check {
    /// What was checked.
    pub name: String,
    /// Whether it holds.
    pub passed: bool,
    /// The numbers behind it.
    pub detail: String,
}

/// What the model wrote before and after.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Sample {
    /// What it was asked.
    pub prompt: String,
    /// What it should have written, where that is known.
    pub expected: Option<String>,
    /// What it wrote before the stage.
    pub before: Option<String>,
    /// What it wrote after the stage.
    pub after: Option<String>,
    /// Whether `before` was right, where that was judged.
    pub before_right: Option<bool>,
    /// Whether `after` was right, where that was judged.
    pub after_right: Option<bool>,
}

/// One stage of a run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct StageData {
    /// `train`, `merge`, `eval` …
    pub kind: String,
    /// Its steps, in order.
    pub steps: Vec<StepLine>,
    /// Its evaluations, in order.
    pub evals: Vec<EvalLine>,
    /// Memory that the plan told: bytes at the peak by category, and `peak`; `rss` 0 if not told.
    pub planned: Option<Mem>,
    /// Memory that was measured: bytes at the peak by category, `peak`, and `rss` at its highest.
    pub measured: Option<Mem>,
    /// Bytes over each link in a step of the largest micro-batches, as planned.
    pub planned_traffic: Traffic,
    /// Bytes over each link in a step, the mean of those that were taken.
    pub measured_traffic: Traffic,
    /// The recipe's budget in bytes.
    pub budget: Option<u64>,
    /// Results of the audit.
    pub audit: Vec<Check>,
    /// What the model wrote.
    pub samples: Vec<Sample>,
    /// The stage's own table, the head first; nothing where it has none.
    pub table: Vec<Vec<String>>,
    /// Sentences about the stage (`merged 28 adapters; certificate …`).
    pub notes: Vec<String>,
}

/// Everything that `report.html` shows.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ReportData {
    /// The recipe's name.
    pub name: String,
    /// How the run ended.
    pub outcome: Outcome,
    /// Wall time in seconds.
    pub seconds: f64,
    /// Figures to show first; loss, memory, speed and time are added to them.
    pub figures: Vec<Figure>,
    /// Facts below the title: model, seed, machine, version; name and value.
    pub facts: Vec<(String, String)>,
    /// What the user should know.
    pub warnings: Vec<String>,
    /// The stages, in order.
    pub stages: Vec<StageData>,
    /// The resolved recipe, as TOML.
    pub recipe: String,
}
