//! Sites: every linear and every other parameter of a model, by Hugging Face
//! name, with what parts attached to it.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use anyhow::{Context, Result};
use ramekin_core::pattern::Candidate;
use ramekin_core::{Array, Category, DType, Param, UserError, suggest};
use ramekin_tape::{Value, ops};

use crate::{Around, Forward, LinearAdapter, ModuleSite, PackedWeight, Placement, Visit, block_of};

/// A parameter with, perhaps, a trainable stand-in (`modules_to_save`).
pub struct ParamSite {
    base: Arc<Param>,
    stand_in: RefCell<Option<Arc<Param>>>,
}

impl ParamSite {
    /// A site without stand-in.
    pub fn new(base: Arc<Param>) -> Self {
        ParamSite { base, stand_in: RefCell::new(None) }
    }

    /// The model's own parameter.
    pub fn base(&self) -> &Arc<Param> {
        &self.base
    }

    /// The stand-in, if one is attached.
    pub fn stand_in(&self) -> Option<Arc<Param>> {
        self.stand_in.borrow().clone()
    }

    /// Attaches or removes a stand-in.
    pub fn set_stand_in(&self, param: Option<Arc<Param>>) {
        *self.stand_in.borrow_mut() = param;
    }

    /// The parameter that takes part in this forward.
    pub fn active(&self, adapters: bool) -> Arc<Param> {
        match &*self.stand_in.borrow() {
            Some(p) if adapters => p.clone(),
            _ => self.base.clone(),
        }
    }

    /// Its value on the forward's tape.
    pub fn value(&self, fx: &Forward) -> Result<Value> {
        fx.tape.param(&self.active(fx.mode.adapters))
    }
}

/// How a linear's own weight is held.
#[derive(Clone)]
pub enum LinearBase {
    /// A parameter of the ledger: its name (`….weight`).
    Dense(String),
    /// A quantizer's.
    Packed(Arc<dyn PackedWeight>),
}

/// A linear of the model.
pub struct LinearSite {
    /// Module path, `model.layers.3.self_attn.q_proj`.
    pub path: String,
    /// Outputs and inputs.
    pub shape: (usize, usize),
    /// Whether this is the output head.
    pub is_head: bool,
    /// Name of the bias parameter, if there is one.
    pub bias: Option<String>,
    base: RefCell<LinearBase>,
    adapters: RefCell<Vec<Box<dyn LinearAdapter>>>,
    strength: Cell<f64>,
}

impl LinearSite {
    /// A linear without adapters.
    pub fn new(
        path: &str,
        shape: (usize, usize),
        is_head: bool,
        base: LinearBase,
        bias: Option<String>,
    ) -> Self {
        LinearSite {
            path: path.to_owned(),
            shape,
            is_head,
            bias,
            base: RefCell::new(base),
            adapters: RefCell::default(),
            strength: Cell::new(1.0),
        }
    }

    /// How the weight is held.
    pub fn base(&self) -> LinearBase {
        self.base.borrow().clone()
    }

    /// Whether a packed weight is elsewhere just now.
    pub fn is_absent(&self) -> bool {
        matches!(&*self.base.borrow(), LinearBase::Packed(w) if w.is_absent())
    }

    /// Puts another weight in the place of the present one.
    pub fn set_base(&self, base: LinearBase) {
        *self.base.borrow_mut() = base;
    }

    /// Adds an adapter behind those that are there.
    pub fn attach(&self, adapter: Box<dyn LinearAdapter>) {
        self.adapters.borrow_mut().push(adapter);
    }

    /// Whether the weight is that of another module, such as an embedding.
    pub fn is_tied(&self) -> bool {
        let own = format!("{}.weight", self.path);
        matches!(&*self.base.borrow(), LinearBase::Dense(name) if *name != own)
    }

    /// How much of what each adapter changes counts: y + s·(y with it − y).
    pub fn strength(&self) -> f64 {
        self.strength.get()
    }

    /// Damps the adapters (0 leaves them out), or puts them back to full strength, 1.
    pub fn set_strength(&self, strength: f64) {
        self.strength.set(strength);
    }

    /// Removes the adapter attached last.
    pub fn detach_last(&self) {
        self.adapters.borrow_mut().pop();
    }

    /// Removes every adapter.
    pub fn detach_all(&self) {
        self.adapters.borrow_mut().clear();
    }

    /// How many adapters there are.
    pub fn adapter_count(&self) -> usize {
        self.adapters.borrow().len()
    }

    /// The base product plus bias within each adapter in turn, the last one outermost.
    pub fn forward(&self, fx: &Forward, x: &Value) -> Result<Value> {
        let adapters = self.adapters.borrow();
        self.through(fx, if self.adapts(fx) { &adapters } else { &[] }, x)
    }

    /// Whether adapters, if there are any, take part in this forward.
    fn adapts(&self, fx: &Forward) -> bool {
        fx.mode.adapters && self.strength.get() != 0.0
    }

