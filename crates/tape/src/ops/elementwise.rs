//! Sums, products and dropout, number by number.

use anyhow::{Result, ensure};
use ramekin_core::Array;
use ramekin_kernels::elementwise as kernel;
use ramekin_kernels::philox::Stream;

use super::{output, written};
use crate::dispatch;
use crate::tape::{SavedKind, Tape, Value};

fn same_shape(a: &Array, b: &Array) -> Result<()> {
    ensure!(a.dims() == b.dims(), "shapes {:?} and {:?} differ", a.dims(), b.dims());
    Ok(())
}

/// `a + b`, same shapes. Keeps nothing.
pub fn add(tape: &Tape, a: &Value, b: &Value) -> Result<Value> {
    let (x, y) = (a.array(), b.array());
    same_shape(x, y)?;
    let sum = dispatch!(x, T => written::<T>(x.dims(), &[x, y], |out| {
        kernel::add(&x.view::<T>()?, &y.view::<T>()?, out);
        Ok(())
    }))?;
    tape.record(&[a, b], sum, || Ok(Box::new(|g| Ok(vec![Some(g.clone()), Some(g)]))))
}

fn scaled(x: &Array, s: f64) -> Result<Array> {
    dispatch!(x, T => written::<T>(x.dims(), &[x], |out| {
        kernel::scale(&x.view::<T>()?, s as T, out);
        Ok(())
    }))
}

/// `s · x`. Keeps nothing.
pub fn scale(tape: &Tape, x: &Value, s: f64) -> Result<Value> {
    let y = scaled(x.array(), s)?;
    tape.record(&[x], y, || Ok(Box::new(move |g| Ok(vec![Some(scaled(&g, s)?)]))))
}

fn product(x: &Array, y: &Array) -> Result<Array> {
    dispatch!(x, T => written::<T>(x.dims(), &[x, y], |out| {
        kernel::mul(&x.view::<T>()?, &y.view::<T>()?, out);
        Ok(())
    }))
}

/// `a ⊙ b`, same shapes. Keeps each factor that the other's gradient needs.
pub fn mul(tape: &Tape, a: &Value, b: &Value) -> Result<Value> {
    same_shape(a.array(), b.array())?;
    let y = product(a.array(), b.array())?;
    tape.record(&[a, b], y, || {
        let for_b = b.is_tracked().then(|| tape.save(a.array(), SavedKind::Input)).transpose()?;
        let for_a = a.is_tracked().then(|| tape.save(b.array(), SavedKind::Input)).transpose()?;
        Ok(Box::new(move |g| {
            let flow = |other: Option<crate::Saved>| other.map(|o| product(&g, &o.get()?)).transpose();
            Ok(vec![flow(for_a)?, flow(for_b)?])
        }))
    })
}

/// Inverted dropout: number i stays, divided by 1 − p, if its draw is at least
/// p, else becomes 0. The mask is drawn by address and never kept.
pub fn dropout(tape: &Tape, x: &Value, p: f64, stream: Stream) -> Result<Value> {
    if p == 0.0 {
        return Ok(x.clone());
    }
    let masked = move |x: &Array| {
        dispatch!(x, T => written::<T>(x.dims(), &[x], |out| {
            kernel::dropout(&x.view::<T>()?, p, &stream, 0, out);
            Ok(())
        }))
    };
    let y = masked(x.array())?;
    tape.record(&[x], y, || Ok(Box::new(move |g| Ok(vec![Some(masked(&g)?)]))))
}

/// `x + s · row`, the row `[d]` added to every row of `x` `[…, d]`. Keeps nothing.
pub fn add_row(tape: &Tape, x: &Value, row: &Value, s: f64) -> Result<Value> {
    let (xa, ra) = (x.array(), row.array());
    let d = ra.len();
    ensure!(xa.rows().1 == d, "a row of {d} for {:?}", xa.dims());
    let y = dispatch!(xa, T => written::<T>(xa.dims(), &[xa, ra], |out| {
        let row: Vec<T> = ra.view::<T>()?.iter().map(|r| r * s as T).collect();
        out.copy_from_slice(&xa.view::<T>()?);
        kernel::add_bias(out, &row);
        Ok(())
    }))?;
    tape.record(&[x, row], y, || {
        let tracked = row.is_tracked();
        Ok(Box::new(move |g: Array| {
            let flow = tracked
                .then(|| {
                    dispatch!(g, T => output::<T>(&[d], &[&g], |out| {
                        kernel::column_sums(&g.view::<T>()?, d, out);
                        kernel::scale_assign(out, s as T);
                        Ok(())
                    }))
                })
                .transpose()?;
            Ok(vec![Some(g), flow])
        }))
    })
}
