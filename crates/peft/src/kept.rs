//! An adapter's targets and its parameters by their names in the file.

use std::rc::Rc;
use std::sync::Arc;

use anyhow::{Result, ensure};
use ramekin_core::pattern::Selector;
use ramekin_core::{Array, Category, DType, Param, UserError};
use ramekin_slots::{AttachContext, LinearSite, Sites, WeightSource};

use crate::method::{Biases, Targeting};

/// One saved parameter: its name in the file and the parameter.
struct Named {
    key: String,
    param: Arc<Param>,
    /// Saved, but no parameter in PEFT's eyes.
    buffer: bool,
}

/// What an attached adapter has; empty before.
#[derive(Default)]
pub struct Kept {
    targets: Vec<String>,
    named: Vec<Named>,
}

impl Kept {
    /// The name in the file of a tensor at a linear: `base_model.model.PATH.TAIL`.
    pub fn key(site: &LinearSite, tail: &str) -> String {
        format!("base_model.model.{}.{tail}", site.path)
    }

    /// Paths of the adapted linears.
    pub fn targets(&self) -> &[String] {
        &self.targets
    }

    /// Every parameter with its name in the file, in order of arrival; no buffers.
    pub fn params(&self) -> impl Iterator<Item = (&str, &Arc<Param>)> {
        self.named.iter().filter(|n| !n.buffer).map(|n| (n.key.as_str(), &n.param))
    }

    /// Parameters and buffers with their names in the file.
    pub fn tensors(&self) -> impl Iterator<Item = (&str, &Arc<Param>)> {
        self.named.iter().map(|n| (n.key.as_str(), &n.param))
    }

    /// Adds a trainable parameter under its name in the file.
    ///
    /// # Errors
    /// If the ledger has this name.
    pub fn add(&mut self, cx: &mut AttachContext<'_>, key: String, value: Array) -> Result<Arc<Param>> {
        let param = self.enter(cx, key, value, false)?;
        param.set_trainable(true);
        Ok(param)
    }

    /// Adds a tensor that is saved and never trains.
    ///
    /// # Errors
    /// If the ledger has this name.
    pub fn add_buffer(&mut self, cx: &mut AttachContext<'_>, key: &str, value: Array) -> Result<Arc<Param>> {
        self.enter(cx, key.to_owned(), value, true)
    }

    fn enter(
        &mut self,
        cx: &mut AttachContext<'_>,
        key: String,
        value: Array,
        buffer: bool,
    ) -> Result<Arc<Param>> {
        let name = if cx.index == 0 { key.clone() } else { format!("adapter{}.{key}", cx.index) };
        let param = Param::new(name, value);
        cx.ledger.add(&param, &cx.owner)?;
        self.named.push(Named { key, param: param.clone(), buffer });
        Ok(param)
    }

    /// Finds the targets.
    pub(crate) fn select(&mut self, sites: &Sites, at: &Targeting<'_>) -> Result<()> {
        let selector = Selector::new(
            "target_modules",
            at.target_modules,
            at.exclude_modules,
            at.layers_to_transform,
            at.layers_pattern,
        )?;
        self.targets = selector.select(&sites.candidates())?.into_iter().map(str::to_owned).collect();
        Ok(())
    }

    /// Copies of whole modules that train and are saved with the adapter.
    ///
    /// # Errors
    /// If an entry names no module with dense parameters.
    pub fn add_modules(&mut self, cx: &mut AttachContext<'_>, modules: &[String]) -> Result<()> {
        let sites: Rc<Sites> = cx.sites.clone();
        for entry in modules {
            for name in sites.params_of_module(entry)? {
                let site = sites.param(name)?;
                let base = site.base().value();
                let copy = if cx.shape_only || base.is_shape_only() {
                    Array::shape_only(base.dims(), DType::F32, Category::Workspace)?
                } else {
                    Array::from_vec(base.to_f32()?, base.dims(), Category::Workspace)?
                };
                let param = self.add(cx, format!("base_model.model.{name}"), copy)?;
                site.set_stand_in(Some(param));
            }
        }
        Ok(())
    }

    /// Bias vectors of the base that train along.
    pub(crate) fn claim_biases(&mut self, cx: &mut AttachContext<'_>, biases: Biases) -> Result<()> {
        let sites: Rc<Sites> = cx.sites.clone();
        for site in sites.linears() {
            let targeted = self.targets.contains(&site.path);
            let wanted = biases == Biases::All || biases == Biases::Targets && targeted;
            let Some(name) = site.bias.as_ref().filter(|_| wanted) else { continue };
            cx.ledger.claim(name, &cx.owner)?;
            let param = sites.param(name)?.base().clone();
            param.set_trainable(true);
            let key = if targeted {
                Kept::key(site, "base_layer.bias")
            } else {
                format!("base_model.model.{name}")
            };
            self.named.push(Named { key, param, buffer: false });
        }
        Ok(())
    }

    /// Replaces every parameter by the file's tensor of its name.
    ///
    /// # Errors
    /// If a tensor is missing that is not `optional`, has another shape, or is left over.
    pub fn load(&mut self, source: &mut dyn WeightSource, optional: impl Fn(&str) -> bool) -> Result<()> {
        let label = source.label();
        let mut left = source.names();
        for named in &self.named {
            let dims = named.param.value().dims().to_vec();
            let Some(info) = source.info(&named.key) else {
                if optional(&named.key) {
                    continue;
                }
                return Err(UserError::new(format!("the adapter has no tensor `{}`", named.key))
                    .in_file(label)
                    .into());
            };
            if info.dims != dims {
                let message = format!(
                    "the tensor `{}` is {:?} in the file; this model needs {dims:?}",
                    named.key, info.dims
                );
                return Err(UserError::new(message).in_file(label).into());
            }
            let value = source.read(&named.key, &dims)?.to_dtype(DType::F32, Category::Trainable)?;
            ensure!(value.dims() == dims, "`{}` was read as {:?}", named.key, value.dims());
            named.param.set(value);
            left.retain(|n| n != &named.key);
        }
        if let Some(first) = left.first() {
            let message =
                format!("{} tensors of the adapter fit nothing in this model, first `{first}`", left.len());
            return Err(UserError::new(message).in_file(label).into());
        }
        Ok(())
    }
}
