//! The same rows before several runs of rows.

use std::ops::Range;
use std::rc::Rc;

use anyhow::{Result, ensure};
use ramekin_core::Array;
use ramekin_kernels::elementwise::add_assign;

use super::output;
use crate::dispatch;
use crate::tape::{Tape, Value};

/// Runs of rows, each with whether the prefix comes before it.
pub type Pieces = Rc<Vec<(bool, Range<usize>)>>;

/// For each piece the `prefix` `[P, d]`, where it says so, then its rows of `x` `[N, d]`. The gradient of
/// the prefix is the sum over its copies. Keeps the pieces.
pub fn prepend(tape: &Tape, prefix: &Value, x: &Value, pieces: &Pieces) -> Result<Value> {
    let (pa, xa) = (prefix.array(), x.array());
    let ((p, d), (n, width)) = (pa.rows(), xa.rows());
    ensure!(d == width, "rows of {d} before rows of {width}");
    ensure!(pieces.iter().all(|(_, r)| r.start <= r.end && r.end <= n), "pieces {pieces:?} of {n} rows");
    let rows: usize = pieces.iter().map(|(before, r)| r.len() + if *before { p } else { 0 }).sum();
    let y = dispatch!(xa, T => output::<T>(&[rows, d], &[pa, xa], |out| {
        let (prefix, x) = (pa.view::<T>()?, xa.view::<T>()?);
        let mut rest = out;
        let mut put = |rows: &[T]| {
            let (now, later) = std::mem::take(&mut rest).split_at_mut(rows.len());
            now.copy_from_slice(rows);
            rest = later;
        };
        for (before, range) in pieces.iter() {
            if *before {
                put(&prefix);
            }
            put(&x[range.start * d..range.end * d]);
        }
        Ok(())
    }))?;
    tape.record(&[prefix, x], y, || {
        let pieces = pieces.clone();
        let (for_prefix, for_x) = (prefix.is_tracked(), x.is_tracked());
        let (p_dims, x_dims) = (pa.dims().to_vec(), xa.dims().to_vec());
        Ok(Box::new(move |g: Array| {
            dispatch!(g, T => {
                let collect = |of_prefix: bool, out: &mut [T]| -> Result<()> {
                    let g = g.view::<T>()?;
                    let mut at = 0;
                    for (before, range) in pieces.iter() {
                        if *before {
                            if of_prefix {
                                add_assign(out, &g[at..at + p * d]);
                            }
                            at += p * d;
                        }
                        let len = range.len() * d;
                        if !of_prefix {
                            out[range.start * d..range.end * d].copy_from_slice(&g[at..at + len]);
                        }
                        at += len;
                    }
                    Ok(())
                };
                let flow = |want: bool, dims: &[usize], of_prefix: bool| {
                    want.then(|| output::<T>(dims, &[&g], |out| collect(of_prefix, out))).transpose()
                };
                Ok(vec![flow(for_prefix, &p_dims, true)?, flow(for_x, &x_dims, false)?])
            })
        }))
    })
}
