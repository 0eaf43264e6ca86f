//! `snapkv`.

use std::cell::RefCell;
use std::rc::Rc;

use anyhow::Result;
use ramekin_core::{Draws, Rng};
use ramekin_kv_evict::SnapKv;
use ramekin_lanes::{Cache, Dense, Prompt, Rule, bytes, open};
use ramekin_slots::{KvCache, KvPolicy, KvShape};
use ramekin_tape::ops::AttentionSpec;
use ramekin_tests::compare::{difference, largest, same_bits};
use ramekin_tests::decoding::{Made, Session, attend, kept, shape, with_and_masked};
use ramekin_tests::{lab, recall};
use serde_json::{Value as Json, json};

use crate::tools::{model, policy, rule};

// With a capacity of at least n, prompt and 20 decode steps give the plain cache's bits, MHA and GQA.
#[test]
fn check_1() {
    let (n, t) = (40, 20);
    let ids = lab::sequences(&[n + t], 61, 1).remove(0);
    for kv_heads in [4, 2] {
        let model = model(2, kv_heads);
        let run = |kind, settings| {
            Session::new(&model, &*policy(kind, settings), shape(&model, 1, n, t)).one_by_one(&ids, n)
        };
        let plain = run("full", json!({}));
        for reduce in ["mean", "max"] {
            for capacity in [40, 2048] {
                let settings =
                    json!({ "max_capacity_prompt": capacity, "window_size": 8, "gqa_reduce": reduce });
                same_bits(reduce, &run("snapkv", settings), &plain);
            }
        }
    }
}

// With a capacity below n/3, decode logits are those of a full cache that masks what was dropped.
#[test]
fn check_2() {
    let (n, t) = (48, 20);
    let ids = lab::sequences(&[n + t], 61, 2).remove(0);
    for (kv_heads, reduce) in [(4, "mean"), (2, "mean"), (2, "max"), (2, "none")] {
        let model = model(2, kv_heads);
        let settings = json!({ "max_capacity_prompt": 12, "window_size": 4, "gqa_reduce": reduce });
        let cache = Cache::new(rule::<SnapKv>(settings), Dense, shape(&model, 1, n, t)).expect("a cache");
        let lanes = if reduce == "none" { 4 } else { kv_heads };
        let (got, want, kept) = with_and_masked(&model, cache, lanes, &ids, n);
        let off = difference(&got, &want) / largest(&want);
        println!("{kv_heads} key heads, {reduce}: off by {off:.1e}");
        assert!(off <= 1e-5, "{kv_heads} key heads, {reduce}: off by {off:.1e}");
        assert!(kept.iter().flatten().all(|k| k.len() == 12 + t && k[..8].iter().all(|p| *p < 44)));
    }
}

const SPEC: AttentionSpec = AttentionSpec {
    heads: 4,
    kv_heads: 2,
    head_dim: 8,
    scale: 0.35,
    reach: ramekin_tape::ops::Reach::ALL,
    causal: true,
    bf16: false,
};

fn sizes(n: usize) -> KvShape {
    KvShape {
        layers: 1,
        heads: 4,
        kv_heads: 2,
        head_dim: 8,
        sequences: 1,
        prompt: n,
        capacity: n,
        rollback: 0,
    }
}

fn random(seed: u64, n: usize) -> Vec<f32> {
    let mut draws = Draws::new(Rng::new(seed).stream("tests/snapkv", 0));
    (0..n).map(|_| (0..12).map(|_| draws.uniform()).sum::<f64>() as f32 - 6.0).collect()
}

fn made(seed: u64, n: usize) -> Made {
    Made { q: random(seed, n * 32), k: random(seed + 1, n * 16), v: random(seed + 2, n * 16) }
}

/// Votes by the definition: window rows of the softmax over all keys, summed, for each query head.
fn votes(made: &Made, n: usize, w: usize) -> Vec<f32> {
    let mut all = vec![0.0f64; 4 * n];
    for h in 0..4 {
        for i in n - w..n {
            let key = |j: usize| &made.k[(j * 2 + h / 2) * 8..(j * 2 + h / 2) * 8 + 8];
            let query = &made.q[(i * 4 + h) * 8..(i * 4 + h) * 8 + 8];
            let dot = |j| query.iter().zip(key(j)).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
            let e: Vec<f64> = (0..=i).map(|j| (dot(j) * SPEC.scale).exp()).collect();
            let total: f64 = e.iter().sum();
            e.iter().enumerate().for_each(|(j, e)| all[h * n + j] += e / total);
        }
    }
    all.into_iter().map(|x| x as f32).collect()
}

