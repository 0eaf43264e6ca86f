//! Products with a slice of a matrix, and their partial backward.
//!
//! N tokens, I inputs, O outputs, n rows or columns of the slice D, idx their places.
//!
//! | slice | forward | gradients | kept |
//! |---|---|---|---|
//! | columns, D `[O, n]` | y + x[:, idx] Dᵀ | dD = gᵀ x[:, idx];  dx[:, idx] += g D | x[:, idx] |
//! | rows, D `[n, I]` | y, with y[:, idx] += x Dᵀ | dD = g[:, idx]ᵀ x;  dx += g[:, idx] D | x |
//!
//! With `inside` the slice is part of the base's matrix already: nothing is added and no flow goes to x.

use std::rc::Rc;

use anyhow::{Result, ensure};
use ramekin_core::{Array, Category, Element};
use ramekin_kernels::matmul;
use ramekin_tape::{SavedKind, Tape, Value, dispatch};

/// Some columns of a matrix, `[rows, idx.len()]`.
pub fn gather(x: &Array, idx: &[u32]) -> Result<Array> {
    let (n, width) = x.rows();
    ensure!(idx.iter().all(|i| (*i as usize) < width), "a column beyond the {width} of {:?}", x.dims());
    dispatch!(x, T => Array::build::<T>(&[n, idx.len()], x.is_shape_only(), Category::Workspace, |out| {
        let x = x.view::<T>()?;
        for (to, from) in out.chunks_mut(idx.len().max(1)).zip(x.chunks(width)) {
            to.iter_mut().zip(idx).for_each(|(t, i)| *t = from[*i as usize]);
        }
        Ok(())
    }))
}

/// `whole[:, idx] += part`.
fn scatter_add<T: Element + std::ops::AddAssign>(part: &[T], idx: &[u32], width: usize, whole: &mut [T]) {
    for (from, to) in part.chunks(idx.len().max(1)).zip(whole.chunks_mut(width)) {
        from.iter().zip(idx).for_each(|(f, i)| to[*i as usize] += *f);
    }
}

fn nt(x: &Array, d: &Array, into: Option<&Array>) -> Result<Array> {
    let ((n, i), o) = (x.rows(), d.dims()[0]);
    let shape_only = x.is_shape_only() || d.is_shape_only();
    dispatch!(x, T => Array::build::<T>(&[n, o], shape_only, Category::Workspace, |out| {
        if let Some(y) = into {
            out.copy_from_slice(&y.view::<T>()?);
        }
        matmul::nt(n, o, i, 1.0 as T, &x.view::<T>()?, &d.view::<T>()?, into.is_some(), out);
        Ok(())
    }))
}

fn nn(g: &Array, d: &Array) -> Result<Array> {
    let ((n, o), i) = (g.rows(), d.dims()[1]);
    dispatch!(g, T => Array::build::<T>(&[n, i], g.is_shape_only(), Category::Workspace, |out| {
        matmul::nn(n, o, i, 1.0 as T, &g.view::<T>()?, &d.view::<T>()?, false, out);
        Ok(())
    }))
}

fn tn(g: &Array, x: &Array) -> Result<Array> {
    let ((n, o), (_, i)) = (g.rows(), x.rows());
    dispatch!(g, T => Array::build::<T>(&[o, i], g.is_shape_only(), Category::Workspace, |out| {
        matmul::tn(n, o, i, 1.0 as T, &g.view::<T>()?, &x.view::<T>()?, false, out);
        Ok(())
    }))
}

/// `part` in columns `idx` of `onto`, or of zeros.
fn spread(part: &Array, idx: &[u32], width: usize, onto: Option<&Array>) -> Result<Array> {
    let n = part.rows().0;
    let shape_only = part.is_shape_only() || onto.is_some_and(Array::is_shape_only);
    dispatch!(part, T => Array::build::<T>(&[n, width], shape_only, Category::Workspace, |out| {
        if let Some(y) = onto {
            out.copy_from_slice(&y.view::<T>()?);
        }
        scatter_add(&part.view::<T>()?, idx, width, out);
        Ok(())
    }))
}

/// The column slice `d` `[O, n]` at inputs `idx` of a linear with input `x` `[N, I]` and output `y` `[N, O]`.
pub fn columns(
    tape: &Tape,
    y: &Value,
    x: &Value,
    d: &Value,
    idx: &Rc<Vec<u32>>,
    inside: bool,
) -> Result<Value> {
    let (da, width) = (d.array().clone(), x.array().rows().1);
    ensure!(
        da.dims() == [y.array().rows().1, idx.len()],
        "a slice {:?} for {} columns",
        da.dims(),
        idx.len()
    );
    if inside && !d.is_tracked() {
        return Ok(y.clone());
    }
    let some = gather(x.array(), idx)?;
    let out = if inside { y.array().clone() } else { nt(&some, &da, Some(y.array()))? };
    tape.record(&[y, x, d], out, || {
        let kept = d.is_tracked().then(|| tape.save(&some, SavedKind::Input)).transpose()?;
        let to_x = x.is_tracked() && !inside;
        let idx = idx.clone();
        Ok(Box::new(move |g: Array| {
            let gd = kept.map(|x| tn(&g, &x.get()?)).transpose()?;
            let gx = to_x.then(|| spread(&nn(&g, &da)?, &idx, width, None)).transpose()?;
            Ok(vec![Some(g), gx, gd])
        }))
    })
}

