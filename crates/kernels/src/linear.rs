//! Products with a frozen weight in any storage, tile by tile, never the dense weight.
//!
//! forward:         y[m×n] = x[m×k] · wᵀ + b         w: n×k = out×in, known only through its rows
//! backward_input:  gx[m×k] (+)= g[m×n] · w
//!
//! A packed weight is unpacked [`TILE_ROWS`] rows at a time into scratch of the task, used and dropped.
//! A weight that has its dense values at hand ([`WeightRows::as_dense`]) is multiplied in place.
//! Up to [`FEW_ROWS`] rows (decoding), the forward is a path of dot products in
//! which a row's result does not depend on how many rows come with it.

use crate::matmul::{self, FEW_ROWS, Strided, few_rows, product};
use crate::split::{Shared, Tasks, partials, tasks};
use crate::{Real, elementwise, scratch};

/// A frozen `out×in` weight whose rows can be read as numbers.
pub trait WeightRows<T>: Sync {
    /// Rows of the weight: outputs of the layer.
    fn out_features(&self) -> usize;
    /// Columns of the weight: inputs of the layer.
    fn in_features(&self) -> usize;
    /// Fills `out` with the `out.len() / in_features` rows that start at row `first`.
    fn rows(&self, first: usize, out: &mut [T]);
    /// The whole weight, row-major, where it is stored that way.
    fn as_dense(&self) -> Option<&[T]> {
        None
    }
}

/// Rows of the weight that one task holds unpacked at a time.
pub const TILE_ROWS: usize = 64;

/// Numbers unpacked at a time where there are few rows to multiply them with.
const FEW_TILE: usize = 4096;

/// Rows of the gradient that make one task of [`backward_input`].
const GRADIENT_ROWS: usize = 256;

/// `y[m×n] = x[m×k] · wᵀ (+ bias)`
///
/// # Panics
/// If a slice's length is not its shape.
pub fn forward<T: Real>(x: &[T], m: usize, w: &dyn WeightRows<T>, bias: Option<&[T]>, y: &mut [T]) {
    let (n, k) = (w.out_features(), w.in_features());
    assert_eq!(x.len(), m * k, "`x` must hold {m}×{k} values");
    assert_eq!(y.len(), m * n, "`y` must hold {m}×{n} values");
    if let Some(dense) = w.as_dense() {
        matmul::nt(m, n, k, T::ONE, x, dense, false, y);
    } else if m > 0 {
        // Few rows reuse little: then what is unpacked should still lie in the first cache when it is read.
        let step = if m <= FEW_ROWS { (FEW_TILE / k.max(1)).clamp(1, TILE_ROWS) } else { TILE_ROWS };
        let out = Shared::new(y);
        tasks(n.div_ceil(TILE_ROWS), |t| {
            let last = n.min((t + 1) * TILE_ROWS);
            scratch::with(step.min(n) * k, |tile: &mut [T]| {
                for first in (t * TILE_ROWS..last).step_by(step) {
                    let rows = step.min(last - first);
                    let tile = &mut tile[..rows * k];
                    w.rows(first, tile);
                    // SAFETY: each task owns columns first..first+rows of every row of y.
                    unsafe {
                        if m <= FEW_ROWS {
                            few_rows(m, k, T::ONE, x, tile, false, out, (first, rows), n);
                        } else {
                            let x = Strided::new(x.as_ptr(), k, 1);
                            let tile = Strided::new(tile.as_ptr(), 1, k);
                            let y = Strided::new(out.at(first), n, 1);
                            product((m, rows, k), T::ONE, x, tile, false, y);
                        }
                    }
                }
            });
        });
    }
    if let Some(bias) = bias {
        elementwise::add_bias(y, bias);
    }
}

/// `gx[m×k] (+)= g[m×n] · w`
///
/// # Panics
/// If a slice's length is not its shape.
pub fn backward_input<T: Real>(g: &[T], m: usize, w: &dyn WeightRows<T>, accumulate: bool, gx: &mut [T]) {
    let (n, k) = (w.out_features(), w.in_features());
    assert_eq!(g.len(), m * n, "`g` must hold {m}×{n} values");
    assert_eq!(gx.len(), m * k, "`gx` must hold {m}×{k} values");
    if let Some(dense) = w.as_dense() {
        return matmul::nn(m, n, k, T::ONE, g, dense, accumulate, gx);
    }
    if m == 0 || k == 0 {
        return;
    }
    if !accumulate {
        gx.fill(T::ZERO);
    }
    if m < GRADIENT_ROWS / 2 {
        return few_gradient_rows(g, m, w, gx);
    }
    // Each row chunk unpacks the weight for itself: 256 rows make that a few per cent of the product.
    let chunk =
        if m >= 4 * GRADIENT_ROWS { GRADIENT_ROWS } else { m.div_ceil(4).max(64).next_multiple_of(16) };
    gx.chunks_mut(chunk * k).zip(g.chunks(chunk * n)).each_task(|(gx, g)| {
        accumulate_tiles(g, g.len() / n.max(1), w, 0..n, gx);
    });
}

