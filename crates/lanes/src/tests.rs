use std::ops::Range;
use std::rc::Rc;

use ramekin_core::{Array, Category};
use ramekin_kernels::attention::{Segment, reference};
use ramekin_kernels::philox::Stream;
use ramekin_slots::{Attend, KvCache, KvPrefix, KvShape};
use ramekin_tape::ops::{AttentionSpec, Reach};

use super::*;

const SPEC: AttentionSpec = AttentionSpec {
    heads: 4,
    kv_heads: 2,
    head_dim: 6,
    scale: 0.4,
    reach: Reach::ALL,
    causal: true,
    bf16: false,
};

fn shape(prompt: usize, later: usize) -> KvShape {
    KvShape {
        layers: 1,
        heads: SPEC.heads,
        kv_heads: SPEC.kv_heads,
        head_dim: SPEC.head_dim,
        sequences: 1,
        prompt,
        capacity: prompt + later,
        rollback: 0,
    }
}

fn normal(seed: u64, rows: usize, heads: usize) -> Vec<f32> {
    let mut x = vec![0.0; rows * heads * SPEC.head_dim];
    Stream::new(seed, 2).fill_normal(0, 1.0, &mut x);
    x
}

/// Queries, keys and values of so many rows.
struct Text([Vec<f32>; 3]);

impl Text {
    fn new(rows: usize) -> Self {
        Text([normal(1, rows, 4), normal(2, rows, 2), normal(3, rows, 2)])
    }

    fn step(
        &self,
        cache: &mut dyn KvCache,
        rows: Range<usize>,
        spec: AttentionSpec,
        prefix: Option<KvPrefix>,
    ) -> Vec<f32> {
        let before = prefix.as_ref().map_or(0, |p| p.k.rows().0) as u32;
        let part = |x: &Vec<f32>, heads: usize| {
            let width = heads * SPEC.head_dim;
            let x = x[rows.start * width..rows.end * width].to_vec();
            Array::from_vec(x, &[rows.len(), width], Category::Workspace).unwrap()
        };
        let positions = Rc::new((before + rows.start as u32..before + rows.end as u32).collect::<Vec<u32>>());
        let all: Range<usize> = 0..rows.len();
        let step = Attend {
            q: part(&self.0[0], 4),
            k: part(&self.0[1], 2),
            v: part(&self.0[2], 2),
            positions: &positions,
            inv_freq: None,
            prefix,
            segments: std::slice::from_ref(&all),
            spec,
        };
        cache.attend(0, step).unwrap().to_f32().unwrap()
    }
}

fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().map(|x| f64::from(*x)).collect()
}

#[track_caller]
fn close(found: &[f32], want: &[f64]) {
    assert_eq!(found.len(), want.len());
    for (i, (a, b)) in found.iter().zip(want).enumerate() {
        assert!((f64::from(*a) - b).abs() < 1e-5, "number {i}: {a} instead of {b}");
    }
}

#[test]
fn prompt_and_later_tokens_are_one_attention() {
    for window in [None, Some(5)] {
        let spec = AttentionSpec { reach: Reach { window, chunk: None }, ..SPEC };
        let text = Text::new(20);
        let mut cache = Cache::new(Everything, Dense, shape(11, 9)).unwrap();
        let mut found = text.step(&mut cache, 0..11, spec, None);
        for rows in [11..12, 12..15, 15..20] {
            found.extend(text.step(&mut cache, rows, spec, None));
        }
        let s = Segment { q_start: 0, q_len: 20, k_start: 0, k_len: 20 };
        let [q, k, v] = &text.0;
        let (want, _) = reference::forward(&wide(q), &wide(k), &wide(v), None, &[s], &spec.shape());
        close(&found, &want);
    }
}

/// The prompt attends to itself before it is rounded; later tokens see what was, two units in the last place off.
#[test]
fn in_bf16_later_tokens_see_rounded_entries() {
    let text = Text::new(20);
    let mut cache = Cache::new(Everything, crate::DenseBf16, shape(11, 9)).unwrap();
    let mut found = text.step(&mut cache, 0..11, SPEC, None);
    let prompt = found.len();
    found.extend(text.step(&mut cache, 11..20, SPEC, None));
    let s = Segment { q_start: 0, q_len: 20, k_start: 0, k_len: 20 };
    let [q, k, v] = &text.0;
    let rounded = |x: &[f32]| -> Vec<f64> {
        x.iter().map(|x| f64::from(ramekin_kernels::bf16::widen(ramekin_kernels::bf16::round(*x)))).collect()
    };
    let of = |k: &[f64], v: &[f64]| reference::forward(&wide(q), k, v, None, &[s], &SPEC.shape()).0;
    close(&found[..prompt], &of(&wide(k), &wide(v))[..prompt]);
    close(&found[prompt..], &of(&rounded(k), &rounded(v))[prompt..]);
}

