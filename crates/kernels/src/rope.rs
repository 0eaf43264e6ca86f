//! Rotary position embedding, the form that pairs the two halves of a head.
//!
//! q' = q ⊙ cos + rot(q) ⊙ sin      rot([a, b]) = [−b, a],  angle = position · inv_freq, same for both halves
//!
//! The backward is the rotation by the opposite angle. Source: Su et al. 2021, arXiv:2104.09864;
//! halves instead of neighbours as in transformers' llama.

use crate::Real;
use crate::split::{Tasks, rows_per_task};
use crate::wide::wide;

/// Rotates `x` (rows×heads×head_dim) in place by each row's position; `inverse` rotates back.
///
/// Angles are computed in the type of `x`: in f32 as transformers does.
///
/// # Panics
/// If `head_dim` is not twice `inv_freq.len()` or `x` not `positions.len()`×`heads`×`head_dim`.
pub fn apply<T: Real>(
    x: &mut [T],
    heads: usize,
    head_dim: usize,
    positions: &[u32],
    inv_freq: &[f32],
    inverse: bool,
) {
    turn(None, x, (heads, head_dim), positions, inv_freq, inverse);
}

/// As [`apply`], of `x` to `out`.
///
/// # Panics
/// As [`apply`], and if `x` and `out` differ in length.
pub fn forward<T: Real>(
    x: &[T],
    (heads, head_dim): (usize, usize),
    positions: &[u32],
    inv_freq: &[f32],
    inverse: bool,
    out: &mut [T],
) {
    assert_eq!(x.len(), out.len(), "`out` must be as long as `x`");
    turn(Some(x), out, (heads, head_dim), positions, inv_freq, inverse);
}

/// Rotates what `x` holds, or the copy of `from` that it gets first.
fn turn<T: Real>(
    from: Option<&[T]>,
    x: &mut [T],
    (heads, head_dim): (usize, usize),
    positions: &[u32],
    inv_freq: &[f32],
    inverse: bool,
) {
    let half = inv_freq.len();
    let width = heads * head_dim;
    assert_eq!(head_dim, 2 * half, "`inv_freq` must hold half of head_dim");
    assert_eq!(
        x.len(),
        positions.len() * width,
        "`x` must hold {}×{heads}×{head_dim} values",
        positions.len()
    );
    if width == 0 {
        return;
    }
    // Packed rows repeat their positions: then a table by position is shorter than one by row.
    let top = positions.iter().max().map_or(0, |p| *p as usize + 1);
    let by_position = top <= positions.len();
    let entries = if by_position { top } else { positions.len() };
    let sign = if inverse { -T::ONE } else { T::ONE };
    let table = angles(entries, |e| if by_position { e as u32 } else { positions[e] }, inv_freq, sign);
    let rows = rows_per_task(width);
    x.chunks_mut(rows * width).zip(positions.chunks(rows)).enumerate().each_task(|(c, (x, p))| {
        for (r, (x, p)) in x.chunks_exact_mut(width).zip(p).enumerate() {
            if let Some(from) = from {
                x.copy_from_slice(&from[(c * rows + r) * width..][..width]);
            }
            let e = if by_position { *p as usize } else { c * rows + r };
            rotate(x, &table[e * head_dim..(e + 1) * head_dim]);
        }
    });
}

/// Cosines and sines of each entry's position, `[entries, head_dim]`.
fn angles<T: Real>(
    entries: usize,
    position: impl Fn(usize) -> u32 + Sync,
    inv_freq: &[f32],
    sign: T,
) -> Vec<T> {
    let half = inv_freq.len();
    let mut table = vec![T::ZERO; entries * 2 * half];
    table.chunks_mut(64 * 2 * half).enumerate().each_task(|(c, table)| {
        for (e, row) in table.chunks_exact_mut(2 * half).enumerate() {
            let position = position(c * 64 + e);
            let (cos, sin) = row.split_at_mut(half);
            for ((c, s), f) in cos.iter_mut().zip(sin).zip(inv_freq) {
                let angle = T::from_f64(position as f64) * T::from_f32(*f);
                (*c, *s) = (angle.cos(), angle.sin() * sign);
            }
        }
    });
    table
}

/// Angles of positions 0 to `n`, for keys that are turned anew at every step.
pub struct Table<T> {
    angles: Vec<T>,
    head_dim: usize,
}

impl<T: Real> Table<T> {
    /// Angles of the first `n` positions.
    ///
    /// # Panics
    /// If there are no frequencies.
    pub fn new(n: usize, inv_freq: &[f32]) -> Self {
        assert!(!inv_freq.is_empty(), "`inv_freq` must hold half of head_dim");
        Table { angles: angles(n, |p| p as u32, inv_freq, T::ONE), head_dim: 2 * inv_freq.len() }
    }

