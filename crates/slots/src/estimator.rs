//! Estimators: how a step's loss and gradient are obtained.

use std::sync::Arc;

use anyhow::{Result, bail};
use ramekin_core::{Param, Rng};
use ramekin_tape::{GradSink, ParamView};

use crate::{Stateful, StepInfo};

/// One module on a walk: the embedding, a block, or the final norm with head and loss. Its weights are in
/// memory, and what is changed of them now is kept.
pub struct Stop<'a> {
    /// The trainable parameters that the module reads, in the ledger's order.
    pub params: &'a [Arc<Param>],
    /// Those of them that no stop before this one had: a tied head's table is the embedding's.
    pub fresh: &'a [Arc<Param>],
    /// Runs the module on a branch's hidden states, as [`Problem::loss`] would.
    pub run: &'a mut dyn FnMut(usize, Option<ParamView>) -> Result<()>,
}

/// One optimizer step's batches under one model, to be asked for losses and gradients; where several ranks
/// share the step, all of it all the same.
pub trait Problem {
    /// The parameters that train, in the ledger's order.
    fn params(&self) -> &[Arc<Param>];
    /// Updates done so far.
    fn step(&self) -> u64;
    /// Updates planned in all.
    fn total(&self) -> u64;
    /// The run's randomness.
    fn rng(&self) -> Rng;
    /// Rate of this update, before any group's factor.
    fn lr(&self) -> f64;
    /// Where the optimizer stands at this update.
    fn info(&self) -> StepInfo {
        StepInfo { step: self.step() + 1, lr: self.lr() }
    }
    /// Loss of the whole step by forwards alone, in evaluation mode. With a `view`, every use of a
    /// trainable parameter sees what it returns.
    fn loss(&mut self, view: Option<ParamView>) -> Result<f64>;
    /// Predicted and wanted id of every labelled token of the step, by forwards alone; for other rows, such
    /// as texts with a class, what the objective says of each.
    fn predictions(&mut self, view: Option<ParamView>) -> Result<Vec<(i64, i64)>>;
    /// Walks through the network once, each module in its turn, with the hidden states of this many branches
    /// side by side; returns each branch's loss, bit for bit that of [`Problem::loss`] where every module
    /// shows a branch the weights that `loss` would. With no branches the walk only visits the parameters.
    ///
    /// # Errors
    /// If the problem is no chain of modules.
    fn walk(
        &mut self,
        branches: usize,
        visit: &mut dyn FnMut(&mut Stop<'_>) -> Result<()>,
    ) -> Result<Vec<f64>> {
        let _ = (branches, visit);
        bail!("this loss is no chain of modules")
    }
    /// Loss of the whole step in training mode, its gradients handed to `sink` as backward completes them.
    fn backward(&mut self, sink: &mut dyn GradSink) -> Result<f64>;
}

/// Obtains gradients.
pub trait Estimator: Stateful {
    /// Whether it walks back through the network; without, nothing is kept of a forward.
    fn needs_backward(&self) -> bool;
    /// Whether it goes from module to module ([`Problem::walk`]) and never wants all weights in memory.
    fn walks(&self) -> bool {
        false
    }
    /// Where the optimizer stood at the step whose gradients are handed on only by the next estimate, or by
    /// [`Estimator::flush`]; `None` where there are none to come. The sink that either is given updates by it.
    fn pending(&self) -> Option<StepInfo> {
        None
    }
    /// Hands on what is pending. Called before anything but a step looks at the weights.
    fn flush(&mut self, problem: &mut dyn Problem, sink: &mut dyn GradSink) -> Result<()> {
        let _ = (problem, sink);
        Ok(())
    }
    /// Why the weights that train have to be in f32, or `None` if they may be in bf16: where they stay as they are
    /// between two updates and nothing is walked back to them.
    fn wants_f32(&self) -> Option<&'static str> {
        Some("walks gradients back to them")
    }
    /// Whether its state replays a run from the first weights ([`Estimator::replay`]): a checkpoint then holds
    /// that state in the place of weights.
    fn log_only(&self) -> bool {
        false
    }
    /// Does update `problem.step()` again, without a batch: what happened to the weights before it, and the
    /// gradients.
    ///
    /// # Errors
    /// If the state does not know that step.
    fn replay(&mut self, problem: &mut dyn Problem, sink: &mut dyn GradSink) -> Result<()> {
        let _ = sink;
        bail!("nothing is known of step {}", problem.step() + 1)
    }
    /// The step's loss; every trainable parameter's gradient goes to `sink`, one after the other.
    fn estimate(&mut self, problem: &mut dyn Problem, sink: &mut dyn GradSink) -> Result<f64>;
}
