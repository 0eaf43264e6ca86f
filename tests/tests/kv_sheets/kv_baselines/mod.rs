//! `kv-baselines`: StreamingLLM, H2O, TOVA, PyramidKV, AdaKV.

mod budgets;
mod sink;
mod state;

use std::rc::Rc;

use ramekin_core::{Meter, meter};
use ramekin_kv_evict::{Ada, H2o, Pyramid, Tova};
use ramekin_lanes::{Cache, Dense, Rule};
use ramekin_slots::FlatBatch;
use ramekin_tests::compare::{difference, largest, same_bits};
use ramekin_tests::decoding::{Masked, Session, Visible, shape, with_and_masked};
use ramekin_tests::{lab, recall};
use serde_json::json;

use crate::tools::{model, policy, rule};

// For each policy a limit of at least n + t gives bit-identical logits to the plain cache (streaming 1e-6).
#[test]
fn check_1() {
    let (n, t) = (40, 20);
    let ids = lab::sequences(&[n + t], 61, 1).remove(0);
    for kv_heads in [4, 2] {
        let model = model(2, kv_heads);
        let run = |kind, settings| {
            let policy = policy(kind, settings);
            Session::new(&model, &*policy, shape(&model, 1, n, t)).one_by_one(&ids, n)
        };
        let plain = run("full", json!({}));
        for (kind, settings) in [
            ("h2o", json!({ "hh_size": 20, "recent_size": 40 })),
            ("tova", json!({ "cache_size": 60 })),
            ("snapkv", json!({ "max_capacity_prompt": 40, "window_size": 4 })),
            ("pyramid", json!({ "max_capacity": 40, "window": 4 })),
            ("ada", json!({ "base_capacity": 40, "window": 4 })),
            ("streaming", json!({ "recent_size": 56, "positions": "original" })),
        ] {
            same_bits(kind, &run(kind, settings), &plain);
        }
        let streamed = run("streaming", json!({ "recent_size": 56 }));
        let off = difference(&streamed, &plain) / largest(&plain);
        println!("streaming by slot: off by {off:.1e}");
        assert!(off <= 1e-6, "streaming by slot: off by {off:.1e}");
    }
}

// Decode logits equal (1e-5) a full-cache run in which every entry is masked from its eviction on.
#[test]
fn check_2() {
    fn check<R: Rule>(name: &str, kv_heads: usize, rule: R, most: usize) {
        let (n, t) = (40, 24);
        let model = model(2, kv_heads);
        let ids = lab::sequences(&[n + t], 61, 2).remove(0);
        let cache = Cache::new(rule, Dense, shape(&model, 1, n, t)).expect("a cache");
        let (got, want, kept) = with_and_masked(&model, cache, kv_heads, &ids, n);
        let off = difference(&got, &want) / largest(&want);
        println!("{name}, {kv_heads} key heads: off by {off:.1e}");
        assert!(off <= 1e-5, "{name}: off by {off:.1e}");
        let stored: usize = kept.iter().flatten().map(Vec::len).sum();
        assert!(stored <= most * 2 * kv_heads, "{name}: {stored} entries stored, nothing was dropped");
    }
    for kv_heads in [4, 2] {
        check("h2o", kv_heads, rule::<H2o>(json!({ "hh_size": 6, "recent_size": 6 })), 12);
        check("tova", kv_heads, rule::<Tova>(json!({ "cache_size": 12 })), 12);
        let pyramid = json!({ "max_capacity": 12, "window": 4, "beta": 4, "kernel": 3 });
        check("pyramid", kv_heads, rule::<Pyramid>(pyramid), 12 + 24);
        let ada = json!({ "base_capacity": 12, "window": 4, "kernel": 3 });
        check("ada", kv_heads, rule::<Ada>(ada), 13 + 24);
        // Streaming's prompt is masked as well: the first 4, and the last 8.
        let model = model(2, kv_heads);
        let ids = lab::sequences(&[64], 61, 2).remove(0);
        let streaming = policy("streaming", json!({ "recent_size": 8, "positions": "original" }));
        let got = Session::new(&model, &*streaming, shape(&model, 1, 40, 24)).one_by_one(&ids, 40);
        let visible: Visible = Rc::new(|_, _, p| (0..=p).filter(|j| *j < 4 || j + 8 > p).collect());
        let want = Session::on(&model, Masked::new(2, visible), 1).one_by_one(&ids, 40);
        let off = difference(&got, &want) / largest(&want);
        println!("streaming, {kv_heads} key heads: off by {off:.1e}");
        assert!(off <= 1e-5, "streaming: off by {off:.1e}");
    }
}

