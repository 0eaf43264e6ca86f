//! Dense matrix products in the three forms that a linear layer needs; all matrices row-major.
//!
//! nt: y[m×n] (+)= α · x[m×k] · w[n×k]ᵀ      forward
//! nn: gx[m×k] (+)= α · g[m×n] · w[n×k]      gradient of the input
//! tn: gw[n×k] (+)= α · g[m×n]ᵀ · x[m×k]     gradient of the weight
//!
//! Cost: 2·m·n·k operations each. The output is cut into tiles by shape alone, so the number of threads does not
//! change a bit; each is one single-threaded product of the `gemm` crate, or ours in `panels`. With at
//! most [`FEW_ROWS`] rows `nt` takes a path of dot products that is bound by reading `w`; there a
//! row's result does not depend on how many rows come with it.

use crate::Real;
use crate::dot;
#[cfg(target_arch = "x86_64")]
use crate::panels;
use crate::split::{Shared, tasks};

/// Up to this many rows `nt` computes dot products instead of tiles.
pub const FEW_ROWS: usize = 8;

/// Rows of `w` that make one task of the dot-product path.
const DOT_ROWS: usize = 32;

/// A strided matrix operand: element (i, j) lies at `start + i·row + j·col`.
#[derive(Clone, Copy)]
pub(crate) struct Strided<P> {
    pub start: P,
    pub row: isize,
    pub col: isize,
}

impl<P> Strided<P> {
    pub(crate) fn new(start: P, row: usize, col: usize) -> Self {
        Strided { start, row: row as isize, col: col as isize }
    }

    /// For tasks to read through.
    pub(crate) fn sendable(self) -> Sendable<P> {
        Sendable(self)
    }
}

/// c[m×n] (+)= α · a[m×k] · b[k×n] on the calling thread.
///
/// # Safety
/// All elements of the three operands lie in live allocations, and `c` belongs to the caller alone.
#[allow(clippy::too_many_arguments)] // the operands of a matrix product
pub(crate) unsafe fn product<T: Real>(
    (m, n, k): (usize, usize, usize),
    alpha: T,
    a: Strided<*const T>,
    b: Strided<*const T>,
    accumulate: bool,
    c: Strided<*mut T>,
) {
    // SAFETY: the caller's promise.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            c.start,
            c.col,
            c.row,
            accumulate,
            a.start,
            a.col,
            a.row,
            b.start,
            b.col,
            b.row,
            T::ONE,
            alpha,
            false,
            false,
            false,
            gemm::Parallelism::None,
        )
    }
}

/// Tile of an `rows`×`cols` output with inner length `inner`: big enough for the product to be
/// efficient, small enough to give many processors something to do.
fn tile(rows: usize, cols: usize, inner: usize) -> (usize, usize) {
    const ENOUGH_TILES: usize = 16;
    const LEAST_WORK: usize = 1 << 20; // multiply-adds
    let (mut r, mut c) = (rows.min(256), cols.min(512));
    while rows.div_ceil(r) * cols.div_ceil(c) < ENOUGH_TILES && r * c * inner >= 2 * LEAST_WORK {
        if r >= c && r > 16 {
            r = r.div_ceil(2).next_multiple_of(16);
        } else if c > 16 {
            c = c.div_ceil(2).next_multiple_of(16);
        } else {
            break;
        }
    }
    (r, c)
}

/// c[rows×cols] (+)= α · a · b, tile by tile. `a` is rows×inner, `b` is inner×cols, any strides.
///
/// # Safety
/// `a` and `b` cover their shapes.
unsafe fn tiled<T: Real>(
    (rows, cols, inner): (usize, usize, usize),
    alpha: T,
    a: Strided<*const T>,
    b: Strided<*const T>,
    accumulate: bool,
    c: &mut [T],
) {
    if rows == 0 || cols == 0 {
        return;
    }
    if inner == 0 {
        if !accumulate {
            c.fill(T::ZERO);
        }
        return;
    }
    #[cfg(target_arch = "x86_64")]
    if panels::suits((rows, cols, inner))
        && let Some(c) = T::as_f32_mut(c)
    {
        let narrow = |x: Strided<*const T>| Strided { start: x.start.cast::<f32>(), row: x.row, col: x.col };
        let alpha = alpha.to_f64() as f32;
        // SAFETY: T is f32; the rest is the caller's promise.
        return unsafe { panels::product((rows, cols, inner), alpha, narrow(a), narrow(b), accumulate, c) };
    }
    let (tr, tc) = tile(rows, cols, inner);
    let down = rows.div_ceil(tr);
    let (a, b, out) = (a.sendable(), b.sendable(), Shared::new(c));
    tasks(down * cols.div_ceil(tc), |t| {
        let (a, b) = (a.get(), b.get());
        let (r0, c0) = (t % down * tr, t / down * tc);
        let (m, n) = (tr.min(rows - r0), tc.min(cols - c0));
        // SAFETY: tiles do not overlap; operands cover their shapes.
        unsafe {
            let a = Strided { start: a.start.offset(r0 as isize * a.row), ..a };
            let b = Strided { start: b.start.offset(c0 as isize * b.col), ..b };
            let c = Strided::new(out.at(r0 * cols + c0), cols, 1);
            product((m, n, inner), alpha, a, b, accumulate, c);
        }
    });
}

