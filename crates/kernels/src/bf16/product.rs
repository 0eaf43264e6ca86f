//! The products, panel by panel.

use std::ops::Range;

use super::pack::{self, steps};
use super::{Bf16Rows, FEW_ROWS, PANEL, STEP, TILE, few};
use crate::split::{Shared, tasks};
use crate::{elementwise, scratch, unwritten};

/// The piece of the inner dimension that a panel of the forward spans: 128 KiB, a part of the second cache.
const INNER: usize = 2048;

/// Rows of `x` that are in tiles at a time.
const ROWS: usize = 2048;

/// Outputs whose panels lie ready at a time in the gradient to the input.
const OUTPUTS: usize = 1024;

/// `y[m×n] = r(x)[m×k] · wᵀ (+ bias)`
///
/// # Panics
/// If a slice's length is not its shape.
pub fn forward(x: &[f32], m: usize, w: &dyn Bf16Rows, bias: Option<&[f32]>, y: &mut [f32]) {
    let (n, k) = (w.out_features(), w.in_features());
    assert_eq!(x.len(), m * k, "`x` must hold {m}×{k} values");
    assert_eq!(y.len(), m * n, "`y` must hold {m}×{n} values");
    if k == 0 {
        y.fill(0.0);
    } else if m <= FEW_ROWS {
        let mut narrow = vec![0; m * k];
        pack::round_all(x, &mut narrow);
        few::forward(&narrow, m, w, y);
    } else {
        for (x, y) in x.chunks(ROWS * k).zip(y.chunks_mut(ROWS * n)) {
            let m = x.len() / k;
            pack::with_tiles(x, m, k, k, |tiles| many(tiles, m, w, y));
        }
    }
    if let Some(bias) = bias {
        elementwise::add_bias(y, bias);
    }
}

fn many(tiles: &[u16], m: usize, w: &dyn Bf16Rows, y: &mut [f32]) {
    let (n, k) = (w.out_features(), w.in_features());
    let out = Shared::new(y);
    let pieces: Vec<_> = (0..k).step_by(INNER).map(|from| from..k.min(from + INNER)).collect();
    // A piece at a time, so that the part of the tiles which all panels read stays in the last cache; where rows have
    // to be unpacked all of them at once, so that it happens once.
    let together = if w.as_dense().is_some() { 1 } else { pieces.len() };
    for pieces in pieces.chunks(together) {
        tasks(n.div_ceil(PANEL), |t| {
            let first = t * PANEL;
            let rows = PANEL.min(n - first);
            let mut own = Vec::new();
            let weight = rows_of(w, first, rows, &mut own);
            for piece in pieces {
                scratch::with(steps(piece.len()) * STEP * PANEL, |panel| {
                    pack::outputs(&weight[piece.start..], (rows, k), piece.len(), panel);
                    let at = piece.start / STEP;
                    let steps = (steps(k), at..at + steps(piece.len()));
                    // SAFETY: each task owns its columns of every row of y.
                    unsafe { down(tiles, m, steps, panel, out, (first, rows), n, at > 0) };
                });
            }
        });
    }
}

/// The bits of some rows, where they lie or unpacked into `own`.
fn rows_of<'a>(w: &'a dyn Bf16Rows, first: usize, rows: usize, own: &'a mut Vec<u16>) -> &'a [u16] {
    let k = w.in_features();
    match w.as_dense() {
        Some(all) => &all[first * k..(first + rows) * k],
        None => {
            *own = unwritten(rows * k);
            w.rows(first, own);
            own
        }
    }
}

/// c[:, first..first + cols] (+)= tiles · panel for all m rows, over the tiles' steps of `part`; rows of c lie `stride` apart.
///
/// # Safety
/// The caller owns those columns of c.
#[allow(clippy::too_many_arguments)] // the operands of a product
unsafe fn down(
    tiles: &[u16],
    m: usize,
    (steps, part): (usize, Range<usize>),
    panel: &[u16],
    c: Shared<f32>,
    (first, cols): (usize, usize),
    stride: usize,
    accumulate: bool,
) {
    let row_of_tiles = steps * TILE * STEP;
    let (skipped, steps) = (part.start * TILE * STEP, part.len());
    let work = || {
        let mut edge = [0.0f32; PANEL * PANEL];
        for i in (0..m).step_by(2 * TILE) {
            let rows = (m - i).min(2 * TILE);
            let a = &tiles[i / TILE * row_of_tiles..][..2 * row_of_tiles];
            let (a, below) = a.split_at(row_of_tiles);
            let operands = (a[skipped..].as_ptr(), below[skipped..].as_ptr());
            // SAFETY: tiles and panel hold `steps` steps; the block lies within c, or in scratch of its size.
            unsafe {
                if rows == PANEL && cols == PANEL {
                    let to = c.at(i * stride + first);
                    block(operands, panel.as_ptr(), steps, to, 4 * stride, accumulate);
                    continue;
                }
                // Added to in the same order as a whole block, so that a row's bits do not depend on its company.
                if accumulate {
                    for r in 0..rows {
                        edge[r * PANEL..][..cols].copy_from_slice(c.slice((i + r) * stride + first, cols));
                    }
                }
                block(operands, panel.as_ptr(), steps, edge.as_mut_ptr(), 4 * PANEL, accumulate);
                for r in 0..rows {
                    c.slice((i + r) * stride + first, cols).copy_from_slice(&edge[r * PANEL..][..cols]);
                }
            }
        }
    };
    #[cfg(target_arch = "x86_64")]
    if super::unit() == Some(super::Unit::Tiles) {
        return super::amx::with_tiles(work);
    }
    work();
}

