//! Sheet `quant-family`, for `nf4` and `rtn`.
//!
//! Left out until their parts exist: 3 (GPTQ), 4 (AWQ), 5 (HQQ), 6 (LLM.int8(); 8-bit Adam is in `optim_sheets`), and
//! of check 1 the fixtures of AutoGPTQ, AutoAWQ, hqq and gguf-py. No public package has `rtn`'s file
//! layout, so its files are held against themselves.

use proptest::prelude::*;
use ramekin_core::{Array, Category, Rng};
use ramekin_engine::parts;
use ramekin_kernels::{int8, matmul};
use ramekin_quant_block::codec::ByteTensor;
use ramekin_quant_block::dynamic_code::{nearest, signed};
use ramekin_quant_block::nf4_codec::{Absmax, NF4, Nf4Data, Nf4Spec};
use ramekin_quant_block::rtn_codec::{RtnData, RtnScales, RtnSpec};
use ramekin_tape::ops::{self, Rounding, Rounds};
use ramekin_tape::{GradStore, Tape};
use ramekin_tests::lab::part;
use serde_json::{Value as Json, json};

/// Codes, scales and values recorded from the CPU library of bitsandbytes 0.50.2
/// (`cdequantize_blockwise_cpu_nf4_fp32`, two blocks of 64).
const PACKED: [u8; 64] = [
    15, 30, 45, 60, 75, 90, 105, 120, 135, 150, 165, 180, 195, 210, 225, 240, 231, 238, 231, 97, 94, 243, 95,
    48, 228, 155, 72, 46, 21, 202, 231, 80, 7, 32, 30, 18, 97, 123, 15, 237, 167, 225, 100, 119, 150, 255, 2,
    43, 234, 142, 208, 42, 130, 161, 117, 147, 15, 35, 55, 205, 55, 148, 197, 34,
];
const ABSMAX: [u32; 2] = [0x3d17f62b, 0x3ff70a3d];
const VALUES: [u32; 128] = [
    0xbd17f62b, 0x3d17f62b, 0xbcd396d2, 0x3cdbb92d, 0xbc9f94f6, 0x3caafe0b, 0xbc700c96, 0x3c85f123,
    0xbc2ce58c, 0x3c4d668b, 0xbbe0a0b2, 0x3c159935, 0xbb5d60b3, 0x3bc3a445, 0x00000000, 0x3b417d8a,
    0x3b417d8a, 0x00000000, 0x3bc3a445, 0xbb5d60b3, 0x3c159935, 0xbbe0a0b2, 0x3c4d668b, 0xbc2ce58c,
    0x3c85f123, 0xbc700c96, 0x3caafe0b, 0xbc9f94f6, 0x3cdbb92d, 0xbcd396d2, 0x3d17f62b, 0xbd17f62b,
    0x3cdbb92d, 0x00000000, 0x3cdbb92d, 0x3cdbb92d, 0x3cdbb92d, 0x00000000, 0xbb5d60b3, 0xbcd396d2,
    0xbbe0a0b2, 0x3cdbb92d, 0x3d17f62b, 0xbc700c96, 0xbbe0a0b2, 0x3d17f62b, 0xbc700c96, 0xbd17f62b,
    0x3cdbb92d, 0xbc2ce58c, 0x3bc3a445, 0x3c4d668b, 0xbc2ce58c, 0x3b417d8a, 0xbc9f94f6, 0x3cdbb92d,
    0xbcd396d2, 0xbbe0a0b2, 0x3c85f123, 0x3c159935, 0x3cdbb92d, 0x00000000, 0xbbe0a0b2, 0xbd17f62b,
    0xbff70a3d, 0x00000000, 0xbf81b6cc, 0xbff70a3d, 0xbfabfcca, 0x3fb29969, 0xbfabfcca, 0xbf81b6cc,
    0xbe33f1aa, 0xbfabfcca, 0x00000000, 0x3f26f508, 0xbff70a3d, 0x3ff70a3d, 0x3fb29969, 0x3f8afd29,
    0x3ef332c5, 0x00000000, 0x3fb29969, 0xbfabfcca, 0xbe33f1aa, 0xbf0c896b, 0x00000000, 0x00000000,
    0x3e9f0658, 0xbe33f1aa, 0x3ff70a3d, 0x3ff70a3d, 0xbff70a3d, 0xbf81b6cc, 0xbf81b6cc, 0x3f26f508,
    0x3fb29969, 0x3ef332c5, 0x3e1d46b1, 0x3fb29969, 0x3f8afd29, 0xbff70a3d, 0xbf81b6cc, 0x3ef332c5,
    0x3e1d46b1, 0xbf81b6cc, 0x3ef332c5, 0xbfabfcca, 0x00000000, 0xbeb695f1, 0x3e9f0658, 0xbf431eef,
    0xbff70a3d, 0x3ff70a3d, 0xbf81b6cc, 0xbf431eef, 0xbf431eef, 0x00000000, 0x3f59bef4, 0x3f8afd29,
    0xbf431eef, 0x00000000, 0x3e9f0658, 0xbf0c896b, 0x3f59bef4, 0xbeb695f1, 0xbf81b6cc, 0xbf81b6cc,
];

