//! Features mixed by a softmax over their scores.

use anyhow::{Result, ensure};
use ramekin_core::{Array, Category, View};
use ramekin_kernels::softmax_mix as kernel;

use super::output;
use crate::dispatch;
use crate::tape::{Saved, SavedKind, Tape, Value};

/// `y = Σ_i softmax_i(c_i) x_i` row by row; `scores[i]` `[N, 1]`, `features[i]` `[N, d]`. Returns `y` and
/// the weights `[N, features]`. Keeps the features and the weights.
pub fn softmax_mix(tape: &Tape, scores: &[Value], features: &[Value]) -> Result<(Value, Array)> {
    ensure!(!features.is_empty() && scores.len() == features.len(), "as many scores as features");
    let first = features[0].array();
    let (rows, d) = first.rows();
    ensure!(features.iter().all(|x| x.dims() == first.dims()), "features of different shapes");
    ensure!(scores.iter().all(|c| c.array().len() == rows), "scores that are not one a row");
    let inputs: Vec<&Array> = scores.iter().chain(features).map(Value::array).collect();
    let count = features.len();
    let (y, weights) = dispatch!(first, T => {
        let mut a = vec![0.0 as T; if first.is_shape_only() { 0 } else { rows * count }];
        let y = output::<T>(first.dims(), &inputs, |out| {
            let c = scores.iter().map(|c| c.array().view::<T>()).collect::<Result<Vec<View<'_, T>>>>()?;
            let x = features.iter().map(|x| x.array().view::<T>()).collect::<Result<Vec<View<'_, T>>>>()?;
            let c: Vec<&[T]> = c.iter().map(|c| &**c).collect();
            let x: Vec<&[T]> = x.iter().map(|x| &**x).collect();
            kernel::forward(&c, &x, d, &mut a, out);
            Ok(())
        })?;
        let weights = match y.is_shape_only() {
            true => Array::shape_only(&[rows, count], first.dtype(), Category::Workspace)?,
            false => Array::from_vec(a, &[rows, count], Category::Workspace)?,
        };
        Ok((y, weights))
    })?;
    let parents: Vec<&Value> = scores.iter().chain(features).collect();
    let shapes: Vec<Array> = scores.iter().map(|c| c.array().clone()).collect();
    let y = tape.record(&parents, y, || {
        let saved: Vec<Saved> =
            features.iter().map(|x| tape.save(x.array(), SavedKind::Input)).collect::<Result<_>>()?;
        let weights = tape.save(&weights, SavedKind::Statistic)?;
        Ok(Box::new(move |g: Array| {
            let x = saved.into_iter().map(Saved::get).collect::<Result<Vec<Array>>>()?;
            let (weights, real) = (weights.get()?, !g.is_shape_only());
            dispatch!(g, T => {
                let (mut gc, mut gx) = (vec![Vec::new(); x.len()], vec![Vec::new(); x.len()]);
                if real {
                    let views = x.iter().map(|x| x.view::<T>()).collect::<Result<Vec<View<'_, T>>>>()?;
                    let views: Vec<&[T]> = views.iter().map(|x| &**x).collect();
                    (gc, gx) = kernel::backward(&g.view::<T>()?, &views, d, &weights.view::<T>()?);
                }
                let gc = shapes.iter().zip(gc).map(|(a, v)| super::flow(a, v, real));
                let gx = x.iter().zip(gx).map(|(a, v)| super::flow(a, v, real));
                gc.chain(gx).collect()
            })
        }))
    })?;
    Ok((y, weights))
}
