//! Rows of a table by id.

use std::rc::Rc;

use anyhow::{Result, ensure};
use ramekin_core::Array;
use ramekin_kernels::embedding as kernel;

use super::output;
use crate::dispatch;
use crate::tape::{Tape, Value};

/// `y_t = W[ids_t]`: `W` `[V, d]`, result `[N, d]`. Keeps the ids. A table in
/// bf16 or f16 gives rows in f32.
///
/// # Errors
/// If an id is not below V.
pub fn embedding(tape: &Tape, w: &Value, ids: &Rc<Vec<u32>>) -> Result<Value> {
    let (v, d) = w.array().rows();
    if let Some(id) = ids.iter().find(|id| **id as usize >= v) {
        anyhow::bail!("token id {id} is beyond the vocabulary of {v}");
    }
    let dims = [ids.len(), d];
    let table = w.array();
    let y = match table.dtype() {
        ramekin_core::DType::BF16 => half_rows::<half::bf16>(table, ids, &dims)?,
        ramekin_core::DType::F16 => half_rows::<half::f16>(table, ids, &dims)?,
        _ => dispatch!(table, T => output::<T>(&dims, &[table], |out| {
            kernel::gather(&table.view::<T>()?, d, ids, out);
            Ok(())
        }))?,
    };
    tape.record(&[w], y, || {
        let ids = ids.clone();
        Ok(Box::new(move |g: Array| {
            let gw = dispatch!(g, T => output::<T>(&[v, d], &[&g], |out| {
                kernel::scatter_add(&g.view::<T>()?, d, &ids, out);
                Ok(())
            }))?;
            Ok(vec![Some(gw)])
        }))
    })
}

fn half_rows<H: ramekin_core::Element + Into<f32>>(
    table: &Array,
    ids: &[u32],
    dims: &[usize],
) -> Result<Array> {
    ensure!(dims.len() == 2, "a table has two dimensions");
    output::<f32>(dims, &[table], |out| {
        let numbers = table.view::<H>()?;
        let d = dims[1];
        for (row, id) in out.chunks_exact_mut(d.max(1)).zip(ids) {
            let from = *id as usize * d;
            for (o, n) in row.iter_mut().zip(&numbers[from..from + d]) {
                *o = (*n).into();
            }
        }
        Ok(())
    })
}

/// Rows `rows` of `x` `[N, d]`, as `[rows.len(), d]`. Keeps the indices.
pub fn select_rows(tape: &Tape, x: &Value, rows: &Rc<Vec<u32>>) -> Result<Value> {
    embedding(tape, x, rows)
}
