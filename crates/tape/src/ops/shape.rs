//! The same numbers in another shape or order.

use anyhow::{Result, ensure};
use ramekin_core::{Array, Category};

use crate::tape::{Tape, Value};

/// `x` in another shape; shares its bytes. Keeps nothing.
pub fn reshape(tape: &Tape, x: &Value, dims: &[usize]) -> Result<Value> {
    let y = x.array().reshape(dims)?;
    let back = x.dims().to_vec();
    tape.record(&[x], y, || Ok(Box::new(move |g: Array| Ok(vec![Some(g.reshape(&back)?)]))))
}

/// `[…, p, q]` to `[…, q, p]`, copied. Keeps nothing.
pub fn swap_last(tape: &Tape, x: &Value) -> Result<Value> {
    let y = swapped(x.array())?;
    tape.record(&[x], y, || Ok(Box::new(|g: Array| Ok(vec![Some(swapped(&g)?)]))))
}

fn swapped(x: &Array) -> Result<Array> {
    let mut dims = x.dims().to_vec();
    let n = dims.len();
    ensure!(n >= 2, "{dims:?} has no two dimensions to swap");
    if x.is_shape_only() {
        dims.swap(n - 2, n - 1);
        return Array::shape_only(&dims, x.dtype(), Category::Workspace);
    }
    Array::from_tensor(x.tensor().transpose(n - 2, n - 1)?, Category::Workspace)
}