/// Lets tasks read through a pointer that outlives them.
#[derive(Clone, Copy)]
pub(crate) struct Sendable<P>(Strided<P>);
// SAFETY: read-only operands, alive while the tasks run.
unsafe impl<P> Send for Sendable<P> {}
// SAFETY: as above.
unsafe impl<P> Sync for Sendable<P> {}
impl<P: Copy> Sendable<P> {
    pub(crate) fn get(&self) -> Strided<P> {
        self.0
    }
}

fn operand<T>(x: &[T], row: usize, col: usize) -> Strided<*const T> {
    Strided::new(x.as_ptr(), row, col)
}

/// `y[m×n] (+)= alpha · x[m×k] · w[n×k]ᵀ`
///
/// # Panics
/// If a slice's length is not its shape.
#[allow(clippy::too_many_arguments)] // the operands of a matrix product
pub fn nt<T: Real>(m: usize, n: usize, k: usize, alpha: T, x: &[T], w: &[T], accumulate: bool, y: &mut [T]) {
    check("x", x.len(), m, k);
    check("w", w.len(), n, k);
    check("y", y.len(), m, n);
    if m <= FEW_ROWS && m > 0 && n > 0 {
        let out = Shared::new(y);
        tasks(n.div_ceil(DOT_ROWS), |t| {
            let first = t * DOT_ROWS;
            let rows = DOT_ROWS.min(n - first);
            // SAFETY: each task owns columns first..first+rows of every row of y.
            unsafe {
                few_rows(m, k, alpha, x, &w[first * k..(first + rows) * k], accumulate, out, (first, rows), n)
            }
        });
        return;
    }
    // SAFETY: lengths checked above.
    unsafe { tiled((m, n, k), alpha, operand(x, k, 1), operand(w, 1, k), accumulate, y) }
}

/// `gx[m×k] (+)= alpha · g[m×n] · w[n×k]`
///
/// # Panics
/// If a slice's length is not its shape.
#[allow(clippy::too_many_arguments)] // the operands of a matrix product
pub fn nn<T: Real>(m: usize, n: usize, k: usize, alpha: T, g: &[T], w: &[T], accumulate: bool, gx: &mut [T]) {
    check("g", g.len(), m, n);
    check("w", w.len(), n, k);
    check("gx", gx.len(), m, k);
    // SAFETY: lengths checked above.
    unsafe { tiled((m, k, n), alpha, operand(g, n, 1), operand(w, k, 1), accumulate, gx) }
}

/// `gw[n×k] (+)= alpha · g[m×n]ᵀ · x[m×k]`
///
/// # Panics
/// If a slice's length is not its shape.
#[allow(clippy::too_many_arguments)] // the operands of a matrix product
pub fn tn<T: Real>(m: usize, n: usize, k: usize, alpha: T, g: &[T], x: &[T], accumulate: bool, gw: &mut [T]) {
    check("g", g.len(), m, n);
    check("x", x.len(), m, k);
    check("gw", gw.len(), n, k);
    // SAFETY: lengths checked above.
    unsafe { tiled((n, k, m), alpha, operand(g, 1, n), operand(x, k, 1), accumulate, gw) }
}

fn check(name: &str, len: usize, rows: usize, cols: usize) {
    assert_eq!(len, rows * cols, "`{name}` must hold {rows}×{cols} values");
}

/// y[:, first..first + rows] (+)= α · x · wᵀ for a few rows of x and `rows` rows of w, by dot products.
/// `n` is the row stride of y.
///
/// # Safety
/// The caller owns those columns of y.
#[allow(clippy::too_many_arguments)] // the operands of a matrix product
pub(crate) unsafe fn few_rows<T: Real>(
    m: usize,
    k: usize,
    alpha: T,
    x: &[T],
    w: &[T],
    accumulate: bool,
    y: Shared<T>,
    (first, rows): (usize, usize),
    n: usize,
) {
    for j in 0..rows {
        let mut dots = [T::ZERO; FEW_ROWS];
        let dots = &mut dots[..m];
        dot::rows(x, &w[j * k..(j + 1) * k], dots);
        for (i, d) in dots.iter().enumerate() {
            // SAFETY: the caller owns this column.
            let y = unsafe { &mut *y.at(i * n + first + j) };
            *y = if accumulate { *y + alpha * *d } else { alpha * *d };
        }
    }
}

/// The same products written down directly.
pub mod reference {
    use crate::Real;

    /// `y[m×n] = x[m×k] · w[n×k]ᵀ`
    pub fn nt<T: Real>(m: usize, n: usize, k: usize, x: &[T], w: &[T]) -> Vec<T> {
        let at = |i: usize, j: usize| (0..k).map(|l| x[i * k + l] * w[j * k + l]).sum();
        (0..m * n).map(|e| at(e / n, e % n)).collect()
    }

