//! Many rows in 8 bits times whole-number codes, which are multiplied as they are: prompts.
//!
//! a\[i,h\] = max |x\[i,l\]| over the 32 inputs l of h, by 127;  q\[i,l\] = round(x\[i,l\] / a\[i,h\])
//! y\[i,j\] = Σ_h a\[i,h\] · s\[j,g(h)\] · (Σ_{l∈h} code\[j,l\]·q\[i,l\] − zero\[j,g(h)\]·Σ_{l∈h} q\[i,l\])
//!
//! Sums of a half-chunk h are exact, those over h in f32. Rounding errs about four times as much as rounding to bf16
//! does, and products take half the time. [`rounded`] is the same rounding for other products.
//!
//! Codes are unpacked into panels of 32 outputs, a piece of the inner dimension at a time, never to memory.

#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(test)]
mod tests;

use crate::packed_rows::Grid;
use crate::wide::wide;

/// Inputs that share a scale.
pub const GROUP: usize = 32;

/// The largest whole number of an input.
const TOP: f32 = 127.0;

/// 1.5 · 2²³: a small number added to it has its nearest whole one, ties to even, in the low bits of the sum.
const WHOLE: f32 = 12_582_912.0;

/// A group's scale and the inverse to multiply with; NaN and infinity have no whole numbers, their scale tells them on.
fn scale(x: &[f32]) -> (f32, f32) {
    // As bits the sizes of numbers are in order, with infinity and NaN behind.
    let most = x.iter().fold(0, |most: u32, x| most.max(x.to_bits() & 0x7fff_ffff));
    let most = f32::from_bits(most);
    match most.is_finite() {
        true if most > 0.0 && (TOP / most).is_finite() => (most / TOP, TOP / most),
        true => (0.0, 0.0),
        false => (f32::NAN, 0.0),
    }
}

/// Of a group that has whole numbers; of another one it is anything, and its scale is NaN.
fn whole(x: f32, inverse: f32) -> i32 {
    ((x * inverse + WHOLE).to_bits() as i32).wrapping_sub(WHOLE.to_bits() as i32)
}

wide! {
    /// A row in whole numbers; for each group its scale and the numbers' sum.
    fn quantise_row[](x: &[f32], q: &mut [i8], scales: &mut [f32], sums: &mut [i32]) {
        for (g, (x, q)) in x.chunks(GROUP).zip(q.chunks_mut(GROUP)).enumerate() {
            let (a, inverse) = scale(x);
            scales[g] = a;
            if inverse == 0.0 {
                q.fill(0);
                sums[g] = 0;
                continue;
            }
            let mut sum = 0;
            for (x, q) in x.iter().zip(q) {
                let n = whole(*x, inverse);
                sum += n;
                *q = n as i8;
            }
            sums[g] = sum;
        }
    }

    fn round_row[](x: &[f32], to: &mut [f32]) {
        for (x, to) in x.chunks(GROUP).zip(to.chunks_mut(GROUP)) {
            let (a, inverse) = scale(x);
            for (x, to) in x.iter().zip(to) {
                *to = a * whole(*x, inverse) as f32;
            }
        }
    }
}

/// The rows of `x`, `k` numbers each, rounded to 8 bits.
pub fn rounded(x: &[f32], k: usize) -> Vec<f32> {
    let mut to = vec![0.0; x.len()];
    if k > 0 {
        x.chunks(k).zip(to.chunks_mut(k)).for_each(|(x, to)| round_row(x, to));
    }
    to
}

/// `y[m×n] = x̂[m×k] · wᵀ`; false, and nothing is done, where this processor or weight has no such way.
///
/// # Panics
/// If a slice's length is not its shape.
pub fn forward(x: &[f32], m: usize, w: &Grid<'_>, y: &mut [f32]) -> bool {
    let (n, k) = w.shape;
    assert_eq!(x.len(), m * k, "`x` must hold {m}×{k} values");
    assert_eq!(y.len(), m * n, "`y` must hold {m}×{n} values");
    #[cfg(target_arch = "x86_64")]
    if crate::cpu::has_vnni() && w.group.is_multiple_of(GROUP) && k > 0 {
        avx512::forward(x, m, w, y);
        return true;
    }
    false
}

/// The same written down directly.
pub mod reference {
    use super::rounded;

    /// `y[m×n] = x̂[m×k] · w[n×k]ᵀ` in f64, of the weight that the codes stand for.
    pub fn forward(m: usize, n: usize, k: usize, x: &[f32], w: &[f64]) -> Vec<f64> {
        let x: Vec<f64> = rounded(x, k).iter().map(|x| f64::from(*x)).collect();
        crate::matmul::reference::nt(m, n, k, &x, w)
    }
}
