//! What adapters make of thin matrices: products of their rows or columns, and norms under an update.

use anyhow::{Result, ensure};
use ramekin_core::{Array, Category, Element};
use ramekin_kernels::Real;
use ramekin_kernels::khatri_rao::{self, Shape};
use ramekin_kernels::linear::WeightRows;
use ramekin_kernels::row_norm::{self, LowRank};

use super::linear::{HalfWeight, Rows};
use super::{PackedWeight, output};
use crate::dispatch;
use crate::tape::{SavedKind, Tape, Value};

/// `a` `[m, p]`, `b` `[m, q]` → `[m, p·q]`: row i is the outer product of both rows i. Keeps both.
pub fn row_products(tape: &Tape, a: &Value, b: &Value) -> Result<Value> {
    let ((m, p), (n, q)) = (a.array().rows(), b.array().rows());
    ensure!(m == n, "rows of {:?} and {:?}", a.dims(), b.dims());
    products(tape, a, b, Shape { m, p, q, n: 1 }, [m, p * q])
}

/// `a` `[p, n]`, `b` `[q, n]` → `[p·q, n]`: column i is the outer product of both columns i. Keeps both.
pub fn column_products(tape: &Tape, a: &Value, b: &Value) -> Result<Value> {
    let ((p, n), (q, m)) = (a.array().rows(), b.array().rows());
    ensure!(m == n, "columns of {:?} and {:?}", a.dims(), b.dims());
    products(tape, a, b, Shape { m: 1, p, q, n }, [p * q, n])
}

fn products(tape: &Tape, a: &Value, b: &Value, shape: Shape, dims: [usize; 2]) -> Result<Value> {
    let (aa, ba) = (a.array(), b.array());
    let y = dispatch!(aa, T => output::<T>(&dims, &[aa, ba], |out| {
        khatri_rao::forward(shape, &aa.view::<T>()?, &ba.view::<T>()?, out);
        Ok(())
    }))?;
    tape.record(&[a, b], y, || {
        let (a, b) = (tape.save(aa, SavedKind::Input)?, tape.save(ba, SavedKind::Input)?);
        Ok(Box::new(move |g: Array| {
            let (a, b) = (a.get()?, b.get()?);
            if g.is_shape_only() {
                let like = |x: &Array| Array::shape_only(x.dims(), x.dtype(), Category::Workspace).map(Some);
                return Ok(vec![like(&a)?, like(&b)?]);
            }
            dispatch!(g, T => {
                let (mut ga, mut gb) = (vec![0.0 as T; a.len()], vec![0.0 as T; b.len()]);
                khatri_rao::backward(
                    shape, &g.view::<T>()?, &a.view::<T>()?, &b.view::<T>()?, &mut ga, &mut gb,
                );
                Ok(vec![
                    Some(Array::from_vec(ga, a.dims(), Category::Workspace)?),
                    Some(Array::from_vec(gb, b.dims(), Category::Workspace)?),
                ])
            })
        }))
    })
}

/// A frozen weight as it is held.
#[derive(Clone, Copy)]
pub enum HeldWeight<'a> {
    /// `[O, I]` in f32, f64, bf16 or f16.
    Dense(&'a Array),
    /// A quantizer's.
    Packed(&'a dyn PackedWeight),
}

/// `‖W_o + s·(BA)_o‖₂` of every row, `[O]` in the type of `b`: B `[O, r]`, A `[r, I]`. Unpacks W tile
/// by tile. A plain number for the tape: no gradient flows through it.
pub fn row_norms(w: HeldWeight<'_>, b: &Array, a: &Array, scale: f64) -> Result<Array> {
    let ((o, r), (r2, i)) = (b.rows(), a.rows());
    ensure!(r == r2, "B {:?} and A {:?}", b.dims(), a.dims());
    let held = match w {
        HeldWeight::Dense(w) => w.is_shape_only(),
        HeldWeight::Packed(w) => w.is_shape_only(),
    };
    let shape_only = held || a.is_shape_only() || b.is_shape_only();
    dispatch!(b, T => Array::build::<T>(&[o], shape_only, Category::Workspace, |out| {
        let (b, a) = (b.view::<T>()?, a.view::<T>()?);
        norms(w, LowRank { b: &b, a: &a, rank: r, scale: scale as T }, i, out)
    }))
}

fn norms<T: Element + Real>(w: HeldWeight<'_>, update: LowRank<'_, T>, i: usize, out: &mut [T]) -> Result<()>
where
    for<'a> Rows<'a>: WeightRows<T>,
{
    match w {
        HeldWeight::Packed(w) => row_norm::forward(&Rows(w), update, out),
        HeldWeight::Dense(w) if w.dtype().size_in_bytes() == 2 => {
            row_norm::forward(&Rows(&HalfWeight::new(w.clone())), update, out);
        }
        HeldWeight::Dense(w) => row_norm::forward(&DenseRows(&w.view::<T>()?, i), update, out),
    }
    Ok(())
}

/// A dense weight as the kernels see it.
struct DenseRows<'a, T>(&'a [T], usize);

impl<T: Copy + Sync> WeightRows<T> for DenseRows<'_, T> {
    fn out_features(&self) -> usize {
        self.0.len().checked_div(self.1).unwrap_or(0)
    }
    fn in_features(&self) -> usize {
        self.1
    }
    fn rows(&self, first: usize, out: &mut [T]) {
        out.copy_from_slice(&self.0[first * self.1..][..out.len()]);
    }
    fn as_dense(&self) -> Option<&[T]> {
        Some(self.0)
    }
}