    /// `gx[m×k] = g[m×n] · w[n×k]`
    pub fn nn<T: Real>(m: usize, n: usize, k: usize, g: &[T], w: &[T]) -> Vec<T> {
        let at = |i: usize, j: usize| (0..n).map(|l| g[i * n + l] * w[l * k + j]).sum();
        (0..m * k).map(|e| at(e / k, e % k)).collect()
    }

    /// `gw[n×k] = g[m×n]ᵀ · x[m×k]`
    pub fn tn<T: Real>(m: usize, n: usize, k: usize, g: &[T], x: &[T]) -> Vec<T> {
        let at = |i: usize, j: usize| (0..m).map(|l| g[l * n + i] * x[l * k + j]).sum();
        (0..n * k).map(|e| at(e / k, e % k)).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::{assert_close, assert_same_for_threads, assert_sums, magnitudes, normal, wide};

    /// All three forms in f32 against the reference in f64, overwriting and accumulating.
    fn check(m: usize, n: usize, k: usize) {
        let (x, w, g) = (normal::<f32>(1, m * k), normal::<f32>(2, n * k), normal::<f32>(3, m * n));
        type Form = fn(usize, usize, usize, &[f64], &[f64]) -> Vec<f64>;
        for accumulate in [false, true] {
            let close = |got: &[f32], form: Form, a: &[f32], b: &[f32], start: &[f32]| {
                // Of the numbers, and of their magnitudes.
                let of = |of: fn(&[f32]) -> Vec<f64>| -> Vec<f64> {
                    let start = of(start).into_iter().map(|s| if accumulate { s } else { 0.0 });
                    form(m, n, k, &of(a), &of(b)).iter().zip(start).map(|(p, s)| 0.5 * p + s).collect()
                };
                assert_sums(got, &of(wide), &of(magnitudes), 1e-6);
            };
            let start = normal::<f32>(4, m * n);
            let mut y = start.clone();
            nt(m, n, k, 0.5, &x, &w, accumulate, &mut y);
            close(&y, reference::nt, &x, &w, &start);
            let start = normal::<f32>(5, m * k);
            let mut gx = start.clone();
            nn(m, n, k, 0.5, &g, &w, accumulate, &mut gx);
            close(&gx, reference::nn, &g, &w, &start);
            let start = normal::<f32>(6, n * k);
            let mut gw = start.clone();
            tn(m, n, k, 0.5, &g, &x, accumulate, &mut gw);
            close(&gw, reference::tn, &g, &x, &start);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn products_equal_the_reference(m in 0usize..40, n in 0usize..70, k in 0usize..70) {
            check(m, n, k);
        }
    }

    #[test]
    fn products_of_many_tiles_equal_the_reference() {
        check(300, 530, 67);
        check(9, 700, 130);
        check(600, 16, 300);
    }

    #[test]
    fn double_precision_is_exact_to_double_precision() {
        let (m, n, k) = (13, 37, 41);
        let (x, w) = (normal::<f64>(1, m * k), normal::<f64>(2, n * k));
        let mut y = vec![0.0; m * n];
        nt(m, n, k, 1.0, &x, &w, false, &mut y);
        assert_close(&y, &reference::nt(m, n, k, &x, &w), 1e-14);
    }

    #[test]
    fn nan_stays_in_its_row() {
        for m in [3, 40] {
            let (n, k) = (50, 33);
            let (mut x, w) = (normal::<f32>(1, m * k), normal::<f32>(2, n * k));
            x[k + 5] = f32::NAN;
            let mut y = vec![0.0; m * n];
            nt(m, n, k, 1.0, &x, &w, false, &mut y);
            for (i, row) in y.chunks(n).enumerate() {
                assert!(row.iter().all(|y| y.is_nan() == (i == 1)), "row {i} of {m}");
            }
        }
    }

    #[test]
    fn few_rows_do_not_depend_on_their_company() {
        let (n, k) = (70, 100);
        let (x, w) = (normal::<f32>(1, FEW_ROWS * k), normal::<f32>(2, n * k));
        let mut all = vec![0.0; FEW_ROWS * n];
        nt(FEW_ROWS, n, k, 1.0, &x, &w, false, &mut all);
        for m in 1..FEW_ROWS {
            let mut y = vec![0.0; m * n];
            nt(m, n, k, 1.0, &x[..m * k], &w, false, &mut y);
            assert_eq!(y, all[..m * n]);
        }
    }

    #[test]
    fn threads_do_not_change_a_bit() {
        for m in [5, 300] {
            let (n, k) = (500, 200);
            let (x, w, g) = (normal::<f32>(1, m * k), normal::<f32>(2, n * k), normal::<f32>(3, m * n));
            assert_same_for_threads(|| {
                let (mut y, mut gx, mut gw) = (vec![0.0; m * n], vec![0.0; m * k], vec![0.0; n * k]);
                nt(m, n, k, 1.0, &x, &w, false, &mut y);
                nn(m, n, k, 1.0, &g, &w, false, &mut gx);
                tn(m, n, k, 1.0, &g, &x, false, &mut gw);
                [y, gx, gw].concat()
            });
        }
    }
}
