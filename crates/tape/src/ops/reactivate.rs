//! PYRA's re-activation.

use anyhow::{Result, ensure};
use ramekin_core::Array;
use ramekin_kernels::reactivate as kernel;

use super::{flow, output};
use crate::dispatch;
use crate::tape::{SavedKind, Tape, Value};

/// `y_i = (2σ(n_i·b) − 1) · 2σ(Σ_j a_j n_j) ⊙ s_i`, the sum over the rows j of the same image: `s` and `n`
/// `[images·r, d]`, `a` of r numbers, `b` of d, in any shape. Keeps `s` and `n`.
pub fn reactivate(tape: &Tape, s: &Value, n: &Value, a: &Value, b: &Value) -> Result<Value> {
    let (sa, na, aa, ba) = (s.array(), n.array(), a.array(), b.array());
    ensure!(sa.dims() == na.dims(), "tokens {:?} and their norms {:?}", sa.dims(), na.dims());
    let (rows, d) = sa.rows();
    let r = aa.len();
    ensure!(d == ba.len() && r > 0 && rows.is_multiple_of(r), "{r} and {} weights of {rows}×{d}", ba.len());
    let y = dispatch!(sa, T => output::<T>(sa.dims(), &[sa, na, aa, ba], |out| {
        let (s, n, a, b) = (sa.view::<T>()?, na.view::<T>()?, aa.view::<T>()?, ba.view::<T>()?);
        kernel::forward(&s, &n, &a, &b, out);
        Ok(())
    }))?;
    tape.record(&[s, n, a, b], y, || {
        let s = tape.save(sa, SavedKind::Input)?;
        let n = tape.save(na, SavedKind::Input)?;
        let (a, b) = (aa.clone(), ba.clone());
        Ok(Box::new(move |g: Array| {
            let (s, n) = (s.get()?, n.get()?);
            let real = !g.is_shape_only();
            dispatch!(g, T => {
                let [gs, gn, ga, gb] = match real {
                    true => kernel::backward(
                        &g.view::<T>()?, &s.view::<T>()?, &n.view::<T>()?, &a.view::<T>()?, &b.view::<T>()?,
                    ),
                    false => Default::default(),
                };
                Ok(vec![flow(&s, gs, real)?, flow(&n, gn, real)?, flow(&a, ga, real)?, flow(&b, gb, real)?])
            })
        }))
    })
}
