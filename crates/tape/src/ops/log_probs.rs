//! Log-probabilities of given tokens, token by token.

use anyhow::{Result, ensure};
use ramekin_core::{Array, Category};
use ramekin_kernels::{Real as _, cross_entropy as kernel};

use super::output;
use crate::dispatch;
use crate::tape::{SavedKind, Tape, Value};

/// `log softmax(z_t)[target_t]` of each row of `logits` `[N, V]`, as `[N, 1]`. The logits are consumed:
/// their slope is formed in forward, in their place, and kept.
///
/// # Errors
/// If there are not N targets, or one is not below V.
pub fn log_probs(tape: &Tape, logits: Value, targets: &[i64]) -> Result<Value> {
    let array = logits.array();
    let (n, v) = array.rows();
    ensure!(targets.len() == n, "{} targets for {n} rows of logits", targets.len());
    if let Some(bad) = targets.iter().find(|t| **t < 0 || **t >= v as i64) {
        anyhow::bail!("token {bad} is beyond the vocabulary of {v}");
    }
    let want_grad = tape.is_recording() && logits.is_tracked();
    let found = dispatch!(array, T => output::<T>(&[n, 1], &[array], |out| {
        array.update(|z: &mut [T]| {
            let options = kernel::Options::default();
            kernel::forward_backward(z, v, targets, &options, want_grad.then_some(1.0), out);
        })?;
        out.iter_mut().for_each(|x| *x = -*x);
        Ok(())
    }))?;
    tape.record(&[&logits], found, || {
        // p − 1{target}, of which the gradient is −g times.
        let slope = tape.save(array, SavedKind::Output)?;
        Ok(Box::new(move |g: Array| {
            let slope = slope.get()?;
            slope.recategorise(Category::Workspace);
            if !slope.is_shape_only() {
                dispatch!(slope, T => {
                    let g = g.view::<T>()?;
                    slope.update(|z: &mut [T]| {
                        for (row, g) in z.chunks_exact_mut(v.max(1)).zip(g.iter()) {
                            row.iter_mut().for_each(|x| *x *= -*g);
                        }
                    })
                })?;
            }
            Ok(vec![Some(slope)])
        }))
    })
}

/// `Σ_rows of segment s x_r` of `x` `[N, 1]`, as `[S]`: `owner[r]` is the segment of row r, below `segments`.
pub fn segment_sums(tape: &Tape, x: &Value, owner: &[u32], segments: usize) -> Result<Value> {
    weighted_sums(tape, x, owner, None, segments)
}