/// The same of its 8-bit blocks with the signed dynamic code (`cdequantize_blockwise_cpu_fp32`), one block.
const NESTED_CODES: [u8; 12] = [254, 102, 210, 58, 2, 193, 14, 22, 205, 62, 251, 47];
const NESTED_ABSMAX: u32 = 0x3c4985f0;
const NESTED_VALUES: [u32; 12] = [
    0x3c481b32, 0xb8a3a308, 0x3b96d3d8, 0xbb0ef49c, 0xbc42703b, 0x3ad9e59e, 0xbc206e6d, 0xbc09c28f,
    0x3b74fa05, 0xbac339c0, 0x3c3f9abe, 0xbb85d2f1,
];

/// And the other way (`cquantize_blockwise_cpu_fp32`): numbers and the codes that they get.
const NUMBERS: [u32; 16] = [
    0xbb2f5f2e, 0xbbe18b7f, 0xbca45779, 0xbba323a4, 0x3d32ecd8, 0xbc46dda3, 0xbb32b54a, 0x3cb82371,
    0x3c740382, 0x3c7a1f76, 0x3c8d4217, 0xbd2137ab, 0xbc8d9331, 0x3b2838d0, 0x3c237694, 0x3cd40fc5,
];
const NUMBER_CODES: [u8; 16] = [77, 59, 38, 63, 255, 51, 77, 220, 208, 208, 211, 7, 42, 176, 200, 226];

fn floats<const N: usize>(bits: [u32; N]) -> [f32; N] {
    bits.map(f32::from_bits)
}

fn normal(seed: u64, n: usize) -> Vec<f32> {
    let mut x = vec![0.0; n];
    Rng::new(seed).stream("tests/weights", 0).fill_normal(0, 1.0, &mut x);
    x
}

fn decoded(data: &Nf4Data) -> Vec<f32> {
    let mut out = vec![f32::NAN; data.shape.0 * data.shape.1];
    data.rows_into(0, &mut out);
    out
}

/// What the part of this kind stores of a weight, as the model's linears see it.
fn through_the_part(kind: &str, settings: Json, w: &[f32], shape: (usize, usize)) -> Vec<f32> {
    ramekin_catalog::link();
    let quantizer = parts::quantizer(&part(kind, settings)).expect("a quantizer");
    let packed = quantizer.pack("a.weight", w, shape).expect("packs");
    let mut out = vec![f32::NAN; w.len()];
    packed.rows_f32(0, &mut out);
    out
}

