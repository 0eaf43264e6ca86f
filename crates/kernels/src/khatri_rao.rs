//! Every product of a row of one matrix with a row of another (Khatri–Rao).
//!
//! y[m, i·q + j, n] = a[m, i, n] · b[m, j, n]          a: m×p×n, b: m×q×n, y: m×pq×n
//! ga[m, i, n] = Σ_j g[m, i·q + j, n] · b[m, j, n]     gb[m, j, n] = Σ_i g[m, i·q + j, n] · a[m, i, n]
//!
//! With n = 1 each of m rows becomes the outer product of two rows; with m = 1 the n columns do. It is
//! what turns (a₁b₁) ⊙ (a₂b₂) into one product of two thin matrices.

use crate::Real;

/// Sizes of the operands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Matrices on each side.
    pub m: usize,
    /// Rows of `a`.
    pub p: usize,
    /// Rows of `b`.
    pub q: usize,
    /// Columns of both.
    pub n: usize,
}

impl Shape {
    fn check<T>(&self, a: &[T], b: &[T], y: &[T]) {
        let Shape { m, p, q, n } = *self;
        assert!(
            a.len() == m * p * n && b.len() == m * q * n && y.len() == m * p * q * n,
            "slices must fit {self:?}"
        );
    }

    /// Calls `f` with the starts of matching rows of `a`, `b` and `y`.
    fn each(&self, mut f: impl FnMut(usize, usize, usize)) {
        let Shape { m, p, q, n } = *self;
        for k in 0..m {
            for i in 0..p {
                for j in 0..q {
                    f((k * p + i) * n, (k * q + j) * n, ((k * p + i) * q + j) * n);
                }
            }
        }
    }
}

/// All products.
///
/// # Panics
/// If the slices do not fit the shape.
pub fn forward<T: Real>(s: Shape, a: &[T], b: &[T], y: &mut [T]) {
    s.check(a, b, y);
    s.each(|ai, bi, yi| {
        let (a, b) = (&a[ai..ai + s.n], &b[bi..bi + s.n]);
        for ((y, a), b) in y[yi..yi + s.n].iter_mut().zip(a).zip(b) {
            *y = *a * *b;
        }
    });
}

/// Adds the gradients towards `a` and `b`.
///
/// # Panics
/// If the slices do not fit the shape.
pub fn backward<T: Real>(s: Shape, g: &[T], a: &[T], b: &[T], ga: &mut [T], gb: &mut [T]) {
    s.check(a, b, g);
    s.check(ga, gb, g);
    s.each(|ai, bi, yi| {
        for n in 0..s.n {
            ga[ai + n] += g[yi + n] * b[bi + n];
            gb[bi + n] += g[yi + n] * a[ai + n];
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_gradient, normal, weighted};

    #[test]
    fn by_hand() {
        let mut y = [0.0; 4];
        forward(Shape { m: 1, p: 2, q: 2, n: 1 }, &[1.0, 2.0], &[3.0, 5.0], &mut y);
        assert_eq!(y, [3.0, 5.0, 6.0, 10.0]);
        let mut y = [0.0; 4];
        forward(Shape { m: 1, p: 1, q: 2, n: 2 }, &[1.0, 2.0], &[3.0, 5.0, 7.0, 11.0], &mut y);
        assert_eq!(y, [3.0, 10.0, 7.0, 22.0]);
    }

    #[test]
    fn gradients() {
        for s in [Shape { m: 4, p: 3, q: 2, n: 1 }, Shape { m: 1, p: 2, q: 3, n: 5 }] {
            let (a, b) = (normal::<f64>(1, s.m * s.p * s.n), normal::<f64>(2, s.m * s.q * s.n));
            let g = normal::<f64>(3, s.m * s.p * s.q * s.n);
            let run = |a: &[f64], b: &[f64]| {
                let mut y = vec![0.0; g.len()];
                forward(s, a, b, &mut y);
                weighted(&y, &g)
            };
            let (mut ga, mut gb) = (vec![0.0; a.len()], vec![0.0; b.len()]);
            backward(s, &g, &a, &b, &mut ga, &mut gb);
            assert_gradient(&a, &ga, |a| run(a, &b));
            assert_gradient(&b, &gb, |b| run(&a, b));
        }
    }
}
