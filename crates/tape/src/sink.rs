//! Where finished gradients go.

use std::sync::Arc;

use anyhow::Result;
use half::slice::HalfFloatSliceExt as _;
use ramekin_core::{Array, Category, DType, Param, ParamId};
use ramekin_kernels::{bf16, in_pieces, in_pieces_beside, scratch};

use crate::ops;

/// Receives each parameter's gradient once per backward, when it is complete.
pub trait GradSink {
    /// The gradient of `param`, same shape.
    fn ready(&mut self, param: &Arc<Param>, grad: Array) -> Result<()>;

    /// The gradient of a `param` in f32 or bf16 whose entries are known one by one, so that none of it need exist as a
    /// whole. By default it is made and goes to [`GradSink::ready`].
    fn ready_by_entries(&mut self, param: &Arc<Param>, entries: &Entries<'_>) -> Result<()> {
        let grad = whole(param, entries)?;
        self.ready(param, grad)
    }
}

/// Given a place, the parameter's entries from there on, and room for as many: brings the entries to where they are
/// updated from and writes their gradient. Entries of a bf16 parameter are a copy and may not change.
pub type Entries<'a> = dyn Fn(usize, &mut [f32], &mut [f32]) + Sync + 'a;

/// The gradient as an array, once the parameter's entries are where they are updated from.
pub fn whole(param: &Param, entries: &Entries<'_>) -> Result<Array> {
    let value = param.value();
    let (dims, shape_only) = (value.dims(), value.is_shape_only());
    Array::written(dims, shape_only, Category::Workspace, |grad: &mut [f32]| {
        if value.dtype() == DType::F32 {
            value.update(|p: &mut [f32]| in_pieces_beside(p, grad, entries))?;
            return Ok(());
        }
        let bits = value.view::<half::bf16>()?;
        let bits: &[u16] = bits.reinterpret_cast();
        in_pieces(grad, |first, grad| {
            scratch::with(grad.len(), |p: &mut [f32]| {
                bf16::widen_all(&bits[first..][..grad.len()], p);
                entries(first, p, grad);
            });
        });
        Ok(())
    })
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