/// Activations in 8 bits, few rows and many, also where groups are shorter than theirs: the product of what is rounded,
/// and a gradient that passes straight through.
#[test]
fn act_bits_round_what_comes_in() {
    let (o, i) = (40, 96);
    let w = normal(1, o * i);
    for (m, group) in [(3, 32), (20, 32), (20, 16)] {
        ramekin_catalog::link();
        let settings = json!({ "group_size": group, "act_bits": 8 });
        let quantizer = parts::quantizer(&part("rtn", settings.clone())).expect("a quantizer");
        let packed = quantizer.pack("a.weight", &w, (o, i)).expect("packs");
        let how = Rounding { bf16: false, int8: quantizer.rounds_activations() };
        let packed = Rounds::of(packed, how);
        let dense: Vec<f64> =
            through_the_part("rtn", settings, &w, (o, i)).into_iter().map(f64::from).collect();
        let array = |x: &[f32], dims: &[usize]| {
            Array::from_vec(x.to_vec(), dims, Category::Workspace).expect("an array")
        };
        let (x, g) = (normal(2, m * i), normal(3, m * o));
        let tape = Tape::new();
        let at = tape.input(array(&x, &[m, i]));
        let y = ops::linear_packed(&tape, &at, &packed, None).expect("a product");
        let close = |got: &[f32], want: &[f64]| {
            let largest = want.iter().fold(0f64, |a, x| a.max(x.abs()));
            got.iter().zip(want).all(|(a, b)| (f64::from(*a) - b).abs() <= 1e-5 * largest)
        };
        let got = y.array().to_f32().expect("numbers");
        assert!(close(&got, &int8::reference::forward(m, o, i, &x, &dense)), "{m} rows, groups of {group}");
        let exact: Vec<f64> = x.iter().map(|x| f64::from(*x)).collect();
        assert!(!close(&got, &matmul::reference::nt(m, o, i, &exact, &dense)), "nothing was rounded");
        let seed = array(&g, &[m, o]);
        let slopes = tape.backward(&y, seed, &[at], &mut GradStore::new()).expect("a gradient");
        let slope = slopes[0].as_ref().expect("a gradient").to_f32().expect("numbers");
        let g: Vec<f64> = g.iter().map(|g| f64::from(*g)).collect();
        assert!(close(&slope, &matmul::reference::nn(m, o, i, &g, &dense)), "the gradient of {m} rows");
    }
}

// Recorded fixtures of bitsandbytes dequantise equal, f32 exact.
#[test]
fn check_1_fixtures_of_bitsandbytes_decode_to_the_bit() {
    let absmax = Absmax::Plain(floats(ABSMAX).to_vec());
    let data = Nf4Data { packed: PACKED.to_vec(), absmax, block_size: 64, shape: (4, 32) };
    assert_eq!(decoded(&data), floats(VALUES));
    // Those values are on the grid: packing them again gives the recorded bytes and the same values.
    let plain = Nf4Spec { block_size: 64, double_quant: false };
    let again = Nf4Data::encode(&floats(VALUES), (4, 32), plain).expect("packs");
    assert_eq!(again, data);
    let part = through_the_part("nf4", json!({ "double_quant": false }), &floats(VALUES), (4, 32));
    assert_eq!(part, floats(VALUES));

    let absmax = Absmax::Nested {
        codes: NESTED_CODES.to_vec(),
        absmax: vec![f32::from_bits(NESTED_ABSMAX)],
        offset: 0.0,
        map: signed().clone(),
    };
    let scales: Vec<f32> = (0..12).map(|b| absmax.at(b)).collect();
    assert_eq!(scales, floats(NESTED_VALUES));

    let numbers = floats(NUMBERS);
    let inv = 1.0 / numbers.iter().fold(0f32, |a, x| a.max(x.abs()));
    assert_eq!(numbers.map(|x| nearest(signed(), x * inv)), NUMBER_CODES);
}

