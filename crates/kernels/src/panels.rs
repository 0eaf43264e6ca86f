//! Products in f32 with AVX-512: a panel of `b` is put in order once and serves all rows of `a`, which are read
//! as they lie.
//!
//! c[m×n] (+)= α · a[m×k] · b[k×n]      any strides of a and b
//!
//! Six rows by 64 columns of sums stay in registers: 24 multiply-adds for four loads and six broadcasts, so the
//! multiply-adds are what bounds it. Narrow panels take more rows. The inner dimension goes in pieces of
//! [`INNER`], each rounded into c once; cuts depend on the shape alone.

use std::arch::x86_64::*;

use crate::cpu::{self, Cpu};
use crate::matmul::Strided;
use crate::split::{Shared, tasks};

/// Columns of a panel.
const COLUMNS: usize = 64;

/// The piece of the inner dimension that a panel holds: 128 KiB, a part of the second cache.
const INNER: usize = 512;

/// Tasks that a product is cut into where it is large enough.
const TASKS: usize = 16;

/// Rows below which a task is not worth its panel.
const LEAST_ROWS: usize = 256;

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
        let mut panel = Vec::with_capacity(INNER.min(k) * width);
        for first in (0..k).step_by(INNER) {
            let inner = INNER.min(k - first);
            // SAFETY: within the operands by the caller's promise; the panel has room; each task owns its rows
            // and columns of c; the features were seen.
            unsafe {
                let from = b.start.offset(first as isize * b.row + column as isize * b.col);
                order(Strided { start: from, ..b }, inner, cols, panel.as_mut_ptr());
                let left = a.start.offset(row as isize * a.row + first as isize * a.col);
                let to = out.at(row * n + column);
                let onto = accumulate || first > 0;
                let piece = Piece { rows, inner, a: Strided { start: left, ..a }, panel: panel.as_ptr() };
                match width / 16 {
                    4 => blocks::<6, 4>(&piece, alpha, onto, to, n, cols),
                    3 => blocks::<8, 3>(&piece, alpha, onto, to, n, cols),
                    2 => blocks::<12, 2>(&piece, alpha, onto, to, n, cols),
                    _ => blocks::<16, 1>(&piece, alpha, onto, to, n, cols),
                }
            }
        }
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
        let mask: u16 = if cols - v >= 16 { !0 } else { (1 << (cols - v)) - 1 };
        // SAFETY: masked to the columns that are there; the gather's lanes are counted in numbers.
        unsafe {
            let from = b.start.offset(v as isize * b.col);
            let lanes: [i32; 16] = std::array::from_fn(|i| (i as isize * b.col) as i32);
            let lanes = _mm512_loadu_si512(lanes.as_ptr().cast());
            for l in 0..inner {
                let from = from.offset(l as isize * b.row);
                let x = if b.col == 1 {
                    _mm512_maskz_loadu_ps(mask, from)
                } else {
                    _mm512_mask_i32gather_ps::<4>(_mm512_setzero_ps(), mask, lanes, from)
                };
                _mm512_storeu_ps(panel.add(l * width + v), x);
            }
        }
    }
}

/// Rows of a, and a panel.
struct Piece {
    rows: usize,
    inner: usize,
    a: Strided<*const f32>,
    panel: *const f32,
}

/// All rows by one panel of V vectors, R rows at a time; c's rows lie `stride` apart.
///
/// # Safety
/// As for [`product`]; `cols` at most 16·V, more than 16·(V − 1).
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
unsafe fn blocks<const R: usize, const V: usize>(
    piece: &Piece,
    alpha: f32,
    onto: bool,
    c: *mut f32,
    stride: usize,
    cols: usize,
) {
    let tail = cols - 16 * (V - 1);
    let mask: u16 = if tail >= 16 { !0 } else { (1 << tail) - 1 };
    let alpha = _mm512_set1_ps(alpha);
    for first in (0..piece.rows).step_by(R) {
        let here = R.min(piece.rows - first);
        let mut sums = [[_mm512_setzero_ps(); V]; R];
        // SAFETY: rows past the end stand for the last one and are not stored; the rest is the caller's promise.
        unsafe {
            let rows: [*const f32; R] = std::array::from_fn(|r| {
                piece.a.start.offset((first + r.min(here - 1)) as isize * piece.a.row)
            });
            let mut b = piece.panel;
            let mut at = 0isize;
            for _ in 0..piece.inner {
                let right: [__m512; V] = std::array::from_fn(|v| _mm512_loadu_ps(b.add(16 * v)));
                for r in 0..R {
                    let x = _mm512_set1_ps(*rows[r].offset(at));
                    for v in 0..V {
                        sums[r][v] = _mm512_fmadd_ps(x, right[v], sums[r][v]);
                    }
                }
                b = b.add(16 * V);
                at += piece.a.col;
            }
            for (r, sums) in sums.iter().enumerate().take(here) {
                let to = c.add((first + r) * stride);
                for (v, sum) in sums.iter().enumerate() {
                    let (to, mask) = (to.add(16 * v), if v + 1 == V { mask } else { !0 });
                    let sum = match onto {
                        true => _mm512_fmadd_ps(alpha, *sum, _mm512_maskz_loadu_ps(mask, to)),
                        false => _mm512_mul_ps(alpha, *sum),
                    };
                    _mm512_mask_storeu_ps(to, mask, sum);
                }
            }
        }
    }
}
