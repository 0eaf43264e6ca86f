//! AVX-512 with VNNI: dot products of four bytes each, 32 outputs and six rows at a time.

use std::arch::x86_64::*;

use super::{GROUP, quantise_row};
use crate::packed::{stream_bytes, unpack_bits};
use crate::packed_rows::{Grid, GroupScales};
use crate::split::{Shared, tasks};
use crate::tile::square;

/// Outputs of a panel.
const PANEL: usize = 32;

/// Rows that share a panel's loads: twelve vectors of whole sums and twelve of f32.
const ROWS: usize = 6;

/// The piece of the inner dimension that a panel spans: 32 KiB of codes, most of the first cache.
const INNER: usize = 1024;

/// Codes that are unpacked at a time, so that they still are in the first cache when they are put in order.
const UNPACKED: usize = 16 * INNER;

/// Rows in whole numbers.
struct Rows {
    /// `[m][k]`
    q: Vec<i8>,
    /// `[m][k / 32]`
    scales: Vec<f32>,
    /// The numbers' sums; where every zero of the weight is the middle, times minus that.
    sums: Vec<i32>,
}

impl Rows {
    fn of(x: &[f32], k: usize, times: i32) -> Self {
        let (m, groups) = (x.len() / k, k.div_ceil(GROUP));
        let mut rows = Rows { q: vec![0; x.len()], scales: vec![0.0; m * groups], sums: vec![0; m * groups] };
        let q = Shared::new(&mut rows.q);
        let (scales, sums) = (Shared::new(&mut rows.scales), Shared::new(&mut rows.sums));
        tasks(m.div_ceil(16), |t| {
            for i in t * 16..m.min(t * 16 + 16) {
                // SAFETY: rows of its own a task.
                let (q, scales, sums) = unsafe {
                    (q.slice(i * k, k), scales.slice(i * groups, groups), sums.slice(i * groups, groups))
                };
                quantise_row(&x[i * k..][..k], q, scales, sums);
                sums.iter_mut().for_each(|s| *s *= times);
            }
        });
        rows
    }
}

/// A piece of 32 outputs.
struct Panel {
    /// `[k/4][32][4]`
    codes: Vec<u8>,
    /// For each group of x `[k/32][32]`.
    scales: Vec<f32>,
    /// As `scales`; empty where the rows know the zero.
    zeros: Vec<f32>,
}

impl Panel {
    fn new(w: &Grid<'_>) -> Self {
        let k = w.shape.1.min(INNER);
        let numbers = k / GROUP * PANEL;
        let zeros = vec![0.0; if w.zeros.is_empty() { 0 } else { numbers }];
        Panel { codes: vec![0; k * PANEL], scales: vec![0.0; numbers], zeros }
    }

    /// The inputs `from..from + len` of `rows` outputs from `first` on; what is not there has the scale 0.
    fn fill(&mut self, w: &Grid<'_>, (first, rows): (usize, usize), (from, len): (usize, usize)) {
        let k = w.shape.1;
        let row_bytes = stream_bytes(k, w.bits);
        let (start, bytes) = (stream_bytes(from, w.bits), stream_bytes(len, w.bits));
        let mut own = [0u8; UNPACKED];
        for half in (0..PANEL).step_by(16) {
            let there = rows.saturating_sub(half).min(16);
            for r in 0..there {
                let row = &w.packed[(first + half + r) * row_bytes + start..][..bytes];
                unpack_bits(row, w.bits, &mut own[r * len..][..len]);
            }
            for at in (0..len).step_by(64) {
                let words = (len - at).min(64) / 4;
                // SAFETY: VNNI was seen; sixteen rows of `len` bytes; the panel holds 32 words for each four inputs.
                unsafe {
                    let to = self.codes.as_mut_ptr().add(at * PANEL).cast::<f32>().add(half);
                    square((own.as_ptr().add(at).cast(), len), words, (to, PANEL));
                }
            }
        }
        let groups = k / w.group;
        // Of the groups of x the group of each output: its place among all, counted without the outputs before.
        let each = |to: &mut [f32], of: &dyn Fn(usize, &mut [f32])| {
            for (h, to) in to[..len / GROUP * PANEL].chunks_exact_mut(PANEL).enumerate() {
                to[rows..].fill(0.0);
                of(first * groups + (from + h * GROUP) / w.group, &mut to[..rows]);
            }
        };
        each(&mut self.scales, &|at, to| match w.scales {
            GroupScales::F32(scales) => gather(&scales[at..], groups, to, |s| s),
            GroupScales::Bf16(bits) => gather(&bits[at..], groups, to, crate::bf16::widen),
        });
        if !w.zeros.is_empty() {
            each(&mut self.zeros, &|at, to| gather(&w.zeros[at..], groups, to, |z| z));
        }
    }
}

/// `to[j] = number(from[j · step])`
fn gather<S: Copy>(from: &[S], step: usize, to: &mut [f32], number: impl Fn(S) -> f32) {
    to.iter_mut().zip(from.iter().step_by(step)).for_each(|(to, from)| *to = number(*from));
}

