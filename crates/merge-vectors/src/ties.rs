//! TIES: trim, elect sign, merge disjointly.
//!
//! 1. keep the `density` largest |τ_t| of each task, ties to the lower index, the rest is 0
//! 2. s_j = sign(Σ_t w_t τ_tj); where that is 0, the majority sign sign(Σ_j s_j)
//! 3. τ_j = Σ w_t τ_tj / Σ w_t over the tasks whose kept entry has sign s_j (not divided without `normalize`)
//! 4. θ = θ₀ + λ τ
//!
//! Source: Yadav et al. 2023, arXiv:2306.01708; sheet `lines`, rule 7; settings as in mergekit, whose
//! ranking a tensor is `scope = "per_tensor"`.

use anyhow::Result;
use ramekin_core::BadSetting;
use ramekin_registry::{Part, part};
use ramekin_slots::{Judge, Merger, Piece, TaskVectors};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value as Json, json};

use crate::select::{self, Kept, Scope};
use crate::within;

part! { merge / "ties" => Ties, "trims task vectors, elects a sign an entry and averages what agrees with it",
source = "arXiv:2306.01708; sheet lines", traits = [] }

/// What is made of the entries that agree with the elected sign.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Aggregate {
    /// Their mean, weighted.
    #[default]
    Mean,
    /// Their weighted sum.
    Sum,
    /// The largest weighted magnitude with the elected sign.
    Max,
}

/// Settings of `method = { kind = "ties", … }`.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct TiesSettings {
    /// Share of each task vector's entries that is kept, those of the largest magnitude; in (0, 1]. Default: 0.2.
    pub density: f64,
    /// Among which entries the largest are kept. Default: `global`.
    pub scope: Scope,
    /// Whether the sum of what agrees is divided by its weights; false is the sum. Default: true.
    pub normalize: bool,
    /// What is made of the entries that agree; `sum` and `max` are never divided. Default: `mean`.
    pub agg: Aggregate,
    /// λ: factor of the merged vector. Default: 1.
    pub lambda: f64,
}

impl Default for TiesSettings {
    fn default() -> Self {
        TiesSettings {
            density: 0.2,
            scope: Scope::Global,
            normalize: true,
            agg: Aggregate::Mean,
            lambda: 1.0,
        }
    }
}

/// Steps 1 to 3, before any factor: shared by whatever merges with elected signs.
#[derive(Clone, Debug, Default)]
pub struct Vote {
    kept: Vec<Vec<Kept>>,
    weights: Vec<f64>,
    majority: f64,
    agg: Aggregate,
}

impl Vote {
    /// Trims and counts the signs of all entries.
    ///
    /// # Errors
    /// If the density keeps nothing.
    pub fn new(vectors: &dyn TaskVectors, density: f64, scope: Scope, agg: Aggregate) -> Result<Self> {
        let kept = select::largest(vectors, density, scope)?;
        if kept.iter().any(|k| k.iter().all(|k| k.count == 0)) {
            let why = format!("is {density}, which keeps nothing of {} numbers", vectors.numbers());
            return Err(BadSetting::new("density", why).into());
        }
        let weights = (0..vectors.count()).map(|t| vectors.weight(t)).collect();
        let mut vote = Vote { kept, weights, majority: 0.0, agg };
        let mut sum = 0.0;
        vectors.pieces(&mut |piece| {
            for i in 0..piece.base.len() {
                sum += sign(vote.sum(piece, i));
            }
            Ok(())
        })?;
        vote.majority = sign(sum);
        Ok(vote)
    }

    /// The weighted entry of a task where it is kept, else 0.
    fn entry(&self, piece: &Piece<'_>, task: usize, i: usize) -> f64 {
        if self.keeps(piece, task, i) { self.weights[task] * piece.deltas[task][i] } else { 0.0 }
    }

    fn sum(&self, piece: &Piece<'_>, i: usize) -> f64 {
        (0..piece.deltas.len()).map(|t| self.entry(piece, t, i)).sum()
    }

