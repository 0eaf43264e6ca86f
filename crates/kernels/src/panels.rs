//! Products in f32 with AVX-512: a panel of `b` is put in order once and serves all rows of `a`, which are read
//! as they lie.
//!
//! c[m×n] (+)= α · a[m×k] · b[k×n]      any strides of a and b
//!
//! Strips of [`tile`](crate::tile) do the work. The inner dimension goes in pieces of [`INNER`], each rounded into c
//! once; cuts depend on the shape alone.

use std::arch::x86_64::*;

use crate::cpu::{self, Cpu};
use crate::matmul::Strided;
use crate::registers::first_lanes;
use crate::scratch;
use crate::split::{Shared, tasks};
use crate::tile::{self, Operands};

/// Columns of a panel.
const COLUMNS: usize = 64;

/// The piece of the inner dimension that a panel holds: 128 KiB, a part of the second cache.
const INNER: usize = 512;

/// Tasks that a product is cut into where it is large enough.
const TASKS: usize = 16;

/// Rows below which a task is not worth its panel.
const LEAST_ROWS: usize = 256;

/// Up to this many rows of a, rows of b that are contiguous are read where they lie: a panel would be read hardly more
/// often than it is written.
const AS_IT_LIES: usize = 24;

/// Multiply-adds below which another path's lesser preparations win.
const LEAST: usize = 1 << 15;

/// Whether this is the way for a product of this shape.
pub fn suits((m, n, k): (usize, usize, usize)) -> bool {
    cpu::found() >= Cpu::Avx512 && m >= 8 && m * n * k >= LEAST
}

/// c (+)= α·a·b
///
/// # Safety
/// [`suits`] said so; `a` and `b` cover their shapes; `c` holds m×n numbers.
pub unsafe fn product(
    (m, n, k): (usize, usize, usize),
    alpha: f32,
    a: Strided<*const f32>,
    b: Strided<*const f32>,
    accumulate: bool,
    c: &mut [f32],
) {
    let across = n.div_ceil(COLUMNS);
    let down = TASKS.div_ceil(across).min(m.div_ceil(LEAST_ROWS));
    let rows = m.div_ceil(down).next_multiple_of(6);
    let (a, b, out) = (a.sendable(), b.sendable(), Shared::new(c));
    tasks(across * down, |t| {
        let (a, b) = (a.get(), b.get());
        let (column, row) = (t / down * COLUMNS, t % down * rows);
        if row >= m {
            return;
        }
        let (cols, rows) = (COLUMNS.min(n - column), rows.min(m - row));
        let width = cols.next_multiple_of(16);
        scratch::with(INNER.min(k) * width, |panel: &mut [f32]| {
            for first in (0..k).step_by(INNER) {
                let inner = INNER.min(k - first);
                // SAFETY: within the operands by the caller's promise; the panel has room; each task owns its rows
                // and columns of c; the features were seen.
                unsafe {
                    let from = b.start.offset(first as isize * b.row + column as isize * b.col);
                    let (right, b_row) = if rows <= AS_IT_LIES && b.col == 1 && b.row > 0 {
                        (from, b.row as usize)
                    } else {
                        order(Strided { start: from, ..b }, inner, cols, panel.as_mut_ptr());
                        (panel.as_ptr(), width)
                    };
                    let left = a.start.offset(row as isize * a.row + first as isize * a.col);
                    let to = out.at(row * n + column);
                    let onto = accumulate || first > 0;
                    let a = Strided { start: left, ..a };
                    let o = Operands { a, b: right, b_row, c: to, c_row: n, alpha, onto };
                    tile::avx512(&o, (rows, cols, inner));
                }
            }
        });
    });
}

/// `panel[inner][cols up to a multiple of 16]` ← b, filled up with zeros.
///
/// # Safety
/// `b` covers inner×cols, the panel has room.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
unsafe fn order(b: Strided<*const f32>, inner: usize, cols: usize, panel: *mut f32) {
    let width = cols.next_multiple_of(16);
    for v in (0..cols).step_by(16) {
        // SAFETY: within the operands and the panel; what is read at once is masked to what is there.
        unsafe {
            let (from, to) = (b.start.offset(v as isize * b.col), panel.add(v));
            match cols - v {
                16.. if b.row == 1 && b.col > 0 => transpose((from, b.col as usize), inner, (to, width)),
                here => gather(Strided { start: from, ..b }, (inner, here.min(16)), (to, width)),
            }
        }
    }
}

/// `to[inner][16]` ← sixteen columns, each of which lies in a row of its own, `stride` numbers apart.
///
/// # Safety
/// As for [`order`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
unsafe fn transpose((from, stride): (*const f32, usize), inner: usize, (to, width): (*mut f32, usize)) {
    for l in (0..inner).step_by(16) {
        // SAFETY: the caller's promise; squares are cut to what is there.
        unsafe { tile::square((from.add(l), 4 * stride), (inner - l).min(16), (to.add(l * width), width)) };
    }
}

/// `to[inner][16]` ← up to sixteen columns, zeros beside them.
///
/// # Safety
/// As for [`order`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
unsafe fn gather(from: Strided<*const f32>, (inner, cols): (usize, usize), (to, width): (*mut f32, usize)) {
    let mask = first_lanes(cols);
    let lanes: [i32; 16] = std::array::from_fn(|i| (i as isize * from.col) as i32);
    // SAFETY: masked to the columns that are there; the gather's lanes are counted in numbers.
    unsafe {
        let lanes = _mm512_loadu_si512(lanes.as_ptr().cast());
        for l in 0..inner {
            let row = from.start.offset(l as isize * from.row);
            let x = match from.col {
                1 => _mm512_maskz_loadu_ps(mask, row),
                _ => _mm512_mask_i32gather_ps::<4>(_mm512_setzero_ps(), mask, lanes, row),
            };
            _mm512_storeu_ps(to.add(l * width), x);
        }
    }
}
