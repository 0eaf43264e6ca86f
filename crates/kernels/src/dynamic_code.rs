//! The dynamic 8-bit code: steps that shrink towards zero, for numbers of very different size.
//!
//! For i = 0 … 6: the midpoints of k equal steps of [0.1, 1], times 10^(i − 6), k = 2ⁱ with both signs or
//! 2^(i+1) without; besides these 0 and 1; sorted, 256 values.
//!
//! Source: Dettmers et al. 2021, arXiv:2110.02861; in f32 as bitsandbytes' `create_dynamic_map`.

use std::sync::{Arc, LazyLock};

/// The code with both signs. `[127]` is 0, `[254]` is 0.99297, `[255]` is 1.
pub fn signed() -> &'static Arc<[f32; 256]> {
    static CODE: LazyLock<Arc<[f32; 256]>> = LazyLock::new(|| Arc::new(make(true)));
    &CODE
}

/// The code of numbers that are never negative. `[0]` is 0, `[1]` is 3.25e-7, `[255]` is 1.
pub fn unsigned() -> &'static Arc<[f32; 256]> {
    static CODE: LazyLock<Arc<[f32; 256]>> = LazyLock::new(|| Arc::new(make(false)));
    &CODE
}

/// Index of 0 in the signed code.
pub const ZERO: u8 = 127;

/// The values halfway between neighbours of the signed code, for [`nearest_between`].
pub fn signed_midpoints() -> &'static [f32; 255] {
    static MIDPOINTS: LazyLock<[f32; 255]> = LazyLock::new(|| midpoints(signed()));
    &MIDPOINTS
}

/// The values halfway between neighbours of the code without signs.
pub fn unsigned_midpoints() -> &'static [f32; 255] {
    static MIDPOINTS: LazyLock<[f32; 255]> = LazyLock::new(|| midpoints(unsigned()));
    &MIDPOINTS
}

fn midpoints(code: &[f32; 256]) -> [f32; 255] {
    std::array::from_fn(|i| (code[i] + code[i + 1]) / 2.0)
}

/// [`nearest`] by the table of values halfway, without branches: for inner loops. 0 for NaN.
#[inline(always)]
pub fn nearest_between(midpoints: &[f32; 255], x: f32) -> u8 {
    let mut i = 0usize;
    for step in [128, 64, 32, 16, 8, 4, 2, 1] {
        i += if x > midpoints[i + step - 1] { step } else { 0 };
    }
    i as u8
}

/// Index of the nearest code of an ascending table; a value halfway goes to the lower one.
pub fn nearest(code: &[f32; 256], x: f32) -> u8 {
    let (mut low, mut high) = (0, 255); // the answer lies in low..=high
    while low < high {
        let mid = (low + high) / 2;
        if x > (code[mid] + code[mid + 1]) / 2.0 { low = mid + 1 } else { high = mid }
    }
    low as u8
}

fn make(both_signs: bool) -> [f32; 256] {
    let mut values = vec![0.0f32, 1.0];
    for i in 0..7 {
        let steps = if both_signs { 1 << i } else { 2 << i };
        let scale = 10f64.powi(i - 6) as f32;
        for j in 0..steps {
            let value = scale * ((boundary(j, steps) + boundary(j + 1, steps)) / 2.0);
            values.push(value);
            if both_signs {
                values.push(-value);
            }
        }
    }
    values.sort_unstable_by(f32::total_cmp);
    let mut code = [0.0; 256];
    code.copy_from_slice(&values); // 2 + Σ 2·2ⁱ or 2 + Σ 2^(i+1): both 256
    code
}

/// Boundary j of equal steps from 0.1 to 1, from the nearer end as torch's `linspace` computes it.
fn boundary(j: usize, steps: usize) -> f32 {
    let step = (1.0f32 - 0.1) / steps as f32;
    if j < steps.div_ceil(2) { 0.1 + step * j as f32 } else { 1.0 - step * (steps - j) as f32 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_values() {
        let s = signed();
        assert_eq!((s[127], s[255]), (0.0, 1.0));
        assert_eq!(s[..3], [-0.992_968_74, -0.978_906_3, -0.964_843_75]);
        assert_eq!(s[252..255], [0.964_843_75, 0.978_906_3, 0.992_968_74]);
        assert!((s[128] - 5.5e-7).abs() < 1e-12 && s[126] == -s[128]);
        let u = unsigned();
        assert_eq!((u[0], u[255]), (0.0, 1.0));
        assert!((u[1] - 3.25e-7).abs() < 1e-12);
        assert!(s.is_sorted() && u.is_sorted());
    }

    #[test]
    fn nearest_is_nearest_and_halves_go_down() {
        for (code, mids) in [(signed(), signed_midpoints()), (unsigned(), unsigned_midpoints())] {
            let nearest = |code: &[f32; 256], x: f32| {
                let index = nearest(code, x);
                assert_eq!(nearest_between(mids, x), index, "{x}");
                index
            };
            for (i, c) in code.iter().enumerate() {
                assert_eq!(nearest(code, *c) as usize, i);
            }
            for i in 0..255 {
                let half = (code[i] + code[i + 1]) / 2.0;
                assert_eq!(nearest(code, half) as usize, i);
                assert_eq!(nearest(code, half.next_up().max(code[i].next_up())) as usize, i + 1);
            }
        }
        assert_eq!(nearest(signed(), -5.0), 0);
        assert_eq!(nearest(signed(), 5.0), 255);
    }
}
