//! State that follows a parameter whose trainable entries change.

use ramekin_core::{Array, Category};
use ramekin_engine::parts;
use ramekin_slots::Optimizer;
use ramekin_tests::lab::part;
use serde_json::{Value as Json, json};

use crate::replay::{param, step};

const ROWS: usize = 16;
const COLS: usize = 8;

fn optimizer(kind: &str, settings: &Json) -> Box<dyn Optimizer> {
    ramekin_catalog::link();
    parts::optimizer(&part(kind, settings.clone())).unwrap()
}

fn cases() -> Vec<(&'static str, Json)> {
    vec![
        ("adamw", json!({})),
        ("adamw8bit", json!({ "min_8bit_size": 32 })),
        ("adafactor", json!({ "beta1": 0.9 })),
        ("sgd", json!({ "momentum": 0.9 })),
        ("lion", json!({})),
    ]
}

/// Gradients of entries (i, j) that a rank-one second moment describes exactly.
fn gradient(t: u64, entries: &[usize]) -> Vec<f32> {
    let sign = |e: usize| if (e * 31 + t as usize * 17).is_multiple_of(3) { -1.0 } else { 1.0 };
    entries.iter().map(|e| sign(*e) * (1.0 + (e / COLS) as f32) * (0.5 + (e % COLS) as f32)).collect()
}

/// A choice of 64 entries, then one of them alone: what stays trains on as if the others had never been there.
#[test]
fn what_stays_keeps_its_state() {
    for (kind, settings) in cases() {
        let all: Vec<usize> = (0..ROWS * COLS).collect();
        let kept: Vec<usize> = all.iter().copied().filter(|e| e % 2 == 1).collect();
        let mut moved = optimizer(kind, &settings);
        let whole = param("w", vec![0.0; all.len()], &[ROWS, COLS]);
        for t in 1..=4 {
            step(&mut *moved, &whole, &gradient(t, &all), t);
        }
        let from: Vec<Option<usize>> = kept.iter().map(|e| Some(*e)).collect();
        moved.remap(whole.id(), &from).unwrap();
        let before: Vec<f32> = pick(&whole.value(), &kept);
        let part = whole.part(Array::from_vec(before.clone(), &[kept.len()], Category::Trainable).unwrap());
        step(&mut *moved, &part, &gradient(5, &kept), 5);

        let mut straight = optimizer(kind, &settings);
        let other = param("w", vec![0.0; all.len()], &[ROWS, COLS]);
        for t in 1..=5 {
            step(&mut *straight, &other, &gradient(t, &all), t);
        }
        let after = part.value().to_f32().unwrap();
        let expected = pick(&other.value(), &kept);
        // adafactor bounds a whole tensor's RMS, and bytes are rounded in other blocks.
        let slack = if matches!(kind, "adafactor" | "adamw8bit") { 0.1 } else { 1e-6 };
        for ((a, e), b) in after.iter().zip(&expected).zip(&before) {
            assert!(a != b, "{kind}: nothing moved");
            assert!(((a - b) - (e - b)).abs() <= slack * (e - b).abs() + 1e-7, "{kind}: {a} and {e}");
        }
    }
}

/// What is new begins with nothing, and a forgotten parameter altogether.
#[test]
fn what_is_new_begins_anew() {
    for (kind, settings) in cases() {
        let first: Vec<usize> = (0..64).collect();
        let second: Vec<usize> = (32..96).collect();
        let mut optimizer = optimizer(kind, &settings);
        let x = param("w", vec![0.0; 64], &[64]);
        for t in 1..=3 {
            step(&mut *optimizer, &x, &gradient(t, &first), t);
        }
        let from: Vec<Option<usize>> = second.iter().map(|e| first.binary_search(e).ok()).collect();
        optimizer.remap(x.id(), &from).unwrap();
        let arrays = optimizer.table().get(x.id()).unwrap().arrays().to_vec();
        for (name, array) in arrays.iter().filter(|(n, _)| !n.ends_with("absmax")) {
            let zero = |i: usize| match (array.view::<f32>(), array.view::<u8>()) {
                (Ok(x), _) => x[i] == 0.0,
                // The byte that stands for zero: 127 of the code with signs, 0 of the one without.
                (_, Ok(x)) => x[i] == if *name == "exp_avg" { 127 } else { 0 },
                _ => panic!("neither numbers nor bytes"),
            };
            assert!(!zero(0) && !zero(31), "{kind}: `{name}` was lost");
            assert!(zero(32) && zero(63), "{kind}: `{name}` of a new entry is not zero");
        }
        optimizer.forget(x.id());
        assert!(optimizer.table().get(x.id()).is_none());
        assert_eq!(optimizer.table().bytes(), 0);
    }
}

/// State behind a projection is in another space than the entries: it begins anew.
#[test]
fn what_was_projected_begins_anew() {
    use ramekin_slots::{ParamGroup, StepInfo};
    for (kind, settings) in cases() {
        let mut optimizer = optimizer(kind, &settings);
        let x = param("w", vec![0.0; ROWS * COLS], &[ROWS, COLS]);
        let small = Array::from_vec(vec![1.0f32; 2 * COLS], &[2, COLS], Category::Workspace).unwrap();
        let info = StepInfo { step: 1, lr: 1e-2 };
        optimizer.update(&x, &small, info, ParamGroup::default()).unwrap();
        assert!(optimizer.table().bytes() > 0, "{kind}");
        optimizer.remap(x.id(), &[Some(3), Some(ROWS * COLS - 1)]).unwrap();
        assert!(optimizer.table().get(x.id()).is_none(), "{kind}");
    }
}

fn pick(x: &Array, entries: &[usize]) -> Vec<f32> {
    let x = x.to_f32().unwrap();
    entries.iter().map(|e| x[*e]).collect()
}
