//! Check 4: keys and values before a sequence.

use std::cell::RefCell;
use std::rc::Rc;

use anyhow::Result;
use ramekin_core::{Array, Category, DType};
use ramekin_engine::assembly::Assembly;
use ramekin_engine::blueprint::Blueprint;
use ramekin_engine::generation::{Generator, Limits};
use ramekin_engine::hidden::hidden;
use ramekin_engine::parts;
use ramekin_recipe::Part;
use ramekin_slots::{AttentionAdapter, Below, FlatBatch, Forward, LinearAdapter, LinearSite, Mode, Sites};
use ramekin_tape::ops::AttentionSpec;
use ramekin_tape::{GradStore, Tape, Value, ops};
use ramekin_tests::compare::{close, difference, largest};
use ramekin_tests::lab::{self, assemble, new_adapter, sequences};
use serde_json::json;

use super::{adapted, config};
use crate::{array, normal, ok, stir, value};

const V: usize = 6;
const SPEC: AttentionSpec = AttentionSpec {
    heads: 4,
    kv_heads: 4,
    head_dim: 16,
    scale: 0.25,
    reach: ramekin_tape::ops::Reach::ALL,
    causal: true,
    bf16: false,
};

fn inv_freq() -> Rc<Vec<f32>> {
    Rc::new((0..8).map(|i| 10000f64.powf(-2.0 * f64::from(i) / 16.0) as f32).collect())
}

/// One head's numbers of a row, turned by an angle a position.
fn turned(row: &[f32], position: usize) -> Vec<f64> {
    let mut out = vec![0.0; 16];
    for i in 0..8 {
        let (a, b) = (f64::from(row[i]), f64::from(row[i + 8]));
        let (sin, cos) = (position as f64 * 10000f64.powf(-2.0 * i as f64 / 16.0)).sin_cos();
        (out[i], out[i + 8]) = (a * cos - b * sin, b * cos + a * sin);
    }
    out
}

#[test]
fn check_4_attention_over_prefix_and_causal_keys() {
    let assembly = adapted("prefix", json!({ "num_virtual_tokens": V }));
    let segments = [3usize, 5];
    let batch = FlatBatch::new(&segments.map(|n| vec![0; n]));
    let fx = Forward::new(Tape::off(), assembly.sites.clone(), batch.clone(), Mode::inference());
    let n = batch.len();
    let rows = |name: &str| normal(name, n * 64, 1.0);
    let (q, k, v) = (rows("q"), rows("k"), rows("v"));
    let of = |x: &[f32]| value(x.to_vec(), &[n, 64]);
    let found = ok(fx.attention(1, of(&q), of(&k), of(&v), Some(&inv_freq()), SPEC));
    let found = ok(found.array().to_f32());
    // P holds for token t the keys and values of layer 0, then of layer 1.
    let table = ok(assembly.trainable()[0].value().to_f32());
    let part = |t: usize, which: usize| &table[(t * 4 + which) * 64..(t * 4 + which + 1) * 64];
    let mut want = vec![0f32; n * 64];
    for s in batch.segments.iter() {
        for (at, row) in s.clone().enumerate() {
            for h in 0..4 {
                let head = h * 16..(h + 1) * 16;
                let of = |x: &[f32], r: usize| x[r * 64..(r + 1) * 64][head.clone()].to_vec();
                let query = turned(&of(&q, row), V + at);
                let mut keys: Vec<Vec<f64>> = (0..V)
                    .map(|t| part(t, 2)[head.clone()].iter().map(|x| f64::from(*x)).collect())
                    .collect();
                let mut values: Vec<Vec<f32>> = (0..V).map(|t| part(t, 3)[head.clone()].to_vec()).collect();
                for j in 0..=at {
                    keys.push(turned(&of(&k, s.start + j), V + j));
                    values.push(of(&v, s.start + j));
                }
                let dot = |k: &Vec<f64>| k.iter().zip(&query).map(|(a, b)| a * b).sum::<f64>() * 0.25;
                let e: Vec<f64> = keys.iter().map(|k| dot(k).exp()).collect();
                let sum: f64 = e.iter().sum();
                for c in 0..16 {
                    let mixed: f64 = e.iter().zip(&values).map(|(e, v)| e / sum * f64::from(v[c])).sum();
                    want[row * 64 + h * 16 + c] = mixed as f32;
                }
            }
        }
    }
    close("attention", &found, &want, 1e-5);
}

