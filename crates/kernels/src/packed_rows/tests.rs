use proptest::prelude::*;

use super::*;
use crate::matmul::reference::nt;
use crate::packed::{pack_bits, stream_bytes};
use crate::testing::{assert_same_for_threads, assert_sums, magnitudes, normal, skipped, wide};

/// Why a case is left out.
pub(crate) const NO_VNNI: &str = "dot products of bytes are not here";

/// Codes, scales, zeros and the weight that they stand for.
pub(crate) struct Made {
    packed: Vec<u8>,
    scales: Vec<f32>,
    /// The same numbers: all of them are those of some bf16.
    bits_of_scales: Vec<u16>,
    zeros: Vec<f32>,
    pub dense: Vec<f64>,
}

pub(crate) fn grid(bits: u32, (n, k): (usize, usize), group: usize, sym: bool) -> Made {
    let top = (1u32 << bits) - 1;
    let codes: Vec<u8> =
        normal::<f32>(1, n * k).iter().map(|x| ((x.abs() * 1e4) as u32 & top) as u8).collect();
    let bits_of_scales: Vec<u16> =
        normal::<f32>(2, n * k / group).iter().map(|x| crate::bf16::round(0.01 + x.abs())).collect();
    let scales: Vec<f32> = bits_of_scales.iter().map(|s| crate::bf16::widen(*s)).collect();
    let middle = (1u32 << (bits - 1)) as f32;
    let zeros: Vec<f32> =
        normal::<f32>(3, n * k / group).iter().map(|x| (middle + 2.0 * x).round()).collect();
    let row_bytes = stream_bytes(k, bits);
    let mut packed = vec![0; n * row_bytes];
    for (to, codes) in packed.chunks_mut(row_bytes).zip(codes.chunks(k)) {
        pack_bits(codes, bits, to);
    }
    let zero = |e: usize| if sym { middle } else { zeros[e / group] };
    let value = |(e, c): (usize, &u8)| f64::from(scales[e / group]) * f64::from(f32::from(*c) - zero(e));
    let dense = codes.iter().enumerate().map(value).collect();
    Made { packed, scales, bits_of_scales, zeros: if sym { Vec::new() } else { zeros }, dense }
}

impl Made {
    pub fn layout(&self, bits: u32, shape: (usize, usize), group: usize) -> Layout<'_> {
        let middle = (1u32 << (bits - 1)) as f32;
        let (packed, scales, zeros) = (&self.packed, GroupScales::F32(&self.scales), &self.zeros);
        Layout::Grid(Grid { packed, bits, group, scales, zeros, middle, shape })
    }

    /// The same with scales in bf16.
    pub fn narrow(&self, bits: u32, shape: (usize, usize), group: usize) -> Layout<'_> {
        match self.layout(bits, shape, group) {
            Layout::Grid(w) => Layout::Grid(Grid { scales: GroupScales::Bf16(&self.bits_of_scales), ..w }),
            table => table,
        }
    }
}

/// y within `bound` of what f64 makes, beside the sum of the products' sizes.
#[track_caller]
fn close(y: &[f32], x: &[f32], dense: &[f64], k: usize, bound: f64) {
    let (m, n) = (x.len() / k, dense.len() / k);
    let sizes: Vec<f64> = dense.iter().map(|w| w.abs()).collect();
    let (want, sizes) = (nt(m, n, k, &wide(x), dense), nt(m, n, k, &magnitudes(x), &sizes));
    assert_sums(y, &want, &sizes, bound);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn a_grid_is_its_formula(
        bits in prop::sample::select(vec![2u32, 3, 4, 8]),
        m in 1usize..=8, n in 1usize..70, halves in 1usize..12, groups in 1usize..4, sym: bool,
    ) {
        let (group, k) = (32 * halves, 32 * halves * groups);
        let made = grid(bits, (n, k), group, sym);
        let x = normal::<f32>(4, m * k);
        // A group's numbers are at most 127 steps of its scale, half of one off.
        let kinds = [(Activations::F32, 3e-6), (Activations::Bf16, 1e-4), (Activations::Int8, 0.03)];
        for (narrow, bound) in kinds {
            let mut y = vec![f32::NAN; m * n];
            if forward(&x, m, &made.layout(bits, (n, k), group), narrow, &mut y) {
                close(&y, &x, &made.dense, k, bound);
                let mut same = vec![f32::NAN; m * n];
                prop_assert!(forward(&x, m, &made.narrow(bits, (n, k), group), narrow, &mut same));
                prop_assert_eq!(same, y);
            } else {
                skipped(NO_VNNI);
            }
        }
    }

    #[test]
    fn a_table_is_its_formula(
        m in 1usize..=8, n in 1usize..50, chunks in 1usize..9, nested: bool,
        block in prop::sample::select(vec![64usize, 128, 512]),
    ) {
        let k = 64 * chunks;
        let packed: Vec<u8> = normal::<f32>(1, n * k / 2).iter().map(|x| (x * 1e4) as i32 as u8).collect();
        let table: [f32; 16] = normal(2, 16).try_into().expect("sixteen");
        let blocks = (n * k).div_ceil(block);
        let plain: Vec<f32> = normal(3, blocks);
        let codes: Vec<u8> = plain.iter().map(|x| (x * 1e4) as i32 as u8).collect();
        let map: [f32; 256] = normal(4, 256).try_into().expect("all bytes");
        let absmax: Vec<f32> = normal(5, blocks.div_ceil(256));
        let scales = match nested {
            true => Scales::Nested { codes: &codes, map: &map, absmax: &absmax, offset: 0.5 },
            false => Scales::Plain(&plain),
        };
        let scale = |b: usize| match nested {
            true => map[codes[b] as usize] * absmax[b / 256] + 0.5,
            false => plain[b],
        };
        let code = |e: usize| if e.is_multiple_of(2) { packed[e / 2] >> 4 } else { packed[e / 2] & 15 };
        let value = |e: usize| f64::from(table[code(e) as usize]) * f64::from(scale(e / block));
        let dense: Vec<f64> = (0..n * k).map(value).collect();
        let x = normal::<f32>(6, m * k);
        let w = Layout::Table(Table { packed: &packed, table: &table, block, scales, shape: (n, k) });
        for (narrow, bound) in [(Activations::F32, 1e-6), (Activations::Bf16, 1e-2)] {
            let mut y = vec![f32::NAN; m * n];
            if forward(&x, m, &w, narrow, &mut y) {
                close(&y, &x, &dense, k, bound);
            } else {
                skipped(NO_VNNI);
            }
        }
    }
}

