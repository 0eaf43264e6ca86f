//! The thin singular value decomposition A = U diag(s) Vᵀ.
//!
//! s is descending. Of each pair (u, v) the sign is free; here the entry of u that is largest by
//! magnitude (the first of several) is positive.

use anyhow::{Result, anyhow};
use faer::diag::Diag;
use faer::dyn_stack::{MemBuffer, MemStack, StackReq};
use faer::linalg::svd::{ComputeSvdVectors, svd as decompose, svd_scratch};
use faer::{Mat, MatRef, Par};

/// U, s and V of an m × n matrix; k = min(m, n) columns each.
pub struct Svd {
    u: Mat<f64>,
    s: Vec<f64>,
    v: Mat<f64>,
}

impl Svd {
    /// The singular values, descending.
    pub fn values(&self) -> &[f64] {
        &self.s
    }

    /// `count` left singular vectors from number `first` on, `[m × count]` row-major.
    ///
    /// # Panics
    /// If there are fewer than `first + count`.
    pub fn left(&self, first: usize, count: usize) -> Vec<f32> {
        columns(&self.u, first, count)
    }

    /// The same of the right ones, `[n × count]` row-major.
    ///
    /// # Panics
    /// If there are fewer than `first + count`.
    pub fn right(&self, first: usize, count: usize) -> Vec<f32> {
        columns(&self.v, first, count)
    }
}

fn columns(x: &Mat<f64>, first: usize, count: usize) -> Vec<f32> {
    (0..x.nrows()).flat_map(|i| (first..first + count).map(move |j| x[(i, j)] as f32)).collect()
}

/// Decomposes the row-major matrix `a`, `[m × n]`, in f64.
///
/// Cost: about 22·m·n·min(m, n) operations, [`svd_workspace`] bytes for as long as it runs.
///
/// # Errors
/// If `a` holds NaN or infinities.
///
/// # Panics
/// If `a` does not hold m·n numbers.
pub fn svd(m: usize, n: usize, a: &[f32]) -> Result<Svd> {
    assert_eq!(a.len(), m * n, "a matrix of {m}×{n}");
    if a.iter().any(|x| !x.is_finite()) {
        return Err(anyhow!("a matrix with NaN or infinities has no singular values"));
    }
    let k = m.min(n);
    let wide: Vec<f64> = a.iter().map(|x| f64::from(*x)).collect();
    let (mut u, mut s, mut v) = (Mat::zeros(m, k), Diag::zeros(k), Mat::zeros(n, k));
    let mut buffer = MemBuffer::new(scratch(m, n));
    decompose(
        MatRef::from_row_major_slice(&wide, m, n),
        s.as_mut(),
        Some(u.as_mut()),
        Some(v.as_mut()),
        Par::Seq,
        MemStack::new(&mut buffer),
        Default::default(),
    )
    .map_err(|e| anyhow!("the singular values were not found: {e:?}"))?;
    for j in 0..k {
        let largest = (0..m).fold(0, |best, i| if u[(i, j)].abs() > u[(best, j)].abs() { i } else { best });
        if u[(largest, j)] < 0.0 {
            (0..m).for_each(|i| u[(i, j)] = -u[(i, j)]);
            (0..n).for_each(|i| v[(i, j)] = -v[(i, j)]);
        }
    }
    let s = (0..k).map(|j| s[j]).collect();
    Ok(Svd { u, s, v })
}

fn scratch(m: usize, n: usize) -> StackReq {
    let thin = ComputeSvdVectors::Thin;
    svd_scratch::<f64>(m, n, thin, thin, Par::Seq, Default::default())
}

/// Bytes that [`svd`] holds while it runs, its result included.
pub fn svd_workspace(m: usize, n: usize) -> u64 {
    let own = 8 * (m * n + (m + n + 1) * m.min(n));
    (own + scratch(m, n).unaligned_bytes_required()) as u64
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use ramekin_kernels::philox::Stream;

    use super::*;

    fn matrix(seed: u64, n: usize) -> Vec<f32> {
        let mut x = vec![0.0; n];
        Stream::new(seed, 1).fill_normal(0, 1.0, &mut x);
        x
    }

    fn product(svd: &Svd, m: usize, n: usize) -> Vec<f64> {
        let entry = |i: usize, j: usize| -> f64 {
            (0..m.min(n)).map(|k| svd.u[(i, k)] * svd.s[k] * svd.v[(j, k)]).sum()
        };
        (0..m * n).map(|e| entry(e / n, e % n)).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn the_factors_multiply_to_the_matrix(m in 1usize..40, n in 1usize..40, seed: u64) {
            let a = matrix(seed, m * n);
            let svd = svd(m, n, &a).unwrap();
            for (x, y) in product(&svd, m, n).iter().zip(&a) {
                prop_assert!((x - f64::from(*y)).abs() < 1e-12);
            }
            prop_assert!(svd.s.windows(2).all(|w| w[0] >= w[1]) && svd.s.iter().all(|s| *s >= 0.0));
            for (x, rows) in [(&svd.u, m), (&svd.v, n)] {
                for i in 0..m.min(n) {
                    for j in 0..m.min(n) {
                        let dot: f64 = (0..rows).map(|r| x[(r, i)] * x[(r, j)]).sum();
                        prop_assert!((dot - f64::from(u8::from(i == j))).abs() < 1e-12);
                    }
                }
            }
        }
    }

    #[test]
    fn signs_are_fixed_and_the_transpose_agrees() {
        let (m, n) = (5, 3);
        let a = matrix(7, m * n);
        let minus: Vec<f32> = a.iter().map(|x| -x).collect();
        let (one, other) = (svd(m, n, &a).unwrap(), svd(m, n, &minus).unwrap());
        for j in 0..n {
            let largest =
                (0..m).map(|i| one.u[(i, j)]).fold(0.0f64, |a, x| if x.abs() > a.abs() { x } else { a });
            assert!(largest > 0.0);
        }
        let near = |a: &[f32], b: &[f32], s: f32| a.iter().zip(b).all(|(a, b)| (a - s * b).abs() < 1e-6);
        assert!(near(&one.left(0, n), &other.left(0, n), 1.0));
        assert!(near(&one.right(0, n), &other.right(0, n), -1.0));
        assert_eq!(one.right(1, 1).len(), n);
    }

    #[test]
    fn rank_one_and_zero_matrices_have_factors() {
        let a: Vec<f32> = (0..12).map(|i| ((i / 3 + 1) * (i % 3 + 1)) as f32).collect();
        let found = svd(4, 3, &a).unwrap();
        assert!((found.values()[0] - (30f64 * 14.0).sqrt()).abs() < 1e-12);
        assert!(found.values()[1] < 1e-12);
        assert!(svd(4, 3, &[0.0; 12]).unwrap().values().iter().all(|s| *s == 0.0));
    }

    #[test]
    fn nan_is_refused() {
        assert!(svd(1, 2, &[f32::NAN, 1.0]).is_err());
    }

    #[test]
    fn the_workspace_is_more_than_the_factors() {
        assert!(svd_workspace(64, 256) > 8 * (64 * 256 + 64 * 64 + 64 * 256 + 64));
    }
}
