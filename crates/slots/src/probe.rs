//! Looks at the training rows beside the steps.

use anyhow::Result;
use ramekin_tape::GradSink;

/// The stage's training rows under its model, for parts that measure before they choose.
///
/// Batches are drawn by address: `stream` names an order of the rows, `index` a batch of it. The rows
/// that the steps see are not disturbed.
pub trait Probe {
    /// Mean loss of `rows` rows by a forward alone, in evaluation mode.
    ///
    /// # Errors
    /// If there are no rows, or the forward fails.
    fn loss(&mut self, stream: &str, index: u64, rows: usize) -> Result<f64>;
    /// The same with the gradients of what trains.
    ///
    /// # Errors
    /// As [`Probe::loss`].
    fn backward(&mut self, stream: &str, index: u64, rows: usize, sink: &mut dyn GradSink) -> Result<f64>;
}
