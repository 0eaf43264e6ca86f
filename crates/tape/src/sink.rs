//! Where finished gradients go.

use std::sync::Arc;

use anyhow::Result;
use ramekin_core::{Array, Category, Param, ParamId};

use crate::ops;

/// Receives each parameter's gradient once per backward, when it is complete.
pub trait GradSink {
    /// The gradient of `param`, same shape.
    fn ready(&mut self, param: &Arc<Param>, grad: Array) -> Result<()>;
}

/// Sums gradients by parameter, over as many backward passes as wanted.
#[derive(Default)]
pub struct GradStore {
    grads: Vec<(Arc<Param>, Array)>,
}

impl GradStore {
    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }

    /// The sum so far for a parameter.
    pub fn get(&self, id: ParamId) -> Option<&Array> {
        self.grads.iter().find(|(p, _)| p.id() == id).map(|(_, g)| g)
    }

    /// All gradients, in order of their first arrival.
    pub fn iter(&self) -> impl Iterator<Item = &(Arc<Param>, Array)> {
        self.grads.iter()
    }

    /// Takes the gradients out.
    pub fn take(&mut self) -> Vec<(Arc<Param>, Array)> {
        std::mem::take(&mut self.grads)
    }

    /// How many parameters have a gradient.
    pub fn len(&self) -> usize {
        self.grads.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.grads.is_empty()
    }
}

impl GradSink for GradStore {
    fn ready(&mut self, param: &Arc<Param>, grad: Array) -> Result<()> {
        match self.grads.iter_mut().find(|(p, _)| p.id() == param.id()) {
            Some((_, sum)) => ops::accumulate(sum, grad),
            None => {
                grad.recategorise(Category::Gradients);
                self.grads.push((param.clone(), grad));
                Ok(())
            }
        }
    }
}
