//! Pointwise activations.

use anyhow::Result;
use ramekin_core::Array;
use ramekin_kernels::activation as kernel;
pub use ramekin_kernels::activation::Activation;

use super::written;
use crate::dispatch;
use crate::tape::{SavedKind, Tape, Value};

fn of(f: Activation, x: &Array) -> Result<Array> {
    dispatch!(x, T => written::<T>(x.dims(), &[x], |out| {
        kernel::forward(f, &x.view::<T>()?, out);
        Ok(())
    }))
}

/// `f(x)`, number by number. Keeps `x`, nothing where `f` is the identity, and makes the result again from it for whom
/// it is an operand.
pub fn activation(tape: &Tape, x: &Value, f: Activation) -> Result<Value> {
    if f == Activation::Linear {
        return Ok(x.clone());
    }
    let xa = x.array();
    let y = tape.record(&[x], of(f, xa)?, || {
        let saved = tape.save(xa, SavedKind::Input)?;
        Ok(Box::new(move |g: Array| {
            let x = saved.get()?;
            let gx = dispatch!(g, T => written::<T>(x.dims(), &[&g, &x], |out| {
                kernel::backward(f, &g.view::<T>()?, &x.view::<T>()?, out);
                Ok(())
            }))?;
            Ok(vec![Some(gx)])
        }))
    })?;
    let x = xa.clone();
    Ok(tape.made_again(y, move || of(f, &x)))
}
