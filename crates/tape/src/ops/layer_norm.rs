//! Layer norm.

use anyhow::{Result, ensure};
use ramekin_core::Array;
use ramekin_kernels::layer_norm as kernel;

use super::written;
use crate::dispatch;
use crate::tape::{SavedKind, Tape, Value};

fn normed(x: &Array, w: &Array, b: &Array, eps: f64) -> Result<Array> {
    dispatch!(x, T => written::<T>(x.dims(), &[x, w, b], |out| {
        kernel::forward(&x.view::<T>()?, &w.view::<T>()?, &b.view::<T>()?, eps, out);
        Ok(())
    }))
}

/// `y = (x − mean) · rsqrt(variance + eps) · w + b` over the last dimension; `w` and `b` `[d]`. Keeps `x`,
/// and makes `y` again from it for whom it is an operand.
pub fn layer_norm(tape: &Tape, x: &Value, w: &Value, b: &Value, eps: f64) -> Result<Value> {
    let (xa, wa, ba) = (x.array(), w.array(), b.array());
    let d = wa.len();
    ensure!(wa.dims() == [d] && ba.dims() == [d], "a norm weight {:?}, bias {:?}", wa.dims(), ba.dims());
    ensure!(d > 0 && xa.len().is_multiple_of(d), "a norm of width {d} got {:?}", xa.dims());
    let y = tape.record(&[x, w, b], normed(xa, wa, ba, eps)?, || {
        let saved = tape.save(xa, SavedKind::Input)?;
        let weight = wa.clone();
        let (for_x, for_w, for_b) = (x.is_tracked(), w.is_tracked(), b.is_tracked());
        Ok(Box::new(move |g: Array| {
            let x = saved.get()?;
            dispatch!(g, T => {
                let (mut gw, mut gb) = (vec![0.0 as T; d], vec![0.0 as T; d]);
                let gx = for_x
                    .then(|| written::<T>(x.dims(), &[&g, &x], |out| {
                        let (g, x, w) = (g.view::<T>()?, x.view::<T>()?, weight.view::<T>()?);
                        kernel::backward(&g, &x, &w, eps, Some(out), None);
                        Ok(())
                    }))
                    .transpose()?;
                if (for_w || for_b) && !g.is_shape_only() {
                    let (g, x, w) = (g.view::<T>()?, x.view::<T>()?, weight.view::<T>()?);
                    kernel::backward(&g, &x, &w, eps, None, Some((&mut gw, &mut gb)));
                }
                let made = |want: bool, v: Vec<T>| {
                    want.then(|| written::<T>(&[d], &[&g], |out| {
                        out.copy_from_slice(&v);
                        Ok(())
                    }))
                    .transpose()
                };
                Ok(vec![gx, made(for_w, gw)?, made(for_b, gb)?])
            })
        }))
    })?;
    let (x, w, b) = (xa.clone(), wa.clone(), ba.clone());
    Ok(tape.made_again(y, move || normed(&x, &w, &b, eps)))
}