/// What a linear gave.
type Seen = Rc<RefCell<Option<Vec<f32>>>>;

/// Watches a linear's output.
struct Watch(Seen);

impl LinearAdapter for Watch {
    fn forward(&self, _: &Forward, _: &LinearSite, x: &Value, below: &Below<'_>) -> Result<Value> {
        let y = below(x)?;
        *self.0.borrow_mut() = Some(y.array().to_f32()?);
        Ok(y)
    }

    fn fold(&self, _: &Sites, _: &LinearSite, weight: Array) -> Result<Array> {
        Ok(weight)
    }
}

/// Logits of a forward whose positions are `from..`.
fn logits_from(assembly: &Assembly, ids: &[u32], from: u32) -> Vec<f32> {
    let batch = FlatBatch::new(&[ids.to_vec()]);
    let mut fx = Forward::new(Tape::off(), assembly.sites.clone(), batch, Mode::inference());
    fx.batch.positions = Rc::new((from..from + ids.len() as u32).collect());
    let h = ok(hidden(&assembly.model, &fx, None));
    ok(ok(assembly.model.head(&fx, &h)).array().to_f32())
}

#[test]
fn check_4_a_real_prompt_as_prefix() {
    let prompt = sequences(&[V], 61, 8)[0].clone();
    let text = sequences(&[11], 61, 9)[0].clone();
    let base = assemble(&lab::fresh_model(config(61)));
    let whole = [prompt.clone(), text.clone()].concat();
    let want = lab::logits(&base, &FlatBatch::new(&[whole]), true)[V * 61..].to_vec();

    let watch = |path: String| -> Seen {
        let seen = Seen::default();
        ok(base.sites.linear(&path)).attach(Box::new(Watch(seen.clone())));
        seen
    };
    let seen: Vec<(Seen, Seen)> = (0..2)
        .map(|l| {
            let at = |name: &str| format!("model.layers.{l}.self_attn.{name}");
            (watch(at("k_proj")), watch(at("v_proj")))
        })
        .collect();
    lab::logits(&base, &FlatBatch::new(&[prompt]), true);
    let mut table = vec![0f32; V * 4 * 64];
    let positions = Rc::new((0..V as u32).collect());
    for (l, (k, v)) in seen.into_iter().enumerate() {
        let k = value(k.take().expect("keys"), &[V, 64]);
        let k = ok(ops::rotary(&Tape::off(), &k, 4, &positions, &inv_freq()));
        let (k, v) = (ok(k.array().to_f32()), v.take().expect("values"));
        for t in 0..V {
            let at = (t * 4 + 2 * l) * 64;
            table[at..at + 64].copy_from_slice(&k[t * 64..(t + 1) * 64]);
            table[at + 64..at + 128].copy_from_slice(&v[t * 64..(t + 1) * 64]);
        }
    }
    let assembly = adapted("prefix", json!({ "num_virtual_tokens": V }));
    assembly.trainable()[0].set(array(table, &[V, 256]));
    let found = lab::logits(&assembly, &FlatBatch::new(std::slice::from_ref(&text)), true);
    close("prompt as prefix", &found, &want, 1e-5);
    let wrong = logits_from(&assembly, &text, 0);
    let off = difference(&wrong, &want) / largest(&want);
    println!("positions from 0: off by {off:.2}");
    assert!(off > 0.05, "positions from 0 change only {off}");
    assert_eq!(logits_from(&assembly, &text, V as u32), found, "positions begin at {V}");
}

/// A prefix with two more numbers a head, the first of which meets a 1 in every query.
struct Masked(Vec<f32>, f32);

impl AttentionAdapter for Masked {
    fn tokens(&self) -> usize {
        V
    }

    fn prefix(&self, _: &Forward, _: usize) -> Result<(Value, Value)> {
        let k = widened(&self.0, self.1);
        Ok((value(k.clone(), &[V, 72]), value(k, &[V, 72])))
    }
}

/// Heads of 16 become heads of 18: `extra`, then 0.
fn widened(x: &[f32], extra: f32) -> Vec<f32> {
    x.chunks(16).flat_map(|h| h.iter().copied().chain([extra, 0.0]).collect::<Vec<_>>()).collect()
}

