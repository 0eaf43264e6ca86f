//! The slots of a training step.

use std::rc::Rc;
use std::sync::Arc;

use anyhow::Result;
use ramekin_core::{Array, Param, ParamId};
use ramekin_tape::Value;

use crate::Forward;

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
    /// Number of this update, from 1.
    pub step: u64,
    /// Learning rate of this step, before any group's factor.
    pub lr: f64,
}

/// A tensor of optimizer state.
pub struct StateTensor {
    /// `exp_avg.PARAMETER` and the like.
    pub name: String,
    /// Its numbers.
    pub array: Array,
}

/// What a part keeps from step to step, saved with every checkpoint. Nothing, by default.
pub trait Stateful {
    /// All state, in a fixed order.
    fn state(&self) -> Result<Vec<StateTensor>> {
        Ok(Vec::new())
    }
    /// Puts saved state back; `get` finds a tensor by name.
    ///
    /// # Errors
    /// If something is missing or does not fit.
    fn restore(&mut self, get: &mut dyn FnMut(&str) -> Option<Array>) -> Result<()> {
        let _ = get;
        Ok(())
    }
}

/// An update rule with its state, parameter by parameter.
pub trait Optimizer {
    /// Base learning rate.
    fn lr(&self) -> f64;
    /// Updates one parameter in place; shape-only parameters get their state alone.
    fn step(&mut self, param: &Arc<Param>, grad: &Array, info: StepInfo, group: ParamGroup) -> Result<()>;
    /// All state, in a fixed order.
    fn state(&self) -> Vec<StateTensor>;
    /// Puts saved state back; `get` finds a tensor by name.
    ///
    /// # Errors
    /// If a shape does not fit its parameter.
    fn restore(&mut self, params: &[Arc<Param>], get: &mut dyn FnMut(&str) -> Option<Array>) -> Result<()>;
    /// Drops the state of a parameter, which begins anew if it trains again.
    fn forget(&mut self, param: ParamId);
    /// Carries the state of a masked parameter along: entry i is what `from[i]` was, or new.
    ///
    /// # Errors
    /// If this rule's state is not kept entry by entry.
    fn remap(&mut self, param: ParamId, from: &[Option<usize>]) -> Result<()>;
}

/// A factor by step.
pub trait Schedule {
    /// Factor of the rate for update `step` (from 0) of `total`.
    fn factor(&self, step: u64, total: u64) -> f64;
}

/// From gradients to gradients, all of a step at once.
pub trait GradientTransform: Stateful {
    /// Changes the gradients in place; `norm` is their global norm before any transform.
    fn apply(&mut self, grads: &mut [(Arc<Param>, Array)], norm: f64) -> Result<()>;
}

/// A block that can be run again: same input, same output.
pub type Block = Rc<dyn Fn(&Forward, &Value) -> Result<Value>>;

/// What survives of a block from forward to backward. One policy owns a block.
pub trait ActivationPolicy {
    /// Whether every block runs again in backward, so that nothing holds its weights in between.
    fn recomputes(&self) -> bool {
        false
    }
    /// Runs block `index` on `x`.
    fn run(&self, fx: &Forward, index: usize, block: Block, x: &Value) -> Result<Value>;
}