    /// The packed weight where that is all there is to the linear in this forward, but for a bias.
    pub(crate) fn packed_alone(&self, fx: &Forward) -> Option<Arc<dyn PackedWeight>> {
        match &*self.base.borrow() {
            LinearBase::Packed(w) if !self.adapts(fx) || self.adapter_count() == 0 => Some(w.clone()),
            _ => None,
        }
    }

    fn through(&self, fx: &Forward, adapters: &[Box<dyn LinearAdapter>], x: &Value) -> Result<Value> {
        let Some((last, below)) = adapters.split_last() else { return self.base_product(fx, x) };
        let whole = last.forward(fx, self, x, &|x| self.through(fx, below, x))?;
        let s = self.strength.get();
        if s == 1.0 {
            return Ok(whole);
        }
        let rest = ops::scale(&fx.tape, &self.through(fx, below, x)?, 1.0 - s)?;
        ops::add(&fx.tape, &rest, &ops::scale(&fx.tape, &whole, s)?)
    }

    fn base_product(&self, fx: &Forward, x: &Value) -> Result<Value> {
        let bias = self.bias.as_ref().map(|b| fx.param(b)).transpose()?;
        match &*self.base.borrow() {
            LinearBase::Dense(name) => {
                let w = fx.param(name)?;
                let rounds = fx.sites.in_bf16 && w.array().dtype() == DType::F32;
                let product = if rounds { ops::linear_rounded } else { ops::linear };
                product(&fx.tape, x, &w, bias.as_ref())
            }
            LinearBase::Packed(w) => ops::linear_packed(&fx.tape, x, w, bias.as_ref()),
        }
    }

    /// The weight without adapters as dense f32, `[O, I]`: the base's, or its
    /// trained stand-in's where `stand_ins` says so.
    pub fn dense(&self, sites: &Sites, stand_ins: bool) -> Result<Array> {
        sites.while_held(&self.path, || self.held_dense(sites, stand_ins))
    }

    fn held_dense(&self, sites: &Sites, stand_ins: bool) -> Result<Array> {
        match self.base() {
            LinearBase::Dense(name) => {
                let value = sites.param(&name)?.active(stand_ins).value();
                if value.is_shape_only() {
                    return Array::shape_only(value.dims(), DType::F32, Category::Workspace);
                }
                Array::from_vec(value.to_f32()?, value.dims(), Category::Workspace)
            }
            LinearBase::Packed(w) => {
                let (o, i) = w.shape();
                Array::build::<f32>(&[o, i], w.is_shape_only(), Category::Workspace, |out| {
                    w.rows_f32(0, out);
                    Ok(())
                })
            }
        }
    }

    /// The weight with every adapter folded in, dense f32 `[O, I]`.
    ///
    /// # Errors
    /// If an adapter cannot be folded in.
    pub fn merged(&self, sites: &Sites) -> Result<Array> {
        let mut w = self.dense(sites, true)?;
        for adapter in self.adapters.borrow().iter() {
            w = adapter.fold(sites, self, w)?;
        }
        Ok(w)
    }

    /// Whether an adapter adds a constant to the output.
    pub fn makes_bias(&self) -> bool {
        self.adapters.borrow().iter().any(|a| a.makes_bias(self))
    }

    /// The bias with every adapter folded in, f32 `[O]`; `None` where there is none and no adapter makes one.
    ///
    /// # Errors
    /// If an adapter cannot be folded in.
    pub fn merged_bias(&self, sites: &Sites) -> Result<Option<Array>> {
        let mut bias = match &self.bias {
            None if self.makes_bias() => Array::zeros(&[self.shape.0], DType::F32, Category::Workspace)?,
            None => return Ok(None),
            Some(name) => {
                let value = sites.param(name)?.active(true).value();
                if value.is_shape_only() {
                    Array::shape_only(value.dims(), DType::F32, Category::Workspace)?
                } else {
                    Array::from_vec(value.to_f32()?, value.dims(), Category::Workspace)?
                }
            }
        };
        for adapter in self.adapters.borrow().iter() {
            bias = adapter.fold_bias(self, bias)?;
        }
        Ok(Some(bias))
    }
}

/// All sites of a model, in the order of its forward.
#[derive(Default)]
pub struct Sites {
    linears: Vec<LinearSite>,
    by_path: HashMap<String, usize>,
    modules: Vec<ModuleSite>,
    module_by_path: HashMap<String, usize>,
    params: HashMap<String, ParamSite>,
    param_order: Vec<String>,
    placement: Option<Rc<dyn Placement>>,
    around: Around,
    in_bf16: bool,
}

impl Sites {
    /// Says that products are to be in bf16, also those of weights which are held in f32 because they train.
    pub fn multiply_in_bf16(&mut self) {
        self.in_bf16 = true;
    }

    /// Whether products are to be in bf16.
    pub fn in_bf16(&self) -> bool {
        self.in_bf16
    }

    /// Says who holds the blocks' weights.
    pub fn set_placement(&mut self, placement: Rc<dyn Placement>) {
        self.placement = Some(placement);
    }