    /// How many positions.
    pub fn len(&self) -> usize {
        self.angles.len() / self.head_dim
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.angles.is_empty()
    }

    /// Turns rows of `heads` heads by positions `first`, `first + 1`, … with the same bits as [`apply`].
    ///
    /// # Panics
    /// If the table ends before the rows do.
    pub fn turn(&self, x: &mut [T], heads: usize, first: usize) {
        for (r, row) in x.chunks_exact_mut(heads * self.head_dim).enumerate() {
            rotate(row, &self.angles[(first + r) * self.head_dim..(first + r + 1) * self.head_dim]);
        }
    }
}

wide! {
    fn rotate[T: Real](x: &mut [T], table: &[T]) {
        let (cos, sin) = table.split_at(table.len() / 2);
        for head in x.chunks_exact_mut(table.len()) {
            let (a, b) = head.split_at_mut(cos.len());
            for (((a, b), c), s) in a.iter_mut().zip(b).zip(cos).zip(sin) {
                (*a, *b) = (*a * *c - *b * *s, *b * *c + *a * *s);
            }
        }
    }
}

/// The same written down directly.
pub mod reference {
    use crate::Real;

    /// One head at one position.
    pub fn head<T: Real>(x: &[T], position: u32, inv_freq: &[f32]) -> Vec<T> {
        let half = inv_freq.len();
        let angle = |i: usize| T::from_f64(position as f64) * T::from_f32(inv_freq[i % half]);
        let turned = |i: usize| if i < half { -x[i + half] } else { x[i - half] };
        (0..2 * half).map(|i| x[i] * angle(i).cos() + turned(i) * angle(i).sin()).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::{assert_close, assert_gradient, assert_same_for_threads, normal, weighted, wide};

    fn frequencies(half: usize) -> Vec<f32> {
        (0..half).map(|i| 100f32.powf(-(i as f32) / half as f32)).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn equals_the_reference(
            positions in prop::collection::vec(0u32..200, 0..50), heads in 1usize..4, half in 1usize..20,
        ) {
            let d = 2 * half;
            let x = normal::<f32>(1, positions.len() * heads * d);
            let f = frequencies(half);
            let rows = wide(&x);
            let want: Vec<f64> = rows
                .chunks(d)
                .enumerate()
                .flat_map(|(i, x)| reference::head(x, positions[i / heads], &f))
                .collect();
            let mut y = x.clone();
            apply(&mut y, heads, d, &positions, &f, false);
            assert_close(&y, &want, 3e-5); // an angle of 200 has 8e-6 of rounding in f32
            apply(&mut y, heads, d, &positions, &f, true);
            assert_close(&y, &rows, 1e-6); // a rotation and back
        }
    }

    #[test]
    fn the_inverse_is_the_gradient() {
        let (positions, f) = ([3u32, 0, 900, 3], frequencies(4));
        let (x, g) = (normal::<f64>(1, 4 * 2 * 8), normal::<f64>(2, 4 * 2 * 8));
        let mut gx = g.clone();
        apply(&mut gx, 2, 8, &positions, &f, true);
        assert_gradient(&x, &gx, |x| {
            let mut y = x.to_vec();
            apply(&mut y, 2, 8, &positions, &f, false);
            weighted(&g, &y)
        });
    }

    #[test]
    fn position_zero_changes_nothing_and_far_positions_need_no_table() {
        let x = normal::<f32>(1, 2 * 8);
        let mut y = x.clone();
        apply(&mut y, 1, 8, &[0, u32::MAX], &frequencies(4), false);
        assert_eq!(y[..8], x[..8]);
        assert!(y[8..] != x[8..] && y.iter().all(|y| y.is_finite()));
    }

    #[test]
    fn a_table_gives_the_same_bits() {
        let (f, table) = (frequencies(4), Table::<f32>::new(40, &frequencies(4)));
        let x = normal::<f32>(1, 20 * 3 * 8);
        let (mut y, mut z) = (x.clone(), x);
        apply(&mut y, 3, 8, &(15..35).collect::<Vec<_>>(), &f, false);
        table.turn(&mut z, 3, 15);
        assert_eq!(y, z);
    }

    #[test]
    fn threads_do_not_change_a_bit() {
        let positions: Vec<u32> = (0..700).map(|p| p % 300).collect();
        assert_same_for_threads(|| {
            let mut x = normal::<f32>(1, 700 * 4 * 16);
            apply(&mut x, 4, 16, &positions, &frequencies(8), false);
            x
        });
    }
}
