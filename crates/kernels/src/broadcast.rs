//! A matrix times a vector that is repeated along its rows or its columns.
//!
//! mul_row:     y[n×d] = x[n×d] ⊙ v\[d\]      gv\[j\] += Σ_n g\[n,j\]·x\[n,j\]
//! mul_column:  y[n×d] = x[n×d] ⊙ v\[n\]      gv\[n\] += Σ_j g\[n,j\]·x\[n,j\]
//!
//! The gradient towards `x` is the same product with `g` in its place.

use crate::Real;
use crate::split::{Tasks, partials, rows_per_task};
use crate::wide::wide;

/// Rows whose column sums are one task.
const SUM_ROWS: usize = 64;

fn rows(x: usize, d: usize) -> usize {
    assert!(d > 0 || x == 0, "a matrix without columns holds nothing");
    assert_eq!(x % d.max(1), 0, "`x` must be rows of {d}");
    x / d.max(1)
}

/// `y = x ⊙ v`, `v` as long as a row.
///
/// # Panics
/// If the slices do not fit; so do all functions of this module.
pub fn mul_row<T: Real>(x: &[T], v: &[T], y: &mut [T]) {
    let d = v.len();
    rows(x.len(), d);
    assert_eq!(x.len(), y.len(), "slices must be equally long");
    let span = rows_per_task(d) * d.max(1);
    y.chunks_mut(span).zip(x.chunks(span)).each_task(|(y, x)| {
        y.chunks_exact_mut(d).zip(x.chunks_exact(d)).for_each(|(y, x)| product(x, v, y));
    });
}

/// `out += Σ_rows g ⊙ x`, rows as long as `out`.
pub fn mul_row_gradient<T: Real>(g: &[T], x: &[T], out: &mut [T]) {
    let d = out.len();
    assert_eq!(g.len(), x.len(), "slices must be equally long");
    let span = SUM_ROWS * d.max(1);
    rows(g.len(), d);
    let sums = partials(g.len().div_ceil(span), |t| {
        let part = t * span..g.len().min((t + 1) * span);
        let mut sum = vec![T::ZERO; d];
        g[part.clone()]
            .chunks_exact(d)
            .zip(x[part].chunks_exact(d))
            .for_each(|(g, x)| add_product(g, x, &mut sum));
        sum
    });
    for sum in sums {
        out.iter_mut().zip(sum).for_each(|(o, s)| *o += s);
    }
}

/// `y = x ⊙ v`, an entry of `v` for each row of `d`.
pub fn mul_column<T: Real>(x: &[T], v: &[T], y: &mut [T]) {
    assert_eq!(x.len(), y.len(), "slices must be equally long");
    let d = rows(x.len(), v.len());
    if d == 0 {
        return;
    }
    y.chunks_mut(d).zip(x.chunks(d)).zip(v).each_task(|((y, x), v)| scaled(x, *v, y));
}

/// `out[n] += Σ_j g[n,j]·x[n,j]`, an entry of `out` for each row.
pub fn mul_column_gradient<T: Real>(g: &[T], x: &[T], out: &mut [T]) {
    assert_eq!(g.len(), x.len(), "slices must be equally long");
    let d = rows(x.len(), out.len());
    if d == 0 {
        return;
    }
    out.iter_mut().zip(g.chunks(d)).zip(x.chunks(d)).each_task(|((o, g), x)| {
        *o += T::from_f64(g.iter().zip(x).map(|(g, x)| g.to_f64() * x.to_f64()).sum());
    });
}

wide! {
    fn product[T: Real](x: &[T], v: &[T], y: &mut [T]) {
        for ((y, x), v) in y.iter_mut().zip(x).zip(v) {
            *y = *x * *v;
        }
    }

    fn add_product[T: Real](g: &[T], x: &[T], sum: &mut [T]) {
        for ((s, g), x) in sum.iter_mut().zip(g).zip(x) {
            *s += *g * *x;
        }
    }

    fn scaled[T: Real](x: &[T], v: T, y: &mut [T]) {
        for (y, x) in y.iter_mut().zip(x) {
            *y = *x * v;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_close, assert_gradient, assert_same_for_threads, normal, weighted};

    #[test]
    fn by_hand() {
        let (x, mut y) = ([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], [0.0; 6]);
        mul_row(&x, &[1.0, 10.0, 100.0], &mut y);
        assert_eq!(y, [1.0, 20.0, 300.0, 4.0, 50.0, 600.0]);
        mul_column(&x, &[2.0, -1.0], &mut y);
        assert_eq!(y, [2.0, 4.0, 6.0, -4.0, -5.0, -6.0]);
        mul_row::<f32>(&[], &[], &mut []);
        mul_row_gradient::<f32>(&[], &[], &mut []);
        mul_column::<f32>(&[], &[], &mut []);
        mul_column_gradient::<f32>(&[], &[], &mut [1.0]);
    }

    #[test]
    fn gradients() {
        let (n, d) = (70, 3);
        let (x, g) = (normal::<f64>(1, n * d), normal::<f64>(2, n * d));
        type Forward = fn(&[f64], &[f64], &mut [f64]);
        let cases: [(usize, Forward, Forward); 2] =
            [(d, mul_row, mul_row_gradient), (n, mul_column, mul_column_gradient)];
        for (len, forward, gradient) in cases {
            let v = normal::<f64>(3, len);
            let run = |x: &[f64], v: &[f64]| {
                let mut y = vec![0.0; n * d];
                forward(x, v, &mut y);
                weighted(&y, &g)
            };
            let mut gx = vec![0.0; n * d];
            forward(&g, &v, &mut gx);
            assert_gradient(&x, &gx, |x| run(x, &v));
            let mut gv = vec![0.0; len];
            gradient(&g, &x, &mut gv);
            assert_gradient(&v, &gv, |v| run(&x, v));
        }
    }

    #[test]
    fn threads_and_tasks() {
        let (n, d) = (700, 97);
        let (x, v) = (normal::<f32>(1, n * d), normal::<f32>(2, d));
        assert_same_for_threads(|| {
            let (mut y, mut sum) = (vec![0.0; n * d], vec![0.0; d]);
            mul_row(&x, &v, &mut y);
            mul_row_gradient(&y, &x, &mut sum);
            y.extend(sum);
            y
        });
        let mut sum = vec![0.0; d];
        mul_row_gradient(&x, &x, &mut sum);
        let want: Vec<f64> = (0..d).map(|j| (0..n).map(|i| f64::from(x[i * d + j]).powi(2)).sum()).collect();
        assert_close(&sum, &want, 1e-6);
    }
}