/// Drops the least looked at, protecting nothing.
#[derive(Clone)]
struct Least(usize);

impl Rule for Least {
    fn trigger(&self) -> Trigger {
        Trigger::After
    }

    fn looks_back(&self, prompt: usize) -> usize {
        prompt
    }

    fn limit(&self, _: usize) -> Option<usize> {
        Some(self.0)
    }

    fn accumulates(&self) -> bool {
        true
    }

    fn victims(&self, look: &Look<'_>) -> Vec<usize> {
        let least = |s: &&[f32]| {
            let order = |a: &usize, b: &usize| s[*a].total_cmp(&s[*b]);
            (0..s.len()).min_by(order).unwrap()
        };
        look.scores.iter().map(least).collect()
    }
}

#[test]
fn a_prefix_is_seen_by_all_and_dropped_by_none() {
    let text = Text::new(12);
    let prefix = || {
        let array = |seed| Array::from_vec(normal(seed, 3, 2), &[3, 12], Category::Workspace).unwrap();
        Some(KvPrefix { k: array(8), v: array(9) })
    };
    let mut cache = Cache::new(Least(9), Dense, shape(9, 3)).unwrap();
    let mut found = text.step(&mut cache, 0..9, SPEC, prefix());
    found.extend(text.step(&mut cache, 9..10, SPEC, prefix()));
    let [q, k, v] = &text.0;
    let with = |seed, x: &[f32]| [wide(&normal(seed, 3, 2)), wide(x)].concat();
    let s = Segment { q_start: 0, q_len: 10, k_start: 0, k_len: 13 };
    let (k, v, q) = (with(8, &k[..120]), with(9, &v[..120]), wide(&q[..240]));
    let (want, lse) = reference::forward(&q, &k, &v, None, &[s], &SPEC.shape());
    close(&found, &want);
    // What was added up is the weight on the own entries alone, and one of them is gone.
    let weight = |i: usize, h: usize, j: usize| {
        let dot: f64 = (0..6).map(|c| q[(i * 4 + h) * 6 + c] * k[((3 + j) * 2 + h / 2) * 6 + c]).sum();
        (dot * SPEC.scale - lse[i * 4 + h]).exp()
    };
    for lane in 0..2 {
        let (positions, scores) = (cache.positions(0, 0, lane), cache.scores(0, 0, lane));
        assert_eq!(positions.len(), 9);
        for (p, score) in positions.iter().zip(scores) {
            let j = *p as usize - 3;
            let want: f64 = (j..10).flat_map(|i| [2 * lane, 2 * lane + 1].map(|h| weight(i, h, j))).sum();
            assert!((f64::from(*score) - want).abs() < 1e-5, "entry {j}: {score} instead of {want}");
        }
    }
    assert_eq!(cache.seen(0), 10);
}

#[test]
fn what_was_driven_out_comes_back() {
    let text = Text::new(20);
    let run = |detour: bool| {
        let mut cache = Cache::new(Least(6), Dense, shape(8, 12).with_rollback(4)).unwrap();
        text.step(&mut cache, 0..8, SPEC, None);
        text.step(&mut cache, 8..12, SPEC, None);
        if detour {
            text.step(&mut cache, 16..20, SPEC, None);
            assert!(cache.truncate(0, 11).is_err(), "five tokens are too many");
            cache.truncate(0, 12).unwrap();
        }
        let state: Vec<(Vec<u32>, Vec<f32>)> =
            (0..2).map(|l| (cache.positions(0, 0, l).to_vec(), cache.scores(0, 0, l).to_vec())).collect();
        (state, text.step(&mut cache, 12..16, SPEC, None))
    };
    assert_eq!(run(true), run(false));
}

#[test]
fn a_full_cache_says_so() {
    let text = Text::new(12);
    let mut cache = Cache::new(Everything, Dense, shape(8, 2)).unwrap();
    text.step(&mut cache, 0..8, SPEC, None);
    text.step(&mut cache, 8..10, SPEC, None);
    let positions = Rc::new(vec![10]);
    let one =
        |heads: usize| Array::zeros(&[1, heads * 6], ramekin_core::DType::F32, Category::Workspace).unwrap();
    let step = Attend {
        q: one(4),
        k: one(2),
        v: one(2),
        positions: &positions,
        inv_freq: None,
        prefix: None,
        segments: std::slice::from_ref(&(0..1)),
        spec: SPEC,
    };
    assert_eq!(cache.attend(0, step).unwrap_err().to_string(), "a cache of 10 tokens is full");
}

#[test]
fn of_equal_scores_the_first_are_taken() {
    assert_eq!(top(&[1.0, 3.0, 1.0, 2.0, 1.0], 3), [0, 1, 3]);
    assert_eq!(top(&[1.0, 1.0], 5), [0, 1]);
    assert_eq!(top(&[], 1), [] as [usize; 0]);
}
