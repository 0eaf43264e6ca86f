//! Module sites: every module of a model by its Hugging Face path, with its input and output.
//!
//! A model says where its modules begin and end with [`Forward::module`] and knows nothing of what is
//! attached. A module's input lives on after its last use only where something is attached to it.

use std::cell::RefCell;
use std::rc::Rc;

use anyhow::{Result, bail};
use ramekin_core::{Array, UserError};
use ramekin_kernels::scale_shift;
use ramekin_tape::Value;

use crate::{Below, Forward, LinearAdapter, LinearSite, Sites};

/// An adapter as `y ← scale ⊙ y + shift`, entry by entry of the module's output.
pub struct Affine {
    /// `[d]`, f32.
    pub scale: Array,
    /// `[d]`, f32; none is zero.
    pub shift: Option<Array>,
}

/// One adapter of a module.
pub trait ModuleAdapter {
    /// The new output from the module's input and its output so far. `x` is `None` at the embedding,
    /// whose input is `fx.batch.ids`.
    fn forward(&self, fx: &Forward, path: &str, x: Option<&Value>, y: Value) -> Result<Value>;
    /// The adapter as a scale and a shift, which fold into the norm or linear that it sits at.
    ///
    /// # Errors
    /// If it has no such form.
    fn affine(&self, path: &str) -> Result<Affine> {
        Err(UserError::new(format!("what is attached to `{path}` cannot be folded into the model's weights"))
            .help("serve the adapter unmerged")
            .into())
    }
}

/// The affine parameters of a norm, and who reads its output.
#[derive(Clone, Debug)]
pub struct NormInfo {
    /// Name of the weight.
    pub weight: String,
    /// Name of the bias, where it has one.
    pub bias: Option<String>,
    /// Paths of the linears whose only input this norm's output is; a shift may move into their biases.
    pub readers: Vec<String>,
}

/// A module of the model.
pub struct ModuleSite {
    /// Module path, `model.layers.3.mlp`.
    pub path: String,
    /// Width of a row of its output.
    pub width: usize,
    /// What is known of it if it is a norm.
    pub norm: Option<NormInfo>,
    adapters: RefCell<Vec<Rc<dyn ModuleAdapter>>>,
}

impl ModuleSite {
    /// A module without adapters.
    pub fn new(path: &str, width: usize, norm: Option<NormInfo>) -> Self {
        ModuleSite { path: path.to_owned(), width, norm, adapters: RefCell::default() }
    }

    /// Adds an adapter behind those that are there.
    pub fn attach(&self, adapter: Rc<dyn ModuleAdapter>) {
        self.adapters.borrow_mut().push(adapter);
    }

    /// Removes every adapter.
    pub fn detach_all(&self) {
        self.adapters.borrow_mut().clear();
    }

    /// How many adapters there are.
    pub fn adapter_count(&self) -> usize {
        self.adapters.borrow().len()
    }

    /// The output `y` after each adapter in order.
    pub(crate) fn adapt(&self, fx: &Forward, x: Option<&Value>, mut y: Value) -> Result<Value> {
        for adapter in self.adapters.borrow().iter() {
            y = adapter.forward(fx, &self.path, x, y)?;
        }
        Ok(y)
    }

    /// All adapters in one: the scale and the shift of them in order. `None` if there are none.
    ///
    /// # Errors
    /// If one has no such form.
    pub fn affine(&self) -> Result<Option<(Vec<f32>, Vec<f32>)>> {
        if self.adapter_count() == 0 {
            return Ok(None);
        }
        let (mut scale, mut shift) = (vec![1.0f32; self.width], vec![0.0f32; self.width]);
        for adapter in self.adapters.borrow().iter() {
            let (s, t) = numbers(&adapter.affine(&self.path)?)?;
            scale_shift::fold_rows(&s, &mut scale);
            scale_shift::fold_bias(&s, &t, &mut shift);
        }
        Ok(Some((scale, shift)))
    }
}

fn numbers(affine: &Affine) -> Result<(Vec<f32>, Vec<f32>)> {
    let scale = affine.scale.to_f32()?;
    let shift = match &affine.shift {
        Some(shift) => shift.to_f32()?,
        None => vec![0.0; scale.len()],
    };
    Ok((scale, shift))
}

/// A module's adapter at a linear.
struct AtLinear(Rc<dyn ModuleAdapter>);

impl LinearAdapter for AtLinear {
    fn forward(&self, fx: &Forward, site: &LinearSite, x: &Value, below: &Below<'_>) -> Result<Value> {
        self.0.forward(fx, &site.path, Some(x), below(x)?)
    }

