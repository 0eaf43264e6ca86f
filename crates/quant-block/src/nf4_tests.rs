use super::*;
use crate::codec::ByteTensor;

fn weight(n: usize) -> Vec<f32> {
    let mut w = vec![0.0; n];
    ramekin_kernels::philox::Stream::new(3, 4).fill_normal(0, 0.02, &mut w);
    w
}

fn packed(rows: usize, columns: usize, double_quant: bool) -> Nf4Data {
    let spec = Nf4Spec { block_size: 64, double_quant };
    Nf4Data::encode(&weight(rows * columns), (rows, columns), spec).expect("packs")
}

#[test]
fn the_code_book_is_the_published_one() {
    let full = [
        -1.0,
        -0.6961928009986877,
        -0.5250730514526367,
        -0.39491748809814453,
        -0.28444138169288635,
        -0.18477343022823334,
        -0.09105003625154495,
        0.0,
        0.07958029955625534,
        0.16093020141124725,
        0.24611230194568634,
        0.33791524171829224,
        0.44070982933044434,
        0.5626170039176941,
        0.7229568362236023,
        1.0f64,
    ];
    assert_eq!(NF4.map(f64::from), full);
}

#[test]
fn a_tie_goes_to_the_lower_code() {
    let mut w = [1.0f32; 32];
    for (w, m) in w[1..].iter_mut().zip(midpoints()) {
        *w = m;
    }
    let data = Nf4Data::encode(&w, (1, 32), Nf4Spec { block_size: 32, double_quant: false }).expect("packs");
    let code = |i: usize| {
        if i.is_multiple_of(2) { data.packed[i / 2] >> 4 } else { data.packed[i / 2] & 15 }
    };
    assert_eq!((1..16).map(|i| code(i) as usize).collect::<Vec<_>>(), (0..15).collect::<Vec<_>>());
}

#[test]
fn any_rows_are_the_same_as_all_rows_in_both_precisions() {
    for (rows, columns) in [(7, 33), (40, 64), (9, 500), (3, 70_001)] {
        for double_quant in [false, true] {
            let data = packed(rows, columns, double_quant);
            let mut all = vec![f32::NAN; rows * columns];
            data.rows_into(0, &mut all);
            let mut some = vec![f32::NAN; 2 * columns];
            data.rows_into(1, &mut some);
            assert_eq!(some, all[columns..3 * columns]);
            let mut wide = vec![f64::NAN; 2 * columns];
            data.rows_into(1, &mut wide);
            assert!(wide.iter().zip(&some).all(|(w, s)| *w == f64::from(*s)));
        }
    }
}

#[test]
fn bytes_are_known_from_the_shape() {
    for (rows, columns) in [(0, 5), (1, 1), (7, 33), (512, 512), (100, 333)] {
        for block_size in [32, 64, 4096] {
            for double_quant in [false, true] {
                let spec = Nf4Spec { block_size, double_quant };
                let data = Nf4Data::encode(&weight(rows * columns), (rows, columns), spec).expect("packs");
                assert_eq!(packed_bytes((rows, columns), spec), Ok(data.bytes()));
            }
        }
    }
    let bits = |double_quant| {
        let spec = Nf4Spec { block_size: 64, double_quant };
        packed_bytes((4096, 4096), spec).expect("known") as f64 * 8.0 / (4096.0 * 4096.0)
    };
    assert_eq!(bits(false), 4.5);
    assert!((bits(true) - 4.127).abs() < 1e-3);
}

#[test]
fn double_quantisation_stays_close_to_the_plain_scales() {
    let (plain, nested) = (packed(512, 128, false), packed(512, 128, true));
    assert_eq!(plain.packed, nested.packed);
    let largest = (0..1024).map(|b| plain.absmax.at(b)).fold(0f32, f32::max);
    for b in 0..1024 {
        // Half the widest step of the signed dynamic code is 0.0071 of the block's scale.
        assert!((plain.absmax.at(b) - nested.absmax.at(b)).abs() <= 0.0072 * largest, "block {b}");
    }
}

#[test]
fn blocks_of_zeros_stay_zeros() {
    let mut w = weight(256);
    w[64..128].fill(0.0);
    let data = Nf4Data::encode(&w, (4, 64), Nf4Spec { block_size: 64, double_quant: false }).expect("packs");
    let mut out = vec![f32::NAN; 64];
    data.rows_into(1, &mut out);
    assert!(out.iter().all(|x| *x == 0.0));
}

#[test]
fn threads_do_not_change_a_byte() {
    let w = weight(200_000);
    let on = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool");
        pool.install(|| Nf4Data::encode(&w, (200, 1000), Nf4Spec::default()).expect("packs"))
    };
    assert_eq!(on(1), on(3));
}

