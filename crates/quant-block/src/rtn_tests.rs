use super::*;

fn weight(n: usize) -> Vec<f32> {
    let mut w = vec![0.0; n];
    ramekin_kernels::philox::Stream::new(3, 4).fill_normal(0, 0.02, &mut w);
    w
}

fn decode(data: &RtnData) -> Vec<f32> {
    let mut out = vec![f32::NAN; data.shape.0 * data.shape.1];
    data.rows_into(0, &mut out);
    out
}

#[test]
fn worked_examples() {
    // Asymmetric, 2 bits: lo = -1, hi = 2, scale 1, zero 1.
    let spec = RtnSpec { bits: 2, group_size: 4, sym: false, ..RtnSpec::default() };
    let data = RtnData::encode(&[-1.0, 0.4, 0.6, 2.0], (1, 4), spec).expect("packs");
    assert_eq!((data.scales.at(0), data.zeros[0]), (1.0, 1.0));
    assert_eq!(data.packed, [0b11_10_01_00]); // codes 0, 1, 2, 3, the first in the lowest bits
    assert_eq!(decode(&data), [-1.0, 0.0, 1.0, 2.0]);
    // Symmetric, 4 bits: scale 2·7.5/15 = 1, zero 8; 7.5 rounds to 8, which the top code cuts to 7.
    let spec = RtnSpec { bits: 4, group_size: 4, sym: true, ..RtnSpec::default() };
    let data = RtnData::encode(&[7.5, -7.5, 0.5, 1.5], (1, 4), spec).expect("packs");
    assert_eq!(decode(&data), [7.0, -8.0, 0.0, 2.0]); // halves to even
    assert_eq!(data.packed, [0x0f, 0xa8]);
    assert!(data.zeros.is_empty());
    // 3 bits: eight codes in three bytes.
    let spec = RtnSpec { bits: 3, group_size: -1, sym: false, ..RtnSpec::default() };
    let data = RtnData::encode(&[0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0], (1, 8), spec).expect("packs");
    let word = (0..8u32).fold(0, |word, j| word | j << (3 * j));
    assert_eq!(data.packed, word.to_le_bytes()[..3]);
}

#[test]
fn eight_bits_by_row_is_int8_by_row() {
    let w = weight(3 * 50);
    let data =
        RtnData::encode(&w, (3, 50), RtnSpec { bits: 8, group_size: -1, sym: true, ..RtnSpec::default() })
            .expect("packs");
    for (w, o) in w.chunks(50).zip(decode(&data).chunks(50)) {
        let absmax = w.iter().fold(0f32, |a, x| a.max(x.abs()));
        for (w, o) in w.iter().zip(o) {
            let want = (127.0 * w / absmax).round_ties_even() * absmax / 127.0;
            assert!((want - o).abs() <= 1e-6 * absmax, "{w}: {o}, not {want}");
        }
    }
}

#[test]
fn zeros_stay_zeros() {
    for bits in [2, 3, 4, 8] {
        for (sym, group_size) in [(true, -1), (false, -1), (true, 16), (false, 16)] {
            for tiny in [0.0, 1e-44, -1e-44] {
                let data = RtnData::encode(
                    &[tiny; 64],
                    (2, 32),
                    RtnSpec { bits, group_size, sym, ..RtnSpec::default() },
                )
                .expect("packs");
                assert!(decode(&data).iter().all(|x| *x == 0.0));
            }
        }
    }
}

#[test]
fn the_greatest_numbers_do_not_overflow() {
    for sym in [true, false] {
        let spec = RtnSpec { bits: 8, group_size: 2, sym, ..RtnSpec::default() };
        let data = RtnData::encode(&[f32::MAX, f32::MIN, 0.0, f32::MAX], (2, 2), spec).expect("packs");
        assert!((0..data.scales.len()).all(|i| data.scales.at(i).is_finite()));
        assert_eq!(decode(&data)[2], 0.0);
    }
}

#[test]
fn any_rows_are_the_same_as_all_rows_in_both_precisions() {
    for (rows, columns, group_size) in [(7, 33, 11), (20, 128, 32), (5, 5000, -1), (4, 6, 1)] {
        for bits in [2, 3, 4, 8] {
            for sym in [false, true] {
                let spec = RtnSpec { bits, group_size, sym, ..RtnSpec::default() };
                let data = RtnData::encode(&weight(rows * columns), (rows, columns), spec).expect("packs");
                let all = decode(&data);
                let mut some = vec![f32::NAN; 2 * columns];
                data.rows_into(2, &mut some);
                assert_eq!(some, all[2 * columns..4 * columns]);
                let mut wide = vec![f64::NAN; 2 * columns];
                data.rows_into(2, &mut wide);
                assert!(wide.iter().zip(&some).all(|(w, s)| *w == f64::from(*s)));
                assert_eq!(packed_bytes((rows, columns), spec), Ok(data.bytes()));
            }
        }
    }
}

