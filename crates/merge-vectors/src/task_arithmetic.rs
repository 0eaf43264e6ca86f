//! Task arithmetic: adding, weighting and negating what models learnt.
//!
//! θ = θ₀ + λ Σ_t w_t τ_t        with `normalize`, Σ_t w_t τ_t / Σ_t w_t
//!
//! w_t < 0 forgets a task; `normalize` with equal weights is the average of the models. With a density
//! below 1 only the largest magnitudes of each τ_t take part.
//!
//! Source: Ilharco et al. 2022, arXiv:2212.04089; sheet `lines`, rule 6; settings as in mergekit.

use anyhow::Result;
use ramekin_core::BadSetting;
use ramekin_registry::{Part, part};
use ramekin_slots::{Judge, Merger, Piece, TaskVectors};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value as Json, json};

use crate::select::{self, Kept, Scope};
use crate::{norms, within};

part! { merge / "task-arithmetic" => TaskArithmetic, "adds the weighted task vectors of several models to their base",
source = "arXiv:2212.04089; sheet lines", traits = [] }

/// Settings of `method = { kind = "task-arithmetic", … }`.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct TaskArithmeticSettings {
    /// λ: factor of the weighted sum. Default: 1.
    pub lambda: f64,
    /// Whether the sum is divided by the sum of the weights. Default: false.
    pub normalize: bool,
    /// Share of each task vector's entries that take part, those of the largest magnitude; in (0, 1]. Default: 1.
    pub density: f64,
}

impl Default for TaskArithmeticSettings {
    fn default() -> Self {
        TaskArithmeticSettings { lambda: 1.0, normalize: false, density: 1.0 }
    }
}

/// The method.
pub struct TaskArithmetic {
    settings: TaskArithmeticSettings,
    kept: Vec<Vec<Kept>>,
    factors: Vec<f64>,
}

impl Part for TaskArithmetic {
    type Settings = TaskArithmeticSettings;

    fn new(settings: TaskArithmeticSettings) -> Result<Self> {
        within("lambda", settings.lambda, true, "a finite number")?;
        within("density", settings.density, settings.density > 0.0 && settings.density <= 1.0, "in (0, 1]")?;
        Ok(TaskArithmetic { settings, kept: Vec::new(), factors: Vec::new() })
    }
}

/// λ w_t, divided by Σ w where asked for.
pub(crate) fn factors(vectors: &dyn TaskVectors, lambda: f64, normalize: bool) -> Result<Vec<f64>> {
    let weights: Vec<f64> = (0..vectors.count()).map(|t| vectors.weight(t)).collect();
    let sum: f64 = weights.iter().sum();
    if normalize && sum.abs() < 1e-9 {
        let why = "divides by the sum of the weights, which is 0 here; set it to false or change a `weight`";
        return Err(BadSetting::new("normalize", why).into());
    }
    Ok(weights.iter().map(|w| if normalize { lambda * w / sum } else { lambda * w }).collect())
}

impl Merger for TaskArithmetic {
    fn table_bytes(&self, tasks: usize) -> u64 {
        if self.settings.density < 1.0 { select::table_bytes(tasks) } else { 0 }
    }

    fn prepare(&mut self, vectors: &dyn TaskVectors, _: &mut dyn Judge) -> Result<Json> {
        self.factors = factors(vectors, self.settings.lambda, self.settings.normalize)?;
        if select::count(self.settings.density, vectors.numbers()) == 0 {
            let why =
                format!("is {}, which keeps nothing of {} numbers", self.settings.density, vectors.numbers());
            return Err(BadSetting::new("density", why).into());
        }
        self.kept = select::largest(vectors, self.settings.density, Scope::Global)?;
        Ok(json!({ "l1": norms(vectors)?, "factors": self.factors }))
    }

    fn merge(&self, piece: &Piece<'_>, out: &mut [f64]) -> Result<()> {
        out.copy_from_slice(piece.base);
        for ((delta, factor), kept) in piece.deltas.iter().zip(&self.factors).zip(&self.kept) {
            for (i, (o, x)) in out.iter_mut().zip(delta).enumerate() {
                if kept[0].keeps(piece.tensor, piece.start + i, *x) {
                    *o += factor * x;
                }
            }
        }
        Ok(())
    }
}
