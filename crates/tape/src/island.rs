//! Functions written with candle's autograd, for what is small and exotic.

use std::rc::Rc;

use anyhow::{Context, Result};
use candle_core::{Tensor, Var};
use ramekin_core::{Array, Category};

use crate::tape::{SavedKind, Tape, Value};

impl Tape {
    /// Runs a function of candle tensors. Backward runs it again on candle
    /// variables and asks candle for the gradients; everything is kept dense,
    /// so use it where speed and memory do not matter. Shape-only inputs are
    /// run as zeros to learn the result's shape.
    pub fn island(
        &self,
        inputs: &[&Value],
        f: impl Fn(&[Tensor]) -> candle_core::Result<Tensor> + 'static,
    ) -> Result<Value> {
        let f = Rc::new(f);
        let shape_only = inputs.iter().any(|v| v.array().is_shape_only());
        let tensors: Vec<Tensor> = inputs
            .iter()
            .map(|v| v.array().tensor().contiguous().map(|t| t.detach()))
            .collect::<candle_core::Result<_>>()?;
        let result = f(&tensors)?;
        let output = if shape_only {
            Array::shape_only(result.dims(), result.dtype(), Category::Workspace)?
        } else {
            Array::from_tensor(result, Category::Workspace)?
        };
        self.record(inputs, output, || {
            let saved = inputs
                .iter()
                .map(|v| Ok((self.save(v.array(), SavedKind::Input)?, v.is_tracked())))
                .collect::<Result<Vec<_>>>()?;
            Ok(Box::new(move |grad| {
                let arrays = saved.into_iter().map(|(s, t)| Ok((s.get()?, t))).collect::<Result<Vec<_>>>()?;
                if shape_only {
                    return arrays
                        .iter()
                        .map(|(a, t)| {
                            t.then(|| Array::shape_only(a.dims(), a.dtype(), Category::Workspace)).transpose()
                        })
                        .collect();
                }
                let vars = arrays
                    .iter()
                    .map(|(a, _)| Var::from_tensor(a.tensor()))
                    .collect::<candle_core::Result<Vec<Var>>>()?;
                let tensors: Vec<Tensor> = vars.iter().map(|v| v.as_tensor().clone()).collect();
                let weighted = f(&tensors)?.mul(grad.tensor())?.sum_all()?;
                let store = weighted.backward()?;
                arrays
                    .iter()
                    .zip(&vars)
                    .map(|((_, tracked), var)| {
                        if !tracked {
                            return Ok(None);
                        }
                        let g = store.get(var).context("an input that the function does not use")?;
                        Array::from_tensor(g.clone(), Category::Workspace).map(Some)
                    })
                    .collect()
            }))
        })
    }
}
