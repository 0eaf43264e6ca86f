//! Operations on features, rows before rows, and hidden states side by side.

mod gradients;

use std::rc::Rc;

use gradients::check;
use ramekin_tape::ops::{self, Activation, AttentionSpec, Channels, KeyValue, MergePlan, Reach, Segment};

#[test]
fn activations() {
    for f in [Activation::Relu, Activation::Gelu, Activation::Silu, Activation::Tanh] {
        check(&[&[4, 3]], |t, v| ops::activation(t, &v[0], f));
    }
}

#[test]
fn scales_and_shifts() {
    check(&[&[2, 5, 3], &[3], &[3]], |t, v| ops::scale_shift(t, &v[0], &v[1], &v[2], Channels::Last));
    check(&[&[2, 3, 2, 2], &[3], &[3]], |t, v| ops::scale_shift(t, &v[0], &v[1], &v[2], Channels::Second));
}

#[test]
fn layer_norms() {
    check(&[&[4, 5], &[5], &[5]], |t, v| ops::layer_norm(t, &v[0], &v[1], &v[2], 1e-5));
}

#[test]
fn rows_before_rows() {
    let pieces = Rc::new(vec![(true, 0..2), (false, 2..3), (true, 3..5)]);
    check(&[&[2, 3], &[5, 3]], |t, v| ops::prepend(t, &v[0], &v[1], &pieces));
}

#[test]
fn rectified_attention() {
    let segments = Rc::new(vec![0..7, 7..12]);
    for causal in [false, true] {
        check(&[&[12, 3], &[12, 3], &[12, 2]], |t, v| {
            ops::relu_attention(t, &v[0], &v[1], &v[2], &segments, causal, 1e-8)
        });
    }
}

#[test]
fn means_of_segments() {
    let segments = Rc::new(vec![0..4, 4..7]);
    for prefix in [false, true] {
        check(&[&[7, 3]], |t, v| ops::segment_mean(t, &v[0], &segments, prefix));
    }
}

#[test]
fn mixtures() {
    check(&[&[4, 1], &[4, 1], &[4, 3], &[4, 3]], |t, v| Ok(ops::softmax_mix(t, &v[..2], &v[2..])?.0));
}

#[test]
fn rows_that_become_one() {
    let plan = MergePlan {
        to: Rc::new(vec![0, 1, 0, 2, 2]),
        times: Rc::new(vec![1, 2, 3, 1, 1]),
        totals: Rc::new(vec![4, 2, 2]),
    };
    check(&[&[5, 3]], |t, v| ops::merge_rows(t, &v[0], &plan));
}

#[test]
fn reactivation() {
    check(&[&[6, 4], &[6, 4], &[3, 1], &[1, 4]], |t, v| ops::reactivate(t, &v[0], &v[1], &v[2], &v[3]));
}

#[test]
fn attention_to_keys_that_count_several_times() {
    let segments = Rc::new(vec![
        Segment { q_start: 0, q_len: 4, k_start: 0, k_len: 4 },
        Segment { q_start: 4, q_len: 3, k_start: 4, k_len: 3 },
    ]);
    let spec = AttentionSpec {
        heads: 2,
        kv_heads: 1,
        head_dim: 3,
        scale: 0.6,
        reach: Reach::ALL,
        causal: false,
        bf16: false,
    };
    let counts = Rc::new(vec![1, 4, 2, 1, 1, 7, 3]);
    check(&[&[7, 6], &[7, 3], &[7, 3]], |t, v| {
        ops::counted_attention(t, &v[0], &KeyValue { k: &v[1], v: &v[2] }, Some(&counts), &segments, spec)
    });
}
