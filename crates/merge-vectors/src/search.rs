//! Choosing among candidates on held rows.
//!
//! * one model: w·target/target₁ + mean of control/control₀, where target₁ is the tuned model's score and
//!   control₀ the base's (sheet `lines`, rule 2)
//! * several: mean over tasks of score / score of the task's own model (rule 4)
//!
//! A later candidate must be strictly better.

use anyhow::Result;
use ramekin_core::BadSetting;
use ramekin_slots::{Held, Judge, Piece, TaskVectors};

/// What is maximised.
pub enum Goal {
    /// The own task of one model against controls.
    Single {
        /// How much the own task counts.
        target_weight: f64,
    },
    /// All tasks alike.
    Tasks,
}

/// 0, 0.1, …, `last`/10.
pub fn tenths(last: u32) -> impl DoubleEndedIterator<Item = f64> {
    (0..=last).map(|n| f64::from(n) / 10.0)
}

/// Number and score of the best of `count` candidates; with one there is nothing to measure.
///
/// # Errors
/// [`BadSetting`] of `setting` if there is a choice and the rows for it are missing.
pub fn best(
    vectors: &dyn TaskVectors,
    judge: &mut dyn Judge,
    metric: &str,
    setting: &str,
    count: usize,
    goal: &Goal,
    write: &dyn Fn(usize, &Piece<'_>, &mut [f64]),
) -> Result<(usize, Vec<f64>)> {
    if count == 1 {
        return Ok((0, Vec::new()));
    }
    let held = judge.held();
    let missing = (0..vectors.count()).find(|t| !held.contains(&Held::Task(*t)));
    let what = format!("has {count} values to choose from");
    if let Some(t) = missing {
        let why = format!("{what}; give `{}` its held rows as `data`, or write one value", vectors.label(t));
        return Err(BadSetting::new(setting, why).into());
    }
    let controls: Vec<Held> = held.iter().copied().filter(|h| matches!(h, Held::Control(_))).collect();
    if matches!(goal, Goal::Single { .. }) && controls.is_empty() {
        let why = format!(
            "{what} by what is kept of other tasks; give their rows as `control`, or write one value"
        );
        return Err(BadSetting::new(setting, why).into());
    }
    let tasks: Vec<Held> = (0..vectors.count()).map(Held::Task).collect();
    let mut own = Vec::new();
    for (t, held) in tasks.iter().enumerate() {
        own.push(judge.score(*held, metric, &|piece, out| {
            for ((o, base), x) in out.iter_mut().zip(piece.base).zip(&piece.deltas[t]) {
                *o = base + x;
            }
            Ok(())
        })?);
    }
    let mut before = Vec::new();
    for control in &controls {
        before.push(judge.score(*control, metric, &|piece, out| {
            out.copy_from_slice(piece.base);
            Ok(())
        })?);
    }
    let mut scores: Vec<f64> = Vec::new();
    let mut winner = 0;
    for at in 0..count {
        let candidate = |piece: &Piece<'_>, out: &mut [f64]| {
            write(at, piece, out);
            Ok(())
        };
        let mut mean = |held: &[Held], norm: &[f64]| -> Result<f64> {
            let mut sum = 0.0;
            for (h, norm) in held.iter().zip(norm) {
                sum += judge.score(*h, metric, &candidate)? / norm.max(f64::MIN_POSITIVE);
            }
            Ok(sum / held.len().max(1) as f64)
        };
        let score = match goal {
            Goal::Single { target_weight } => target_weight * mean(&tasks, &own)? + mean(&controls, &before)?,
            Goal::Tasks => mean(&tasks, &own)?,
        };
        if scores.get(winner).is_some_and(|best| score > *best) {
            winner = at;
        }
        scores.push(score);
    }
    Ok((winner, scores))
}