/// Pooled group means before the window, by the definition.
fn pooled(
    votes: &[f32],
    heads: usize,
    kv_heads: usize,
    n: usize,
    (w, m, max): (usize, usize, bool),
) -> Vec<Vec<f64>> {
    let group = heads / kv_heads;
    let mean = |g: usize, j: usize| -> f64 {
        (0..group).map(|h| f64::from(votes[(g * group + h) * n + j])).sum::<f64>() / group as f64
    };
    let pool = |g: usize, j: usize| -> f64 {
        let reach = (m / 2) as i64;
        let near = (j as i64 - reach..=j as i64 + reach).filter(|i| (0..(n - w) as i64).contains(i));
        let near = near.map(|i| mean(g, i as usize));
        if max { near.fold(f64::NEG_INFINITY, f64::max) } else { near.sum::<f64>() / m as f64 }
    };
    (0..kv_heads).map(|g| (0..n - w).map(|j| pool(g, j)).collect()).collect()
}

/// The best `count`, of equal ones the first, ascending.
fn best(scores: &[f64], count: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]).then(a.cmp(b)));
    order.truncate(count);
    order.sort_unstable();
    order
}

fn stored(made: &Made, n: usize, settings: Json) -> Vec<Vec<u32>> {
    let mut cache = Cache::new(rule::<SnapKv>(settings), Dense, sizes(n)).expect("a cache");
    attend(&mut cache, 0, SPEC, made);
    kept(&cache, 1, 2).remove(0)
}

// The kept set equals the definition's for random q and k, both poolings, and at the edges.
#[test]
fn check_3() {
    let (n, w, capacity) = (60, 6, 20);
    for (seed, peak) in [(10, None), (20, None), (30, Some(0)), (40, Some(n - w - 1))] {
        let mut made = made(seed, n);
        if let Some(p) = peak {
            // All window queries lean to one side, and this key answers there.
            for i in n - w..n {
                (0..4).for_each(|h| made.q[(i * 4 + h) * 8] = 4.0);
            }
            (0..2).for_each(|g| made.k[(p * 2 + g) * 8] = 6.0);
        }
        let votes = votes(&made, n, w);
        for (pooling, max) in [("avg", false), ("max", true)] {
            for m in [1, 5, 7] {
                let scores = pooled(&votes, 4, 2, n, (w, m, max));
                let settings = json!({ "max_capacity_prompt": capacity, "window_size": w,
                    "kernel_size": m, "pooling": pooling });
                for (found, scores) in stored(&made, n, settings).iter().zip(&scores) {
                    let mut want = best(scores, capacity - w);
                    want.extend(n - w..n);
                    let found: Vec<usize> = found.iter().map(|p| *p as usize).collect();
                    assert_eq!(found, want, "seed {seed}, {pooling} over {m}");
                    assert!(peak.is_none_or(|p| found.contains(&p)));
                }
            }
        }
    }
}

// A needle that the window looks at stays with its neighbours, and alone with a kernel of 1; streaming at
// the same capacity loses it.
#[test]
fn check_4() {
    let (n, w, p) = (60, 4, 23);
    let mut made = made(50, n);
    for i in n - w..n {
        (0..4).for_each(|h| made.q[(i * 4 + h) * 8] = 5.0);
    }
    (0..2).for_each(|g| made.k[(p * 2 + g) * 8] = 8.0);
    let votes = votes(&made, n, w);
    assert!((0..4).all(|h| votes[h * n + p] > 0.5 * w as f32), "the needle has less than half");
    for m in [1, 3, 5, 7] {
        let settings =
            json!({ "max_capacity_prompt": w + m, "window_size": w, "kernel_size": m, "pooling": "max" });
        for found in stored(&made, n, settings) {
            let near: Vec<u32> = (p - m / 2..=p + m / 2).map(|j| j as u32).collect();
            assert_eq!(found[..m], near, "kernel {m}");
        }
    }
    let streaming = json!({ "start_size": 1, "recent_size": w + 4, "positions": "original" });
    let mut cache =
        Cache::new(rule::<ramekin_kv_evict::Streaming>(streaming), Dense, sizes(n)).expect("a cache");
    attend(&mut cache, 0, SPEC, &made);
    assert!(kept(&cache, 1, 2)[0].iter().all(|k| k.len() == w + 5 && !k.contains(&(p as u32))));
}