/// # Safety
/// As for the units' blocks.
#[cfg(target_arch = "x86_64")]
unsafe fn block(
    a: (*const u16, *const u16),
    b: *const u16,
    steps: usize,
    c: *mut f32,
    stride: usize,
    accumulate: bool,
) {
    // SAFETY: the caller's promise; the unit was seen.
    unsafe {
        match super::unit() {
            Some(super::Unit::Tiles) => super::amx::block(a, b, steps, c, stride, accumulate),
            Some(super::Unit::Dots) => super::avx512::block(a, b, steps, c, stride, accumulate),
            None => portable(a, b, steps, c, stride, accumulate),
        }
    }
}

#[cfg(not(target_arch = "x86_64"))]
use portable as block;

/// The block without a unit; obviously right, and slow: where there is no unit, products in f32 are taken.
///
/// # Safety
/// As for the units' blocks.
unsafe fn portable(
    (a, below): (*const u16, *const u16),
    b: *const u16,
    steps: usize,
    c: *mut f32,
    stride: usize,
    accumulate: bool,
) {
    for r in 0..PANEL {
        for j in 0..PANEL {
            // SAFETY: the caller's promise on shapes.
            unsafe {
                let c = c.byte_add(r * stride).add(j);
                let mut sum = if accumulate { *c } else { 0.0 };
                let a = if r < TILE { a.add(r * STEP) } else { below.add((r - TILE) * STEP) };
                for l in 0..steps * STEP {
                    let x = *a.add(l / STEP * TILE * STEP + l % STEP);
                    let w = *b.add((l / 2 * PANEL + j) * 2 + l % 2);
                    sum += super::widen(x) * super::widen(w);
                }
                *c = sum;
            }
        }
    }
}

/// `gx[m×k] (+)= r(g)[m×n] · w`
///
/// # Panics
/// If a slice's length is not its shape.
pub fn backward_input(g: &[f32], m: usize, w: &dyn Bf16Rows, accumulate: bool, gx: &mut [f32]) {
    let (n, k) = (w.out_features(), w.in_features());
    assert_eq!(g.len(), m * n, "`g` must hold {m}×{n} values");
    assert_eq!(gx.len(), m * k, "`gx` must hold {m}×{k} values");
    if m == 0 || k == 0 {
        return;
    }
    if n == 0 && !accumulate {
        gx.fill(0.0);
    }
    let across = k.div_ceil(PANEL);
    for first in (0..n).step_by(OUTPUTS) {
        let outputs = OUTPUTS.min(n - first);
        let mut own;
        let rows = match w.as_dense() {
            Some(all) => &all[first * k..(first + outputs) * k],
            None => {
                own = unwritten(outputs * k);
                let shared = Shared::new(&mut own);
                tasks(outputs.div_ceil(PANEL), |t| {
                    let rows = PANEL.min(outputs - t * PANEL);
                    // SAFETY: rows of its own a task.
                    w.rows(first + t * PANEL, unsafe { shared.slice(t * PANEL * k, rows * k) });
                });
                &own[..]
            }
        };
        let onto = accumulate || first > 0;
        for (r, rows_of_g) in (0..m).step_by(ROWS).zip(g.chunks(ROWS * n)) {
            let here = ROWS.min(m - r);
            let out = Shared::new(&mut gx[r * k..(r + here) * k]);
            let of = steps(outputs);
            pack::with_tiles(&rows_of_g[first..], here, outputs, n, |tiles| {
                tasks(across, |t| {
                    let (column, cols) = (t * PANEL, PANEL.min(k - t * PANEL));
                    scratch::with(of * STEP * PANEL, |panel| {
                        pack::inputs(rows, outputs, k, column, panel);
                        // SAFETY: each task owns its columns of every row of gx.
                        unsafe { down(tiles, here, (of, 0..of), panel, out, (column, cols), k, onto) };
                    });
                });
            });
        }
    }
}
