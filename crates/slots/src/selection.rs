//! Selections: which entries of the base train, and when.

use std::rc::Rc;

use anyhow::Result;
use ramekin_core::{Ledger, Rng};

use crate::{AdapterFile, AttachContext, ModelFacts, Optimizer, Sites, Stateful};

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

/// Chooses what of the base model trains, and may choose anew at step boundaries.
///
/// Rounds are pure functions of seed and step wherever a method allows it, so
/// that ranks agree and a resumed run needs no state.
pub trait Selection: Stateful {
    /// Claims tensors of the base and makes them trainable, whole or masked; may also put parts at
    /// sites, as an adapter does. Returns the names of what it chose.
    ///
    /// # Errors
    /// [`ramekin_core::BadSetting`] if it chooses nothing.
    fn attach(&mut self, cx: &mut AttachContext<'_>) -> Result<Vec<String>>;
    /// Before update `cx.step` (from 0), also before the first; choose anew here.
    fn before_step(&mut self, cx: &mut RoundContext<'_>) -> Result<()> {
        let _ = cx;
        Ok(())
    }
    /// After the last update.
    fn finish(&mut self, cx: &mut RoundContext<'_>) -> Result<()> {
        let _ = cx;
        Ok(())
    }
    /// What was trained as a small file, where the method has one; the whole model is written besides.
    fn file(&self) -> Result<Option<AdapterFile>> {
        Ok(None)
    }
}
