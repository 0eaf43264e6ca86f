//! Another order of heads and channels that leaves what a layer computes as it is.
//!
//! Head j couples its rows of Q, K, V (weights and biases) with its columns of O; under grouped queries
//! the unit is a group: its rows of K and V, its heads' rows of Q and columns of O. Channel j couples its
//! rows of up and gate with its column of down.

use anyhow::{Result, ensure};
use ramekin_core::{Array, BadSetting, Category, DType};
use ramekin_slots::{LinearBase, ModelFacts, Sites};

use crate::units::LayerPaths;

/// The order that undoes `order`.
pub fn inverse(order: &[u32]) -> Vec<u32> {
    let mut back = vec![0; order.len()];
    for (new, old) in order.iter().enumerate() {
        back[*old as usize] = new as u32;
    }
    back
}

/// Places of units of `size` successive entries each.
pub fn expand(units: &[u32], size: usize) -> Vec<u32> {
    let size = size as u32;
    units.iter().flat_map(|u| u * size..(u + 1) * size).collect()
}

/// New row i is old row `order[i]`, in rows of `width`.
fn by_rows(array: &Array, order: &[u32], width: usize) -> Result<()> {
    ensure!(array.len() == order.len() * width, "{} rows for {:?}", order.len(), array.dims());
    if array.is_shape_only() {
        return Ok(());
    }
    let old = array.view::<f32>()?.to_vec();
    array.update(|x: &mut [f32]| {
        for (to, from) in x.chunks_mut(width).zip(order) {
            to.copy_from_slice(&old[*from as usize * width..][..width]);
        }
    })
}

/// New column i is old column `order[i]`.
fn by_columns(array: &Array, order: &[u32]) -> Result<()> {
    let width = array.rows().1;
    ensure!(width == order.len(), "{} columns for {:?}", order.len(), array.dims());
    if array.is_shape_only() {
        return Ok(());
    }
    let old = array.view::<f32>()?.to_vec();
    array.update(|x: &mut [f32]| {
        for (to, from) in x.chunks_mut(width).zip(old.chunks(width)) {
            to.iter_mut().zip(order).for_each(|(t, i)| *t = from[*i as usize]);
        }
    })
}

fn dense(sites: &Sites, path: &str) -> Result<Array> {
    match sites.linear(path)?.base() {
        LinearBase::Dense(name) => {
            let param = sites.param(&name)?.base();
            let value = param.value();
            if value.dtype() != DType::F32 {
                param.set(value.to_dtype(DType::F32, Category::Workspace)?);
            }
            Ok(param.value())
        }
        LinearBase::Packed(_) => {
            let why = format!(
                "is true, and `{path}` is held packed and cannot be put in another order; with `permute = false` columns are gathered instead"
            );
            Err(BadSetting::new("permute", why).against("quantizer").into())
        }
    }
}

/// Permutes the outputs of a linear, its bias too.
pub fn outputs(sites: &Sites, path: &str, order: &[u32]) -> Result<()> {
    let site = sites.linear(path)?;
    by_rows(&dense(sites, path)?, order, site.shape.1)?;
    match &site.bias {
        Some(bias) => by_rows(&sites.param(bias)?.base().value(), order, 1),
        None => Ok(()),
    }
}

/// Permutes the inputs of a linear.
pub fn inputs(sites: &Sites, path: &str, order: &[u32]) -> Result<()> {
    by_columns(&dense(sites, path)?, order)
}

/// Puts a layer's heads (groups, under grouped queries) in this order.
///
/// # Errors
/// [`BadSetting`] if a matrix is packed.
pub fn heads(sites: &Sites, layer: &LayerPaths, facts: &ModelFacts, order: &[u32]) -> Result<()> {
    let group = facts.heads / facts.kv_heads * facts.head_dim;
    let (wide, narrow) = (expand(order, group), expand(order, facts.head_dim));
    outputs(sites, &layer.q, &wide)?;
    outputs(sites, &layer.k, &narrow)?;
    outputs(sites, &layer.v, &narrow)?;
    inputs(sites, &layer.o, &wide)
}

/// Puts a layer's feed-forward channels in this order.
///
/// # Errors
/// [`BadSetting`] if a matrix is packed.
pub fn channels(sites: &Sites, layer: &LayerPaths, order: &[u32]) -> Result<()> {
    outputs(sites, &layer.up, order)?;
    if let Some(gate) = &layer.gate {
        outputs(sites, gate, order)?;
    }
    inputs(sites, &layer.down, order)
}