#[test]
fn scales_in_bf16_are_half_the_bytes_and_no_weight_is_off_by_more_than_half_a_step() {
    let w = weight(8 * 96);
    for (bits, sym) in [2, 3, 4, 8].into_iter().flat_map(|bits| [(bits, true), (bits, false)]) {
        let spec = RtnSpec { bits, group_size: 32, sym, scale_dtype: ScaleDtype::Bf16 };
        let data = RtnData::encode(&w, (8, 96), spec).expect("packs");
        let wide = RtnSpec { scale_dtype: ScaleDtype::F32, ..spec };
        let beside = RtnData::encode(&w, (8, 96), wide).expect("packs");
        assert_eq!(beside.bytes() - data.bytes(), 2 * 24);
        assert_eq!(packed_bytes((8, 96), spec), Ok(data.bytes()));
        for (i, (w, o)) in w.iter().zip(decode(&data)).enumerate() {
            let (scale, exact) = (data.scales.at(i / 32), beside.scales.at(i / 32));
            assert!(exact <= scale && scale <= exact * (1.0 + 1.0 / 128.0));
            assert!((w - o).abs() <= 0.5001 * scale, "{bits} bits: {w} is {o}");
        }
        let tensors = data.to_tensors("m.weight");
        let back = RtnData::from_tensors("m.weight", |name| tensors.iter().find(|t| t.name == name).cloned());
        assert_eq!(back, Ok(data));
    }
}

#[test]
fn empty_weights_are_no_trouble() {
    for shape in [(0, 8), (3, 0)] {
        let data = RtnData::encode(
            &[],
            shape,
            RtnSpec { bits: 4, group_size: -1, sym: false, ..RtnSpec::default() },
        )
        .expect("packs");
        assert_eq!(data.bytes(), 0);
        data.rows_into::<f32>(0, &mut []);
    }
}

#[test]
fn threads_do_not_change_a_byte() {
    let w = weight(200_000);
    let on = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool");
        pool.install(|| {
            RtnData::encode(
                &w,
                (500, 400),
                RtnSpec { bits: 3, group_size: 100, sym: false, ..RtnSpec::default() },
            )
        })
    };
    assert_eq!(on(1), on(3));
}

#[test]
fn refuses_what_it_cannot_pack() {
    let mut w = weight(100);
    let encode = |w: &[f32], bits, group_size| {
        RtnData::encode(w, (10, 10), RtnSpec { bits, group_size, sym: true, ..RtnSpec::default() }).map(drop)
    };
    for bits in [0, 1, 5, 16] {
        assert_eq!(encode(&w, bits, -1), Err(CodecError::Bits(bits)));
    }
    for group_size in [0, 3, 20, -2, i64::MIN] {
        assert_eq!(encode(&w, 4, group_size), Err(CodecError::GroupSize { group_size, columns: 10 }));
        assert!(
            packed_bytes((10, 10), RtnSpec { bits: 4, group_size, sym: true, ..RtnSpec::default() }).is_err()
        );
    }
    assert_eq!(encode(&w[1..], 4, 5), Err(CodecError::Length { got: 99, rows: 10, columns: 10 }));
    w[99] = f32::NAN;
    let error = encode(&w, 4, 5).expect_err("refused");
    assert_eq!(
        error.to_string(),
        "the weight holds NaN at row 9, column 9; only finite numbers can be packed"
    );
}

#[test]
fn lying_files_are_refused() {
    let spec = RtnSpec { bits: 4, group_size: 5, sym: false, ..RtnSpec::default() };
    let data = RtnData::encode(&weight(100), (10, 10), spec).expect("packs");
    let refused = |suffix: &str, bytes: Vec<u8>| {
        let mut tensors = data.to_tensors("m.weight");
        let name = format!("m.weight.{suffix}");
        tensors.iter_mut().find(|t| t.name == name).expect("is there").bytes = bytes;
        let found = |name: &str| tensors.iter().find(|t| t.name == name).cloned();
        RtnData::from_tensors("m.weight", found).expect_err("refused").to_string()
    };
    let state = |text: &str| text.as_bytes().to_vec();
    for (suffix, bytes, text) in [
        ("codes", vec![0; 49], "expected 50 of type U8"),
        ("scales", vec![0; 4], "expected 20 of type F32"),
        ("scales", f32::INFINITY.to_le_bytes().repeat(20), "holds inf"),
        ("zeros", 16f32.to_le_bytes().repeat(20), "zeros are whole numbers from 0 to 15"),
        ("zeros", 0.5f32.to_le_bytes().repeat(20), "holds 0.5"),
        ("rtn", state(r#"{"bits":5,"group_size":5,"sym":false,"shape":[10,10]}"#), "`bits` is 5"),
        ("rtn", state(r#"{"bits":4,"group_size":3,"sym":false,"shape":[10,10]}"#), "`group_size` is 3"),
        ("rtn", state(r#"{"bits":4,"group_size":5,"sym":false}"#), "missing field `shape`"),
        (
            "rtn",
            state(r#"{"bits":4,"group_size":-1,"sym":true,"shape":[9,18446744073709551615]}"#),
            "more than any file",
        ),
    ] {
        let error = refused(suffix, bytes);
        assert!(error.contains(text), "{error} lacks {text}");
    }
    let missing = RtnData::from_tensors("m.weight", |_| None).expect_err("refused");
    assert_eq!(missing.to_string(), "tensor `m.weight.rtn` is missing");
}
