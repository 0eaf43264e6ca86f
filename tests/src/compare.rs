//! How far numbers are from what they should be.

/// The largest |x|.
pub fn largest(x: &[f32]) -> f64 {
    x.iter().fold(0.0, |m, v| m.max(f64::from(v.abs())))
}

/// The largest |a − b|; NaN where either holds one.
pub fn difference(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len(), "different numbers of numbers");
    a.iter().zip(b).fold(0.0, |m, (a, b)| {
        let d = (f64::from(*a) - f64::from(*b)).abs();
        if d.is_nan() || d > m { d } else { m }
    })
}

/// ‖a − b‖ / ‖b‖.
pub fn relative_norm(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len(), "different numbers of numbers");
    let square = |x: f64| x * x;
    let off: f64 = a.iter().zip(b).map(|(a, b)| square(f64::from(*a) - f64::from(*b))).sum();
    let norm: f64 = b.iter().map(|b| square(f64::from(*b))).sum();
    off.sqrt() / norm.sqrt().max(f64::MIN_POSITIVE)
}

/// Fails unless the largest difference is at most `tolerance` of the largest
/// number of `expected`; an `expected` of zeros alone proves nothing and fails too.
#[track_caller]
pub fn close(what: &str, found: &[f32], expected: &[f32], tolerance: f64) {
    let scale = largest(expected);
    assert!(scale > 0.0, "{what}: nothing but zeros to compare with");
    let off = difference(found, expected) / scale;
    assert!(off <= tolerance, "{what}: off by {off:.2e} of the largest, allowed {tolerance:.0e}");
}

/// Fails unless both hold the same bits.
#[track_caller]
pub fn same_bits(what: &str, found: &[f32], expected: &[f32]) {
    assert_eq!(found.len(), expected.len(), "{what}: different numbers of numbers");
    let bits = found.iter().zip(expected).position(|(a, b)| a.to_bits() != b.to_bits());
    if let Some(i) = bits {
        panic!("{what}: number {i} of {} is {} and should be {}", found.len(), found[i], expected[i]);
    }
}
