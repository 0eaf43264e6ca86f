//! The gated activation of the llama family's MLP.

use anyhow::{Result, ensure};
use ramekin_core::Array;
use ramekin_kernels::swiglu as kernel;

use super::{own, written};
use crate::dispatch;
use crate::tape::{SavedKind, Tape, Value};

fn product(a: &Array, b: &Array) -> Result<Array> {
    dispatch!(a, T => written::<T>(a.dims(), &[a, b], |out| {
        kernel::forward(&a.view::<T>()?, &b.view::<T>()?, out);
        Ok(())
    }))
}

/// `silu(gate) ⊙ up`, same shapes. Keeps both, and makes the product again from them for whom it is an operand.
pub fn swiglu(tape: &Tape, gate: &Value, up: &Value) -> Result<Value> {
    let (a, b) = (gate.array(), up.array());
    ensure!(a.dims() == b.dims(), "gate {:?} and up {:?} differ", a.dims(), b.dims());
    let y = tape.record(&[gate, up], product(a, b)?, || {
        let gate = tape.save(a, SavedKind::Input)?;
        let up = tape.save(b, SavedKind::Input)?;
        Ok(Box::new(move |g: Array| {
            // The gradients take the place of the inputs, which are wanted no longer.
            let (a, b) = (own(gate.get()?)?, own(up.get()?)?);
            if !g.is_shape_only() {
                dispatch!(g, T => {
                    let g = g.view::<T>()?;
                    a.update(|a: &mut [T]| b.update(|b: &mut [T]| kernel::backward(&g, a, b)))?
                })?;
            }
            Ok(vec![Some(a), Some(b)])
        }))
    })?;
    let (a, b) = (a.clone(), b.clone());
    Ok(tape.made_again(y, move || product(&a, &b)))
}
