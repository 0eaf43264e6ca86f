//! What a method in PEFT's layout says of itself.

use anyhow::Result;
use ramekin_core::ParamId;
use ramekin_core::pattern::Modules;
use ramekin_slots::{AttachContext, LinearAdapter, LinearSite, ParamGroup};
use schemars::JsonSchema;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value as Json;

use crate::Kept;

/// Which bias vectors of the base train along.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Biases {
    /// None.
    #[default]
    None,
    /// Every bias of the model.
    All,
    /// Those of the targeted linears.
    Targets,
}

/// Where an adapter goes, and what of the base trains along.
#[derive(Clone, Copy, Debug)]
pub struct Targeting<'a> {
    /// `target_modules`.
    pub target_modules: &'a Modules,
    /// `exclude_modules`.
    pub exclude_modules: Option<&'a Modules>,
    /// `layers_to_transform`.
    pub layers_to_transform: Option<&'a [usize]>,
    /// `layers_pattern`.
    pub layers_pattern: &'a [String],
    /// `modules_to_save`.
    pub modules_to_save: &'a [String],
    /// `bias`.
    pub biases: Biases,
}

impl<'a> Targeting<'a> {
    /// These modules in every layer, and nothing of the base.
    pub fn of(target_modules: &'a Modules) -> Self {
        Targeting {
            target_modules,
            exclude_modules: None,
            layers_to_transform: None,
            layers_pattern: &[],
            modules_to_save: &[],
            biases: Biases::None,
        }
    }
}

/// A method: what sets it apart from the others.
pub trait Method: Sized {
    /// The settings, named as in the method's PEFT config.
    type Settings: DeserializeOwned + Serialize + JsonSchema;
    /// The part's name.
    const NAME: &'static str;
    /// `peft_type` of its files.
    const PEFT_TYPE: &'static str;
    /// The setting that says how fresh values begin; what a saved config says there no longer matters.
    const INIT: &'static str;
    /// What a saved config may hold besides the settings, with the values that mean "off"; no values
    /// means that any will do.
    const FOREIGN: &'static [(&'static str, &'static [&'static str])];

    /// Takes checked settings.
    ///
    /// # Errors
    /// [`ramekin_core::BadSetting`] naming the setting.
    fn new(settings: Self::Settings) -> Result<Self>;
    /// Where it goes.
    fn targeting(&self) -> Targeting<'_>;
    /// Whether a config of this `peft_type` is this method's.
    fn reads(config: &Json) -> bool {
        let _ = config;
        true
    }
    /// The config's fields of its own, with PEFT's names; the fields that all configs have come on top.
    fn config(&self) -> Json;
    /// Makes what all targets share, before the first is adapted.
    ///
    /// # Errors
    /// If the targets do not fit.
    fn prepare(&mut self, kept: &mut Kept, cx: &mut AttachContext<'_>) -> Result<()> {
        let _ = (kept, cx);
        Ok(())
    }
    /// Makes the parameters of one target and what computes with them.
    ///
    /// # Errors
    /// If the target does not fit.
    fn adapt(
        &self,
        kept: &mut Kept,
        cx: &mut AttachContext<'_>,
        site: &LinearSite,
    ) -> Result<Box<dyn LinearAdapter>>;
    /// Names of tensors that a file may lack.
    fn optional(&self, key: &str) -> bool {
        let _ = key;
        false
    }
    /// Whether a tensor goes into the file.
    fn saves(&self, key: &str) -> bool {
        let _ = key;
        true
    }
    /// Called when a file's values have taken the place of the initial ones.
    fn loaded(&self) {}
    /// Why it cannot be folded into the base's weights; `None` if it can.
    fn unmergeable(&self) -> Option<String> {
        None
    }
    /// Rates and decay of parameters that differ from the optimizer's own.
    fn groups(&self, kept: &Kept) -> Vec<(ParamId, ParamGroup)> {
        let _ = kept;
        Vec::new()
    }
}
