//! Consensus merging: only entries that enough tasks use.
//!
//! m_tj = 1 where |τ_tj| > λ_t·|θ₀_j + τ_j − θ_tj|        (TALL mask of task t)
//! τ_j ← τ_j where Σ_t m_tj ≥ k, else 0                    (τ the merged vector)
//!
//! k = 2 drops what no task or one task uses, k = 1 what none uses, k = 0 nothing. λ_t is the one of the
//! grid with which θ₀ + m_t·τ is best on task t's held rows.
//!
//! Source: Wang et al. 2024, arXiv:2405.07813; sheet `lines`, rules 8 and 10.

use anyhow::Result;
use ramekin_core::BadSetting;
use ramekin_slots::{Held, Judge, Piece, TaskVectors};
use serde_json::{Value as Json, json};

/// The masks' λ_t and how many of them must agree.
#[derive(Clone, Debug, Default)]
pub struct Consensus {
    lambdas: Vec<f64>,
    k: usize,
}

/// Whether task `t` uses an entry, for the merged vector's entry `merged`.
pub fn tall(piece: &Piece<'_>, task: usize, i: usize, merged: f64, lambda: f64) -> bool {
    let x = piece.deltas[task][i];
    x.abs() > lambda * (merged - x).abs()
}

impl Consensus {
    /// Chooses each task's λ from the grid on its held rows; with one λ there is nothing to choose.
    ///
    /// `merged` gives the merged vector's entry before any factor. Returns the report of each task's
    /// mask: its λ, the score of θ₀ + m_t·τ where there are rows, and the share of entries it holds.
    ///
    /// # Errors
    /// If there is a choice and no held rows.
    pub fn new(
        vectors: &dyn TaskVectors,
        judge: &mut dyn Judge,
        metric: &str,
        grid: &[f64],
        k: usize,
        merged: &dyn Fn(&Piece<'_>, usize) -> f64,
    ) -> Result<(Self, Json)> {
        if k > vectors.count() + 1 {
            let why =
                format!("is {k}; with {} models it must be at most {}", vectors.count(), vectors.count() + 1);
            return Err(BadSetting::new("consensus_k", why).into());
        }
        let held = judge.held();
        let mut lambdas = Vec::new();
        let mut report = Vec::new();
        for task in 0..vectors.count() {
            let rows = held.contains(&Held::Task(task));
            if grid.len() > 1 && !rows {
                let why = format!(
                    "has {} values to choose from; give `{}` its `data`, or write one value",
                    grid.len(),
                    vectors.label(task)
                );
                return Err(BadSetting::new("tall_lambda", why).into());
            }
            let mut best: Option<(f64, Option<f64>)> = None;
            for lambda in grid {
                let mut score = None;
                if rows {
                    score = Some(judge.score(Held::Task(task), metric, &|piece, out| {
                        for (i, (o, base)) in out.iter_mut().zip(piece.base).enumerate() {
                            let tau = merged(piece, i);
                            *o = base + if tall(piece, task, i, tau, *lambda) { tau } else { 0.0 };
                        }
                        Ok(())
                    })?);
                }
                if best.is_none_or(|(_, before)| score > before) {
                    best = Some((*lambda, score));
                }
            }
            let (lambda, score) = best.unwrap_or((0.0, None));
            let mut used = 0u64;
            vectors.pieces(&mut |piece| {
                let count =
                    (0..piece.base.len()).filter(|i| tall(piece, task, *i, merged(piece, *i), lambda));
                used += count.count() as u64;
                Ok(())
            })?;
            let share = used as f64 / vectors.numbers().max(1) as f64;
            report.push(
                json!({ "task": vectors.label(task), "tall_lambda": lambda, "score": score, "share": share }),
            );
            lambdas.push(lambda);
        }
        Ok((Consensus { lambdas, k }, Json::Array(report)))
    }

    /// How many tasks use an entry.
    pub fn votes(&self, piece: &Piece<'_>, i: usize, merged: f64) -> usize {
        self.lambdas.iter().enumerate().filter(|(t, lambda)| tall(piece, *t, i, merged, **lambda)).count()
    }

    /// The merged vector's entry after the mask.
    pub fn masked(&self, piece: &Piece<'_>, i: usize, merged: f64) -> f64 {
        if self.votes(piece, i, merged) >= self.k { merged } else { 0.0 }
    }
}
