//! The operations: forward, what it keeps, and backward, one file each.
//!
//! Shapes in doc comments: N tokens, d width, H query heads, K key heads, D
//! head size, I inputs, O outputs, V vocabulary. Arrays are row-major; leading
//! dimensions count as rows.

mod activation;
mod attention;
mod broadcast;
mod divergence;
mod elementwise;
mod embedding;
mod layer_norm;
mod linear;
mod log_probs;
mod loss;
mod low_rank;
mod merge_rows;
mod norm;
mod prepend;
mod reactivate;
mod relu_attention;
mod rotary;
mod rounding;
mod scale_shift;
mod segment_mean;
mod shape;
mod slope;
mod softmax_mix;
mod swiglu;

use anyhow::{Result, ensure};
use ramekin_core::{Array, Category, DType, Element};
use ramekin_kernels::elementwise as kernel;

pub use activation::{Activation, activation};
pub use attention::{AttentionSpec, KeyValue, attention, counted_attention};
pub use broadcast::{mul_column, mul_row};
pub use divergence::{Divergence, divergence};
pub use elementwise::{add, add_row, dropout, mul, scale};
pub use embedding::{embedding, select_rows};
pub use layer_norm::layer_norm;
pub use linear::{
    Apart, PackedLinear, PackedWeight, Rebuild, linear, linear_onto, linear_packed, linear_rounded,
    linears_packed,
};
pub use log_probs::{log_probs, segment_sums, weighted_sums};
pub use loss::{CrossEntropy, cross_entropy};
pub use low_rank::{HeldWeight, column_products, row_norms, row_products};
pub use merge_rows::{MergePlan, merge_rows};
pub use norm::rms_norm;
pub use prepend::{Pieces, prepend};
pub use ramekin_kernels::attention::{Reach, Segment};
pub use reactivate::reactivate;
pub use relu_attention::relu_attention;
pub use rotary::rotary;
pub use rounding::{Rounding, Rounds};
pub use scale_shift::{Channels, scale_shift};
pub use segment_mean::segment_mean;
pub use shape::{reshape, swap_last};
pub use slope::known_slope;
pub use softmax_mix::softmax_mix;
pub use swiglu::swiglu;

use crate::dispatch;

/// `sum += flow`, in place where nobody else holds `sum`.
pub fn accumulate(sum: &mut Array, flow: Array) -> Result<()> {
    ensure!(sum.dims() == flow.dims(), "gradients {:?} and {:?} of one value", sum.dims(), flow.dims());
    if sum.is_shape_only() {
        // What real numbers would be written into below.
        if !sum.is_unique() {
            *sum = match flow.is_unique() {
                true => flow,
                false => sum.copied(Category::Workspace)?,
            };
        }
        return Ok(());
    }
    if !sum.is_unique() && flow.is_unique() {
        let other = std::mem::replace(sum, flow);
        return accumulate_into(sum, &other);
    }
    if !sum.is_unique() {
        *sum = sum.copied(Category::Workspace)?;
    }
    accumulate_into(sum, &flow)
}

/// The array to write into, or a copy where somebody else holds it too.
fn own(x: Array) -> Result<Array> {
    if x.is_unique() {
        x.recategorise(Category::Workspace);
        return Ok(x);
    }
    x.copied(Category::Workspace)
}

fn accumulate_into(sum: &Array, flow: &Array) -> Result<()> {
    dispatch!(sum, T => {
        let flow = flow.view::<T>()?;
        sum.update(|s: &mut [T]| kernel::add_assign(s, &flow))
    })
}

/// Ones of the same shape and type.
pub fn ones_like(x: &Array) -> Result<Array> {
    if x.is_shape_only() {
        return Array::shape_only(x.dims(), x.dtype(), Category::Workspace);
    }
    Array::from_tensor(x.tensor().ones_like()?, Category::Workspace)
}

/// Zeros of the same shape and type.
pub(crate) fn zeros_like(x: &Array) -> Result<Array> {
    dispatch!(x, T => output::<T>(x.dims(), &[x], |_| Ok(())))
}

/// A scalar of the same type.
pub(crate) fn scalar_like(x: &Array, value: f64) -> Result<Array> {
    if x.is_shape_only() {
        return Array::shape_only(&[1], x.dtype(), Category::Workspace);
    }
    match x.dtype() {
        DType::F64 => Array::from_vec(vec![value], &[1], Category::Workspace),
        _ => Array::from_vec(vec![value as f32], &[1], Category::Workspace),
    }
}

/// Multiplies in place; the array must not be shared.
pub(crate) fn scale_in_place(x: Array, factor: f64) -> Result<Array> {
    if factor != 1.0 && !x.is_shape_only() {
        dispatch!(x, T => x.update(|s: &mut [T]| kernel::scale_assign(s, factor as T)))?;
    }
    Ok(x)
}

/// Writes `part`'s numbers into `whole` from position `offset` on.
pub(crate) fn write_rows(whole: &Array, offset: usize, part: &Array) -> Result<()> {
    if whole.is_shape_only() {
        return Ok(());
    }
    dispatch!(whole, T => {
        let part = part.view::<T>()?;
        whole.update(|w: &mut [T]| w[offset..offset + part.len()].copy_from_slice(&part))
    })
}

/// A gradient of `like`'s shape: these numbers, or none in a plan.
fn flow<T: Element>(like: &Array, numbers: Vec<T>, real: bool) -> Result<Option<Array>> {
    Ok(Some(match real {
        true => Array::from_vec(numbers, like.dims(), Category::Workspace)?,
        false => Array::shape_only(like.dims(), T::DTYPE, Category::Workspace)?,
    }))
}

/// An operation's result in the workspace, of which `fill` writes every number: shape-only if any input is.
fn written<T: Element>(
    dims: &[usize],
    inputs: &[&Array],
    fill: impl FnOnce(&mut [T]) -> Result<()>,
) -> Result<Array> {
    Array::written(dims, inputs.iter().any(|a| a.is_shape_only()), Category::Workspace, fill)
}

/// As [`written`] with a `fill` that adds to zeros, or leaves some.
fn output<T: Element>(
    dims: &[usize],
    inputs: &[&Array],
    fill: impl FnOnce(&mut [T]) -> Result<()>,
) -> Result<Array> {
    Array::build(dims, inputs.iter().any(|a| a.is_shape_only()), Category::Workspace, fill)
}
