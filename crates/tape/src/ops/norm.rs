//! RMSNorm.

use anyhow::{Result, ensure};
use ramekin_core::{Array, Category};
use ramekin_kernels::{rms_norm as kernel, unwritten};

use super::written;
use crate::dispatch;
use crate::tape::{SavedKind, Tape, Value};

/// The normed rows and one number a row.
fn normed(x: &Array, w: &Array, eps: f64) -> Result<(Array, Array)> {
    let d = w.len();
    let rows = x.len() / d;
    let shape_only = x.is_shape_only() || w.is_shape_only();
    dispatch!(x, T => {
        let mut inv = vec![0.0 as T; if shape_only { 0 } else { rows }];
        let y = written::<T>(x.dims(), &[x, w], |out| {
            kernel::forward(&x.view::<T>()?, d, &w.view::<T>()?, eps, out, &mut inv);
            Ok(())
        })?;
        let inv = if shape_only {
            Array::shape_only(&[rows], x.dtype(), Category::Workspace)?
        } else {
            Array::from_vec(inv, &[rows], Category::Workspace)?
        };
        Ok((y, inv))
    })
}

/// `y = x · rsqrt(mean x² + eps) · w` over the last dimension; `x` `[…, d]`,
/// `w` `[d]`. Keeps `x` and one number a row, and makes `y` again from `x` for whom it is an operand.
pub fn rms_norm(tape: &Tape, x: &Value, w: &Value, eps: f64) -> Result<Value> {
    let (xa, wa) = (x.array(), w.array());
    ensure!(wa.dims().len() == 1, "a norm weight {:?}", wa.dims());
    let d = wa.len();
    ensure!(d > 0 && xa.len() % d == 0, "a norm of width {d} got {:?}", xa.dims());
    let (y, inv) = normed(xa, wa, eps)?;
    let y = tape.record(&[x, w], y, || {
        let saved = tape.save(xa, SavedKind::Input)?;
        let inv = tape.save(&inv, SavedKind::Statistic)?;
        let w_array = wa.clone();
        let (want_x, want_w) = (x.is_tracked(), w.is_tracked());
        Ok(Box::new(move |g: Array| {
            let (x, inv) = (saved.get()?, inv.get()?);
            if g.is_shape_only() {
                let like = |want: bool, a: &Array| {
                    want.then(|| Array::shape_only(a.dims(), a.dtype(), Category::Workspace)).transpose()
                };
                return Ok(vec![like(want_x, &x)?, like(want_w, &w_array)?]);
            }
            dispatch!(g, T => {
                let mut gx = want_x.then(|| unwritten::<T>(x.len()));
                let mut gw = want_w.then(|| vec![0.0 as T; d]);
                kernel::backward(
                    &g.view::<T>()?, &x.view::<T>()?, &w_array.view::<T>()?, &inv.view::<T>()?, d,
                    gx.as_deref_mut(), gw.as_deref_mut(),
                );
                let gx = gx.map(|v| Array::from_vec(v, x.dims(), Category::Workspace)).transpose()?;
                let gw = gw.map(|v| Array::from_vec(v, &[d], Category::Workspace)).transpose()?;
                Ok(vec![gx, gw])
            })
        }))
    })?;
    let (x, w) = (xa.clone(), wa.clone());
    Ok(tape.made_again(y, move || Ok(normed(&x, &w, eps)?.0)))
}