    /// Runs `f` while the weights of the block that `name` belongs to are in memory.
    pub fn while_held<R>(&self, name: &str, f: impl FnOnce() -> Result<R>) -> Result<R> {
        match block_of(name) {
            Some(block) => self.with_block(block, f),
            None => f(),
        }
    }

    /// As [`Sites::while_held`], for a block by its number.
    pub fn with_block<R>(&self, block: usize, f: impl FnOnce() -> Result<R>) -> Result<R> {
        let Some(placement) = &self.placement else { return f() };
        placement.acquire(block, self)?;
        let result = f();
        placement.release(block, self)?;
        result
    }

    /// Runs `f` with the weights at hand of the block that this tensor or module is in.
    pub fn with_weights_of<R>(&self, name: &str, f: impl FnOnce() -> Result<R>) -> Result<R> {
        match block_of(name) {
            Some(block) => self.with_block(block, f),
            None => f(),
        }
    }

    /// As [`Sites::with_block`], where `f` changes what trains of the block.
    pub fn with_block_changed<R>(
        &self,
        block: usize,
        visit: Visit,
        f: impl FnOnce() -> Result<R>,
    ) -> Result<R> {
        self.with_block(block, || {
            let result = f()?;
            match &self.placement {
                Some(placement) if placement.keeps_changes() => placement.changed(block, visit)?,
                _ => {}
            }
            Ok(result)
        })
    }

    /// Adds a linear.
    pub fn add_linear(&mut self, site: LinearSite) {
        self.by_path.insert(site.path.clone(), self.linears.len());
        self.linears.push(site);
    }

    /// Adds a module that is no linear.
    pub fn add_module(&mut self, site: ModuleSite) {
        self.module_by_path.insert(site.path.clone(), self.modules.len());
        self.modules.push(site);
    }

    /// Adds a parameter under its tensor name.
    pub fn add_param(&mut self, param: Arc<Param>) {
        self.param_order.push(param.name().to_owned());
        self.params.insert(param.name().to_owned(), ParamSite::new(param));
    }

    /// The linear of a module path.
    pub fn linear(&self, path: &str) -> Result<&LinearSite> {
        self.by_path
            .get(path)
            .map(|i| &self.linears[*i])
            .with_context(|| format!("the model has no linear `{path}`"))
    }

    /// What is attached around the blocks.
    pub fn around(&self) -> &Around {
        &self.around
    }

    /// The module of a path, if there is one; linears are apart.
    pub fn module(&self, path: &str) -> Option<&ModuleSite> {
        self.module_by_path.get(path).map(|i| &self.modules[*i])
    }

    /// Every module that is no linear, in order.
    pub fn modules(&self) -> &[ModuleSite] {
        &self.modules
    }

    /// All modules, linears too, as candidates for `target_modules`.
    pub fn module_candidates(&self) -> Vec<Candidate<'_>> {
        let modules = self.modules.iter().map(|m| Candidate { path: &m.path, is_head: false });
        modules.chain(self.candidates()).collect()
    }

    /// The parameter of a tensor name.
    pub fn param(&self, name: &str) -> Result<&ParamSite> {
        self.params.get(name).with_context(|| format!("the model has no parameter `{name}`"))
    }

    /// Every linear in order.
    pub fn linears(&self) -> &[LinearSite] {
        &self.linears
    }

    /// Names of every dense parameter in order.
    pub fn param_names(&self) -> &[String] {
        &self.param_order
    }

    /// The linears as candidates for `target_modules`.
    pub fn candidates(&self) -> Vec<Candidate<'_>> {
        self.linears.iter().map(|l| Candidate { path: &l.path, is_head: l.is_head }).collect()
    }

    /// Dense parameters of the modules that a `modules_to_save` entry names,
    /// by the module's own name or path ending.
    ///
    /// # Errors
    /// If the entry names no module with dense parameters.
    pub fn params_of_module(&self, entry: &str) -> Result<Vec<&str>> {
        let module = |name: &str| name.rsplit_once('.').map_or("", |(m, _)| m).to_owned();
        let found: Vec<&str> = self
            .param_order
            .iter()
            .map(String::as_str)
            .filter(|n| ramekin_core::pattern::ends_in(&module(n), entry))
            .collect();
        if !found.is_empty() {
            return Ok(found);
        }
        if self.linears.iter().any(|l| ramekin_core::pattern::ends_in(&l.path, entry)) {
            return Err(UserError::new(format!("`{entry}` is held packed and cannot be trained whole"))
                .help("leave it out of the quantizer with `modules_to_not_convert`")
                .into());
        }
        let names: Vec<String> = self.param_order.iter().map(|n| module(n)).collect();
        let tails: Vec<&str> = names.iter().map(|n| n.rsplit('.').next().unwrap_or(n)).collect();
        let hint =
            suggest(entry, tails.iter().copied()).map_or(String::new(), |n| format!("; did you mean `{n}`?"));
        Err(UserError::new(format!("no module is called `{entry}`{hint}")).into())
    }
}
