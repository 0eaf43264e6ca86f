use proptest::prelude::*;

use super::*;
use crate::testing::{assert_close, assert_gradient, assert_same_for_threads, normal, weighted, wide};

/// Segments laid one after the other, with a row of nobody before each.
fn segments(lengths: &[(usize, usize)]) -> (Vec<Segment>, usize, usize) {
    let (mut q, mut k) = (0, 0);
    let place = |&(q_len, k_len): &(usize, usize)| {
        let s = Segment { q_start: q + 1, q_len, k_start: k + 1, k_len };
        (q, k) = (q + 1 + q_len, k + 1 + k_len);
        s
    };
    let all = lengths.iter().map(place).collect();
    (all, q, k)
}

fn shape(heads: usize, group: usize, head_dim: usize, window: Option<usize>, causal: bool) -> Shape {
    let reach = Reach { window, chunk: None };
    Shape { heads: heads * group, kv_heads: heads, head_dim, scale: 0.3, reach, causal, bf16: false }
}

fn check(lengths: &[(usize, usize)], o: &Shape) {
    let (s, rows, keys) = segments(lengths);
    let q = normal::<f32>(1, rows * o.heads * o.head_dim);
    let k = normal::<f32>(2, keys * o.kv_heads * o.head_dim);
    let v = normal::<f32>(3, k.len());
    let (want, want_lse) = reference::forward(&wide(&q), &wide(&k), &wide(&v), None, &s, o);
    let (mut out, mut lse) = (vec![f32::NAN; q.len()], vec![f32::NAN; rows * o.heads]);
    forward(&q, &k, &v, None, &s, o, &mut out, &mut lse);
    assert_close(&out, &want, 2e-6);
    for (got, want) in lse.iter().zip(&want_lse) {
        assert!((*got as f64 - want).abs() < 1e-5 || *got as f64 == *want, "log-sum-exp {got}, not {want}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    #[test]
    fn equals_the_reference(
        lengths in prop::collection::vec((0usize..90, 0usize..90), 0..4),
        heads in 1usize..3, group in 1usize..4, head_dim in 1usize..20,
        window in prop::option::of(1usize..40), chunk in prop::option::of(1usize..40), causal: bool,
    ) {
        let plain = shape(heads, group, head_dim, window, causal);
        check(&lengths, &Shape { reach: Reach { window, chunk }, ..plain });
    }
}

#[test]
fn equals_the_reference_over_many_blocks() {
    check(&[(150, 700), (600, 600), (1, 600)], &shape(1, 2, 8, None, true));
    check(&[(150, 700), (400, 400), (1, 600)], &shape(2, 1, 8, Some(300), true));
    check(&[(70, 600)], &shape(1, 1, 16, Some(5), true));
    check(&[(70, 600)], &shape(1, 1, 16, None, false));
    check(&[(150, 700), (400, 400)], &Shape { reach: Reach::chunk(90), ..shape(2, 1, 8, None, true) });
}

#[test]
fn backward_is_the_gradient() {
    // (5, 9): a cache before the queries; (6, 3): queries that see nothing; (1, 4): decoding.
    for (o, lengths) in [
        (shape(2, 1, 3, None, true), vec![(5, 9), (6, 3), (1, 4)]),
        (shape(1, 3, 4, Some(3), true), vec![(7, 7), (1, 4)]),
        (shape(1, 2, 2, None, false), vec![(4, 6)]),
        (shape(1, 2, 2, None, true), vec![(QUERIES + 3, KEYS + 5)]),
    ] {
        let (s, rows, keys) = segments(&lengths);
        let q = normal::<f64>(1, rows * o.heads * o.head_dim);
        let k = normal::<f64>(2, keys * o.kv_heads * o.head_dim);
        let v = normal::<f64>(3, k.len());
        let g = normal::<f64>(4, q.len());
        let (mut out, mut lse) = (vec![0.0; q.len()], vec![0.0; rows * o.heads]);
        let some = normal::<f64>(5, keys);
        for bias in [None, Some(&some[..])] {
            forward(&q, &k, &v, bias, &s, &o, &mut out, &mut lse);
            let (mut gq, mut gk, mut gv) =
                (vec![f64::NAN; q.len()], vec![f64::NAN; k.len()], vec![f64::NAN; k.len()]);
            backward(&g, &q, &k, &v, bias, &out, &lse, &s, &o, &mut gq, &mut gk, &mut gv);
            let loss =
                |q: &[f64], k: &[f64], v: &[f64]| weighted(&g, &reference::forward(q, k, v, bias, &s, &o).0);
            assert_gradient(&q, &gq, |q| loss(q, &k, &v));
            assert_gradient(&k, &gk, |k| loss(&q, k, &v));
            assert_gradient(&v, &gv, |v| loss(&q, &k, v));
        }
    }
}

/// Gradients in f32 against those in f64, which `backward_is_the_gradient` has judged.
#[test]
fn backward_in_single_precision_is_that_in_double() {
    let reach = Reach { window: Some(200), chunk: Some(150) };
    for (o, lengths) in [
        (shape(2, 1, 16, None, true), vec![(5, 9), (6, 3), (1, 4), (130, 300)]),
        (shape(2, 2, 20, Some(90), true), vec![(200, 200), (1, 70)]),
        (Shape { reach, ..shape(1, 3, 64, None, true) }, vec![(300, 310)]),
        (shape(1, 1, 33, None, false), vec![(70, 90)]),
    ] {
        let (s, rows, keys) = segments(&lengths);
        let q = normal::<f32>(1, rows * o.heads * o.head_dim);
        let k = normal::<f32>(2, keys * o.kv_heads * o.head_dim);
        let (v, g, bias) = (normal::<f32>(3, k.len()), normal::<f32>(4, q.len()), normal::<f32>(5, keys));
        fn gradients<T: crate::Real>(
            [g, q, k, v, bias]: [&[T]; 5],
            (s, o): (&[Segment], &Shape),
        ) -> [Vec<T>; 3] {
            let (mut out, mut lse) = (vec![T::ZERO; q.len()], vec![T::ZERO; q.len() / o.head_dim]);
            forward(q, k, v, Some(bias), s, o, &mut out, &mut lse);
            let mut found = [q, k, v].map(|x| vec![T::ZERO; x.len()]);
            let [gq, gk, gv] = &mut found;
            backward(g, q, k, v, Some(bias), &out, &lse, s, o, gq, gk, gv);
            found
        }
        let all = [&g, &q, &k, &v, &bias];
        let wide = all.map(|x| wide(x));
        let want = gradients(wide.each_ref().map(|x| &x[..]), (&s, &o));
        for (got, want) in gradients(all.map(|x| &x[..]), (&s, &o)).iter().zip(&want) {
            assert_close(got, want, 5e-6);
        }
    }
}

#[test]
fn a_biased_key_counts_as_often_as_it_says() {
    // log 3 on a key is the same as having it three times.
    let o = shape(2, 1, 8, None, false);
    let (rows, width) = (5, 16);
    let (q, k, v) =
        (normal::<f32>(1, 4 * width), normal::<f32>(2, rows * width), normal::<f32>(3, rows * width));
    let thrice = |x: &[f32]| [&x[..2 * width], &x[width..2 * width], &x[width..]].concat();
    let run = |k: &[f32], v: &[f32], bias: Option<&[f32]>| {
        let s = [Segment { q_start: 0, q_len: 4, k_start: 0, k_len: k.len() / width }];
        let (mut out, mut lse) = (vec![0.0; q.len()], vec![0.0; 4 * o.heads]);
        forward(&q, k, v, bias, &s, &o, &mut out, &mut lse);
        out
    };
    let bias = [0.0, 3f32.ln(), 0.0, 0.0, 0.0];
    let (once, often) = (run(&k, &v, Some(&bias)), run(&thrice(&k), &thrice(&v), None));
    assert_close(&once, &wide(&often), 2e-6);
}

#[test]
fn a_bias_equals_the_reference_over_many_blocks() {
    for o in [shape(1, 2, 8, Some(300), true), shape(2, 1, 8, None, false)] {
        let (s, rows, keys) = segments(&[(150, 700), (1, 600)]);
        let (q, k) = (normal::<f32>(1, rows * 16), normal::<f32>(2, keys * o.kv_heads * 8));
        let (v, bias) = (normal::<f32>(3, k.len()), normal::<f32>(4, keys));
        let (mut out, mut lse) = (vec![0.0; q.len()], vec![0.0; rows * 2]);
        forward(&q, &k, &v, Some(&bias), &s, &o, &mut out, &mut lse);
        let (want, _) = reference::forward(&wide(&q), &wide(&k), &wide(&v), Some(&wide(&bias)), &s, &o);
        assert_close(&out, &want, 3e-6);
    }
}

/// A lane cut out of rows of several heads, handed over in pieces.
struct Rows {
    k: Vec<f32>,
    v: Vec<f32>,
    d: usize,
}

impl Stored<f32> for Rows {
    fn keys<'a>(&'a self, entries: Range<usize>, scratch: &'a mut Vec<f32>) -> &'a [f32] {
        scratch.clear();
        scratch.extend_from_slice(&self.k[entries.start * self.d..entries.end * self.d]);
        scratch
    }

    fn values<'a>(&'a self, entries: Range<usize>, _: &'a mut Vec<f32>) -> &'a [f32] {
        &self.v[entries.start * self.d..entries.end * self.d]
    }
}

#[test]
fn lanes_equal_the_reference_and_their_weights_sum_to_one() {
    let (d, group) = (8, 3);
    let o = Shape {
        heads: group,
        kv_heads: 1,
        head_dim: d,
        scale: 0.3,
        reach: Reach::ALL,
        causal: true,
        bf16: false,
    };
    let keys = [1, 7, KEYS, 2 * KEYS + 5];
    let rows: Vec<Rows> = keys
        .iter()
        .map(|n| Rows { k: normal(*n as u64, n * d), v: normal(90 + *n as u64, n * d), d })
        .collect();
    let q = normal::<f32>(5, keys.len() * group * d);
    let queries: Vec<Query<'_, f32>> = rows
        .iter()
        .zip(q.chunks(group * d))
        .map(|(r, q)| {
            let n = r.k.len() / d;
            Query { q, sees: vec![(r as &dyn Stored<f32>, 0..n / 3), (r, n / 3..n)] }
        })
        .collect();
    for (i, found) in lanes(&queries, d, o.scale, true).iter().enumerate() {
        let (r, n) = (&rows[i], keys[i]);
        let s = Segment { q_start: 0, q_len: 1, k_start: 0, k_len: n };
        let (want, lse) = reference::forward(&wide(queries[i].q), &wide(&r.k), &wide(&r.v), None, &[s], &o);
        assert_close(&found.out, &want, 2e-6);
        for (h, lse) in lse.iter().enumerate() {
            let weights = &found.weights[h * n..(h + 1) * n];
            assert!((weights.iter().sum::<f32>() - 1.0).abs() < 1e-5);
            let dot: f64 = (0..d).map(|c| f64::from(queries[i].q[h * d + c] * r.k[c])).sum();
            assert!((f64::from(weights[0]) - (dot * o.scale - lse).exp()).abs() < 1e-6);
        }
    }
    let nothing = lanes(&[Query { q: &q[..d], sees: Vec::new() }], d, 1.0, false);
    assert_eq!(nothing[0].out, vec![0.0; d]);
}

#[test]
fn column_sums_equal_the_weights_written_down() {
    for (o, q_len, k_len, rows) in [
        (shape(2, 2, 8, None, true), 150, 150, 0..150),
        (shape(1, 3, 8, None, true), 100, 400, 93..100),
        (shape(2, 1, 8, Some(9), true), 90, 90, 30..90),
        (shape(1, 2, 4, None, false), 5, KEYS + 3, 4..5),
    ] {
        let (s, total, keys) = segments(&[(2, 2), (q_len, k_len)]);
        let s = s[1];
        let q = normal::<f32>(1, total * o.heads * o.head_dim);
        let k = normal::<f32>(2, keys * o.kv_heads * o.head_dim);
        let (mut out, mut lse) = (vec![0.0; q.len()], vec![0.0; total * o.heads]);
        forward(&q, &k, &k, None, &[s], &o, &mut out, &mut lse);
        let got = column_sums(&q, &k, &lse, &s, &o, rows.clone());
        let mut want = vec![0.0f64; o.heads * k_len];
        let d = o.head_dim;
        for (h, row) in (0..o.heads).flat_map(|h| rows.clone().map(move |r| (h, r))) {
            let qi = ((s.q_start + row) * o.heads + h) * d;
            for j in o.visible(&s, row) {
                let kj = ((s.k_start + j) * o.kv_heads + h / o.group()) * d;
                let dot: f64 = (0..d).map(|c| f64::from(q[qi + c]) * f64::from(k[kj + c])).sum();
                want[h * k_len + j] +=
                    (dot * o.scale - f64::from(lse[(s.q_start + row) * o.heads + h])).exp();
            }
        }
        assert_close(&got, &want, 3e-6);
    }
}

#[test]
fn segments_do_not_see_each_other() {
    let o = shape(1, 2, 8, None, true);
    let (s, rows, keys) = segments(&[(70, 70), (40, 40)]);
    let (q, mut k) = (normal::<f32>(1, rows * 16), normal::<f32>(2, keys * 8));
    let v = normal::<f32>(3, keys * 8);
    let run = |k: &[f32]| {
        let (mut out, mut lse) = (vec![0.0; q.len()], vec![0.0; rows * 2]);
        forward(&q, k, &v, None, &s, &o, &mut out, &mut lse);
        out
    };
    let before = run(&k);
    k[s[0].k_start * 8] += 1.0;
    let after = run(&k);
    let second = s[1].q_start * 16;
    assert!(before[..second] != after[..second]);
    assert_eq!(before[second..], after[second..]);
}

#[test]
fn nan_stays_in_its_query() {
    let o = shape(2, 1, 8, None, true);
    let (s, rows, keys) = segments(&[(30, 30)]);
    let (mut q, k, v) =
        (normal::<f32>(1, rows * 16), normal::<f32>(2, keys * 16), normal::<f32>(3, keys * 16));
    q[7 * 16] = f32::NAN; // head 0 of row 7
    let (mut out, mut lse) = (vec![0.0; q.len()], vec![0.0; rows * 2]);
    forward(&q, &k, &v, None, &s, &o, &mut out, &mut lse);
    for (i, row) in out.chunks(8).enumerate() {
        assert_eq!(row.iter().any(|x| x.is_nan()), i == 14, "row {}, head {}", i / 2, i % 2);
    }
}

#[test]
fn a_future_of_nan_is_not_read() {
    let o = shape(1, 1, 8, None, true);
    let (s, rows, keys) = segments(&[(40, 40)]);
    let (q, mut k, mut v) =
        (normal::<f32>(1, rows * 8), normal::<f32>(2, keys * 8), normal::<f32>(3, keys * 8));
    k[38 * 8..39 * 8].fill(f32::NAN);
    v[40 * 8..].fill(1e30);
    let (mut out, mut lse) = (vec![0.0; q.len()], vec![0.0; rows]);
    forward(&q, &k, &v, None, &s, &o, &mut out, &mut lse);
    assert!(out[..38 * 8].iter().all(|x| x.abs() < 100.0));
    assert!(out[38 * 8..39 * 8].iter().all(|x| x.is_nan()));
}

#[test]
fn threads_do_not_change_a_bit() {
    for group in [1, 4] {
        let o = shape(2, group, 16, Some(150), true);
        let (s, rows, keys) = segments(&[(200, 300), (1, 50), (90, 90)]);
        let (q, g) = (normal::<f32>(1, rows * o.heads * 16), normal::<f32>(4, rows * o.heads * 16));
        let (k, v) = (normal::<f32>(2, keys * 32), normal::<f32>(3, keys * 32));
        assert_same_for_threads(|| {
            let (mut out, mut lse) = (vec![0.0; q.len()], vec![0.0; rows * o.heads]);
            forward(&q, &k, &v, None, &s, &o, &mut out, &mut lse);
            let (mut gq, mut gk, mut gv) = (q.clone(), k.clone(), v.clone());
            backward(&g, &q, &k, &v, None, &out, &lse, &s, &o, &mut gq, &mut gk, &mut gv);
            [out, gq, gk, gv].concat()
        });
    }
}
