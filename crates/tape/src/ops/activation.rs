//! Pointwise activations.

use anyhow::Result;
use ramekin_core::Array;
use ramekin_kernels::activation as kernel;
pub use ramekin_kernels::activation::Activation;

use super::output;
use crate::dispatch;
use crate::tape::{SavedKind, Tape, Value};

/// `f(x)`, number by number. Keeps `x`, nothing where `f` is the identity.
pub fn activation(tape: &Tape, x: &Value, f: Activation) -> Result<Value> {
    if f == Activation::Linear {
        return Ok(x.clone());
    }
    let xa = x.array();
    let y = dispatch!(xa, T => output::<T>(xa.dims(), &[xa], |out| {
        kernel::forward(f, &xa.view::<T>()?, out);
        Ok(())
    }))?;
    tape.record(&[x], y, || {
        let saved = tape.save(xa, SavedKind::Input)?;
        Ok(Box::new(move |g: Array| {
            let x = saved.get()?;
            let gx = dispatch!(g, T => output::<T>(x.dims(), &[&g, &x], |out| {
                kernel::backward(f, &g.view::<T>()?, &x.view::<T>()?, out);
                Ok(())
            }))?;
            Ok(vec![Some(gx)])
        }))
    })
}