    fn fold(&self, _: &Sites, site: &LinearSite, weight: Array) -> Result<Array> {
        let (scale, _) = numbers(&self.0.affine(&site.path)?)?;
        weight.update(|w: &mut [f32]| scale_shift::fold_rows(&scale, w))?;
        Ok(weight)
    }

    fn fold_bias(&self, site: &LinearSite, bias: Array) -> Result<Array> {
        let (scale, shift) = numbers(&self.0.affine(&site.path)?)?;
        bias.update(|b: &mut [f32]| scale_shift::fold_bias(&scale, &shift, b))?;
        Ok(bias)
    }

    fn makes_bias(&self, site: &LinearSite) -> bool {
        self.0.affine(&site.path).is_ok_and(|a| a.shift.is_some())
    }
}

impl Sites {
    /// Attaches to a module of this path, a linear too.
    ///
    /// # Errors
    /// If there is no such module.
    pub fn attach_module(&self, path: &str, adapter: Rc<dyn ModuleAdapter>) -> Result<()> {
        if let Some(module) = self.module(path) {
            module.attach(adapter);
        } else {
            self.linear(path)?.attach(Box::new(AtLinear(adapter)));
        }
        Ok(())
    }

    /// A norm's weight or bias with everything that is attached to the norm folded in; `None` if the
    /// parameter is no attached norm's.
    pub fn folded_norm(&self, name: &str) -> Result<Option<Array>> {
        for module in self.modules() {
            let Some(norm) = &module.norm else { continue };
            let is_bias = norm.bias.as_deref() == Some(name);
            if norm.weight != name && !is_bias {
                continue;
            }
            let Some((scale, shift)) = module.affine()? else { return Ok(None) };
            let value = self.param(name)?.active(true).value();
            let folded = Array::from_vec(value.to_f32()?, value.dims(), ramekin_core::Category::Workspace)?;
            folded.update(|v: &mut [f32]| {
                if is_bias {
                    scale_shift::fold_bias(&scale, &shift, v);
                } else {
                    scale_shift::fold_rows(&scale, v);
                }
            })?;
            return Ok(Some(folded));
        }
        Ok(None)
    }

    /// What a norm before this linear shifts its input by, where the norm has no bias to take it.
    ///
    /// # Errors
    /// If what is attached to the norm cannot be folded.
    fn shift_before(&self, path: &str) -> Result<Option<Vec<f32>>> {
        for module in self.modules() {
            let reads = |n: &NormInfo| n.bias.is_none() && n.readers.iter().any(|r| r == path);
            if module.norm.as_ref().is_some_and(reads) && module.adapter_count() > 0 {
                let shift = module.affine()?.map(|(_, shift)| shift);
                return Ok(shift.filter(|t| t.iter().any(|t| *t != 0.0)));
            }
        }
        Ok(None)
    }

    /// The bias of a linear with everything folded in, f32 `[O]`: its adapters' and the shift of a norm
    /// before it that has no bias of its own. `None` where there is and needs to be none.
    ///
    /// # Errors
    /// If something cannot be folded in.
    pub fn folded_bias(&self, site: &LinearSite) -> Result<Option<Array>> {
        let bias = site.merged_bias(self)?;
        let Some(shift) = self.shift_before(&site.path)? else { return Ok(bias) };
        let (o, i) = site.shape;
        let bias = match bias {
            Some(bias) => bias,
            None => Array::from_vec(vec![0.0f32; o], &[o], ramekin_core::Category::Workspace)?,
        };
        let weight = site.merged(self)?;
        let w = weight.view::<f32>()?;
        bias.update(|b: &mut [f32]| {
            ramekin_kernels::matmul::nt(1, o, i, 1.0, &shift, &w, true, b);
        })?;
        Ok(Some(bias))
    }

    /// Linears that have no bias and need one once everything is folded in.
    ///
    /// # Errors
    /// If something attached to a module that is no norm and no linear would have to be folded.
    pub fn new_biases(&self) -> Result<Vec<String>> {
        for module in self.modules().iter().filter(|m| m.adapter_count() > 0) {
            let Some(norm) = &module.norm else {
                bail!(
                    UserError::new(format!(
                        "what is attached to `{}` has no weight to be folded into",
                        module.path
                    ))
                    .help("serve the adapter unmerged")
                );
            };
            let shifts = module.affine()?.is_some_and(|(_, shift)| shift.iter().any(|t| *t != 0.0));
            if shifts && norm.bias.is_none() && norm.readers.is_empty() {
                bail!(UserError::new(format!(
                    "the shift at `{}` has no bias to be folded into",
                    module.path
                )));
            }
        }
        let mut found = Vec::new();
        for site in self.linears().iter().filter(|s| s.bias.is_none()) {
            if site.makes_bias() || self.shift_before(&site.path)?.is_some() {
                found.push(site.path.clone());
            }
        }
        Ok(found)
    }
}