/// −∞ added to the scores of the prefix columns restores the base.
#[test]
fn check_4_a_masked_prefix_is_none() {
    let spec = AttentionSpec { head_dim: 18, ..SPEC };
    let batch = FlatBatch::new(&[vec![0; 4], vec![0; 5]]);
    let rows = |name: &str| normal(name, 9 * 64, 1.0);
    let run = |extra: Option<f32>| {
        let bare = assemble(&lab::fresh_model(config(61)));
        if let Some(extra) = extra {
            ok(bare.sites.around().attach_prefix(Rc::new(Masked(normal("p", V * 64, 1.0), extra))));
        }
        let fx = Forward::new(Tape::off(), bare.sites.clone(), batch.clone(), Mode::inference());
        let of = |x: Vec<f32>, extra: f32| value(widened(&x, extra), &[9, 72]);
        let (q, k, v) = (of(rows("q"), 1.0), of(rows("k"), 0.0), of(rows("v"), 0.0));
        let y = ok(ok(fx.attention(0, q, k, v, None, spec)).array().to_f32());
        y.chunks(18).flat_map(|h| h[..16].to_vec()).collect::<Vec<f32>>()
    };
    let base = run(None);
    close("masked", &run(Some(f32::MIN / 1e3)), &base, 1e-5);
    assert!(difference(&run(Some(0.0)), &base) > 0.1, "seen, it matters");
}

#[test]
fn check_4_gradients() {
    let assembly = adapted("prefix", json!({ "num_virtual_tokens": 3 }));
    stir(&assembly, 0.3);
    for entry in assembly.ledger.borrow().entries() {
        let param = entry.param.as_ref().expect("nothing is packed");
        param.set(ok(param.value().to_dtype(DType::F64, Category::Weights)));
    }
    let batch = lab::batch(&sequences(&[6, 3], 61, 9));
    let mut store = GradStore::new();
    let loss = |store: &mut GradStore| {
        let trainer = lab::trainer(1e-2);
        let totals = trainer.totals(std::slice::from_ref(&batch));
        ok(trainer.micro_batch(&assembly, &batch, &totals, 0, false, store))
    };
    loss(&mut store);
    let table = assembly.trainable()[0].clone();
    let grad = store.get(table.id()).expect("a gradient").view::<f64>().expect("f64").to_vec();
    let nudge = |i: usize, by: f64| table.value().update(|x: &mut [f64]| x[i] += by).expect("f64");
    let norm = grad.iter().map(|g| g * g).sum::<f64>().sqrt();
    for i in (0..grad.len()).step_by(37) {
        nudge(i, 1e-5);
        let up = loss(&mut GradStore::new());
        nudge(i, -2e-5);
        let down = loss(&mut GradStore::new());
        nudge(i, 1e-5);
        let off = ((up - down) / 2e-5 - grad[i]).abs();
        assert!(off <= 1e-6 * norm, "entry {i}: off by {off:.1e} of {norm:.1e}");
    }
}

/// Decoding with a cache, without one and one by one gives the same tokens, with both kinds of virtual
/// tokens at once.
#[test]
fn generation_keeps_virtual_tokens() {
    let plan = Blueprint {
        adapters: vec![
            new_adapter("prefix", json!({ "num_virtual_tokens": 4 })),
            new_adapter("prompt", json!({ "num_virtual_tokens": 3 })),
        ],
        ..lab::fresh_model(config(61))
    };
    let assembly = assemble(&plan);
    let decoder = parts::decoder(&Part::of("greedy")).expect("greedy");
    let full = parts::kv(&Part::of("full")).expect("full");
    let prompts = sequences(&[7, 3, 12], 61, 2);
    let limits = Limits { max_new_tokens: 9, eos: &[] };
    let run = |assembly: &Assembly, cached: bool, adapters: bool, prompts: &[Vec<u32>]| {
        let kv = cached.then_some(&*full);
        let rng = ramekin_core::Rng::new(0);
        let generator = Generator { assembly, decoder: &*decoder, kv, rng, adapters };
        ok(generator.run(prompts, &limits, &mut |_, _| {})).ids
    };
    let cached = run(&assembly, true, true, &prompts);
    assert_eq!(cached, run(&assembly, false, true, &prompts), "with a cache and without");
    for (i, prompt) in prompts.iter().enumerate() {
        let alone = run(&assembly, true, true, std::slice::from_ref(prompt));
        assert_eq!(alone[0], cached[i], "alone and together");
    }
    let bare = run(&assemble(&lab::fresh_model(config(61))), true, true, &prompts);
    assert_ne!(bare, cached, "virtual tokens matter");
    assert_eq!(bare, run(&assembly, true, false, &prompts), "adapters off");
}
