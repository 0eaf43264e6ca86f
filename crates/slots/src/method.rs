//! Methods that fill several slots at once.

use anyhow::Result;

use crate::{ActivationPolicy, Adapter, Slot};

/// What methods add their parts to.
#[derive(Default)]
pub struct Builder {
    /// Adapters, attached in this order.
    pub adapters: Vec<Box<dyn Adapter>>,
    /// The activation policy, where the method brings one.
    pub activation: Option<Box<dyn ActivationPolicy>>,
}

impl Builder {
    /// The slots that are taken, which a recipe then leaves alone.
    pub fn taken(&self) -> Vec<Slot> {
        let adapter = (!self.adapters.is_empty()).then_some(Slot::Adapter);
        adapter.into_iter().chain(self.activation.is_some().then_some(Slot::Activation)).collect()
    }
}

/// Parts of several slots that make sense together alone. At least one of them trains.
pub trait Method {
    /// Adds its parts. May be called several times, for a part of each at a time.
    ///
    /// # Errors
    /// [`ramekin_core::BadSetting`] for settings that do not go together.
    fn install(&self, builder: &mut Builder) -> Result<()>;
}
