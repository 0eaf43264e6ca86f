//! Selections: which entries of the base train, and when.

use std::rc::Rc;
use std::sync::Arc;

use anyhow::Result;
use ramekin_core::{Array, Ledger, Param, Rng};
use serde_json::Value as Json;

use crate::{AttachContext, ModelFacts, Optimizer, Probe, Sites, Stateful};

/// What a selection sees between two updates.
pub struct RoundContext<'a> {
    /// The model's sites.
    pub sites: Rc<Sites>,
    /// Every tensor; `set_trainable` and `set_mask` of its parameters say what trains next.
    pub ledger: &'a Ledger,
    /// The model's sizes.
    pub facts: &'a ModelFacts,
    /// The optimizer, whose state is dropped or carried along where the choice changes.
    pub optimizer: &'a mut dyn Optimizer,
    /// The run's randomness.
    pub rng: Rng,
    /// Updates done so far.
    pub step: u64,
    /// Updates planned in all.
    pub total: u64,
}

/// What a selection leaves besides the whole model.
pub struct SelectionFile {
    /// What was chosen and how, for `selection.json`.
    pub config: Json,
    /// Tensors by name, for `delta.safetensors`.
    pub tensors: Vec<(String, Array)>,
    /// Or differences from the base, sparse; tensors are what trained whole beside them then.
    pub differences: Vec<Differences>,
}

/// The entries of one tensor that differ from the base.
pub struct Differences {
    /// Name of the tensor.
    pub name: String,
    /// Its dimensions.
    pub dims: Vec<usize>,
    /// Places in the flattened tensor, ascending, with what is added there.
    pub entries: Vec<(u32, f32)>,
}

/// Chooses what of the base model trains, and may choose anew at step boundaries.
///
/// Calls come in this order: [`attach`](Selection::attach), [`calibrate`](Selection::calibrate),
/// [`updates`](Selection::updates), `restore` in a run that goes on; then for every update
/// [`before_step`](Selection::before_step), [`gradient`](Selection::gradient) for each parameter and
/// [`after_step`](Selection::after_step); at the end [`finish`](Selection::finish) and
/// [`file`](Selection::file). A plan makes the same calls on shapes.
///
/// Rounds are pure functions of seed and step wherever a method allows it, so that ranks agree and a
/// resumed run needs no state.
pub trait Selection: Stateful {
    /// Claims tensors of the base and makes them trainable, whole or masked; may also put parts at
    /// sites, as an adapter does. Returns the names of what it chose.
    ///
    /// # Errors
    /// [`ramekin_core::BadSetting`] if it chooses nothing.
    fn attach(&mut self, cx: &mut AttachContext<'_>) -> Result<Vec<String>>;
    /// Goes on with [`Selection::attach`] where the choice needs a look at data. A resumed run looks
    /// again, at the same rows under the same weights, so what is seen needs no saving.
    ///
    /// # Errors
    /// As those of attaching.
    fn calibrate(&mut self, cx: &mut AttachContext<'_>, probe: &mut dyn Probe) -> Result<()> {
        let _ = (cx, probe);
        Ok(())
    }
    /// How many updates it takes in all, where it sets the stage's length itself; `epoch` updates show
    /// every row once.
    ///
    /// # Errors
    /// [`ramekin_core::BadSetting`] if its settings give no length.
    fn updates(&mut self, epoch: f64) -> Result<Option<u64>> {
        let _ = epoch;
        Ok(None)
    }
    /// Where schedule and optimizer stand at update `step` of `total`: a method of several trainings
    /// begins anew with each.
    fn clock(&self, step: u64, total: u64) -> (u64, u64) {
        (step, total)
    }
    /// Before update `cx.step` (from 0), also before the first; choose anew here. Must do nothing when
    /// called again for the same step.
    fn before_step(&mut self, cx: &mut RoundContext<'_>) -> Result<()> {
        let _ = cx;
        Ok(())
    }
    /// Changes the complete gradient of a parameter (of its masked entries, where it has a mask) in
    /// place. Returns what this adds to the loss that is reported.
    fn gradient(&mut self, param: &Arc<Param>, grad: &Array) -> Result<f64> {
        let _ = (param, grad);
        Ok(0.0)
    }
    /// After update `cx.step − 1`.
    fn after_step(&mut self, cx: &mut RoundContext<'_>) -> Result<()> {
        let _ = cx;
        Ok(())
    }
    /// After the last update.
    fn finish(&mut self, cx: &mut RoundContext<'_>) -> Result<()> {
        let _ = cx;
        Ok(())
    }
    /// What was chosen or changed, as a small folder; the whole model is written besides.
    fn file(&self) -> Result<Option<SelectionFile>> {
        Ok(None)
    }
}
