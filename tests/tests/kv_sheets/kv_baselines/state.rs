//! Check 4: what H2O and TOVA know of their entries, with keys and queries made by hand.

use std::collections::BTreeMap;

use ramekin_core::{Draws, Rng};
use ramekin_kv_evict::{H2o, Tova};
use ramekin_lanes::{Cache, Dense, Rule};
use ramekin_slots::KvShape;
use ramekin_tape::ops::AttentionSpec;
use ramekin_tests::decoding::{Made, attend};
use serde_json::json;

use crate::tools::rule;

fn cache<R: Rule>(rule: R, spec: &AttentionSpec, prompt: usize, later: usize) -> Cache<R, Dense> {
    let shape = KvShape {
        layers: 1,
        heads: spec.heads,
        kv_heads: spec.kv_heads,
        head_dim: spec.head_dim,
        sequences: 1,
        prompt,
        capacity: prompt + later,
        rollback: 0,
    };
    Cache::new(rule, Dense, shape).expect("a cache")
}

fn spec(heads: usize, kv_heads: usize) -> AttentionSpec {
    AttentionSpec {
        heads,
        kv_heads,
        head_dim: 8,
        scale: 0.35,
        reach: ramekin_tape::ops::Reach::ALL,
        causal: true,
        bf16: false,
    }
}

fn random(draws: &mut Draws, n: usize) -> Vec<f32> {
    (0..n).map(|_| (0..12).map(|_| draws.uniform()).sum::<f64>() as f32 - 6.0).collect()
}

fn rows(draws: &mut Draws, n: usize, s: &AttentionSpec) -> Made {
    let (wide, narrow) = (s.heads * s.head_dim, s.kv_heads * s.head_dim);
    Made { q: random(draws, n * wide), k: random(draws, n * narrow), v: random(draws, n * narrow) }
}

/// Weights of one query head on these entries.
fn weights(q: &[f32], keys: &[&[f32]], scale: f64) -> Vec<f64> {
    let dot = |k: &&[f32]| q.iter().zip(*k).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    let all: Vec<f64> = keys.iter().map(|k| (dot(k) * scale).exp()).collect();
    let total: f64 = all.iter().sum();
    all.into_iter().map(|x| x / total).collect()
}

pub fn scores_are_sums() {
    let (n, t, s) = (30, 30, spec(4, 2));
    let mut draws = Draws::new(Rng::new(4).stream("tests/h2o", 0));
    let all = rows(&mut draws, n + t, &s);
    let (wide, narrow) = (s.heads * s.head_dim, s.kv_heads * s.head_dim);
    let cut = |from: usize, to: usize| Made {
        q: all.q[from * wide..to * wide].to_vec(),
        k: all.k[from * narrow..to * narrow].to_vec(),
        v: all.v[from * narrow..to * narrow].to_vec(),
    };
    let key = |j: usize, lane: usize| &all.k[j * narrow + lane * 8..j * narrow + lane * 8 + 8];
    let query = |i: usize, head: usize| &all.q[i * wide + head * 8..i * wide + head * 8 + 8];
    let mut cache = cache(rule::<H2o>(json!({ "hh_size": 5, "recent_size": 5 })), &s, n, t);
    let mut sums = vec![BTreeMap::<u32, f64>::new(); 2];
    for i in 0..n + t {
        if i == 0 {
            attend(&mut cache, 0, s, &cut(0, n));
        }
        for (lane, sums) in sums.iter_mut().enumerate() {
            // What query i sees: in the prompt everything before it, later what is stored, and itself.
            let mut sees: Vec<u32> =
                if i < n { (0..i as u32).collect() } else { cache.positions(0, 0, lane).to_vec() };
            sees.push(i as u32);
            let keys: Vec<&[f32]> = sees.iter().map(|j| key(*j as usize, lane)).collect();
            for head in [2 * lane, 2 * lane + 1] {
                for (j, w) in sees.iter().zip(weights(query(i, head), &keys, s.scale)) {
                    *sums.entry(*j).or_default() += w;
                }
            }
        }
        if i >= n {
            attend(&mut cache, 0, s, &cut(i, i + 1));
        }
    }
    for (lane, sums) in sums.iter().enumerate() {
        let (positions, scores) = (cache.positions(0, 0, lane), cache.scores(0, 0, lane));
        assert_eq!((positions.len(), scores.len()), (10, 10));
        assert_eq!(positions[5..], [55, 56, 57, 58, 59]);
        for (j, score) in positions.iter().zip(scores) {
            let off = (f64::from(*score) - sums[j]).abs() / sums[j];
            assert!(off <= 1e-5, "lane {lane}, entry {j}: {score} instead of {}", sums[j]);
        }
    }
}

pub fn persistent_mass() {
    let (n, t, s) = (20, 30, spec(1, 1));
    let mut draws = Draws::new(Rng::new(5).stream("tests/planted", 0));
    let mut all = rows(&mut draws, n + t, &s);
    for i in 0..n + t {
        // Every query asks along the first axis, where only key 3 answers.
        all.q[i * 8] = 5.0;
        all.k[i * 8] = if i == 3 { 3.0 } else { 0.0 };
    }
    let cut = |from: usize, to: usize| Made {
        q: all.q[from * 8..to * 8].to_vec(),
        k: all.k[from * 8..to * 8].to_vec(),
        v: all.v[from * 8..to * 8].to_vec(),
    };
    let ignoring = || {
        let mut one = cut(n + t - 1, n + t);
        one.q[0] = -20.0;
        one
    };
    let mut h2o = cache(rule::<H2o>(json!({ "hh_size": 2, "recent_size": 4 })), &s, n, t + 1);
    let mut tova = cache(rule::<Tova>(json!({ "cache_size": 6 })), &s, n, t + 1);
    attend(&mut h2o, 0, s, &cut(0, n));
    attend(&mut tova, 0, s, &cut(0, n));
    for i in n..n + t {
        attend(&mut h2o, 0, s, &cut(i, i + 1));
        attend(&mut tova, 0, s, &cut(i, i + 1));
        assert!(h2o.positions(0, 0, 0).contains(&3) && tova.positions(0, 0, 0).contains(&3), "step {i}");
    }
    attend(&mut h2o, 0, s, &ignoring());
    attend(&mut tova, 0, s, &ignoring());
    assert!(h2o.positions(0, 0, 0).contains(&3), "H2O forgets what was always looked at");
    assert!(!tova.positions(0, 0, 0).contains(&3), "TOVA keeps what the last query ignores");
}
