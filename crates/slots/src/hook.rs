//! Hooks: what reacts to the events of a training stage.

use std::rc::Rc;

use anyhow::Result;
use ramekin_core::{Ledger, Rng};
use serde_json::{Map, Value as Json};

use crate::{ModelFacts, Optimizer, Sites, Stateful};

/// When a hook is called.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Event {
    /// Before the first update, or where a resumed run goes on.
    Begin,
    /// Before the forward of an update.
    StepBegin,
    /// After the update; parameters and state may be edited.
    AfterUpdate,
    /// Before held rows are measured or the result is saved.
    BeforeEval,
    /// After held rows were measured.
    AfterEval,
    /// After the last update, before the result is saved.
    End,
}

/// What a hook sees.
pub struct HookContext<'a> {
    /// The model's sites.
    pub sites: Rc<Sites>,
    /// Every tensor.
    pub ledger: &'a Ledger,
    /// The model's sizes.
    pub facts: &'a ModelFacts,
    /// The optimizer with its state.
    pub optimizer: &'a mut dyn Optimizer,
    /// The run's randomness.
    pub rng: Rng,
    /// Updates done so far.
    pub step: u64,
    /// Updates planned in all.
    pub total: u64,
    /// Loss of the last update's batches, before it.
    pub loss: f64,
    /// Figures of the last evaluation, after [`Event::AfterEval`].
    pub figures: &'a Map<String, Json>,
}

/// Whether training goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Flow {
    /// It does.
    Go,
    /// It ends here, and this is why.
    Stop(String),
}

/// Reacts to events.
pub trait Hook: Stateful {
    /// Called at every event, in the order of the recipe.
    fn on(&mut self, event: Event, cx: &mut HookContext<'_>) -> Result<Flow>;
}
