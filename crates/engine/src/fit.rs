//! `[memory] budget`: the way to run a training stage that fits it.
//!
//! Only what `[memory] allow` names is changed, in this order: smaller
//! micro-batches with more accumulation (the step stays the same), recomputed
//! activations (the same numbers, about a third more time), 4-bit frozen
//! weights (other numbers).

use anyhow::Result;
use ramekin_core::units;
use ramekin_plan::Bill;
use ramekin_recipe::{Allow, Memory, Part, TrainStage};

use crate::blueprint::Blueprint;

/// A way to run a stage.
#[derive(Clone)]
pub struct Way {
    /// The stage.
    pub stage: TrainStage,
    /// What it stands on.
    pub plan: Blueprint,
    /// Rows a micro-batch.
    pub rows: usize,
    /// Micro-batches a step.
    pub micros: usize,
    /// What differs from the recipe.
    changes: Vec<(Allow, String)>,
}

impl Way {
    /// As the recipe says it.
    pub fn as_written(stage: &TrainStage, plan: &Blueprint, rows: usize, micros: usize) -> Self {
        Way { stage: stage.clone(), plan: plan.clone(), rows, micros, changes: Vec::new() }
    }

    /// Every way to run it, the mildest change first, itself at the head.
    fn ways(&self) -> Vec<Way> {
        let mut all = vec![self.clone()];
        let smaller = (1..self.rows).rev().filter(|rows| self.rows.is_multiple_of(*rows));
        all.extend(smaller.map(|rows| {
            let micros = self.micros * (self.rows / rows);
            let change = format!(
                "micro_batch_size {} → {rows}, micro-batches a step {} → {micros}",
                self.rows, self.micros
            );
            Way { rows, micros, ..self.clone() }.changed(Allow::MicroBatchSize, change)
        }));
        if self.stage.activation.kind == "keep" && self.stage.method.is_none() {
            for way in all.clone() {
                let mut way = way.changed(Allow::Checkpoint, "activation keep → checkpoint".to_owned());
                way.stage.activation = Part::of("checkpoint");
                all.push(way);
            }
        }
        if self.plan.quantizer.is_none() && !self.plan.full_training {
            for way in all.clone() {
                let mut way = way.changed(Allow::Quantizer, "quantizer none → nf4".to_owned());
                way.plan.quantizer = Some(Part::of("nf4"));
                all.push(way);
            }
        }
        all
    }

    fn changed(mut self, what: Allow, change: String) -> Self {
        self.changes.push((what, change));
        self
    }

    fn within(&self, allowed: &[Allow]) -> bool {
        self.changes.iter().all(|(what, _)| allowed.contains(what))
    }

    fn words(&self) -> Vec<String> {
        self.changes.iter().map(|(_, change)| change.clone()).collect()
    }
}

/// The mildest way within the budget; without one, the recipe's own, its bill
/// naming what would fit.
///
/// # Errors
/// What `bill` says of the recipe's own way.
pub fn choose(written: Way, memory: &Memory, bill: &dyn Fn(&Way) -> Result<Bill>) -> Result<(Way, Bill)> {
    let mut own = bill(&written)?;
    let Some(budget) = memory.budget else { return Ok((written, own)) };
    if own.total() <= budget.0 {
        return Ok((written, own));
    }
    let mut smallest: Option<(Way, u64)> = None;
    let mut nearest: Option<(Way, u64)> = None;
    for way in written.ways().into_iter().skip(1) {
        // A change that this model refuses, such as blocks that do not divide its rows, is no way.
        let Ok(found) = bill(&way) else { continue };
        let total = found.total();
        if total <= budget.0 {
            if way.within(&memory.allow) {
                let found = Bill { changes: way.words(), ..found };
                return Ok((way, found));
            }
            nearest.get_or_insert((way.clone(), total));
        }
        if smallest.as_ref().is_none_or(|(_, least)| total < *least) {
            smallest = Some((way, total));
        }
    }
    own.nearest = match (nearest, smallest) {
        (Some((way, total)), _) => {
            let mut names = memory.allow.clone();
            names.extend(way.changes.iter().map(|(what, _)| *what).filter(|w| !memory.allow.contains(w)));
            let names: Vec<String> = names.iter().map(|a| format!("\"{}\"", a.name())).collect();
            let change = way.words().join("; ");
            Some(format!(
                "`[memory] allow = [{}]` makes it fit: {} with {change}",
                names.join(", "),
                units::bytes(total)
            ))
        }
        (None, Some((way, total))) => {
            Some(format!("the least it can do with is {}: {}", units::bytes(total), way.words().join("; ")))
        }
        (None, None) => None,
    };
    Ok((written, own))
}
