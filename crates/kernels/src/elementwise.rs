//! Elementwise arithmetic, sums over rows, columns and everything, and dropout.
//!
//! Sums over a whole slice are taken in f64 over fixed chunks whose results meet in order, so that a
//! gradient norm has the same bits on any number of threads.

use crate::Real;
use crate::philox::Stream;
use crate::split::{CHUNK, Tasks, partials, rows_per_task};
use crate::wide::wide;

/// Rows whose column sums are one task.
const SUM_ROWS: usize = 64;

fn same(a: usize, b: usize) {
    assert_eq!(a, b, "slices must be equally long");
}

/// Calls `f` with matching chunks of two slices, in parallel where there is more than one.
fn zip2<T: Real>(x: &[T], y: &mut [T], f: impl Fn(&[T], &mut [T]) + Sync + Send) {
    same(x.len(), y.len());
    if y.len() <= CHUNK {
        return f(x, y);
    }
    y.chunks_mut(CHUNK).zip(x.chunks(CHUNK)).each_task(|(y, x)| f(x, y));
}

/// As [`zip2`] with two inputs.
fn zip3<T: Real>(a: &[T], b: &[T], y: &mut [T], f: impl Fn(&[T], &[T], &mut [T]) + Sync + Send) {
    same(a.len(), y.len());
    same(b.len(), y.len());
    if y.len() <= CHUNK {
        return f(a, b, y);
    }
    y.chunks_mut(CHUNK).zip(a.chunks(CHUNK)).zip(b.chunks(CHUNK)).each_task(|((y, a), b)| f(a, b, y));
}

/// `y = a + b`
///
/// # Panics
/// If the slices differ in length; so do all functions of this module that take several.
pub fn add<T: Real>(a: &[T], b: &[T], y: &mut [T]) {
    zip3(a, b, y, add_chunk);
}

/// `y += x`
pub fn add_assign<T: Real>(y: &mut [T], x: &[T]) {
    zip2(x, y, add_assign_chunk);
}

/// `y += s · x`
pub fn add_scaled<T: Real>(y: &mut [T], s: T, x: &[T]) {
    zip2(x, y, |x, y| add_scaled_chunk(s, x, y));
}

/// `y = s · x`
pub fn scale<T: Real>(x: &[T], s: T, y: &mut [T]) {
    zip2(x, y, |x, y| scale_chunk(s, x, y));
}

/// `y *= s`
pub fn scale_assign<T: Real>(y: &mut [T], s: T) {
    if y.len() <= CHUNK {
        return scale_assign_chunk(y, s);
    }
    y.chunks_mut(CHUNK).each_task(|y| scale_assign_chunk(y, s));
}

/// `y = a · b`, entry by entry.
pub fn mul<T: Real>(a: &[T], b: &[T], y: &mut [T]) {
    zip3(a, b, y, mul_chunk);
}

/// Adds `bias` to every row of `y`, rows as long as `bias`.
///
/// # Panics
/// If `y` is not whole rows.
pub fn add_bias<T: Real>(y: &mut [T], bias: &[T]) {
    let n = bias.len();
    if n == 0 {
        return same(y.len(), 0);
    }
    assert_eq!(y.len() % n, 0, "`y` must be rows of {n}");
    let rows = rows_per_task(n);
    if y.len() <= rows * n {
        return y.chunks_exact_mut(n).for_each(|row| add_assign_chunk(bias, row));
    }
    y.chunks_mut(rows * n).each_task(|y| y.chunks_exact_mut(n).for_each(|row| add_assign_chunk(bias, row)));
}

/// `out += Σ_rows g`, rows of `n`: the gradient of a bias.
///
/// # Panics
/// If `g` is not whole rows of `n` or `out` not `n` long.
pub fn column_sums<T: Real>(g: &[T], n: usize, out: &mut [T]) {
    same(out.len(), n);
    if n == 0 {
        return;
    }
    assert_eq!(g.len() % n, 0, "`g` must be rows of {n}");
    let span = SUM_ROWS * n;
    let sums = partials(g.len().div_ceil(span), |t| {
        let mut sum = vec![T::ZERO; n];
        g[t * span..g.len().min((t + 1) * span)]
            .chunks_exact(n)
            .for_each(|row| add_assign_chunk(row, &mut sum));
        sum
    });
    for sum in sums {
        add_assign_chunk(&sum, out);
    }
}

/// Σ x in f64; the same bits for any number of threads.
pub fn sum<T: Real>(x: &[T]) -> f64 {
    partials(x.len().div_ceil(CHUNK), |t| sum_chunk(&x[t * CHUNK..x.len().min((t + 1) * CHUNK)])).iter().sum()
}