/// gx += g[:, range] · w[range, :], one tile of rows after the other.
fn accumulate_tiles<T: Real>(
    g: &[T],
    m: usize,
    w: &dyn WeightRows<T>,
    range: std::ops::Range<usize>,
    gx: &mut [T],
) {
    let (n, k) = (w.out_features(), w.in_features());
    scratch::with(TILE_ROWS.min(n) * k, |tile: &mut [T]| {
        for first in range.clone().step_by(TILE_ROWS) {
            let rows = TILE_ROWS.min(range.end - first);
            let tile = &mut tile[..rows * k];
            w.rows(first, tile);
            // SAFETY: g holds m rows of n, of which columns first..first+rows are read; gx holds m×k.
            unsafe {
                let g = Strided::new(g.as_ptr().add(first), n, 1);
                let tile = Strided::new(tile.as_ptr(), k, 1);
                product((m, k, rows), T::ONE, g, tile, true, Strided::new(gx.as_mut_ptr(), k, 1));
            }
        }
    });
}

/// Too few rows to share out: the outputs are shared out instead, in at most eight parts that are
/// added up in order.
fn few_gradient_rows<T: Real>(g: &[T], m: usize, w: &dyn WeightRows<T>, gx: &mut [T]) {
    let (n, k) = (w.out_features(), w.in_features());
    let part = n.div_ceil(8).next_multiple_of(TILE_ROWS);
    let sums = partials(n.div_ceil(part), |p| {
        let mut sum = vec![T::ZERO; m * k];
        accumulate_tiles(g, m, w, p * part..n.min((p + 1) * part), &mut sum);
        sum
    });
    for sum in sums {
        elementwise::add_assign(gx, &sum);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::matmul::reference;
    use crate::testing::{assert_same_for_threads, assert_sums, magnitudes, normal, wide};

    /// A dense weight, shown or hidden behind its rows.
    struct Dense<T>(Vec<T>, usize, usize, bool);

    impl<T: Real> WeightRows<T> for Dense<T> {
        fn out_features(&self) -> usize {
            self.1
        }
        fn in_features(&self) -> usize {
            self.2
        }
        fn rows(&self, first: usize, out: &mut [T]) {
            out.copy_from_slice(&self.0[first * self.2..][..out.len()]);
        }
        fn as_dense(&self) -> Option<&[T]> {
            self.3.then_some(&self.0)
        }
    }

    fn check(m: usize, n: usize, k: usize) {
        let (x, w, g) = (normal::<f32>(1, m * k), normal::<f32>(2, n * k), normal::<f32>(3, m * n));
        let bias = normal::<f32>(4, n);
        // Of the numbers, and of their magnitudes.
        let both = |of: fn(&[f32]) -> Vec<f64>| {
            let (mut y, bias) = (reference::nt(m, n, k, &of(&x), &of(&w)), of(&bias));
            y.iter_mut().enumerate().for_each(|(i, y)| *y += bias[i % n]);
            (y, reference::nn(m, n, k, &of(&g), &of(&w)))
        };
        let ((y_want, gx_want), (y_sizes, gx_sizes)) = (both(wide), both(magnitudes));
        let twice = |of: &[f64]| of.iter().map(|g| 2.0 * g).collect::<Vec<_>>();
        for shown in [false, true] {
            let w = Dense(w.clone(), n, k, shown);
            let mut y = vec![f32::NAN; m * n];
            forward(&x, m, &w, Some(&bias), &mut y);
            assert_sums(&y, &y_want, &y_sizes, 1e-6);
            let mut gx = vec![f32::NAN; m * k];
            backward_input(&g, m, &w, false, &mut gx);
            assert_sums(&gx, &gx_want, &gx_sizes, 1e-6);
            backward_input(&g, m, &w, true, &mut gx);
            assert_sums(&gx, &twice(&gx_want), &twice(&gx_sizes), 1e-6);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn equals_the_dense_product(m in 0usize..30, n in 1usize..200, k in 0usize..50) {
            check(m, n, k);
        }
    }

    #[test]
    fn equals_the_dense_product_for_many_rows() {
        check(130, 150, 40); // one chunk of gradient rows a quarter
        check(1100, 65, 17); // chunks of full size
    }

    #[test]
    fn backward_is_the_gradient_of_forward() {
        // Linear in x: <g, W x> = <Wᵀ g, x> is the whole truth.
        let (m, n, k) = (9, 70, 33);
        let (x, g) = (normal::<f64>(1, m * k), normal::<f64>(3, m * n));
        let w = Dense(normal::<f64>(2, n * k), n, k, false);
        let (mut y, mut gx) = (vec![0.0; m * n], vec![0.0; m * k]);
        forward(&x, m, &w, None, &mut y);
        backward_input(&g, m, &w, false, &mut gx);
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        assert!((dot(&g, &y) - dot(&gx, &x)).abs() < 1e-10 * dot(&g, &g));
    }

    #[test]
    fn a_decoded_row_does_not_depend_on_its_company() {
        let (n, k) = (130, 64);
        let w = Dense(normal::<f32>(2, n * k), n, k, false);
        let x = normal::<f32>(1, FEW_ROWS * k);
        let mut all = vec![0.0; FEW_ROWS * n];
        forward(&x, FEW_ROWS, &w, None, &mut all);
        let mut one = vec![0.0; n];
        forward(&x[..k], 1, &w, None, &mut one);
        assert_eq!(one, all[..n]);
    }

    #[test]
    fn threads_do_not_change_a_bit() {
        for m in [3, 60, 300] {
            let (n, k) = (300, 70);
            let w = Dense(normal::<f32>(2, n * k), n, k, false);
            let (x, g) = (normal::<f32>(1, m * k), normal::<f32>(3, m * n));
            assert_same_for_threads(|| {
                let (mut y, mut gx) = (vec![0.0; m * n], vec![0.0; m * k]);
                forward(&x, m, &w, None, &mut y);
                backward_input(&g, m, &w, false, &mut gx);
                [y, gx].concat()
            });
        }
    }
}
