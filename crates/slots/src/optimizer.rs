//! The `optimizer` slot, and the table in which update rules keep their state.

use std::collections::HashMap;
use std::sync::Arc;

use anyhow::{Result, ensure};
use ramekin_core::{Array, Category, DType, Param, ParamId};

/// How a parameter's update differs from the optimizer's settings.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ParamGroup {
    /// Factor of the learning rate.
    pub lr_scale: f64,
    /// Whether weight decay applies.
    pub decay: bool,
}

impl Default for ParamGroup {
    fn default() -> Self {
        ParamGroup { lr_scale: 1.0, decay: true }
    }
}

/// Where an optimizer stands.
#[derive(Clone, Copy, Debug)]
pub struct StepInfo {
    /// Number of this update, from 1. Bias corrections go by a parameter's own count, not by this.
    pub step: u64,
    /// Learning rate of this step, before any group's factor.
    pub lr: f64,
}

/// Updates entries of a weight in place from their gradients.
pub type StepEntries = Box<dyn Fn(&mut [f32], &[f32]) + Send + Sync>;

/// A change of a tensor: `p ← (p − rate · direction) · (1 − decay)`.
pub struct Update {
    /// In the shape of the gradient that it was made from.
    pub direction: Array,
    /// The learning rate with its corrections.
    pub rate: f64,
    /// What is taken off the whole weight after the step, as a factor of it.
    pub decay: f64,
}

/// An update rule with its state, parameter by parameter.
///
/// A rule is asked in one of two ways. [`step`](Optimizer::step) is the usual one: fused, in place,
/// decay included. Where a gradient transform has projected the gradient,
/// [`update`](Optimizer::update) gets the small gradient in its stead and answers with a small change;
/// the caller maps that back, applies it, and takes the decay off the whole weight afterwards.
pub trait Optimizer {
    /// Base learning rate.
    fn lr(&self) -> f64;

    /// Updates a parameter in place; a shape-only one gets its state alone.
    fn step(&mut self, param: &Arc<Param>, grad: &Array, info: StepInfo, group: ParamGroup) -> Result<()>;

    /// The same step as a function of some entries of a weight and their gradients; `None` where it needs more than
    /// they: state, or other entries.
    fn by_entries(&self, info: StepInfo, group: ParamGroup) -> Option<StepEntries> {
        let _ = (info, group);
        None
    }

    /// The change for a gradient of any shape, without decay. State is keyed by `param` and has the
    /// gradient's shape; `param` itself is not changed.
    fn update(
        &mut self,
        param: &Arc<Param>,
        grad: &Array,
        info: StepInfo,
        group: ParamGroup,
    ) -> Result<Update>;

    /// The state.
    fn table(&self) -> &StateTable;

    /// The state, to be changed.
    fn table_mut(&mut self) -> &mut StateTable;

    /// All state in a fixed order, for a checkpoint.
    fn state(&self) -> Result<Vec<StateTensor>> {
        self.table().tensors()
    }

    /// Puts saved state back; `get` finds a tensor by name. Forms are looked at in the next step.
    ///
    /// # Errors
    /// If a count of updates is none.
    fn restore(&mut self, params: &[Arc<Param>], get: &mut dyn FnMut(&str) -> Option<Array>) -> Result<()> {
        self.table_mut().restore(params, get)
    }

    /// Drops the state of a parameter, which begins anew if it trains again.
    fn forget(&mut self, param: ParamId) {
        self.table_mut().forget(param);
    }

    /// Carries the state of a masked parameter along: entry i is what `from[i]` was, or new. State in
    /// another space than the entries', behind a projection, begins anew.
    fn remap(&mut self, param: ParamId, from: &[Option<usize>]) -> Result<()> {
        self.table_mut().remap(param, from)
    }
}

/// A tensor of saved state.
pub struct StateTensor {
    /// `exp_avg.PARAMETER` and the like.
    pub name: String,
    /// Its numbers.
    pub array: Array,
}

/// What a rule keeps for one parameter under one name.
#[derive(Clone, Debug, PartialEq)]
pub struct StateSpec {
    /// `exp_avg` and the like.
    pub name: &'static str,
    /// Dimensions, outermost first.
    pub dims: Vec<usize>,
    /// Number type.
    pub dtype: DType,
}

impl StateSpec {
    /// f32 numbers of this shape.
    pub fn f32(name: &'static str, dims: &[usize]) -> Self {
        StateSpec { name, dims: dims.to_vec(), dtype: DType::F32 }
    }

    /// Bytes of this shape.
    pub fn u8(name: &'static str, dims: &[usize]) -> Self {
        StateSpec { name, dims: dims.to_vec(), dtype: DType::U8 }
    }
}

/// One parameter's state.
pub struct ParamState {
    param: String,
    steps: u64,
    arrays: Vec<(&'static str, Array)>,
}

impl ParamState {
    /// The parameter's name.
    pub fn param(&self) -> &str {
        &self.param
    }

    /// Updates of this parameter so far, the present one included.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// The array of the spec with this number.
    pub fn array(&self, index: usize) -> &Array {
        &self.arrays[index].1
    }

