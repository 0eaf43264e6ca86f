//! Masked parameters: the optimizer is given their trainable entries as vectors, so that nothing it
//! does can touch the rest.

use std::collections::HashMap;
use std::sync::Arc;

use anyhow::Result;
use ramekin_core::{Array, Category, Mask, Param, ParamId};
use ramekin_slots::Optimizer;
use ramekin_tape::{Entries, GradSink, whole};

/// Cuts each gradient down to what its parameter trains.
pub struct Masking<'a>(pub &'a mut dyn GradSink);

impl GradSink for Masking<'_> {
    fn ready(&mut self, param: &Arc<Param>, grad: Array) -> Result<()> {
        let Some(mask) = param.mask() else { return self.0.ready(param, grad) };
        let part = mask.gather::<f32>(&grad, Category::Gradients)?;
        drop(grad);
        self.0.ready(&masked(param)?, part)
    }

    fn ready_by_entries(&mut self, param: &Arc<Param>, entries: &Entries<'_>) -> Result<()> {
        match param.mask() {
            Some(_) => self.ready(param, whole(param, entries)?),
            None => self.0.ready_by_entries(param, entries),
        }
    }
}

/// The trainable entries as a parameter of their own; the parameter itself where all of it trains.
pub fn masked(param: &Arc<Param>) -> Result<Arc<Param>> {
    Ok(match param.mask() {
        None => param.clone(),
        Some(mask) => param.part(mask.gather::<f32>(&param.value(), Category::Trainable)?),
    })
}

/// Writes an updated part back into its whole.
pub fn put_back(params: &[Arc<Param>], part: &Arc<Param>) -> Result<()> {
    let whole = params.iter().find(|p| p.id() == part.id());
    match whole.and_then(|p| Some((p, p.mask()?))) {
        None => Ok(()),
        Some((whole, mask)) => mask.scatter::<f32>(&part.value(), &whole.value()),
    }
}

/// The masks under which an optimizer's state stands, by parameter.
#[derive(Default)]
pub struct Masks(HashMap<ParamId, Option<Arc<Mask>>>);

impl Masks {
    /// Carries the optimizer's state along where a parameter's mask is another than before.
    pub fn follow(&mut self, params: &[Arc<Param>], optimizer: &mut dyn Optimizer) -> Result<()> {
        for param in params {
            let now = param.mask();
            let Some(before) = self.0.insert(param.id(), now.clone()) else { continue };
            match (before, now) {
                (None, None) => {}
                (Some(a), Some(b)) if a == b => {}
                (Some(a), Some(b)) => optimizer.remap(param.id(), &b.places_in(&a))?,
                (None, Some(b)) => {
                    let from: Vec<Option<usize>> = b.places().iter().map(|p| Some(*p as usize)).collect();
                    optimizer.remap(param.id(), &from)?;
                }
                (Some(_), None) => optimizer.forget(param.id()),
            }
        }
        Ok(())
    }
}