// After evicting, a 1-layer model's next logits are those of a fresh forward on sinks and recent tokens;
// a deeper model's are not. A stream of 50 times the context is finite, in constant memory.
#[test]
fn check_3() {
    let settings = json!({ "start_size": 4, "recent_size": 12 });
    let ids = lab::sequences(&[40], 61, 3).remove(0);
    let off = |layers| {
        let model = model(layers, 2);
        let mut session =
            Session::new(&model, &*policy("streaming", settings.clone()), shape(&model, 1, 30, 10));
        let streamed = session.one_by_one(&ids, 30);
        let seen = [&ids[..4], &ids[28..]].concat();
        let fresh = lab::logits(&model, &FlatBatch::new(&[seen]), true);
        let (a, b) = (&streamed[39 * 61..], &fresh[15 * 61..]);
        difference(a, b) / largest(b)
    };
    println!("off from a fresh forward: {:.1e} with one layer, {:.1e} with two", off(1), off(2));
    assert!(off(1) <= 1e-5 && off(2) > 1e-3);

    let mut config = lab::small_llama();
    config["max_position_embeddings"] = json!(32);
    let model = lab::assemble(&lab::fresh_model(config));
    let meter = Meter::new();
    let _scope = meter::scope(meter.clone());
    let steps = 50 * 32;
    let mut session = Session::new(&model, &*policy("streaming", settings), shape(&model, 1, 32, steps));
    let ids = lab::sequences(&[32 + steps], 61, 4).remove(0);
    session.feed(&[ids[..32].to_vec()]);
    let (held, stored) = (meter.live().kv, session.cache.borrow().bytes());
    assert_eq!(stored, 2 * 2 * 2 * 16 * 8 * 4);
    for id in &ids[32..] {
        let z = session.feed(&[vec![*id]]).remove(0);
        assert!(z.iter().all(|z| z.is_finite()));
        assert_eq!((meter.live().kv, session.cache.borrow().bytes()), (held, stored));
    }
    assert_eq!(session.cache.borrow().seen(0), 32 + steps);
}

// After a prompt and 30 steps the scores of survivors are the brute-force sums; a key with persistent mass
// stays with H2O, while TOVA drops it once the last query ignores it.
#[test]
fn check_4() {
    state::scores_are_sums();
    state::persistent_mass();
}

// Pyramid budgets fall and sum to L·B, and are the release's where floored; Ada's counts sum to G·B, and
// alpha = 1 is SnapKV bit for bit.
#[test]
fn check_5() {
    budgets::pyramid();
    budgets::counts();
    budgets::alpha_1_is_snapkv();
}

// Unpooled, with alpha = 0, a layer keeps at least the attention mass that uniform budgets keep, and more
// where one head is flat and one peaked.
#[test]
fn check_6() {
    budgets::more_mass();
}

// Attention sinks, on a model that has one; four seeds.
#[test]
fn check_7_seed_0() {
    sink::check(0);
}

#[test]
fn check_7_seed_1() {
    sink::check(1);
}

#[test]
fn check_7_seed_2() {
    sink::check(2);
}

#[test]
fn check_7_seed_3() {
    sink::check(3);
}

// Recall: full is at least 0.97, and H2O, TOVA and StreamingLLM at 7 entries lie between 0.15 and 0.85.
#[test]
fn check_8() {
    let model = recall::model();
    let full = recall::accuracy(&model, &*policy("full", json!({})), 512);
    println!("full: {full:.3}");
    assert!(full >= 0.97, "full: {full:.3}");
    for (kind, settings) in [
        ("h2o", json!({ "hh_size": 4, "recent_size": 3 })),
        ("tova", json!({ "cache_size": 7 })),
        ("streaming", json!({ "start_size": 1, "recent_size": 6 })),
    ] {
        let right = recall::accuracy(&model, &*policy(kind, settings), 512);
        println!("{kind}: {right:.3}");
        assert!(right > 0.15 && right < 0.85, "{kind}: {right:.3}");
    }
}
