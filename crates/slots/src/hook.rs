//! Hooks: what reacts to the events of a training stage.

use std::rc::Rc;

use anyhow::Result;
use ramekin_core::{Ledger, Rng};
use serde_json::{Map, Value as Json};

use crate::{ModelFacts, Optimizer, Probe, Sites, Stateful};

/// When a hook is called.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Event {
    /// Before the first update, or where a resumed run goes on.
    Begin,
    /// Before the forward of an update.
    StepBegin,
    /// After the update; parameters and state may be edited.
    AfterUpdate,
    /// Between two steps, before held rows are measured or samples are written.
    BeforeEval,
    /// After that; without held rows there are no figures.
    AfterEval,
    /// After the last update, before the result is measured and saved.
    End,
}

impl Event {
    /// All of them.
    pub const ALL: [Event; 6] =
        [Event::Begin, Event::StepBegin, Event::AfterUpdate, Event::BeforeEval, Event::AfterEval, Event::End];
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
    /// The stage's training rows.
    pub probe: &'a mut dyn Probe,
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
    ///
    /// [`Event::Begin`] is missing in plans, which make two steps on shapes.
    fn on(&mut self, event: Event, cx: &mut HookContext<'_>) -> Result<Flow>;
    /// Whether it reads or changes parameters, or what of them trains, at this event: an update that is still
    /// to come is made before.
    fn handles_weights(&self, _event: Event) -> bool {
        true
    }
    /// Whether it does so at any event.
    fn ever_handles_weights(&self) -> bool {
        Event::ALL.iter().any(|event| self.handles_weights(*event))
    }
    /// Whether it does nothing in a stage that measures nothing between its steps.
    fn needs_eval(&self) -> bool {
        false
    }
}