/// SnapKV's window with another choice before it.
#[derive(Clone)]
struct Other {
    /// Entries kept before the window of one.
    budget: usize,
    random: Option<u64>,
}

impl Rule for Other {
    fn looks_back(&self, _: usize) -> usize {
        1
    }

    fn selects(&self) -> bool {
        true
    }

    fn keep(&self, p: &Prompt<'_>) -> Option<Vec<Vec<usize>>> {
        let lanes = pooled(p.votes, p.heads, p.kv_heads, p.len, (1, 5, true));
        let choose = |(lane, scores): (usize, Vec<f64>)| {
            let scores: Vec<f64> = match self.random {
                Some(seed) => {
                    // Another draw for each prompt: its votes are its name.
                    let bits = p.votes.iter().fold(seed, |h, v| h.rotate_left(5) ^ u64::from(v.to_bits()));
                    let mut draws = Draws::new(Rng::new(bits).stream("tests/random", lane as u64));
                    scores.iter().map(|_| draws.uniform()).collect()
                }
                None => scores.iter().map(|x| -x).collect(),
            };
            let mut kept = best(&scores, self.budget);
            kept.push(p.len - 1);
            kept
        };
        Some(lanes.into_iter().enumerate().map(choose).collect())
    }

    fn kept(&self, _: usize, _: usize, lanes: usize, _: usize) -> usize {
        lanes * (self.budget + 1)
    }
}

impl KvPolicy for Other {
    fn cache(&self, shape: KvShape) -> Result<Rc<RefCell<dyn KvCache>>> {
        open(self.clone(), Dense, shape)
    }

    fn bytes(&self, shape: KvShape) -> u64 {
        bytes(self, &Dense, shape)
    }
}

// Recall at 7 entries: SnapKV knows what comes, others do not.
#[test]
fn check_5() {
    let model = recall::model();
    let snap = |kernel: usize| {
        policy(
            "snapkv",
            json!({ "max_capacity_prompt": 7, "window_size": 1, "kernel_size": kernel, "pooling": "max" }),
        )
    };
    let right = |name: &str, policy: &dyn KvPolicy| {
        let right = recall::accuracy(&model, policy, 512);
        println!("{name}: {right:.3}");
        right
    };
    assert!(right("full", &*policy("full", json!({}))) >= 0.97);
    assert!(right("snapkv, kernel 5", &*snap(5)) >= 0.95);
    assert!(right("snapkv, kernel 1", &*snap(1)) < 0.85);
    let streaming = policy("streaming", json!({ "start_size": 1, "recent_size": 6 }));
    assert!(right("streaming", &*streaming) < 0.55);
    assert!(right("random", &Other { budget: 6, random: Some(1) }) < 0.55);
    assert!(right("lowest", &Other { budget: 6, random: None }) < 0.4);
}

// Stored bytes are the formula's, before and after 10 tokens, and all tokens count as seen.
#[test]
fn check_6() {
    let (n, t) = (40, 10);
    let model = model(2, 2);
    let ids = lab::sequences(&[n + t], 61, 6).remove(0);
    let snap = policy("snapkv", json!({ "max_capacity_prompt": 12, "window_size": 4 }));
    let mut session = Session::new(&model, &*snap, shape(&model, 1, n, t));
    session.feed(&[ids[..n].to_vec()]);
    let entry = 2 * 2 * 2 * 8 * 4;
    assert_eq!(session.cache.borrow().bytes(), entry * 12);
    ids[n..].iter().for_each(|id| drop(session.feed(&[vec![*id]])));
    let cache = session.cache.borrow();
    assert_eq!((cache.bytes(), cache.seen(0)), (entry * (12 + t as u64), n + t));
    assert_eq!(cache.stored(1, 0, 1), 12 + t);
}