/// Σ x² in f64; the same bits for any number of threads.
pub fn sum_of_squares<T: Real>(x: &[T]) -> f64 {
    partials(x.len().div_ceil(CHUNK), |t| squares_chunk(&x[t * CHUNK..x.len().min((t + 1) * CHUNK)]))
        .iter()
        .sum()
}

/// Whether no entry is infinite or NaN.
pub fn all_finite<T: Real>(x: &[T]) -> bool {
    if x.len() <= CHUNK {
        return finite_chunk(x);
    }
    let finite = |t: usize| finite_chunk(&x[t * CHUNK..x.len().min((t + 1) * CHUNK)]);
    partials(x.len().div_ceil(CHUNK), finite).into_iter().all(|finite| finite)
}

/// Inverted dropout: entry i is `x[i] / (1 − p)` if `stream.uniform_at(first + i) ≥ p`, else 0.
///
/// The mask is a pure function of the stream and the index, so the backward is this same function on
/// the gradient, and a recomputed forward drops the same entries. `p = 0` copies, `p ≥ 1` zeroes.
pub fn dropout<T: Real>(x: &[T], p: f64, stream: &Stream, first: u64, y: &mut [T]) {
    same(x.len(), y.len());
    if p <= 0.0 {
        return y.copy_from_slice(x);
    }
    if p >= 1.0 {
        return y.fill(T::ZERO);
    }
    let keep = T::from_f64(1.0 / (1.0 - p));
    // uniform = bits / 2³², so `uniform ≥ p` is `bits ≥ p·2³²`, rounded up.
    let least = (p * 4_294_967_296.0).ceil() as u64;
    y.chunks_mut(CHUNK).zip(x.chunks(CHUNK)).enumerate().each_task(|(c, (y, x))| {
        let mut bits = [0u32; 256];
        for (b, (y, x)) in y.chunks_mut(256).zip(x.chunks(256)).enumerate() {
            let at = first.wrapping_add((c * CHUNK + b * 256) as u64);
            stream.fill_u32(at, &mut bits[..x.len()]);
            for ((y, x), bits) in y.iter_mut().zip(x).zip(&bits) {
                *y = if *bits as u64 >= least { *x * keep } else { T::ZERO };
            }
        }
    });
}

