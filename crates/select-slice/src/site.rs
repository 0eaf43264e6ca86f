//! A trained slice at its linear.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use anyhow::Result;
use ramekin_core::{Array, Param};
use ramekin_slots::{Below, Forward, LinearAdapter, LinearSite, Sites};
use ramekin_tape::Value;
use serde::{Deserialize, Serialize};

use crate::ops;

/// Which side of a matrix is sliced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Side {
    /// Outputs: `[n, I]`.
    Rows,
    /// Inputs: `[O, n]`.
    Columns,
}

/// A slice and where it lies; shared by the selection and the site.
pub struct Slice {
    /// The linear.
    pub path: String,
    /// Rows or columns.
    pub side: Side,
    /// The numbers.
    pub param: Arc<Param>,
    /// Its places in the matrix as it is held now.
    pub idx: RefCell<Rc<Vec<u32>>>,
    /// Its places in the model's own order.
    pub original: Rc<Vec<u32>>,
    /// Whether the base's matrix holds it too.
    pub inside: bool,
}

impl Slice {
    /// Adds the slice (`factor` times) to a dense weight.
    pub fn add_to(&self, weight: &Array, factor: f32) -> Result<()> {
        let d = self.param.value();
        add(weight, &d, self.side, &self.idx.borrow(), factor)
    }

    /// Writes the slice into a dense weight.
    pub fn put_into(&self, weight: &Array) -> Result<()> {
        let d = self.param.value();
        if weight.is_shape_only() || d.is_shape_only() {
            return Ok(());
        }
        let (width, idx, d) = (weight.rows().1, self.idx.borrow(), d.view::<f32>()?);
        weight
            .update(|w: &mut [f32]| each(self.side, width, w.len() / width, &idx, |at, from| w[at] = d[from]))
    }
}

/// Calls with every entry's place in the matrix and in the slice.
fn each(side: Side, width: usize, height: usize, idx: &[u32], mut f: impl FnMut(usize, usize)) {
    match side {
        Side::Columns => {
            for r in 0..height {
                idx.iter().enumerate().for_each(|(j, c)| f(r * width + *c as usize, r * idx.len() + j));
            }
        }
        Side::Rows => {
            for (j, r) in idx.iter().enumerate() {
                (0..width).for_each(|c| f(*r as usize * width + c, j * width + c));
            }
        }
    }
}

/// `weight[slice] += factor · d`.
pub fn add(weight: &Array, d: &Array, side: Side, idx: &[u32], factor: f32) -> Result<()> {
    if weight.is_shape_only() || d.is_shape_only() {
        return Ok(());
    }
    let (width, d) = (weight.rows().1, d.view::<f32>()?);
    weight.update(|w: &mut [f32]| {
        each(side, width, w.len() / width, idx, |at, from| w[at] += factor * d[from]);
    })
}

/// The slice of a dense weight.
pub fn cut(weight: &Array, side: Side, idx: &[u32]) -> Result<Array> {
    let (height, width) = weight.rows();
    let dims = if side == Side::Columns { [height, idx.len()] } else { [idx.len(), width] };
    Array::build::<f32>(&dims, weight.is_shape_only(), ramekin_core::Category::Trainable, |out| {
        let w = weight.view::<f32>()?;
        each(side, width, height, idx, |at, to| out[to] = w[at]);
        Ok(())
    })
}

fn difference(a: &Array, b: &Array) -> Result<Array> {
    let shape_only = a.is_shape_only() || b.is_shape_only();
    Array::build::<f32>(a.dims(), shape_only, ramekin_core::Category::Workspace, |out| {
        let (a, b) = (a.view::<f32>()?, b.view::<f32>()?);
        out.iter_mut().zip(a.iter().zip(&*b)).for_each(|(o, (a, b))| *o = a - b);
        Ok(())
    })
}

/// The slice as an adapter of its linear.
pub struct AtSite(pub Rc<Slice>);

impl LinearAdapter for AtSite {
    fn forward(&self, fx: &Forward, _: &LinearSite, x: &Value, below: &Below<'_>) -> Result<Value> {
        let (slice, y) = (&self.0, below(x)?);
        let mut d = fx.tape.param(&slice.param)?;
        let mut inside = slice.inside;
        if inside && d.array().is_unique() {
            // A view in the place of the numbers that the base holds: what differs is added.
            d = Value::constant(difference(d.array(), &slice.param.value())?);
            inside = false;
        }
        let idx = slice.idx.borrow().clone();
        match slice.side {
            Side::Columns => ops::columns(&fx.tape, &y, x, &d, &idx, inside),
            Side::Rows => ops::rows(&fx.tape, &y, x, &d, &idx, inside),
        }
    }

    fn fold(&self, _: &Sites, _: &LinearSite, weight: Array) -> Result<Array> {
        if !self.0.inside {
            self.0.add_to(&weight, 1.0)?;
        }
        Ok(weight)
    }
}
