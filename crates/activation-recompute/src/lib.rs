//! Activation policies that keep a block's intermediates or compute them again.
//!
//! | kind | keeps of a block | costs |
//! |---|---|---|
//! | `keep` | everything backward needs | nothing |
//! | `checkpoint` | its input | one more forward of the block |
//!
//! Source of `checkpoint`: Chen et al. 2016, arXiv:1604.06174.

use anyhow::Result;
use ramekin_core::BadSetting;
use ramekin_registry::{Part, part};
use ramekin_slots::{ActivationPolicy, Block, Forward};
use ramekin_tape::Value;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

part! { activation / "keep" => Keep, "keeps what backward needs", source = "plain backpropagation",
traits = [OwnsActivations] }
part! { activation / "checkpoint" => Checkpoint, "keeps a block's input and runs the block again in backward",
source = "arXiv:1604.06174", traits = [OwnsActivations] }

/// `activation = { kind = "keep" }` has no settings.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct KeepSettings {}

/// Keeps everything.
pub struct Keep;

impl Part for Keep {
    type Settings = KeepSettings;

    fn new(_: KeepSettings) -> Result<Self> {
        Ok(Keep)
    }
}

impl ActivationPolicy for Keep {
    fn run(&self, fx: &Forward, _index: usize, block: Block, x: &Value) -> Result<Value> {
        block(fx, x)
    }
}

/// Settings of `activation = { kind = "checkpoint", … }`.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct CheckpointSettings {
    /// Recomputes every n-th block and keeps the others; 1 recomputes all.
    pub every: usize,
}

impl Default for CheckpointSettings {
    fn default() -> Self {
        CheckpointSettings { every: 1 }
    }
}

/// Recomputes.
pub struct Checkpoint {
    every: usize,
}

impl Part for Checkpoint {
    type Settings = CheckpointSettings;

    fn new(s: CheckpointSettings) -> Result<Self> {
        if s.every == 0 {
            return Err(BadSetting::new("every", "is 0; it must be at least 1").into());
        }
        Ok(Checkpoint { every: s.every })
    }
}

impl ActivationPolicy for Checkpoint {
    fn recomputes(&self) -> bool {
        self.every == 1
    }

    fn run(&self, fx: &Forward, index: usize, block: Block, x: &Value) -> Result<Value> {
        if !index.is_multiple_of(self.every) {
            return block(fx, x);
        }
        // Without the outer tape, which will own this closure.
        let outer = fx.on(&ramekin_tape::Tape::off());
        fx.tape.checkpoint(
            std::slice::from_ref(x),
            std::rc::Rc::new(move |tape, inputs| block(&outer.on(tape), &inputs[0])),
        )
    }
}
