//! Every unit that is here against the product written down in f64.

use proptest::prelude::*;

use super::*;
use crate::testing::{assert_close, assert_same_for_threads, assert_sums, normal};

/// A weight, shown or hidden behind its rows.
struct Weight(Vec<u16>, usize, usize, bool);

impl Bf16Rows for Weight {
    fn out_features(&self) -> usize {
        self.1
    }
    fn in_features(&self) -> usize {
        self.2
    }
    fn rows(&self, first: usize, out: &mut [u16]) {
        out.copy_from_slice(&self.0[first * self.2..][..out.len()]);
    }
    fn as_dense(&self) -> Option<&[u16]> {
        self.3.then_some(&self.0)
    }
}

fn check(m: usize, n: usize, k: usize) {
    let (x, g) = (normal::<f32>(1, m * k), normal::<f32>(3, m * n));
    let w: Vec<u16> = normal::<f32>(2, n * k).into_iter().map(round).collect();
    let bias = normal::<f32>(4, n);
    let both = |x: &[f32], g: &[f32], w: &[u16], bias: &[f32]| {
        let mut y = reference::forward(m, n, k, x, w);
        y.iter_mut().enumerate().for_each(|(i, y)| *y += f64::from(bias[i % n]));
        (y, reference::backward_input(m, n, k, g, w))
    };
    let (y_want, gx_want) = both(&x, &g, &w, &bias);
    let abs = |x: &[f32]| x.iter().map(|x| x.abs()).collect::<Vec<_>>();
    let w_abs: Vec<u16> = w.iter().map(|w| w & 0x7fff).collect();
    let (y_sizes, gx_sizes) = both(&abs(&x), &abs(&g), &w_abs, &abs(&bias));
    let twice = |of: &[f64]| of.iter().map(|g| 2.0 * g).collect::<Vec<_>>();
    for shown in [false, true] {
        let w = Weight(w.clone(), n, k, shown);
        let mut y = vec![f32::NAN; m * n];
        forward(&x, m, &w, Some(&bias), &mut y);
        assert_sums(&y, &y_want, &y_sizes, 1e-6);
        let mut gx = vec![f32::NAN; m * k];
        backward_input(&g, m, &w, false, &mut gx);
        assert_sums(&gx, &gx_want, &gx_sizes, 1e-6);
        backward_input(&g, m, &w, true, &mut gx);
        assert_sums(&gx, &twice(&gx_want), &twice(&gx_sizes), 1e-6);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    #[test]
    fn equals_the_product_of_what_was_rounded(m in 0usize..70, n in 1usize..150, k in 0usize..90) {
        check(m, n, k);
    }

    #[test]
    fn rounds_to_the_nearest(x in any::<f32>()) {
        let near = widen(round(x));
        if x.is_nan() {
            prop_assert!(near.is_nan());
        } else if x.is_normal() && x.abs() < 3e38 {
            prop_assert!((near - x).abs() <= x.abs() / 256.0);
            let mut wide = [0u16; 1];
            pack::round_all(&[x], &mut wide);
            prop_assert_eq!(wide[0], round(x));
        }
    }
}

#[test]
fn equals_the_product_beyond_one_block_of_outputs_and_rows() {
    check(33, 600, 40);
    check(2100, 34, 35);
    check(20, 40, 4200);
    check(33, 1500, 40);
}

#[test]
fn a_bad_value_stays_in_its_row() {
    let (m, n, k) = (40, 70, 50);
    let w = Weight(normal::<f32>(2, n * k).into_iter().map(round).collect(), n, k, true);
    let mut x = normal::<f32>(1, m * k);
    x[5 * k + 7] = f32::NAN;
    let mut y = vec![0.0; m * n];
    forward(&x, m, &w, None, &mut y);
    for (i, row) in y.chunks(n).enumerate() {
        assert_eq!(row.iter().any(|y| y.is_nan()), i == 5, "row {i}");
    }
}

#[test]
fn a_decoded_row_does_not_depend_on_its_company() {
    let (n, k) = (130, 100);
    let w = Weight(normal::<f32>(2, n * k).into_iter().map(round).collect(), n, k, false);
    let x = normal::<f32>(1, FEW_ROWS * k);
    let mut all = vec![0.0; FEW_ROWS * n];
    forward(&x, FEW_ROWS, &w, None, &mut all);
    for m in 1..FEW_ROWS {
        let mut some = vec![0.0; m * n];
        forward(&x[..m * k], m, &w, None, &mut some);
        assert_eq!(some, all[..m * n]);
    }
}

#[test]
fn widened_is_each_widened() {
    let bits: Vec<u16> = (0..300u32).map(|i| (i * 219) as u16).collect();
    let mut to = vec![1.0; 7];
    widen_into(&bits, &mut to);
    let same = to.iter().zip(&bits).all(|(to, bits)| to.to_bits() == u32::from(*bits) << 16);
    assert!(to.len() == 300 && same);
}

#[test]
fn threads_do_not_change_a_bit() {
    for m in [3, 60, 300] {
        let (n, k) = (300, 70);
        let w = Weight(normal::<f32>(2, n * k).into_iter().map(round).collect(), n, k, false);
        let (x, g) = (normal::<f32>(1, m * k), normal::<f32>(3, m * n));
        assert_same_for_threads(|| {
            let (mut y, mut gx) = (vec![0.0; m * n], vec![0.0; m * k]);
            forward(&x, m, &w, None, &mut y);
            backward_input(&g, m, &w, false, &mut gx);
            [y, gx].concat()
        });
    }
}

/// Tiles and dot products against each other, where the machine has both.
#[cfg(target_arch = "x86_64")]
#[test]
fn units_agree() {
    if unit() != Some(Unit::Tiles) {
        crate::testing::skipped("bf16 tiles are not here");
        return;
    }
    let steps = 5;
    let bits = |seed, n| normal::<f32>(seed, n).into_iter().map(round).collect::<Vec<u16>>();
    let (a, b) = (bits(1, 2 * steps * TILE * STEP), bits(2, steps * STEP * PANEL));
    let (top, below) = a.split_at(steps * TILE * STEP);
    let operands = (top.as_ptr(), below.as_ptr());
    for accumulate in [false, true] {
        let mut found = [vec![1.0f32; PANEL * PANEL], vec![1.0f32; PANEL * PANEL]];
        // SAFETY: whole operands; the unit of tiles has all features of the other.
        unsafe {
            let to = found[0].as_mut_ptr();
            amx::with_tiles(|| amx::block(operands, b.as_ptr(), steps, to, 4 * PANEL, accumulate));
            avx512::block(operands, b.as_ptr(), steps, found[1].as_mut_ptr(), 4 * PANEL, accumulate);
        }
        let want: Vec<f64> = found[1].iter().map(|x| f64::from(*x)).collect();
        assert_close(&found[0], &want, 1e-5);
    }
}

#[test]
fn what_is_added_to_does_not_depend_on_the_rows_beside() {
    let (m, n, k) = (70, 96, 48);
    let w = Weight(normal::<f32>(2, n * k).into_iter().map(round).collect(), n, k, true);
    let (g, start) = (normal::<f32>(3, m * n), normal::<f32>(4, m * k));
    let mut all = start.clone();
    backward_input(&g, m, &w, true, &mut all);
    for (from, to) in [(0, 17), (17, 70)] {
        let mut some = start[from * k..to * k].to_vec();
        backward_input(&g[from * n..to * n], to - from, &w, true, &mut some);
        assert_eq!(some, all[from * k..to * k], "rows {from} to {to}");
    }
}
