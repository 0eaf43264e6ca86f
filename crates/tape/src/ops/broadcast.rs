//! A matrix times a vector along its rows or columns.

use anyhow::{Result, ensure};
use ramekin_core::Array;
use ramekin_kernels::broadcast as kernel;

use super::output;
use crate::dispatch;
use crate::tape::{SavedKind, Tape, Value};

#[derive(Clone, Copy, PartialEq)]
enum Along {
    Rows,
    Columns,
}

/// `x` `[…, d]` times `v` of d numbers in any shape, every row alike. Keeps `x` only if `v` is tracked.
pub fn mul_row(tape: &Tape, x: &Value, v: &Value) -> Result<Value> {
    ensure!(x.array().rows().1 == v.array().len(), "a row {:?} for {:?}", v.dims(), x.dims());
    mul(tape, x, v, Along::Rows)
}

/// `x` `[n, d]` times `v` of n numbers in any shape, row i by entry i. Keeps `x` only if `v` is tracked.
pub fn mul_column(tape: &Tape, x: &Value, v: &Value) -> Result<Value> {
    ensure!(x.array().rows().0 == v.array().len(), "a column {:?} for {:?}", v.dims(), x.dims());
    mul(tape, x, v, Along::Columns)
}

fn product(x: &Array, v: &Array, along: Along) -> Result<Array> {
    dispatch!(x, T => output::<T>(x.dims(), &[x, v], |out| {
        let (x, v) = (x.view::<T>()?, v.view::<T>()?);
        match along {
            Along::Rows => kernel::mul_row(&x, &v, out),
            Along::Columns => kernel::mul_column(&x, &v, out),
        }
        Ok(())
    }))
}

fn mul(tape: &Tape, x: &Value, v: &Value, along: Along) -> Result<Value> {
    let (xa, va) = (x.array(), v.array());
    let y = product(xa, va, along)?;
    tape.record(&[x, v], y, || {
        let for_v = v.is_tracked().then(|| tape.save(xa, SavedKind::Input)).transpose()?;
        let (factor, dims) = (va.clone(), va.dims().to_vec());
        let flows_on = x.is_tracked();
        Ok(Box::new(move |g: Array| {
            let gx = flows_on.then(|| product(&g, &factor, along)).transpose()?;
            let gv = for_v
                .map(|x| {
                    let x = x.get()?;
                    dispatch!(g, T => output::<T>(&dims, &[&g, &x], |out| {
                        let (g, x) = (g.view::<T>()?, x.view::<T>()?);
                        match along {
                            Along::Rows => kernel::mul_row_gradient(&g, &x, out),
                            Along::Columns => kernel::mul_column_gradient(&g, &x, out),
                        }
                        Ok(())
                    }))
                })
                .transpose()?;
            Ok(vec![gx, gv])
        }))
    })
}
