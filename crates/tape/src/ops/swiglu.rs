//! The gated activation of the llama family's MLP.

use anyhow::{Result, ensure};
use ramekin_core::{Array, Category};
use ramekin_kernels::{swiglu as kernel, unwritten};

use super::written;
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
            let (a, b) = (gate.get()?, up.get()?);
            if g.is_shape_only() {
                let like = || Array::shape_only(a.dims(), a.dtype(), Category::Workspace).map(Some);
                return Ok(vec![like()?, like()?]);
            }
            dispatch!(g, T => {
                let (mut ga, mut gb) = (unwritten::<T>(a.len()), unwritten::<T>(b.len()));
                kernel::backward(&g.view::<T>()?, &a.view::<T>()?, &b.view::<T>()?, &mut ga, &mut gb);
                Ok(vec![
                    Some(Array::from_vec(ga, a.dims(), Category::Workspace)?),
                    Some(Array::from_vec(gb, b.dims(), Category::Workspace)?),
                ])
            })
        }))
    })?;
    let (a, b) = (a.clone(), b.clone());
    Ok(tape.made_again(y, move || product(&a, &b)))
}
