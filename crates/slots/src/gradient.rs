//! The `gradient` slot: what lies between a gradient and the optimizer.

use std::sync::Arc;

use anyhow::Result;
use ramekin_core::{Array, Param};

use crate::StateTensor;

/// From gradients to gradients.
///
/// A transform acts on all gradients of a step at once ([`whole`](GradientTransform::whole), such as
/// clipping by the global norm), or on one tensor at a time: [`project`](GradientTransform::project) to a
/// smaller gradient on which the optimizer computes its update, and
/// [`back`](GradientTransform::back) from that update to the parameter's own shape. Whole ones go first,
/// in the recipe's order; then each tensor is projected in order, updated, and mapped back in reverse.
/// One that needs all gradients at once declares the trait `NeedsGlobalGradNorm`.
pub trait GradientTransform {
    /// Looks at all parameters that train, real or shape-only, before the first step.
    ///
    /// # Errors
    /// [`ramekin_core::BadSetting`] if a setting does not go with them.
    fn check(&self, params: &[Arc<Param>]) -> Result<()> {
        let _ = params;
        Ok(())
    }

    /// Changes all gradients in place; `norm` is their global norm before any transform.
    fn whole(&mut self, grads: &mut [(Arc<Param>, Array)], norm: f64) -> Result<()> {
        let _ = (grads, norm);
        Ok(())
    }

    /// The gradient that the optimizer gets in the place of `grad`; `None` for a parameter that is none
    /// of this transform's.
    fn project(&mut self, param: &Arc<Param>, grad: &Array) -> Result<Option<Array>> {
        let _ = (param, grad);
        Ok(None)
    }

    /// From the update's direction in the small space to one in the shape of `grad`, from which
    /// `projected` was made.
    fn back(
        &mut self,
        param: &Arc<Param>,
        grad: &Array,
        projected: &Array,
        direction: Array,
    ) -> Result<Array> {
        let _ = (param, grad, projected);
        Ok(direction)
    }

    /// Whether every tensor is to be updated, and its gradient freed, inside the backward pass.
    fn updates_in_backward(&self) -> bool {
        false
    }

    /// All state, in a fixed order.
    fn state(&self) -> Result<Vec<StateTensor>> {
        Ok(Vec::new())
    }

    /// Puts saved state back; `get` finds a tensor by name.
    fn restore(&mut self, params: &[Arc<Param>], get: &mut dyn FnMut(&str) -> Option<Array>) -> Result<()> {
        let _ = (params, get);
        Ok(())
    }
}
