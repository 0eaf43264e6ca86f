//! Operands as the units want them: tiles of `x`, panels of `w`.

use std::mem::MaybeUninit;

use super::{PANEL, STEP, TILE};
use crate::scratch;
use crate::split::{Shared, tasks};
use crate::wide::wide;

/// Steps of an inner dimension.
pub fn steps(k: usize) -> usize {
    k.div_ceil(STEP)
}

/// Rounds to bf16.
pub fn round_all(from: &[f32], to: &mut [u16]) {
    assert!(from.len() <= to.len(), "{} numbers into {}", from.len(), to.len());
    #[cfg(target_arch = "x86_64")]
    if super::unit().is_some() {
        // SAFETY: the unit's features were seen.
        return unsafe { super::avx512::round(from, to) };
    }
    to.iter_mut().zip(from).for_each(|(to, x)| *to = super::round(*x));
}

wide! {
    fn widen_chunk[](bits: &[u16], to: &mut [MaybeUninit<f32>]) {
        for (to, bits) in to.iter_mut().zip(bits) {
            to.write(super::widen(*bits));
        }
    }
}

/// The f32 of bf16's bits, as many as both hold.
pub fn widen_all(bits: &[u16], to: &mut [f32]) {
    // SAFETY: the same numbers, into which only numbers are written.
    widen_chunk(bits, unsafe { &mut *(std::ptr::from_mut(to) as *mut [MaybeUninit<f32>]) });
}

/// The f32 of bf16's bits, in place of what `to` held.
pub fn widen_into(bits: &[u16], to: &mut Vec<f32>) {
    to.clear();
    to.reserve(bits.len());
    widen_chunk(bits, to.spare_capacity_mut());
    // SAFETY: so many were reserved, and all of them written.
    unsafe { to.set_len(bits.len()) };
}

/// Calls `f` with the rows of `x` (`m×k`, `stride` apart) in tiles of 16×32: `[m/16][k/32][16][32]`, an even number of
/// rows of tiles, filled up with zeros.
pub fn with_tiles<R>(x: &[f32], m: usize, k: usize, stride: usize, f: impl FnOnce(&[u16]) -> R) -> R {
    let (down, across) = (m.div_ceil(2 * TILE) * 2, steps(k));
    scratch::with(down * across * TILE * STEP, |tiles| {
        fill_tiles(x, m, k, stride, tiles);
        f(tiles)
    })
}

fn fill_tiles(x: &[f32], m: usize, k: usize, stride: usize, out: &mut [u16]) {
    let across = steps(k);
    let down = out.len() / (across * TILE * STEP).max(1);
    let shared = Shared::new(out);
    tasks(down, |i| {
        // SAFETY: a row of tiles a task.
        let tiles = unsafe { shared.slice(i * across * TILE * STEP, across * TILE * STEP) };
        let rows = TILE.min(m.saturating_sub(i * TILE));
        if rows < TILE || !k.is_multiple_of(STEP) {
            tiles.fill(0);
        }
        for r in 0..rows {
            let row = &x[(i * TILE + r) * stride..][..k];
            #[cfg(target_arch = "x86_64")]
            if super::unit().is_some() {
                // SAFETY: the unit's features were seen; a step's tile for each 32 numbers.
                unsafe { super::avx512::round_into_tiles(row, tiles[r * STEP..].as_mut_ptr()) };
                continue;
            }
            for (s, part) in row.chunks(STEP).enumerate() {
                round_all(part, &mut tiles[(s * TILE + r) * STEP..][..STEP]);
            }
        }
    });
}

/// A panel of up to 32 outputs from `k` numbers each of `rows` rows of `w` (bits), `stride` apart: `[k/2][32][2]`.
pub fn outputs(w: &[u16], (rows, stride): (usize, usize), k: usize, panel: &mut [u16]) {
    debug_assert!(rows <= PANEL && panel.len() == steps(k) * STEP * PANEL);
    let pairs = k / 2;
    if rows < PANEL {
        panel.fill(0);
    } else {
        panel[pairs * 2 * PANEL..].fill(0);
    }
    #[cfg(target_arch = "x86_64")]
    let wide = super::unit().is_some();
    #[cfg(not(target_arch = "x86_64"))]
    let wide = false;
    for first in (0..rows).step_by(16) {
        let n = (rows - first).min(16);
        #[cfg(target_arch = "x86_64")]
        if wide && n == 16 {
            // SAFETY: the unit's features were seen; 16 rows of k numbers; the panel holds k/2 rows of 32 pairs.
            unsafe {
                let from = w.as_ptr().add(first * stride);
                super::avx512::pairs_of_columns(from, stride, pairs, panel.as_mut_ptr().add(first * 2));
            }
        }
        for r in first..first + n {
            if !(wide && n == 16) {
                for p in 0..pairs {
                    let at = (p * PANEL + r) * 2;
                    panel[at..at + 2].copy_from_slice(&w[r * stride + 2 * p..][..2]);
                }
            }
            if k % 2 == 1 {
                panel[(pairs * PANEL + r) * 2] = w[r * stride + k - 1];
            }
        }
    }
}

/// A panel of the up to 32 inputs from `column` on, over `rows` rows of `w`: `[rows/2][32][2]`.
pub fn inputs(w: &[u16], rows: usize, k: usize, column: usize, panel: &mut [u16]) {
    debug_assert!(panel.len() == steps(rows) * STEP * PANEL);
    let n = PANEL.min(k - column);
    for (pair, to) in panel.chunks_exact_mut(2 * PANEL).enumerate() {
        let row = |r: usize| (r < rows).then(|| &w[r * k + column..][..n]);
        match (row(2 * pair), row(2 * pair + 1)) {
            #[cfg(target_arch = "x86_64")]
            (Some(even), Some(odd)) if n == PANEL && super::unit().is_some() => {
                // SAFETY: the unit's features were seen; both rows hold 32 numbers, `to` 64.
                unsafe { super::avx512::pairs_of_rows(even.as_ptr(), odd.as_ptr(), to.as_mut_ptr()) }
            }
            (even, odd) => {
                to.fill(0);
                for (which, row) in [even, odd].into_iter().enumerate() {
                    row.into_iter().flatten().enumerate().for_each(|(c, x)| to[2 * c + which] = *x);
                }
            }
        }
    }
}
