//! Rotary position embedding.

use std::rc::Rc;

use anyhow::Result;
use ramekin_core::Array;
use ramekin_kernels::rope as kernel;

use super::written;
use crate::dispatch;
use crate::tape::{Tape, Value};

/// Rotates `x` `[N, heads·D]` by its positions (halves, not pairs). Keeps the
/// positions alone: backward is the inverse rotation.
pub fn rotary(
    tape: &Tape,
    x: &Value,
    heads: usize,
    positions: &Rc<Vec<u32>>,
    inv_freq: &Rc<Vec<f32>>,
) -> Result<Value> {
    let y = rotated(x.array(), heads, positions, inv_freq, false)?;
    tape.record(&[x], y, || {
        let (positions, inv_freq) = (positions.clone(), inv_freq.clone());
        Ok(Box::new(move |g| Ok(vec![Some(rotated(&g, heads, &positions, &inv_freq, true)?)])))
    })
}

fn rotated(x: &Array, heads: usize, positions: &[u32], inv_freq: &[f32], inverse: bool) -> Result<Array> {
    let shape = (heads, x.rows().1 / heads);
    dispatch!(x, T => written::<T>(x.dims(), &[x], |out| {
        kernel::forward(&x.view::<T>()?, shape, positions, inv_freq, inverse, out);
        Ok(())
    }))
}
