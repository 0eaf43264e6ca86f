//! What the tests of all operations share.

use crate::Real;
use crate::philox::Stream;

/// `n` standard normal values; other seeds give other values.
pub fn normal<T: Real>(seed: u64, n: usize) -> Vec<T> {
    let mut x = vec![T::ZERO; n];
    Stream::new(seed, 0x7e57).fill_normal(0, 1.0, &mut x);
    x
}

/// The same values in double precision.
pub fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().map(|x| *x as f64).collect()
}

/// Asserts that each entry of `got` is within `tolerance` of `want`, relative to the largest entry.
#[track_caller]
pub fn assert_close<T: Real>(got: &[T], want: &[f64], tolerance: f64) {
    assert_eq!(got.len(), want.len());
    let largest = want.iter().fold(1e-30, |a: f64, x| a.max(x.abs()));
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        let off = (g.to_f64() - w).abs() / largest;
        assert!(off <= tolerance, "entry {i}: {g} instead of {w}, off by {off:e} of the largest");
    }
}

/// Asserts that each entry of `got` is within `tolerance` of `want`, relative to its own of `sizes`: the sum of
/// the magnitudes whose sum it is. What rounding does to a sum goes by those, however much of it cancels.
#[track_caller]
pub fn assert_sums<T: Real>(got: &[T], want: &[f64], sizes: &[f64], tolerance: f64) {
    assert_eq!((got.len(), want.len()), (want.len(), sizes.len()));
    for (i, ((g, w), size)) in got.iter().zip(want).zip(sizes).enumerate() {
        let off = (g.to_f64() - w).abs();
        assert!(off <= tolerance * size, "entry {i}: {g} instead of {w}, off by {off:e}, a sum of {size}");
    }
}

/// The magnitudes in double precision.
pub fn magnitudes(x: &[f32]) -> Vec<f64> {
    x.iter().map(|x| f64::from(x.abs())).collect()
}

/// Asserts that `grad` is the gradient of `f` at `x`, by central differences.
#[track_caller]
pub fn assert_gradient(x: &[f64], grad: &[f64], f: impl Fn(&[f64]) -> f64) {
    assert_eq!(x.len(), grad.len());
    let h = 1e-5;
    let slope = |i: usize| {
        let at = |dx: f64| {
            let mut moved = x.to_vec();
            moved[i] += dx;
            f(&moved)
        };
        (at(h) - at(-h)) / (2.0 * h)
    };
    let slopes: Vec<f64> = (0..x.len()).map(slope).collect();
    assert!(
        x.is_empty() || slopes.iter().any(|s| s.abs() > 1e-6),
        "the function does not depend on its input"
    );
    assert_close(grad, &slopes, 1e-7);
}

/// Σ a·b, to make a scalar of an output.
pub fn weighted(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// Asserts that `f` gives the same bits on one, two, three and eight threads.
#[track_caller]
pub fn assert_same_for_threads<T: Real>(f: impl Fn() -> Vec<T> + Sync) {
    let on =
        |threads| rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool").install(&f);
    let one = on(1);
    assert!(one.iter().any(|x| *x != T::ZERO), "nothing was computed");
    for threads in [2, 3, 8] {
        let bits = |x: &[T]| x.iter().map(|x| x.to_f64().to_bits()).collect::<Vec<_>>();
        assert!(bits(&on(threads)) == bits(&one), "{threads} threads give other bits than one");
    }
}

/// Says once in this process that a case was left out, and why.
pub fn skipped(why: &'static str) {
    static SAID: std::sync::Mutex<Vec<&str>> = std::sync::Mutex::new(Vec::new());
    let mut said = SAID.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if !said.contains(&why) {
        eprintln!("skipped: {why}");
        said.push(why);
    }
}
