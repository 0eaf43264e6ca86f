//! Norms of the rows of a frozen weight with a low-rank update, tile by tile.
//!
//! n\[o\] = ‖W\[o\] + s·(B A)\[o\]‖₂          W: O×I known through its rows, B: O×r, A: r×I
//!
//! Neither W nor the update is ever whole: a task holds [`TILE_ROWS`] rows. Squares are summed in f64.

use crate::linear::{TILE_ROWS, WeightRows};
use crate::matmul::{Strided, product};
use crate::split::{Shared, tasks};
use crate::{Real, elementwise};

/// A low-rank matrix s·B A.
#[derive(Clone, Copy)]
pub struct LowRank<'a, T> {
    /// `O×r`.
    pub b: &'a [T],
    /// `r×I`.
    pub a: &'a [T],
    /// r.
    pub rank: usize,
    /// s.
    pub scale: T,
}

/// The norm of every row.
///
/// # Panics
/// If a slice's length is not its shape.
pub fn forward<T: Real>(w: &dyn WeightRows<T>, update: LowRank<'_, T>, out: &mut [T]) {
    let (o, i, r) = (w.out_features(), w.in_features(), update.rank);
    assert_eq!(out.len(), o, "a norm for each of {o} rows");
    assert_eq!(update.b.len(), o * r, "`b` must hold {o}×{r} values");
    assert_eq!(update.a.len(), r * i, "`a` must hold {r}×{i} values");
    let out = Shared::new(out);
    tasks(o.div_ceil(TILE_ROWS), |t| {
        let first = t * TILE_ROWS;
        let rows = TILE_ROWS.min(o - first);
        let mut tile = vec![T::ZERO; rows * i];
        w.rows(first, &mut tile);
        if r > 0 && i > 0 {
            let b = Strided::new(update.b[first * r..].as_ptr(), r, 1);
            let a = Strided::new(update.a.as_ptr(), i, 1);
            // SAFETY: b has `rows` rows from `first` on, a and the tile their whole shapes.
            unsafe {
                product((rows, i, r), update.scale, b, a, true, Strided::new(tile.as_mut_ptr(), i, 1));
            }
        }
        // SAFETY: each task owns its rows of the result.
        let norms = unsafe { out.slice(first, rows) };
        for (k, norm) in norms.iter_mut().enumerate() {
            *norm = T::from_f64(elementwise::sum_of_squares(&tile[k * i..(k + 1) * i]).sqrt());
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_close, assert_same_for_threads, normal};

    struct Dense<'a>(&'a [f32], usize);

    impl WeightRows<f32> for Dense<'_> {
        fn out_features(&self) -> usize {
            self.0.len() / self.1
        }
        fn in_features(&self) -> usize {
            self.1
        }
        fn rows(&self, first: usize, out: &mut [f32]) {
            out.copy_from_slice(&self.0[first * self.1..][..out.len()]);
        }
    }

    #[test]
    fn equals_the_dense_norms_for_any_number_of_threads() {
        let (o, i, r, s) = (150, 37, 3, 0.7);
        let (w, a, b) = (normal::<f32>(1, o * i), normal::<f32>(2, r * i), normal::<f32>(3, o * r));
        let update = LowRank { b: &b, a: &a, rank: r, scale: s };
        let run = || {
            let mut out = vec![0.0; o];
            forward(&Dense(&w, i), update, &mut out);
            out
        };
        assert_same_for_threads(run);
        let entry = |o: usize, j: usize| {
            let low: f64 = (0..r).map(|k| f64::from(b[o * r + k]) * f64::from(a[k * i + j])).sum();
            f64::from(w[o * i + j]) + f64::from(s) * low
        };
        let want: Vec<f64> =
            (0..o).map(|o| (0..i).map(|j| entry(o, j).powi(2)).sum::<f64>().sqrt()).collect();
        assert_close(&run(), &want, 1e-6);
    }

    #[test]
    fn an_update_of_zero_leaves_the_norms_bits() {
        let (o, i, r) = (70, 33, 4);
        let (w, a) = (normal::<f32>(1, o * i), normal::<f32>(2, r * i));
        let norms = |rank: usize| {
            let mut out = vec![0.0; o];
            let update = LowRank { b: &vec![0.0; o * rank], a: &a[..rank * i], rank, scale: 2.0 };
            forward(&Dense(&w, i), update, &mut out);
            out
        };
        assert_eq!(norms(r), norms(0));
    }
}
