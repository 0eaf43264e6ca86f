//! Estimators: how a step's loss and gradient are obtained.

use std::sync::Arc;

use anyhow::Result;
use ramekin_core::{Param, Rng};
use ramekin_tape::{GradSink, ParamView};

use crate::Stateful;

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
    /// Loss of the whole step by forwards alone, in evaluation mode. With a `view`, every use of a
    /// trainable parameter sees what it returns.
    fn loss(&mut self, view: Option<ParamView>) -> Result<f64>;
    /// Predicted and wanted id of every labelled token of the step, by forwards alone; for other rows, such
    /// as texts with a class, what the objective says of each.
    fn predictions(&mut self, view: Option<ParamView>) -> Result<Vec<(i64, i64)>>;
    /// Loss of the whole step in training mode, its gradients handed to `sink` as backward completes them.
    fn backward(&mut self, sink: &mut dyn GradSink) -> Result<f64>;
}

/// Obtains gradients.
pub trait Estimator: Stateful {
    /// Whether it walks back through the network; without, nothing is kept of a forward.
    fn needs_backward(&self) -> bool;
    /// The step's loss; every trainable parameter's gradient goes to `sink`, one after the other.
    fn estimate(&mut self, problem: &mut dyn Problem, sink: &mut dyn GradSink) -> Result<f64>;
}