#[test]
fn refuses_what_it_cannot_pack() {
    let mut w = weight(100);
    let encode =
        |w: &[f32], block_size| Nf4Data::encode(w, (10, 10), Nf4Spec { block_size, double_quant: true });
    for block_size in [0, 16, 48, 8192] {
        assert_eq!(encode(&w, block_size), Err(CodecError::BlockSize(block_size)));
    }
    assert_eq!(encode(&w[1..], 64), Err(CodecError::Length { got: 99, rows: 10, columns: 10 }));
    w[47] = f32::NEG_INFINITY;
    let error = encode(&w, 64).expect_err("refused");
    assert_eq!(
        error.to_string(),
        "the weight holds -inf at row 4, column 7; only finite numbers can be packed"
    );
}

/// The tensors of a packed weight with one of them changed.
fn changed(data: &Nf4Data, suffix: &str, change: impl Fn(&mut ByteTensor)) -> Result<Nf4Data, CodecError> {
    let mut tensors = data.to_tensors("m.weight", "float32");
    let name = format!("m.weight{suffix}");
    change(tensors.iter_mut().find(|t| t.name == name).expect("is there"));
    Nf4Data::from_tensors("m.weight", |name| tensors.iter().find(|t| t.name == name).cloned())
}

#[test]
fn files_have_the_keys_of_bitsandbytes() {
    let tensors = packed(16, 64, true).to_tensors("m.weight", "bfloat16");
    let of = |name: &str| tensors.iter().find(|t| t.name == format!("m.weight{name}")).expect("is there");
    assert_eq!(tensors.len(), 6);
    assert_eq!(of("").shape, [512, 1]);
    assert_eq!(of(".absmax").shape, [16]);
    assert_eq!(of(".nested_absmax").shape, [1]);
    assert_eq!(of(".quant_map").shape, [16]);
    assert_eq!(of(".nested_quant_map").shape, [256]);
    let state: serde_json::Value =
        serde_json::from_slice(&of(".quant_state.bitsandbytes__nf4").bytes).expect("is JSON");
    assert_eq!(state["quant_type"], "nf4");
    assert_eq!(state["blocksize"], 64);
    assert_eq!(state["dtype"], "bfloat16");
    assert_eq!(state["shape"], serde_json::json!([16, 64]));
    assert_eq!(state["nested_blocksize"], 256);
    assert_eq!(state["nested_dtype"], "float32");
    assert!(state["nested_offset"].is_f64());
    assert_eq!(packed(16, 64, false).to_tensors("m.weight", "float32").len(), 4);
}

#[test]
fn a_file_with_its_own_map_is_decoded_by_it() {
    let data = packed(16, 64, true);
    let other =
        changed(&data, ".nested_quant_map", |t| t.bytes[..4].copy_from_slice(&(-0.5f32).to_le_bytes()));
    let other = other.expect("reads");
    assert_eq!(other.bytes(), data.bytes() + 1024);
    assert_eq!(data.absmax.at(0), other.absmax.at(0)); // its code is not 0
    let Absmax::Nested { map, .. } = &other.absmax else { panic!("not nested") };
    assert_eq!(map[0], -0.5);
}

#[test]
fn lying_files_are_refused() {
    let data = packed(16, 64, true);
    let refused = |suffix: &str, change: &dyn Fn(&mut ByteTensor)| {
        changed(&data, suffix, change).expect_err("refused").to_string()
    };
    let state = ".quant_state.bitsandbytes__nf4";
    let replace = |from: &str, to: &str| {
        let (from, to) = (from.to_owned(), to.to_owned());
        move |t: &mut ByteTensor| {
            t.bytes = String::from_utf8(t.bytes.clone()).expect("text").replace(&from, &to).into_bytes()
        }
    };
    for (suffix, change, text) in [
        (
            "",
            &(|t: &mut ByteTensor| t.bytes.truncate(9)) as &dyn Fn(&mut ByteTensor),
            "bytes of codes for 16×64",
        ),
        (".absmax", &|t| t.bytes.truncate(9), "expected 16 of type U8"),
        (".absmax", &|t| t.dtype = safetensors::Dtype::F32, "expected 16 of type U8"),
        (".nested_absmax", &|t| t.bytes = f32::NAN.to_le_bytes().to_vec(), "holds NaN"),
        (".quant_map", &|t| t.bytes[4..8].copy_from_slice(&0f32.to_le_bytes()), "is not the NF4 code book"),
        (".nested_absmax", &|t| t.name = "gone".to_owned(), "tensor `m.weight.nested_absmax` is missing"),
        (state, &replace("nf4", "fp4"), "`quant_type` is `fp4`"),
        (state, &replace("64,", "65,"), "`blocksize` is 65"),
        (state, &replace("[16, 64]", "[64]"), "`shape` is [64]"),
        (state, &replace("[16, 64]", "[16, 18446744073709551615]"), "more than any file holds"),
        (state, &replace("256", "128"), "`nested_blocksize` is Some(128)"),
        (state, &replace("{", ""), "expected"),
    ] {
        let error = refused(suffix, change);
        assert!(error.contains(text), "{error} lacks {text}");
    }
}