/// The row slice `d` `[n, I]` at outputs `idx` of a linear with input `x` `[N, I]` and output `y` `[N, O]`.
pub fn rows(tape: &Tape, y: &Value, x: &Value, d: &Value, idx: &Rc<Vec<u32>>, inside: bool) -> Result<Value> {
    let (da, width) = (d.array().clone(), y.array().rows().1);
    ensure!(da.dims() == [idx.len(), x.array().rows().1], "a slice {:?} for {} rows", da.dims(), idx.len());
    if inside && !d.is_tracked() {
        return Ok(y.clone());
    }
    let out = if inside {
        y.array().clone()
    } else {
        spread(&nt(x.array(), &da, None)?, idx, width, Some(y.array()))?
    };
    tape.record(&[y, x, d], out, || {
        let kept = d.is_tracked().then(|| tape.save(x.array(), SavedKind::Input)).transpose()?;
        let to_x = x.is_tracked() && !inside;
        let idx = idx.clone();
        Ok(Box::new(move |g: Array| {
            let some = gather(&g, &idx)?;
            let gd = kept.map(|x| tn(&some, &x.get()?)).transpose()?;
            let gx = to_x.then(|| nn(&some, &da)).transpose()?;
            Ok(vec![Some(g), gx, gd])
        }))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use ramekin_core::Param;
    use ramekin_tape::{GradStore, ops};
    use std::sync::Arc;

    const N: usize = 3;
    const I: usize = 5;
    const O: usize = 4;

    fn numbers(seed: u64, dims: &[usize]) -> Array {
        let mut x = vec![0f64; dims.iter().product()];
        ramekin_core::Rng::new(seed).stream("slice", 0).fill_normal(0, 1.0, &mut x);
        Array::from_vec(x, dims, Category::Workspace).unwrap()
    }

    fn param(name: &str, seed: u64, dims: &[usize]) -> Arc<Param> {
        let p = Param::new(name, numbers(seed, dims));
        p.set_trainable(true);
        p
    }

    /// Σ r ⊙ op(y, x, d), r fixed.
    fn loss(tape: &Tape, all: &[Arc<Param>; 3], by_rows: bool) -> Value {
        let [y, x, d] = [0, 1, 2].map(|i| tape.param(&all[i]).unwrap());
        let idx = Rc::new(if by_rows { vec![3, 0] } else { vec![4, 1] });
        let out = if by_rows {
            rows(tape, &y, &x, &d, &idx, false)
        } else {
            columns(tape, &y, &x, &d, &idx, false)
        };
        let weighted = ops::mul(tape, &out.unwrap(), &Value::constant(numbers(9, &[N, O]))).unwrap();
        let flat = weighted.array().len();
        let ones = Value::constant(Array::from_vec(vec![1f64; O], &[1, O], Category::Workspace).unwrap());
        let sums = ops::linear(tape, &weighted, &ones, None).unwrap();
        assert_eq!(flat, N * O);
        sums
    }

    #[test]
    fn gradients_are_those_of_finite_differences() {
        for by_rows in [false, true] {
            let d = if by_rows { [2, I] } else { [O, 2] };
            let all = [param("y", 1, &[N, O]), param("x", 2, &[N, I]), param("d", 3, &d)];
            let tape = Tape::new();
            let sums = loss(&tape, &all, by_rows);
            let mut store = GradStore::new();
            tape.backward(&sums, ramekin_tape::ops::ones_like(sums.array()).unwrap(), &[], &mut store)
                .unwrap();
            let value = || {
                let sums = loss(&Tape::off(), &all, by_rows);
                sums.array().view::<f64>().unwrap().iter().sum::<f64>()
            };
            for p in &all {
                let grad = store.get(p.id()).unwrap().view::<f64>().unwrap().to_vec();
                for (i, g) in grad.iter().enumerate() {
                    let h = 1e-5;
                    let nudge = |by: f64| p.value().update(|v: &mut [f64]| v[i] += by).unwrap();
                    nudge(h);
                    let up = value();
                    nudge(-2.0 * h);
                    let down = value();
                    nudge(h);
                    let found = (up - down) / (2.0 * h);
                    assert!((found - g).abs() < 1e-7, "{} {i}: {g} and {found}", p.name());
                }
            }
        }
    }
}
