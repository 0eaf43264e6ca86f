use proptest::prelude::*;

use super::*;
use crate::packed_rows::tests::{NO_VNNI, grid};
use crate::packed_rows::{self, Activations, FEW_ROWS, Layout};
use crate::testing::{assert_close, assert_same_for_threads, assert_sums, normal, skipped, wide};

fn product(x: &[f32], m: usize, w: &Layout<'_>, n: usize) -> Option<Vec<f32>> {
    let Layout::Grid(w) = w else { return None };
    let mut y = vec![f32::NAN; m * n];
    let done = forward(x, m, w, &mut y);
    if !done {
        skipped(NO_VNNI);
    }
    done.then_some(y)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn is_its_formula(
        bits in prop::sample::select(vec![2u32, 3, 4, 8]),
        m in 1usize..40, n in 1usize..100, halves in 1usize..12, groups in 1usize..8, sym: bool,
    ) {
        let (group, k) = (32 * halves, 32 * halves * groups);
        let made = grid(bits, (n, k), group, sym);
        let x = normal::<f32>(4, m * k);
        if let Some(y) = product(&x, m, &made.layout(bits, (n, k), group), n) {
            let sizes = {
                let x: Vec<f32> = x.iter().map(|x| x.abs()).collect();
                let dense: Vec<f64> = made.dense.iter().map(|w| w.abs()).collect();
                reference::forward(m, n, k, &x, &dense)
            };
            assert_sums(&y, &reference::forward(m, n, k, &x, &made.dense), &sizes, 1e-6);
            prop_assert_eq!(product(&x, m, &made.narrow(bits, (n, k), group), n), Some(y));
        }
    }

    #[test]
    fn rounds_to_half_a_step(k in 1usize..200) {
        let x = normal::<f32>(5, k);
        for (x, to) in x.chunks(GROUP).zip(rounded(&x, k).chunks(GROUP)) {
            let step = x.iter().fold(0f32, |a, x| a.max(x.abs())) / 127.0;
            for (x, to) in x.iter().zip(to) {
                prop_assert!((x - to).abs() <= 0.5001 * step);
            }
        }
    }
}

#[test]
fn a_prompt_is_rounded_as_new_tokens_are() {
    let (n, k, group) = (70, 320, 64);
    let made = grid(4, (n, k), group, true);
    let w = made.layout(4, (n, k), group);
    let x = normal::<f32>(4, FEW_ROWS * k);
    if let Some(many) = product(&x, FEW_ROWS, &w, n) {
        let mut few = vec![f32::NAN; FEW_ROWS * n];
        assert!(packed_rows::forward(&x, FEW_ROWS, &w, Activations::Int8, &mut few));
        assert_close(&many, &wide(&few), 1e-6);
    }
}

#[test]
fn what_is_no_number_stays_in_its_row() {
    let (m, n, k) = (9, 33, 64);
    let made = grid(8, (n, k), 32, false);
    let mut x = normal::<f32>(4, m * k);
    let clean = product(&x, m, &made.layout(8, (n, k), 32), n);
    (x[2 * k + 3], x[5 * k + 40]) = (f32::NAN, f32::INFINITY);
    x[7 * k..][..32].fill(0.0); // a group without a scale
    x[8 * k..][..32].fill(1e-44);
    let found = product(&x, m, &made.layout(8, (n, k), 32), n);
    if let (Some(clean), Some(found)) = (clean, found) {
        for (row, (clean, found)) in clean.chunks(n).zip(found.chunks(n)).enumerate() {
            match row {
                2 | 5 => assert!(found.iter().all(|y| y.is_nan())),
                7 | 8 => assert!(found.iter().all(|y| y.is_finite())),
                _ => assert_eq!(clean, found),
            }
        }
    }
}

#[test]
fn threads_do_not_change_a_bit() {
    let (m, n, k) = (50, 130, 2080);
    let made = grid(4, (n, k), 32, true);
    let x = normal::<f32>(4, m * k);
    if product(&x, m, &made.layout(4, (n, k), 32), n).is_some() {
        assert_same_for_threads(|| product(&x, m, &made.layout(4, (n, k), 32), n).unwrap_or_default());
    }
}
