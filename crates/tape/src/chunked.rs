//! Sums over row chunks, with value and gradient in one pass.

use std::ops::Range;

use anyhow::Result;
use ramekin_core::{Array, Category};

use crate::ops;
use crate::sink::GradStore;
use crate::tape::{Tape, Value};

/// The loss of one chunk: the chunk's tape, its rows, and which rows they are.
pub type ChunkLoss<'a> = dyn Fn(&Tape, &Value, Range<usize>) -> Result<Value> + 'a;

impl Tape {
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