// NF4 of the 16 codes times any absmax is lossless.
#[test]
fn check_1_the_sixteen_codes_times_any_absmax_are_lossless() {
    for absmax in [1.0, 0.037, 1e-20, 3e30, f32::MIN_POSITIVE * 4.0, f32::MAX] {
        let w: Vec<f32> = (0..64).map(|i| NF4[(i * 7) % 16] * absmax).collect();
        let spec = Nf4Spec { block_size: 32, double_quant: false };
        let data = Nf4Data::encode(&w, (2, 32), spec).expect("packs");
        assert_eq!(decoded(&data), w, "{absmax}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(64) })]

    // Pack → unpack is bit-exact on random codes.
    #[test]
    fn check_1_nf4_packs_and_unpacks_every_code(
        codes in prop::collection::vec(0usize..16, 1..700), columns in 1usize..40, block in 5u32..8,
    ) {
        let rows = codes.len().div_ceil(columns);
        let block_size = 1 << block;
        // Code 15 (the block's own absmax) opens each block, the rest is as drawn.
        let code = |i: usize| if i.is_multiple_of(block_size) { 15 } else { codes[i % codes.len()] };
        let w: Vec<f32> = (0..rows * columns).map(|i| NF4[code(i)] * 0.3).collect();
        let data = Nf4Data::encode(&w, (rows, columns), Nf4Spec { block_size, double_quant: false }).expect("packs");
        for i in 0..w.len() {
            let byte = data.packed[i / 2];
            prop_assert_eq!(usize::from(if i % 2 == 0 { byte >> 4 } else { byte & 15 }), code(i));
        }
        prop_assert_eq!(decoded(&data), w);
    }

    // The same for rtn's bit streams.
    #[test]
    fn check_1_rtn_packs_and_unpacks_every_code(
        rows in 1usize..6, groups in 1usize..5, group in 1usize..40, bits in prop::sample::select(vec![2u32, 3, 4, 8]), seed: u64,
    ) {
        let columns = groups * group;
        let drawn = Rng::new(seed).stream("tests/codes", 0);
        let codes: Vec<u8> = (0..rows * columns).map(|i| drawn.u32_at(i as u64) as u8 & ((1u16 << bits) - 1) as u8).collect();
        let row_bytes = ramekin_kernels::packed::stream_bytes(columns, bits);
        let mut packed = vec![0; rows * row_bytes];
        for (codes, packed) in codes.chunks(columns).zip(packed.chunks_mut(row_bytes)) {
            ramekin_kernels::packed::pack_bits(codes, bits, packed);
        }
        let spec = RtnSpec { bits, group_size: group as i64, sym: false, ..RtnSpec::default() };
        let data = RtnData { packed, scales: RtnScales::F32(vec![1.0; rows * groups]), zeros: vec![1.0; rows * groups], spec, shape: (rows, columns) };
        let mut out = vec![f32::NAN; rows * columns];
        data.rows_into(0, &mut out);
        prop_assert!(out.iter().zip(&codes).all(|(o, c)| *o == f32::from(*c) - 1.0));
    }

    // |w − ŵ| ≤ scale/2 · (1 + 1e-4), asymmetric and symmetric, also for a group without negative weights.
    #[test]
    fn check_2_rtn_errs_by_half_a_step_at_most(
        seed: u64, bits in prop::sample::select(vec![2u32, 3, 4, 8]), sym: bool, whole_row: bool,
        scale in prop::sample::select(vec![1e-30f32, 0.02, 1.0, 1e30]), shift in prop::sample::select(vec![0.0f32, 6.0, -6.0]),
    ) {
        // A shift of 6 makes groups without negative (or without positive) weights.
        let w: Vec<f32> = normal(seed, 4 * 96).iter().map(|x| (x + shift) * scale).collect();
        let group_size = if whole_row { -1 } else { 32 };
        let data = RtnData::encode(&w, (4, 96), RtnSpec { bits, group_size, sym, ..RtnSpec::default() }).expect("packs");
        let mut out = vec![f32::NAN; w.len()];
        data.rows_into(0, &mut out);
        let group = if whole_row { 96 } else { 32 };
        for (i, (w, o)) in w.iter().zip(&out).enumerate() {
            let step = f64::from(data.scales.at(i / group));
            let off = (f64::from(*w) - f64::from(*o)).abs();
            prop_assert!(off <= 0.5 * step * (1.0 + 1e-4), "{w} became {o} with steps of {step}");
        }
    }

    // |w − ŵ| ≤ absmax × half the widest gap between neighbouring codes (0.1519).
    #[test]
    fn check_2_nf4_errs_by_half_the_widest_gap_at_most(
        seed: u64, block in 5u32..13, scale in prop::sample::select(vec![1e-30f32, 0.02, 1.0, 1e30]),
    ) {
        let w: Vec<f32> = normal(seed, 5000).iter().map(|x| x * scale).collect();
        let spec = Nf4Spec { block_size: 1 << block, double_quant: false };
        let data = Nf4Data::encode(&w, (50, 100), spec).expect("packs");
        let gap = NF4.windows(2).map(|c| f64::from(c[1]) - f64::from(c[0])).fold(0.0, f64::max);
        for (i, (w, o)) in w.iter().zip(decoded(&data)).enumerate() {
            let off = (f64::from(*w) - f64::from(o)).abs();
            prop_assert!(off <= 0.5 * gap * f64::from(data.absmax.at(i / spec.block_size)), "{w} became {o}");
        }
    }
}

// The reference's symmetric rule errs by 8 scales here at 4 bits.
#[test]
fn check_2_a_symmetric_group_without_negative_weights_keeps_its_top() {
    // The rule that takes lo from the weights would lose everything above about half of 1.0.
    let w: Vec<f32> = (0..32).map(|i| i as f32 / 31.0).collect();
    let data =
        RtnData::encode(&w, (1, 32), RtnSpec { bits: 4, group_size: 32, sym: true, ..RtnSpec::default() })
            .expect("packs");
    let mut out = vec![0f32; 32];
    data.rows_into(0, &mut out);
    assert!((out[31] - 1.0).abs() <= 0.5 * data.scales.at(0) * 1.0001, "{}", out[31]);
}

// Every format: tensors of a file → the same codes and scales.
#[test]
fn check_1_files_round_trip() {
    let w = normal(5, 33 * 70);
    let find = |tensors: Vec<ByteTensor>| move |name: &str| tensors.iter().find(|t| t.name == name).cloned();
    for double_quant in [false, true] {
        let data = Nf4Data::encode(&w, (33, 70), Nf4Spec { block_size: 64, double_quant }).expect("packs");
        let tensors = data.to_tensors("a.weight", "bfloat16");
        assert_eq!(Nf4Data::from_tensors("a.weight", find(tensors)).expect("reads"), data);
    }
    for sym in [false, true] {
        let data =
            RtnData::encode(&w, (33, 70), RtnSpec { bits: 3, group_size: 14, sym, ..RtnSpec::default() })
                .expect("packs");
        assert_eq!(
            RtnData::from_tensors("a.weight", find(data.to_tensors("a.weight"))).expect("reads"),
            data
        );
    }
}

// What a model's linears see of a packed weight is what its codec stores.
#[test]
fn check_1_parts_hold_what_the_codecs_pack() {
    let (shape, w) = ((20, 96), normal(3, 20 * 96));
    for double_quant in [false, true] {
        let data = Nf4Data::encode(&w, shape, Nf4Spec { block_size: 128, double_quant }).expect("packs");
        let settings = json!({ "block_size": 128, "double_quant": double_quant });
        assert_eq!(through_the_part("nf4", settings, &w, shape), decoded(&data));
    }
    for (bits, group_size, sym) in
        [(2, 16, true), (3, 48, false), (4, 96, true), (8, -1, true), (8, 32, false)]
    {
        let data = RtnData::encode(&w, shape, RtnSpec { bits, group_size, sym, ..RtnSpec::default() })
            .expect("packs");
        let mut out = vec![f32::NAN; w.len()];
        data.rows_into(0, &mut out);
        let settings = json!({ "bits": bits, "group_size": group_size, "sym": sym });
        assert_eq!(through_the_part("rtn", settings, &w, shape), out);
    }
}
