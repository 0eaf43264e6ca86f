//! Gradients by reverse mode: `backprop`, what training means where nothing else is said.

use anyhow::Result;
use ramekin_registry::{Part, part};
use ramekin_slots::{Estimator, Problem, Stateful};
use ramekin_tape::GradSink;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

part! { estimator / "backprop" => Backprop, "exact gradients, by walking back through the network",
source = "plain backpropagation", traits = [NeedsBackboneBackward] }

/// `estimator = { kind = "backprop" }` has no settings.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct BackpropSettings {}

/// The estimator.
pub struct Backprop;

impl Part for Backprop {
    type Settings = BackpropSettings;

    fn new(_: BackpropSettings) -> Result<Self> {
        Ok(Backprop)
    }
}

impl Stateful for Backprop {}

impl Estimator for Backprop {
    fn needs_backward(&self) -> bool {
        true
    }

    fn estimate(&mut self, problem: &mut dyn Problem, sink: &mut dyn GradSink) -> Result<f64> {
        problem.backward(sink)
    }
}