/// `y = x̂ wᵀ`; VNNI was seen, and groups are whole.
pub fn forward(x: &[f32], m: usize, w: &Grid<'_>, y: &mut [f32]) {
    let (n, k) = w.shape;
    assert_eq!(w.packed.len(), n * stream_bytes(k, w.bits), "the codes of {n}×{k}");
    let numbers = n * (k / w.group);
    assert!(w.scales.len() == numbers && (w.zeros.is_empty() || w.zeros.len() == numbers));
    let own_zeros = !w.zeros.is_empty();
    let rows = Rows::of(x, k, if own_zeros { 1 } else { -(w.middle as i32) });
    let out = Shared::new(y);
    tasks(n.div_ceil(PANEL), |t| {
        let (first, outputs) = (t * PANEL, PANEL.min(n - t * PANEL));
        let mut panel = Panel::new(w);
        for from in (0..k).step_by(INNER) {
            let len = INNER.min(k - from);
            panel.fill(w, (first, outputs), (from, len));
            for i in (0..m).step_by(ROWS) {
                let here = ROWS.min(m - i);
                let mut sums = [0.0f32; ROWS * PANEL];
                // SAFETY: VNNI was seen; rows and panel hold the piece; each task owns its columns of every row of y.
                unsafe {
                    let at = (i * k + from, i * (k / GROUP) + from / GROUP);
                    let x = Part { rows: &rows, at, k, groups: len / GROUP };
                    match own_zeros {
                        true => some::<true>(here, &x, &panel, sums.as_mut_ptr()),
                        false => some::<false>(here, &x, &panel, sums.as_mut_ptr()),
                    }
                    for (r, sums) in sums.chunks_exact(PANEL).take(here).enumerate() {
                        let to = out.slice((i + r) * n + first, outputs);
                        match from {
                            0 => to.copy_from_slice(&sums[..outputs]),
                            _ => to.iter_mut().zip(sums).for_each(|(to, x)| *to += x),
                        }
                    }
                }
            }
        }
    });
}

/// Where some rows' piece begins.
struct Part<'a> {
    rows: &'a Rows,
    /// Of the numbers, and of the groups.
    at: (usize, usize),
    k: usize,
    groups: usize,
}

/// # Safety
/// As for [`block`], of `here` ≤ 6 rows.
unsafe fn some<const ZEROS: bool>(here: usize, x: &Part<'_>, panel: &Panel, sums: *mut f32) {
    // SAFETY: the caller's promise.
    unsafe {
        match here {
            1 => block::<1, ZEROS>(x, panel, sums),
            2 => block::<2, ZEROS>(x, panel, sums),
            3 => block::<3, ZEROS>(x, panel, sums),
            4 => block::<4, ZEROS>(x, panel, sums),
            5 => block::<5, ZEROS>(x, panel, sums),
            _ => block::<6, ZEROS>(x, panel, sums),
        }
    }
}

/// `sums[R][32]` of a piece.
///
/// # Safety
/// AVX-512 with VNNI was seen; rows and panel hold the piece, `sums` R×32 numbers.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma")]
unsafe fn block<const R: usize, const ZEROS: bool>(x: &Part<'_>, panel: &Panel, sums: *mut f32) {
    let mut totals = [[_mm512_setzero_ps(); 2]; R];
    let of_row = x.k / GROUP;
    // SAFETY: the caller's promise.
    unsafe {
        let q = x.rows.q.as_ptr().add(x.at.0);
        let scales = x.rows.scales.as_ptr().add(x.at.1);
        let numbers = x.rows.sums.as_ptr().add(x.at.1);
        for g in 0..x.groups {
            // What the middle takes off is there before the products.
            let less = |r: usize| match ZEROS {
                true => _mm512_setzero_si512(),
                false => _mm512_set1_epi32(*numbers.add(r * of_row + g)),
            };
            let mut whole: [[__m512i; 2]; R] = std::array::from_fn(|r| [less(r); 2]);
            let codes = panel.codes.as_ptr().add(g * GROUP * PANEL);
            let q = q.add(g * GROUP);
            // Unrolled, this loop would hold more than there are registers.
            for four in 0..std::hint::black_box(GROUP / 4) {
                let left = _mm512_loadu_si512(codes.add(four * 4 * PANEL).cast());
                let right = _mm512_loadu_si512(codes.add(four * 4 * PANEL + 64).cast());
                for (r, whole) in whole.iter_mut().enumerate() {
                    let x = _mm512_set1_epi32(q.add(r * x.k + 4 * four).cast::<i32>().read_unaligned());
                    whole[0] = _mm512_dpbusd_epi32(whole[0], left, x);
                    whole[1] = _mm512_dpbusd_epi32(whole[1], right, x);
                }
            }
            for side in 0..2 {
                let of_w = _mm512_loadu_ps(panel.scales.as_ptr().add(g * PANEL + 16 * side));
                for r in 0..R {
                    let mut value = _mm512_cvtepi32_ps(whole[r][side]);
                    if ZEROS {
                        let zero = _mm512_loadu_ps(panel.zeros.as_ptr().add(g * PANEL + 16 * side));
                        let sum = _mm512_set1_ps(*numbers.add(r * of_row + g) as f32);
                        value = _mm512_fnmadd_ps(zero, sum, value);
                    }
                    let of_x = _mm512_set1_ps(*scales.add(r * of_row + g));
                    totals[r][side] = _mm512_fmadd_ps(_mm512_mul_ps(value, of_w), of_x, totals[r][side]);
                }
            }
        }
        for (r, totals) in totals.iter().enumerate() {
            _mm512_storeu_ps(sums.add(r * PANEL), totals[0]);
            _mm512_storeu_ps(sums.add(r * PANEL + 16), totals[1]);
        }
    }
}