/// [`segment_sums`] with a factor for each row.
pub fn weighted_sums(
    tape: &Tape,
    x: &Value,
    owner: &[u32],
    weights: Option<&[f64]>,
    segments: usize,
) -> Result<Value> {
    let array = x.array();
    ensure!(array.len() == owner.len(), "{} rows for {} owners", array.len(), owner.len());
    ensure!(weights.is_none_or(|w| w.len() == owner.len()), "a weight for each row");
    let weights = weights.map(<[f64]>::to_vec);
    let sums = dispatch!(array, T => output::<T>(&[segments], &[array], |out| {
        let mut sums = vec![0.0f64; segments];
        for (r, (x, o)) in array.view::<T>()?.iter().zip(owner).enumerate() {
            let w = weights.as_ref().map_or(1.0, |w| w[r]);
            sums[*o as usize] += x.to_f64() * w;
        }
        out.iter_mut().zip(sums).for_each(|(o, s)| *o = s as T);
        Ok(())
    }))?;
    tape.record(&[x], sums, || {
        let (owner, dims) = (owner.to_vec(), array.dims().to_vec());
        Ok(Box::new(move |g: Array| {
            let flow = dispatch!(g, T => output::<T>(&dims, &[&g], |out| {
                let g = g.view::<T>()?;
                for (r, (x, o)) in out.iter_mut().zip(&owner).enumerate() {
                    *x = g[*o as usize] * weights.as_ref().map_or(1.0, |w| w[r]) as T;
                }
                Ok(())
            }))?;
            Ok(vec![Some(flow)])
        }))
    })
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use ramekin_core::{Param, Rng};

    use super::*;
    use crate::GradStore;
    use crate::ops::{self, Divergence};

    const D: usize = 5;
    const V: usize = 7;
    const N: usize = 6;

    fn numbers(name: &str, n: usize) -> Vec<f64> {
        let mut x = vec![0.0; n];
        Rng::new(3).named("t", name).fill_normal(0, 0.8, &mut x);
        x
    }

    fn array(x: Vec<f64>, dims: &[usize]) -> Array {
        Array::from_vec(x, dims, Category::Workspace).unwrap()
    }

    type Loss<'a> = dyn Fn(&Tape, &Value, &std::sync::Arc<Param>) -> Result<Value> + 'a;

    /// Slopes of a function of hidden states and head weights against finite differences.
    fn check(f: &Loss<'_>) {
        let w = Param::new("w", array(numbers("w", V * D), &[V, D]));
        w.set_trainable(true);
        let x = numbers("x", N * D);
        let value = |x: &[f64]| {
            f(&Tape::off(), &Value::constant(array(x.to_vec(), &[N, D])), &w)
                .unwrap()
                .array()
                .scalar()
                .unwrap()
        };
        let tape = Tape::new();
        let input = tape.input(array(x.clone(), &[N, D]));
        let loss = f(&tape, &input, &w).unwrap();
        assert!((loss.array().scalar().unwrap() - value(&x)).abs() < 1e-12);
        let mut store = GradStore::new();
        let seed = ops::ones_like(loss.array()).unwrap();
        let flows = tape.backward(&loss, seed, &[input], &mut store).unwrap();
        let gx = flows[0].as_ref().unwrap().view::<f64>().unwrap().to_vec();
        let gw = store.get(w.id()).unwrap().view::<f64>().unwrap().to_vec();
        let h = 1e-5;
        for i in 0..N * D {
            let at = |h: f64| {
                let mut x = x.clone();
                x[i] += h;
                value(&x)
            };
            let slope = (at(h) - at(-h)) / (2.0 * h);
            assert!((slope - gx[i]).abs() < 1e-8, "x {i}: {slope} and {}", gx[i]);
        }
        for i in 0..V * D {
            let at = |h: f64| {
                w.value().update(|w: &mut [f64]| w[i] += h).unwrap();
                let loss = value(&x);
                w.value().update(|w: &mut [f64]| w[i] -= h).unwrap();
                loss
            };
            let slope = (at(h) - at(-h)) / (2.0 * h);
            assert!((slope - gw[i]).abs() < 1e-8, "w {i}: {slope} and {}", gw[i]);
        }
    }

    const TARGETS: [i64; N] = [3, 0, 6, 6, 2, 1];
    const OWNER: [u32; N] = [0, 0, 1, 1, 1, 2];

    fn sums(tape: &Tape, x: &Value, w: &std::sync::Arc<Param>, rows: usize) -> Result<Value> {
        let w = w.clone();
        let lp = tape.chunked_rows(
            x,
            rows,
            Rc::new(move |tape, part, range| {
                let logits = ops::linear(tape, part, &tape.param(&w)?, None)?;
                log_probs(tape, logits, &TARGETS[range])
            }),
        )?;
        weighted_sums(tape, &lp, &OWNER, Some(&[1.0, 0.5, 1.0, 1.0, 2.0, 1.0]), 3)
    }

    #[test]
    fn slopes_of_chunked_log_probabilities() {
        for rows in [1, 4, 6] {
            check(&|tape, x, w| {
                let s = sums(tape, x, w, rows)?;
                let squares = ops::mul(tape, &s, &s)?;
                let squares = tape.record(&[&squares], squares.array().reshape(&[3, 1])?, || {
                    Ok(Box::new(|g: Array| Ok(vec![Some(g.reshape(&[3])?)])))
                })?;
                let sum = segment_sums(tape, &squares, &[0; 3], 1)?;
                Ok(sum)
            });
        }
    }

    #[test]
    fn slopes_of_divergences() {
        let teacher = numbers("teacher", N * V);
        for kind in [Divergence::Forward, Divergence::Reverse, Divergence::Jsd(0.4)] {
            check(&|tape, x, w| {
                tape.chunked(x, 4, &|tape, part, range| {
                    let logits = ops::linear(tape, part, &tape.param(w)?, None)?;
                    let rows = teacher[range.start * V..range.end * V].to_vec();
                    ops::divergence(tape, logits, &array(rows, &[range.len(), V]), 1.6, kind, 0.3)
                })
            });
        }
    }

    #[test]
    fn chunks_do_not_matter_and_shapes_suffice() {
        let w = Param::new("w", array(numbers("w", V * D), &[V, D]));
        w.set_trainable(true);
        let x = Value::constant(array(numbers("x", N * D), &[N, D]));
        let of = |rows| sums(&Tape::off(), &x, &w, rows).unwrap().array().view::<f64>().unwrap().to_vec();
        assert_eq!(of(2), of(6));
        let tape = Tape::new();
        let shape = Value::constant(
            Array::shape_only(&[N, D], ramekin_core::DType::F64, Category::Workspace).unwrap(),
        );
        let s = sums(&tape, &shape, &w, 2).unwrap();
        assert!(s.array().is_shape_only() && s.dims() == [3]);
        let seed = ops::ones_like(s.array()).unwrap();
        let mut store = GradStore::new();
        tape.backward(&s, seed, &[], &mut store).unwrap();
        assert_eq!(store.get(w.id()).unwrap().dims(), [V, D]);
    }
}