    /// Whether a task's entry is kept: its magnitude mask.
    pub fn keeps(&self, piece: &Piece<'_>, task: usize, i: usize) -> bool {
        let ranking = if self.kept[task].len() == 1 { 0 } else { piece.tensor };
        self.kept[task][ranking].keeps(piece.tensor, piece.start + i, piece.deltas[task][i])
    }

    /// The elected sign of an entry.
    pub fn elected(&self, piece: &Piece<'_>, i: usize) -> f64 {
        match sign(self.sum(piece, i)) {
            0.0 => self.majority,
            s => s,
        }
    }

    /// The merged entry.
    pub fn merged(&self, piece: &Piece<'_>, i: usize) -> f64 {
        let elected = self.elected(piece, i);
        let (mut sum, mut weight, mut max) = (0.0, 0.0, 0.0f64);
        for task in 0..piece.deltas.len() {
            let x = self.entry(piece, task, i);
            if x != 0.0 && sign(x) == elected {
                sum += x;
                weight += self.weights[task].abs();
                max = max.max(x.abs());
            }
        }
        match self.agg {
            Aggregate::Mean if weight > 0.0 => sum / weight,
            Aggregate::Mean => 0.0,
            Aggregate::Sum => sum,
            Aggregate::Max => max * elected,
        }
    }
}

/// −1, 0 or 1.
fn sign(x: f64) -> f64 {
    if x == 0.0 { 0.0 } else { x.signum() }
}

/// The method.
pub struct Ties {
    settings: TiesSettings,
    vote: Vote,
}

impl Part for Ties {
    type Settings = TiesSettings;

    fn new(settings: TiesSettings) -> Result<Self> {
        within("density", settings.density, settings.density > 0.0 && settings.density <= 1.0, "in (0, 1]")?;
        within("lambda", settings.lambda, true, "a finite number")?;
        Ok(Ties { settings, vote: Vote::default() })
    }
}

impl Merger for Ties {
    fn table_bytes(&self, tasks: usize) -> u64 {
        if self.settings.density < 1.0 { select::table_bytes(tasks) } else { 0 }
    }

    fn prepare(&mut self, vectors: &dyn TaskVectors, _: &mut dyn Judge) -> Result<Json> {
        let s = &self.settings;
        let agg = if s.agg == Aggregate::Mean && !s.normalize { Aggregate::Sum } else { s.agg };
        self.vote = Vote::new(vectors, s.density, s.scope, agg)?;
        let kept: Vec<u64> = self.vote.kept.iter().map(|k| k.iter().map(|k| k.count).sum()).collect();
        Ok(json!({ "kept": kept, "numbers": vectors.numbers(), "majority": self.vote.majority }))
    }

    fn merge(&self, piece: &Piece<'_>, out: &mut [f64]) -> Result<()> {
        for (i, (o, base)) in out.iter_mut().zip(piece.base).enumerate() {
            *o = base + self.settings.lambda * self.vote.merged(piece, i);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::InMemory;

    #[test]
    fn weights_move_votes_and_means() {
        let vectors = InMemory::new(&[("w", 2)], &[0.0, 0.0], &[vec![1.0, 4.0], vec![-3.0, 2.0]]);
        let mut ties = Ties::new(TiesSettings { density: 1.0, ..TiesSettings::default() }).unwrap();
        assert_eq!(vectors.merged(&mut ties).unwrap(), [-3.0, 3.0]);
        let vectors = vectors.weighted(&[4.0, 1.0]);
        assert_eq!(vectors.merged(&mut ties).unwrap(), [1.0, (16.0 + 2.0) / 5.0]);
    }

    #[test]
    fn one_ranking_a_tensor() {
        let vectors = InMemory::new(&[("a", 2), ("b", 2)], &[0.0; 4], &[vec![9.0, 8.0, 1.0, 2.0]]);
        let settings = TiesSettings { density: 0.5, scope: Scope::PerTensor, ..TiesSettings::default() };
        assert_eq!(vectors.merged(&mut Ties::new(settings.clone()).unwrap()).unwrap(), [9.0, 0.0, 0.0, 2.0]);
        let global = TiesSettings { scope: Scope::Global, ..settings };
        assert_eq!(vectors.merged(&mut Ties::new(global).unwrap()).unwrap(), [9.0, 8.0, 0.0, 0.0]);
    }
}