wide! {
    fn add_chunk[T: Real](a: &[T], b: &[T], y: &mut [T]) {
        for ((y, a), b) in y.iter_mut().zip(a).zip(b) {
            *y = *a + *b;
        }
    }

    fn mul_chunk[T: Real](a: &[T], b: &[T], y: &mut [T]) {
        for ((y, a), b) in y.iter_mut().zip(a).zip(b) {
            *y = *a * *b;
        }
    }

    fn add_assign_chunk[T: Real](x: &[T], y: &mut [T]) {
        for (y, x) in y.iter_mut().zip(x) {
            *y += *x;
        }
    }

    pub(crate) fn add_scaled_chunk[T: Real](s: T, x: &[T], y: &mut [T]) {
        for (y, x) in y.iter_mut().zip(x) {
            *y += s * *x;
        }
    }

    pub(crate) fn scale_chunk[T: Real](s: T, x: &[T], y: &mut [T]) {
        for (y, x) in y.iter_mut().zip(x) {
            *y = s * *x;
        }
    }

    fn scale_assign_chunk[T: Real](y: &mut [T], s: T) {
        for y in y {
            *y *= s;
        }
    }

    fn finite_chunk[T: Real](x: &[T]) -> bool {
        // x·0 is 0 for every finite x and NaN otherwise; a sum of zeros vectorises where `all` cannot.
        let (chunks, rest) = x.as_chunks::<16>();
        let mut acc = [T::ZERO; 16];
        for c in chunks {
            for l in 0..16 {
                acc[l] += c[l] * T::ZERO;
            }
        }
        acc.iter().all(|a| *a == T::ZERO) && rest.iter().all(|x| x.is_finite())
    }

    pub(crate) fn sum_chunk[T: Real](x: &[T]) -> f64 {
        let (chunks, rest) = x.as_chunks::<16>();
        let mut acc = [0.0f64; 16];
        for c in chunks {
            for l in 0..16 {
                acc[l] += c[l].to_f64();
            }
        }
        acc.iter().sum::<f64>() + rest.iter().map(|x| x.to_f64()).sum::<f64>()
    }

    fn squares_chunk[T: Real](x: &[T]) -> f64 {
        let (chunks, rest) = x.as_chunks::<16>();
        let mut acc = [0.0f64; 16];
        for c in chunks {
            for l in 0..16 {
                acc[l] += c[l].to_f64() * c[l].to_f64();
            }
        }
        acc.iter().sum::<f64>() + rest.iter().map(|x| x.to_f64() * x.to_f64()).sum::<f64>()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::{assert_close, assert_same_for_threads, normal};

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn equal_the_plain_loops(n in 0usize..40_000) {
            let (a, b) = (normal::<f32>(1, n), normal::<f32>(2, n));
            let map = |f: &dyn Fn(f32, f32) -> f32| a.iter().zip(&b).map(|(a, b)| f(*a, *b)).collect::<Vec<_>>();
            let mut y = vec![f32::NAN; n];
            add(&a, &b, &mut y);
            prop_assert_eq!(&y, &map(&|a, b| a + b));
            mul(&a, &b, &mut y);
            prop_assert_eq!(&y, &map(&|a, b| a * b));
            scale(&a, 3.0, &mut y);
            prop_assert_eq!(&y, &map(&|a, _| 3.0 * a));
            scale_assign(&mut y, 0.5);
            prop_assert_eq!(&y, &map(&|a, _| 3.0 * a * 0.5));
            y.copy_from_slice(&b);
            add_assign(&mut y, &a);
            prop_assert_eq!(&y, &map(&|a, b| b + a));
            y.copy_from_slice(&b);
            add_scaled(&mut y, 0.1, &a);
            prop_assert_eq!(&y, &map(&|a, b| b + 0.1 * a));
            let exact: f64 = a.iter().map(|a| *a as f64).sum();
            prop_assert!((sum(&a) - exact).abs() < 1e-9);
            let exact: f64 = a.iter().map(|a| (*a as f64).powi(2)).sum();
            prop_assert!((sum_of_squares(&a) - exact).abs() <= 1e-12 * exact);
            prop_assert!(all_finite(&a));
        }

        #[test]
        fn bias_and_its_gradient(rows in 0usize..200, n in 0usize..50) {
            let (y, bias) = (normal::<f64>(1, rows * n), normal::<f64>(2, n));
            let mut with = y.clone();
            add_bias(&mut with, &bias);
            for (i, (w, y)) in with.iter().zip(&y).enumerate() {
                prop_assert_eq!(*w, y + bias[i % n]);
            }
            let mut sums = bias.clone();
            column_sums(&y, n, &mut sums);
            let want: Vec<f64> = (0..n).map(|c| bias[c] + (0..rows).map(|r| y[r * n + c]).sum::<f64>()).collect();
            assert_close(&sums, &want, 1e-12);
        }
    }

    #[test]
    fn one_bad_entry_is_seen_anywhere() {
        for n in [1, 16, 17, 40_000] {
            for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                for at in [0, n / 2, n - 1] {
                    let mut x = vec![f32::MAX; n];
                    assert!(all_finite(&x));
                    x[at] = bad;
                    assert!(!all_finite(&x), "{bad} at {at} of {n}");
                }
            }
        }
    }

    #[test]
    fn dropout_is_its_rule_and_keeps_the_mean() {
        let (n, first, s) = (40_000, 77, Stream::new(5, 6));
        let x = vec![1.0f64; n];
        for p in [0.0, 0.1, 0.5, 1.0] {
            let mut y = vec![f64::NAN; n];
            dropout(&x, p, &s, first, &mut y);
            for (i, y) in y.iter().enumerate() {
                let kept = s.uniform_at(first + i as u64) >= p;
                assert_eq!(*y, if kept { 1.0 / (1.0 - p) } else { 0.0 });
            }
            let mean = y.iter().sum::<f64>() / n as f64;
            let error = if p < 1.0 { (p / (1.0 - p) / n as f64).sqrt() } else { 0.0 };
            assert!((mean - if p < 1.0 { 1.0 } else { 0.0 }).abs() <= 5.0 * error);
        }
        // What is dropped at an address does not depend on where the slice starts.
        let (mut all, mut part) = (vec![0.0; n], vec![0.0; 999]);
        dropout(&x, 0.3, &s, first, &mut all);
        dropout(&x[..999], 0.3, &s, first + 13, &mut part);
        assert_eq!(all[13..13 + 999], part);
    }

    #[test]
    fn threads_do_not_change_a_bit() {
        let g = normal::<f32>(1, 100_000);
        assert_same_for_threads(|| {
            let mut sums = vec![0.0; 50];
            column_sums(&g, 50, &mut sums);
            let mut dropped = vec![0.0; g.len()];
            dropout(&g, 0.3, &Stream::new(1, 1), 3, &mut dropped);
            sums.extend([sum(&g) as f32, sum_of_squares(&g) as f32]);
            [sums, dropped].concat()
        });
    }
}
