//! Rows that become one: weighted sums by whole numbers.
//!
//! y_o = (1/total_o) Σ_{i: to_i = o} times_i x_i, added in the order of i      gx_i = times_i/total_o g_o
//!
//! With `total` the sum of the `times` this is a mean of the tokens that each row stands for.

use crate::Real;
use crate::split::{Tasks, rows_per_task};

/// What goes where, and how often it counts.
#[derive(Clone, Copy)]
pub struct Merge<'a> {
    /// For each row of `x` its row of `y`.
    pub to: &'a [u32],
    /// For each row of `x` how often it counts.
    pub times: &'a [u32],
    /// For each row of `y` what its sum is divided by.
    pub totals: &'a [u32],
}

impl Merge<'_> {
    fn check(&self, x: usize, y: usize, d: usize) {
        assert_eq!(self.to.len(), self.times.len(), "a row goes somewhere and counts");
        assert_eq!([x, y], [self.to.len() * d, self.totals.len() * d], "rows of {d}");
    }
}

fn real<T: Real>(n: u32) -> T {
    T::from_f64(f64::from(n))
}

/// `y` is overwritten; a row that nothing goes to is zero.
///
/// # Panics
/// If the slices do not fit or a row goes beyond `y`; so does [`backward`].
pub fn forward<T: Real>(x: &[T], d: usize, merge: Merge<'_>, y: &mut [T]) {
    merge.check(x.len(), y.len(), d);
    let mut order: Vec<(u32, u32)> = merge.to.iter().enumerate().map(|(i, to)| (*to, i as u32)).collect();
    order.sort_unstable(); // by target, then by place
    assert!(order.last().is_none_or(|(to, _)| (*to as usize) < merge.totals.len()), "a row beyond `y`");
    let rows = rows_per_task(d);
    y.chunks_mut((rows * d).max(1)).enumerate().each_task(|(task, y)| {
        let first = task * rows;
        let mut from = order.partition_point(|(to, _)| (*to as usize) < first);
        for (o, y) in y.chunks_exact_mut(d).enumerate() {
            y.fill(T::ZERO);
            while let Some((_, i)) = order.get(from).filter(|(to, _)| *to as usize == first + o) {
                let (i, times) = (*i as usize, real::<T>(merge.times[*i as usize]));
                y.iter_mut().zip(&x[i * d..(i + 1) * d]).for_each(|(y, x)| *y += *x * times);
                from += 1;
            }
            let total = real::<T>(merge.totals[first + o]);
            y.iter_mut().for_each(|y| *y /= total);
        }
    });
}

/// Gradient of [`forward`], overwritten.
pub fn backward<T: Real>(g: &[T], d: usize, merge: Merge<'_>, gx: &mut [T]) {
    merge.check(gx.len(), g.len(), d);
    let rows = rows_per_task(d);
    gx.chunks_mut((rows * d).max(1)).enumerate().each_task(|(task, gx)| {
        for (gx, i) in gx.chunks_exact_mut(d).zip(task * rows..) {
            let to = merge.to[i] as usize;
            let factor = real::<T>(merge.times[i]) / real(merge.totals[to]);
            gx.iter_mut().zip(&g[to * d..(to + 1) * d]).for_each(|(x, g)| *x = *g * factor);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_gradient, assert_same_for_threads, normal, weighted};

    #[test]
    fn merges_and_its_gradient() {
        let (to, times, totals) = ([0, 2, 0, 1, 2, 2], [1, 3, 2, 1, 1, 4], [3, 1, 8]);
        let merge = Merge { to: &to, times: &times, totals: &totals };
        let (x, g) = (normal::<f64>(1, 6 * 4), normal::<f64>(2, 3 * 4));
        let run = |x: &[f64]| {
            let mut y = vec![f64::NAN; 12];
            forward(x, 4, merge, &mut y);
            y
        };
        for c in 0..4 {
            assert!((run(&x)[c] - (x[c] + 2.0 * x[8 + c]) / 3.0).abs() < 1e-12);
            assert_eq!(run(&x)[4 + c], x[12 + c], "a row alone keeps its bits");
        }
        let mut gx = vec![f64::NAN; x.len()];
        backward(&g, 4, merge, &mut gx);
        assert_gradient(&x, &gx, |x| weighted(&g, &run(x)));
    }

    #[test]
    fn threads_do_not_change_a_bit() {
        let to: Vec<u32> = (0..900).map(|i| i * i % 500).collect();
        let (times, totals) = (vec![3; 900], vec![7; 500]);
        let merge = Merge { to: &to, times: &times, totals: &totals };
        let x = normal::<f32>(1, 900 * 200);
        assert_same_for_threads(|| {
            let (mut y, mut gx) = (vec![0.0; 500 * 200], vec![0.0; 900 * 200]);
            forward(&x, 200, merge, &mut y);
            backward(&y, 200, merge, &mut gx);
            [y, gx].concat()
        });
    }
}
