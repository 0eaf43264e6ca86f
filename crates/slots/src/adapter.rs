//! Adapters: extra parameters at sites, and their files in PEFT's layout.

use std::rc::Rc;
use std::sync::Arc;

use anyhow::Result;
use ramekin_core::{Array, Category, DType, Ledger, Param, ParamId, Rng};
use ramekin_tape::Value;
use serde_json::Value as Json;

use crate::{Forward, LinearSite, ModelFacts, ParamGroup, Sites, WeightSource};

/// What an adapter may use while it attaches.
pub struct AttachContext<'a> {
    /// The model's sites.
    pub sites: Rc<Sites>,
    /// Where its parameters are entered and the base's are claimed.
    pub ledger: &'a mut Ledger,
    /// The model's sizes.
    pub facts: &'a ModelFacts,
    /// The run's randomness.
    pub rng: Rng,
    /// The part's place in the recipe, by which it owns its parameters.
    pub owner: String,
    /// Number of the adapter among those attached, so that names stay apart.
    pub index: usize,
    /// Number of the stage in its recipe, from 0.
    pub stage: usize,
    /// Parameters get shapes only.
    pub shape_only: bool,
}

impl AttachContext<'_> {
    /// Claims a tensor of the base, which is held in f32 from now on, and makes it trainable.
    ///
    /// # Errors
    /// If another part has it, or it is packed.
    pub fn train(&mut self, name: &str) -> Result<Arc<Param>> {
        self.ledger.claim(name, &self.owner)?;
        let param = self.sites.param(name)?.base().clone();
        let value = param.value();
        if value.dtype() != DType::F32 {
            param.set(value.to_dtype(DType::F32, Category::Workspace)?);
        }
        param.set_trainable(true);
        Ok(param)
    }
}

/// An adapter as files: PEFT's config and tensors by their names in the file.
pub struct AdapterFile {
    /// `adapter_config.json`.
    pub config: Json,
    /// `adapter_model.safetensors`.
    pub tensors: Vec<(String, Array)>,
    /// What has no place in PEFT's files, for `ramekin.json`.
    pub extra: Json,
}

/// What lies below an adapter at a linear: the base product with its bias and the adapters before this one.
pub type Below<'a> = dyn Fn(&Value) -> Result<Value> + 'a;

/// One adapter of a linear.
pub trait LinearAdapter {
    /// The linear's output for the input `x`. `below` gives the output without this adapter, for this
    /// input or another, and may be called any number of times.
    fn forward(&self, fx: &Forward, site: &LinearSite, x: &Value, below: &Below<'_>) -> Result<Value>;
    /// Folds into the dense weight `[O, I]` (f32) of what lies below.
    ///
    /// # Errors
    /// If this adapter has no merged form.
    fn fold(&self, sites: &Sites, site: &LinearSite, weight: Array) -> Result<Array>;
    /// Folds into the bias `[O]` (f32) of what lies below; most adapters leave it alone.
    fn fold_bias(&self, site: &LinearSite, bias: Array) -> Result<Array> {
        let _ = site;
        Ok(bias)
    }
    /// Whether it adds a constant to the output, so that a linear without a bias needs one once this
    /// adapter is folded in; [`LinearAdapter::fold_bias`] is then given zeros.
    fn makes_bias(&self, site: &LinearSite) -> bool {
        let _ = site;
        false
    }
}

/// A kind of adapter, configured and, after [`Adapter::attach`], in place.
pub trait Adapter {
    /// Makes its parameters, trainable, and puts them at the sites. Returns the sites' paths.
    ///
    /// # Errors
    /// [`ramekin_core::BadSetting`] if targets match nothing or do not fit.
    fn attach(&mut self, cx: &mut AttachContext<'_>) -> Result<Vec<String>>;
    /// Replaces the initial values by a saved adapter's.
    ///
    /// # Errors
    /// If a tensor is missing, has another shape, or is left over.
    fn load(&mut self, source: &mut dyn WeightSource) -> Result<()>;
    /// The adapter as files; `base` is what `base_model_name_or_path` shall say.
    fn file(&self, base: &str) -> Result<AdapterFile>;
    /// The parameters with their names as PEFT's `named_parameters` gives them, without `.default`.
    fn params(&self) -> Vec<(String, Arc<Param>)>;
    /// Rates and decay of parameters that differ from the optimizer's own, whose base rate is `lr`.
    fn groups(&self, lr: f64) -> Vec<(ParamId, ParamGroup)> {
        let _ = lr;
        Vec::new()
    }
    /// Whether it is a network beside a backbone that runs without tape.
    fn runs_beside(&self) -> bool {
        false
    }
    /// Why it cannot be folded into the base's weights, known before any weight is read; `None` if it can.
    fn unmergeable(&self) -> Option<String> {
        None
    }
}
