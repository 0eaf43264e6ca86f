//! Scalars whose gradient is known before backward.

use anyhow::{Result, ensure};
use ramekin_core::Array;

use super::{output, scalar_like};
use crate::dispatch;
use crate::tape::{Tape, Value};

/// The scalar `total` with the gradient `slope`, a number for each of `x`'s: for small losses that are
/// worked out in f64. Keeps the slope. On shape-only `x` the slope may be empty.
///
/// # Errors
/// If there is not one slope for each number.
pub fn known_slope(tape: &Tape, x: &Value, total: f64, slope: Vec<f64>) -> Result<Value> {
    let array = x.array();
    ensure!(array.is_shape_only() || slope.len() == array.len(), "{} slopes for {:?}", slope.len(), x.dims());
    let loss = scalar_like(array, total)?;
    let dims = array.dims().to_vec();
    tape.record(&[x], loss, || {
        Ok(Box::new(move |g: Array| {
            let flow = dispatch!(g, T => output::<T>(&dims, &[&g], |out| {
                let factor = g.scalar()?;
                out.iter_mut().zip(&slope).for_each(|(o, s)| *o = (factor * s) as T);
                Ok(())
            }))?;
            Ok(vec![Some(flow)])
        }))
    })
}

#[cfg(test)]
mod tests {
    use ramekin_core::Category;

    use super::*;
    use crate::GradStore;

    #[test]
    fn slopes_of_a_sum_of_cubes() {
        let x = [0.3f64, -1.2, 2.0];
        let of = |x: &[f64]| x.iter().map(|x| x.powi(3)).sum::<f64>();
        let tape = Tape::new();
        let input = tape.input(Array::from_vec(x.to_vec(), &[3, 1], Category::Workspace).unwrap());
        let loss = known_slope(&tape, &input, of(&x), x.iter().map(|x| 3.0 * x * x).collect()).unwrap();
        let seed = Array::from_vec(vec![2.0f64], &[1], Category::Workspace).unwrap();
        let flows = tape.backward(&loss, seed, &[input], &mut GradStore::new()).unwrap();
        let flow = flows[0].as_ref().unwrap();
        assert_eq!(flow.dims(), [3, 1]);
        for i in 0..3 {
            let at = |h: f64| {
                let mut x = x;
                x[i] += h;
                of(&x)
            };
            let slope = 2.0 * (at(1e-5) - at(-1e-5)) / 2e-5;
            assert!((slope - flow.view::<f64>().unwrap()[i]).abs() < 1e-8);
        }
    }
}