    /// All arrays with their names.
    pub fn arrays(&self) -> &[(&'static str, Array)] {
        &self.arrays
    }
}

/// How many entries there must have been.
pub fn last_of(from: &[Option<usize>]) -> usize {
    from.iter().flatten().max().map_or(0, |i| i + 1)
}

/// The f32 entries that stay of those that `old` gives, in the order of `from`; new ones are 0.
pub fn carried(
    shape_only: bool,
    from: &[Option<usize>],
    old: impl FnOnce() -> Result<Vec<f32>>,
) -> Result<Array> {
    Array::build(&[from.len()], shape_only, Category::Optimizer, |out| {
        let old = old()?;
        out.iter_mut().zip(from).for_each(|(o, place)| *o = place.map_or(0.0, |i| old[i]));
        Ok(())
    })
}

/// State by parameter: zeros at the first step, saved and restored to the bit.
pub struct StateTable {
    names: &'static [&'static str],
    states: Vec<ParamState>,
    index: HashMap<ParamId, usize>,
}

impl StateTable {
    /// An empty table for a rule that uses these names.
    pub fn new(names: &'static [&'static str]) -> Self {
        StateTable { names, states: Vec::new(), index: HashMap::new() }
    }

    /// Begins a parameter's next update: counts it and returns the arrays, in the order of `specs`,
    /// made of zeros (or of shapes alone) if this is the first.
    ///
    /// # Errors
    /// If there is state already and it has another form, as a damaged or foreign checkpoint may.
    pub fn advance(
        &mut self,
        param: &Arc<Param>,
        specs: &[StateSpec],
        shape_only: bool,
    ) -> Result<&mut ParamState> {
        let index = match self.index.get(&param.id()) {
            Some(i) => *i,
            None => {
                let make = |s: &StateSpec| {
                    let array = if shape_only {
                        Array::shape_only(&s.dims, s.dtype, Category::Optimizer)
                    } else {
                        Array::zeros(&s.dims, s.dtype, Category::Optimizer)
                    };
                    Ok((s.name, array?))
                };
                let arrays = specs.iter().map(make).collect::<Result<_>>()?;
                self.insert(param, ParamState { param: param.name().to_owned(), steps: 0, arrays })
            }
        };
        let state = &mut self.states[index];
        let same = state.arrays.len() == specs.len()
            && state
                .arrays
                .iter()
                .zip(specs)
                .all(|((name, a), s)| *name == s.name && a.dims() == s.dims && a.dtype() == s.dtype);
        ensure!(same, "the saved optimizer state of `{}` has another form than {specs:?}", state.param);
        state.steps += 1;
        Ok(state)
    }

    fn insert(&mut self, param: &Arc<Param>, state: ParamState) -> usize {
        self.states.push(state);
        self.index.insert(param.id(), self.states.len() - 1);
        self.states.len() - 1
    }

    /// A parameter's state, once it has any.
    pub fn get(&self, id: ParamId) -> Option<&ParamState> {
        self.index.get(&id).map(|i| &self.states[*i])
    }

    /// Drops a parameter's state.
    pub fn forget(&mut self, id: ParamId) {
        if let Some(at) = self.index.remove(&id) {
            self.states.remove(at);
            self.index.values_mut().filter(|i| **i > at).for_each(|i| *i -= 1);
        }
    }

    /// Puts other arrays in the place of a parameter's, for rules that keep them in forms of their own.
    pub fn replace(&mut self, id: ParamId, arrays: Vec<(&'static str, Array)>) {
        if let Some(at) = self.index.get(&id) {
            self.states[*at].arrays = arrays;
        }
    }

    /// Carries a parameter's state along to other entries: entry i is what `from[i]` was, or 0. State that
    /// is not one f32 an entry, such as that behind a projection, begins anew.
    pub fn remap(&mut self, id: ParamId, from: &[Option<usize>]) -> Result<()> {
        let Some(at) = self.index.get(&id) else { return Ok(()) };
        let least = last_of(from);
        let state = &mut self.states[*at];
        if state.arrays.iter().any(|(_, a)| a.dtype() != DType::F32 || a.len() < least) {
            self.forget(id);
            return Ok(());
        }
        for (_, array) in &mut state.arrays {
            *array = carried(array.is_shape_only(), from, || Ok(array.view::<f32>()?.to_vec()))?;
        }
        Ok(())
    }

    /// Bytes of all state.
    pub fn bytes(&self) -> u64 {
        self.states.iter().flat_map(|s| &s.arrays).map(|(_, a)| a.bytes()).sum()
    }

    /// Everything, in the order of the parameters' first updates, for a checkpoint: the arrays and
    /// `step.PARAMETER`, the count of updates.
    pub fn tensors(&self) -> Result<Vec<StateTensor>> {
        let mut all = Vec::new();
        for state in &self.states {
            let count = Array::from_vec(vec![state.steps as i64], &[1], Category::Workspace)?;
            all.push(StateTensor { name: format!("step.{}", state.param), array: count });
            for (name, array) in &state.arrays {
                all.push(StateTensor { name: format!("{name}.{}", state.param), array: array.clone() });
            }
        }
        Ok(all)
    }

    /// Puts saved state back; `get` finds a tensor by name.
    ///
    /// # Errors
    /// If a count is none.
    pub fn restore(
        &mut self,
        params: &[Arc<Param>],
        get: &mut dyn FnMut(&str) -> Option<Array>,
    ) -> Result<()> {
        self.states.clear();
        self.index.clear();
        for param in params {
            let name = param.name();
            let Some(count) = get(&format!("step.{name}")) else { continue };
            let steps = count.view::<i64>()?.first().copied().unwrap_or(-1);
            ensure!(steps >= 0, "the saved count of updates of `{name}` is {steps}");
            let mut arrays = Vec::new();
            for part in self.names {
                if let Some(array) = get(&format!("{part}.{name}")) {
                    array.recategorise(Category::Optimizer);
                    arrays.push((*part, array));
                }
            }
            self.insert(param, ParamState { param: name.to_owned(), steps: steps as u64, arrays });
        }
        Ok(())
    }
}
