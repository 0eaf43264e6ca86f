//! Checks 5 and 6: who may keep how much.

use std::cell::RefCell;
use std::rc::Rc;

use ramekin_core::{Draws, Rng};
use ramekin_kv_evict::{Ada, SnapKv, by_head, by_layer};
use ramekin_lanes::{Cache, Dense, Prompt, Rule};
use ramekin_tests::compare::same_bits;
use ramekin_tests::decoding::{Session, kept, shape};
use ramekin_tests::lab;
use serde_json::json;

use crate::tools::{model, rule};

pub fn pyramid() {
    for (layers, capacity, w, beta, n) in [
        (32, 128, 8, 20, 4000),
        (7, 40, 8, 3, 500),
        (2, 12, 4, 4, 40),
        (5, 64, 16, 20, 100),
        (1, 20, 4, 2, 90),
    ] {
        let budget = capacity - w;
        let all = by_layer(layers, budget, beta, n, w, true);
        assert_eq!(all.iter().sum::<usize>(), layers * budget, "{all:?}");
        assert!(all.windows(2).all(|b| b[0] >= b[1]) && all[0] <= n - w, "{all:?}");
    }
    let floored = by_layer(32, 120, 20, 4000, 8, false);
    assert_eq!((floored[0], floored[31], floored.iter().sum::<usize>()), (234, 17, 4016));
    assert!(floored.windows(2).all(|b| b[0] - b[1] == 7));
    // Regimes by length: n < 2B is SnapKV in every layer.
    assert_eq!(by_layer(4, 50, 20, 99, 8, true), [50; 4]);
    assert!(by_layer(4, 50, 20, 120, 8, true)[0] > 50);
}

pub fn counts() {
    let mut draws = Draws::new(Rng::new(6).stream("tests/ada", 0));
    for (heads, n, budget) in [(2, 30, 7), (8, 100, 20), (3, 10, 10)] {
        let scores: Vec<Vec<f32>> =
            (0..heads).map(|_| (0..n).map(|_| draws.uniform() as f32).collect()).collect();
        assert_eq!(by_head(&scores, budget).iter().sum::<usize>(), heads * budget);
    }
}

pub fn alpha_1_is_snapkv() {
    let (n, t) = (40, 10);
    let model = model(2, 2);
    let ids = lab::sequences(&[n + t], 61, 5).remove(0);
    let snap = json!({ "max_capacity_prompt": 12, "window_size": 4, "kernel_size": 5, "pooling": "max" });
    let snap = Cache::new(rule::<SnapKv>(snap), Dense, shape(&model, 1, n, t)).expect("a cache");
    let ada = json!({ "base_capacity": 12, "window": 4, "kernel": 5, "pooling": "max", "alpha": 1.0 });
    let ada = Cache::new(rule::<Ada>(ada), Dense, shape(&model, 1, n, t)).expect("a cache");
    let (snap, ada) = (Rc::new(RefCell::new(snap)), Rc::new(RefCell::new(ada)));
    let one = Session::on(&model, snap.clone(), 1).one_by_one(&ids, n);
    let other = Session::on(&model, ada.clone(), 1).one_by_one(&ids, n);
    same_bits("alpha = 1", &other, &one);
    assert_eq!(kept(&ada.borrow(), 2, 2), kept(&snap.borrow(), 2, 2));
}

pub fn more_mass() {
    let n = 40;
    let snap = rule::<SnapKv>(
        json!({ "max_capacity_prompt": 9, "window_size": 1, "kernel_size": 1, "pooling": "max" }),
    );
    let ada = rule::<Ada>(json!({ "base_capacity": 9, "window": 1, "kernel": 1, "alpha": 0.0 }));
    let mut draws = Draws::new(Rng::new(7).stream("tests/mass", 0));
    let mut softmax = |sharp: &[f64]| -> Vec<f32> {
        let row = |s: &f64| {
            let x: Vec<f64> = (0..n).map(|_| (s * (draws.uniform() - 0.5)).exp()).collect();
            let total: f64 = x.iter().sum();
            x.into_iter().map(move |x| (x / total) as f32).collect::<Vec<_>>()
        };
        sharp.iter().flat_map(row).collect()
    };
    let mass = |votes: &[f32], kept: Vec<Vec<usize>>| -> f64 {
        let lanes = kept.iter().enumerate();
        lanes.flat_map(|(h, kept)| kept.iter().map(move |j| f64::from(votes[h * n + j]))).sum()
    };
    let mut both = |sharp: &[f64]| {
        let votes = softmax(sharp);
        let heads = sharp.len();
        let prompt = Prompt { layer: 0, layers: 1, len: n, heads, kv_heads: heads, votes: &votes };
        let kept = |k: Option<Vec<Vec<usize>>>| mass(&votes, k.expect("a choice"));
        (kept(ada.keep(&prompt)), kept(snap.keep(&prompt)))
    };
    for _ in 0..50 {
        let (ada, uniform) = both(&[1.0, 4.0, 2.0, 8.0]);
        assert!(ada >= uniform - 1e-6, "{ada} of the mass, {uniform} with uniform budgets");
    }
    let (ada, uniform) = both(&[0.1, 400.0]);
    println!("flat and peaked: {ada:.3} of the mass, {uniform:.3} with uniform budgets");
    assert!(ada > uniform + 0.05);
}