#[test]
fn rows_stand_alone_and_threads_change_nothing() {
    let (n, k) = (100, 256);
    let made = grid(4, (n, k), 64, false);
    let layout = || made.layout(4, (n, k), 64);
    let x = normal::<f32>(1, FEW_ROWS * k);
    let mut all = vec![0.0; FEW_ROWS * n];
    if !forward(&x, FEW_ROWS, &layout(), Activations::Bf16, &mut all) {
        return skipped(NO_VNNI);
    }
    for m in 1..FEW_ROWS {
        let mut y = vec![0.0; m * n];
        forward(&x[..m * k], m, &layout(), Activations::Bf16, &mut y);
        assert_eq!(y, all[..m * n]);
    }
    assert_same_for_threads(|| {
        let mut y = vec![0.0; n];
        forward(&x[..k], 1, &layout(), Activations::Bf16, &mut y);
        y
    });
}

#[test]
fn bad_values_stay_in_their_row() {
    let (n, k) = (40, 128);
    for bits in [2, 3, 4, 8] {
        let made = grid(bits, (n, k), 32, true);
        for bad in [f32::NAN, f32::INFINITY] {
            let mut x = normal::<f32>(1, 3 * k);
            x[k + 5] = bad;
            x[2 * k..].fill(0.0);
            let mut y = vec![7.0; 3 * n];
            if !forward(&x, 3, &made.layout(bits, (n, k), 32), Activations::F32, &mut y) {
                return;
            }
            assert!(y[..n].iter().all(|y| y.is_finite()));
            assert!(y[n..2 * n].iter().all(|y| y.is_nan()), "{bits} bits");
            assert!(y[2 * n..].iter().all(|y| *y == 0.0));
        }
    }
}

/// Weights that share x give what each gives alone; those that differ in what they take of x do not share.
#[test]
fn together_is_each_alone() {
    let (k, m) = (160, 3);
    let x = normal::<f32>(9, m * k);
    for bits in [2, 3, 4, 8] {
        for sym in [true, false] {
            let made =
                [(70, 32), (5, 160), (33, 32)].map(|(n, group)| (grid(bits, (n, k), group, sym), n, group));
            let layouts: Vec<_> =
                made.iter().map(|(made, n, group)| made.narrow(bits, (*n, k), *group)).collect();
            let mut ys: Vec<Vec<f32>> = made.iter().map(|(_, n, _)| vec![f32::NAN; m * n]).collect();
            let mut to: Vec<&mut [f32]> = ys.iter_mut().map(Vec::as_mut_slice).collect();
            if !forward_each(&x, m, &layouts, Activations::Bf16, &mut to) {
                return skipped(NO_VNNI);
            }
            for (w, y) in layouts.iter().zip(&ys) {
                let mut alone = vec![0.0; y.len()];
                assert!(forward(&x, m, w, Activations::Bf16, &mut alone));
                assert_eq!(y, &alone, "{bits} bits");
            }
            let (other, mut a, mut b) = (grid(bits, (5, k), 32, !sym), vec![0.0; m * 70], vec![0.0; m * 5]);
            let unlike = [made[0].0.narrow(bits, (70, k), 32), other.narrow(bits, (5, k), 32)];
            assert!(!forward_each(&x, m, &unlike, Activations::Bf16, &mut [&mut a, &mut b]));
        }
    }
}
