//! Functions of row chunks: sums with value and gradient in one pass, and rows that are made again in backward.

use std::ops::Range;
use std::rc::Rc;

use anyhow::Result;
use ramekin_core::{Array, Category};

use crate::ops;
use crate::sink::GradStore;
use crate::tape::{SavedKind, Tape, Value};

/// The loss of one chunk: the chunk's tape, its rows, and which rows they are.
pub type ChunkLoss<'a> = dyn Fn(&Tape, &Value, Range<usize>) -> Result<Value> + 'a;

/// Rows of one chunk, `[n, m]`: the chunk's tape, its rows, and which rows they are. It may be run twice.
pub type ChunkRows = Rc<dyn Fn(&Tape, &Value, Range<usize>) -> Result<Value>>;

impl Tape {
    /// `f(chunk)` over chunks of `rows` rows of `x` (`[N, d]`), one under the other: `[N, m]`. Whatever
    /// `f` makes exists for one chunk at a time; backward runs each chunk once more. `f` must not hold
    /// this tape.
    pub fn chunked_rows(&self, x: &Value, rows: usize, f: ChunkRows) -> Result<Value> {
        let (n, d) = x.array().rows();
        let dtype = x.array().dtype();
        let step = rows.max(1);
        let chunks = move || (0..n).step_by(step).map(move |first| first..n.min(first + step));
        let watch = if self.is_recording() { Tape::watching() } else { self.clone() };
        let mut whole: Option<(Array, usize)> = None;
        for range in chunks() {
            let part = x.array().narrow_rows(range.start, range.len(), Category::Workspace)?;
            let made = f(&watch, &Value::constant(part), range.clone())?.into_array();
            let m = made.rows().1;
            let (whole, _) = match &mut whole {
                Some(whole) => whole,
                none if made.is_shape_only() => {
                    none.insert((Array::shape_only(&[n, m], made.dtype(), Category::Workspace)?, m))
                }
                none => none.insert((Array::zeros(&[n, m], made.dtype(), Category::Workspace)?, m)),
            };
            ops::write_rows(whole, range.start * m, &made)?;
        }
        let output = match whole {
            Some((whole, _)) => whole,
            None => Array::zeros(&[0, 1], dtype, Category::Workspace)?,
        };
        if !self.is_recording() {
            return Ok(Value::constant(output));
        }
        let params = watch.used_params();
        let leaves = params.iter().map(|p| self.param(p)).collect::<Result<Vec<Value>>>()?;
        let parents: Vec<&Value> = std::iter::once(x).chain(&leaves).collect();
        let tracked = x.is_tracked();
        self.record(&parents, output, || {
            let saved = self.save(x.array(), SavedKind::Input)?;
            Ok(Box::new(move |grad: Array| {
                let x = saved.get()?;
                let mut store = GradStore::new();
                let shape_only = x.is_shape_only();
                let whole = match (tracked, shape_only) {
                    (false, _) => None,
                    (true, true) => Some(Array::shape_only(x.dims(), dtype, Category::Workspace)?),
                    (true, false) => Some(Array::zeros(x.dims(), dtype, Category::Workspace)?),
                };
                for range in chunks() {
                    let tape = Tape::new();
                    let part = x.narrow_rows(range.start, range.len(), Category::Workspace)?;
                    let part = if tracked { tape.input(part) } else { Value::constant(part) };
                    let made = f(&tape, &part, range.clone())?;
                    let seed = grad.narrow_rows(range.start, range.len(), Category::Workspace)?;
                    let mut flows = tape.backward(&made, seed, std::slice::from_ref(&part), &mut store)?;
                    if let (Some(whole), Some(Some(flow))) = (&whole, flows.pop()) {
                        ops::write_rows(whole, range.start * d, &flow)?;
                    }
                }
                let mut grads = store.take();
                let of = |p: &std::sync::Arc<ramekin_core::Param>| {
                    let at = grads.iter().position(|(q, _)| q.id() == p.id());
                    at.map(|i| grads.swap_remove(i).1)
                };
                Ok(std::iter::once(whole).chain(params.iter().map(of)).collect())
            }))
        })
    }

    /// `Σ f(chunk)` over chunks of `rows` rows of `x` (`[N, d]`), `f` giving a
    /// scalar. Each chunk is recorded, walked back and freed before the next
    /// begins, so whatever `f` makes exists for one chunk at a time: logits,
    /// above all. What stays until backward is the gradient of `x` and of the
    /// parameters that `f` used.
    pub fn chunked(&self, x: &Value, rows: usize, f: &ChunkLoss<'_>) -> Result<Value> {
        let (n, d) = x.array().rows();
        let dtype = x.array().dtype();
        let shape_only = x.array().is_shape_only();
        let mut total = 0.0;
        let mut store = GradStore::new();
        let mut grad_x: Option<Array> = None;
        let step = rows.max(1);
        for first in (0..n).step_by(step) {
            let range = first..n.min(first + step);
            let part = x.array().narrow_rows(first, range.len(), Category::Workspace)?;
            if !self.is_recording() {
                total += f(self, &Value::constant(part), range)?.array().scalar()?;
                continue;
            }
            let tape = Tape::new();
            let part = if x.is_tracked() { tape.input(part) } else { Value::constant(part) };
            let loss = f(&tape, &part, range.clone())?;
            total += loss.array().scalar()?;
            let seed = ops::ones_like(loss.array())?;
            let mut flows = tape.backward(&loss, seed, std::slice::from_ref(&part), &mut store)?;
            if let Some(Some(flow)) = flows.pop() {
                let whole = match grad_x.take() {
                    Some(g) => g,
                    None if shape_only => Array::shape_only(x.dims(), dtype, Category::Activations)?,
                    None => Array::zeros(x.dims(), dtype, Category::Activations)?,
                };
                ops::write_rows(&whole, first * d, &flow)?;
                grad_x = Some(whole);
            }
        }
        let output = ops::scalar_like(x.array(), total)?;
        let grads = store.take();
        let leaves = grads.iter().map(|(p, _)| self.param(p)).collect::<Result<Vec<Value>>>()?;
        let parents: Vec<&Value> = std::iter::once(x).chain(&leaves).collect();
        self.record(&parents, output, || {
            Ok(Box::new(move |g| {
                let factor = if g.is_shape_only() { 1.0 } else { g.scalar()? };
                let flows = std::iter::once(grad_x).chain(grads.into_iter().map(|(_, g)| Some(g)));
                flows.map(|flow| flow.map(|a| ops::scale_in_place(a, factor)).transpose()).collect()
            }))
        })
    }
}
