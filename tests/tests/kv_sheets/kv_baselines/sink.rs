//! Check 7: a model that is asked to have an attention sink needs it in the cache.

use std::rc::Rc;

use anyhow::Result;
use candle_core::{D, Tensor};
use ramekin_core::{Draws, Rng};
use ramekin_engine::assembly::Assembly;
use ramekin_engine::parts;
use ramekin_engine::step::LabelledBatch;
use ramekin_recipe::Part;
use ramekin_slots::{FlatBatch, Forward, Loss, Model, Objective, ObjectiveContext, labelled_tokens};
use ramekin_tape::{Value, ops};
use ramekin_tests::decoding::{Masked, Session, Visible, shape};
use ramekin_tests::lab;
use serde_json::json;

use crate::tools::policy;

const TOKENS: usize = 16;
const LENGTH: usize = 48;
const HEADS: usize = 2;
const ROWS: usize = 32;
const STEPS: u64 = 500;
/// Kept out of the loss: the first few targets are the same for everyone.
const FIRST: usize = 8;

/// Order-1 text over 16 tokens, 1 to 16, of which three are triggers: after one, the token before it again.
struct Text {
    chain: Vec<Vec<f64>>,
    seed: u64,
}

impl Text {
    fn new(seed: u64) -> Self {
        let mut draws = Draws::new(Rng::new(seed).stream("sink/chain", 0));
        let mut normal = || (0..12).map(|_| draws.uniform()).sum::<f64>() - 6.0;
        let chain = (0..TOKENS)
            .map(|_| {
                let mut row: Vec<f64> = (0..TOKENS).map(|_| (1.5 * normal()).exp()).collect();
                // The triggers, the first three, have 0.2 of the probability together.
                let (rare, common) = row.split_at_mut(3);
                let (a, b): (f64, f64) = (rare.iter().sum(), common.iter().sum());
                rare.iter_mut().for_each(|x| *x *= 0.2 / a);
                common.iter_mut().for_each(|x| *x *= 0.8 / b);
                row
            })
            .collect();
        Text { chain, seed }
    }

    /// BOS and 47 tokens.
    fn rows(&self, purpose: &str, number: u64, count: usize) -> Vec<Vec<u32>> {
        let mut draws = Draws::new(Rng::new(self.seed).stream(purpose, number));
        (0..count)
            .map(|_| {
                let mut row = vec![0, 1 + draws.below(TOKENS) as u32];
                while row.len() < LENGTH {
                    let (now, before) = (row[row.len() - 1], row[row.len() - 2]);
                    let trigger = now <= 3 && before != 0;
                    row.push(if trigger { before } else { self.next(now, draws.uniform()) });
                }
                row
            })
            .collect()
    }

    fn next(&self, now: u32, u: f64) -> u32 {
        let mut sum = 0.0;
        let found = self.chain[now as usize - 1].iter().position(|p| {
            sum += p;
            u < sum
        });
        1 + found.unwrap_or(TOKENS - 1) as u32
    }
}

fn config() -> serde_json::Value {
    json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 32,
        "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS, "max_position_embeddings": 64, "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0, "tie_word_embeddings": false, "vocab_size": TOKENS + 1,
        "initializer_range": 0.1,
    })
}

/// Cross-entropy − 0.02 · mean over queries ≥ 2 of log A[·, BOS].
struct WithSink(Box<dyn Objective>);

/// log A[i, BOS] of the only layer, `[rows, heads, queries]`.
fn log_sink(q: &Tensor, k: &Tensor) -> candle_core::Result<Tensor> {
    let rows = q.elem_count() / (LENGTH * 32);
    let heads = |x: &Tensor| x.reshape((rows, LENGTH, HEADS, 32 / HEADS))?.transpose(1, 2)?.contiguous();
    let scores =
        (heads(q)?.matmul(&heads(k)?.transpose(2, 3)?.contiguous()?)? * (32.0 / HEADS as f64).powf(-0.5))?;
    let mask: Vec<f32> =
        (0..LENGTH * LENGTH).map(|i| if i % LENGTH > i / LENGTH { -1e9 } else { 0.0 }).collect();
    let scores = scores.broadcast_add(&Tensor::from_vec(mask, (LENGTH, LENGTH), q.device())?)?;
    let top = scores.max_keepdim(D::Minus1)?.detach();
    let log = (scores.broadcast_sub(&top)?.exp()?.sum_keepdim(D::Minus1)?.log()? + top)?;
    scores.narrow(3, 0, 1)?.sub(&log)?.squeeze(3)
}

fn queries_and_keys(fx: &Forward, model: &Rc<dyn Model>) -> Result<(Value, Value)> {
    let half = 32 / HEADS / 2;
    let inv_freq: Vec<f32> = (0..half).map(|i| 10000f32.powf(-(i as f32) / half as f32)).collect();
    let inv_freq = Rc::new(inv_freq);
    let x = model.embed(fx)?;
    let n = ops::rms_norm(&fx.tape, &x, &fx.param("model.layers.0.input_layernorm.weight")?, 1e-5)?;
    let turned = |name: &str| {
        let y = fx.linear(&format!("model.layers.0.self_attn.{name}"), &n)?;
        ops::rotary(&fx.tape, &y, HEADS, &fx.batch.positions, &inv_freq)
    };
    Ok((turned("q_proj")?, turned("k_proj")?))
}

impl Objective for WithSink {
    fn loss(&self, cx: &ObjectiveContext<'_>) -> Result<Loss> {
        let plain = self.0.loss(cx)?.value;
        let states = cx.forward()?;
        let (q, k) = queries_and_keys(&states.fx, &states.model)?;
        // The step sums shares over its labelled tokens: this mean is brought to the same.
        let share = 0.02 * cx.scale(0) * labelled_tokens(cx.labels) as f64;
        let sink = cx.tape.island(&[&q, &k], move |x| {
            log_sink(&x[0], &x[1])?.narrow(2, 2, LENGTH - 2)?.mean_all()?.affine(-share, 0.0)?.reshape(1)
        })?;
        Ok(ops::add(cx.tape, &plain, &sink)?.into())
    }
}

fn train(text: &Text) -> Assembly {
    let mut blueprint = lab::fresh_model(config());
    (blueprint.full_training, blueprint.seed) = (true, text.seed);
    let model = lab::assemble(&blueprint);
    let mut trainer = lab::trainer(1e-2);
    trainer.objective = Box::new(WithSink(parts::objective(&Part::of("sft")).expect("sft")));
    trainer.schedule = parts::schedule(&lab::part("linear", json!({ "min_ratio": 0.05 }))).expect("linear");
    trainer.total_steps = STEPS;
    for step in 0..STEPS {
        let batch: LabelledBatch = lab::batch(&text.rows("sink/train", step, ROWS));
        trainer.step(&model, &[batch], step).unwrap_or_else(|e| panic!("{e:#}"));
    }
    model
}

/// Mean cross-entropy of the targets after position 8.
fn loss(rows: &[Vec<u32>], logits: impl Fn(&Vec<u32>) -> Vec<f32>) -> f64 {
    let (mut total, mut count) = (0.0, 0);
    for row in rows {
        let z = logits(row);
        for t in FIRST..LENGTH - 1 {
            let z = &z[t * (TOKENS + 1)..(t + 1) * (TOKENS + 1)];
            let top = z.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let log = z.iter().map(|z| f64::from(z - top).exp()).sum::<f64>().ln() + f64::from(top);
            total += log - f64::from(z[row[t + 1] as usize]);
            count += 1;
        }
    }
    total / f64::from(count)
}

pub fn check(seed: u64) {
    let text = Text::new(seed);
    let model = train(&text);
    let rows = text.rows("sink/test", 0, 512);
    let batch = FlatBatch::new(&rows);
    let mode = ramekin_slots::Mode::inference();
    let fx = Forward::new(ramekin_tape::Tape::off(), model.sites.clone(), batch, mode);
    let (q, k) = queries_and_keys(&fx, &model.model).expect("queries and keys");
    let mass = log_sink(q.array().tensor(), k.array().tensor())
        .and_then(|x| x.narrow(2, 2, LENGTH - 2)?.exp()?.mean_all()?.to_scalar::<f32>())
        .expect("a mean");
    let full = loss(&rows, |row| lab::logits(&model, &FlatBatch::new(std::slice::from_ref(row)), true));
    // At most 8 entries a query: the newest, and one more.
    let masked = |first: Option<u32>| {
        let visible: Visible = Rc::new(move |_, _, position| {
            let recent = if first.is_some() { 7 } else { 8 };
            let from = (position + 1).saturating_sub(recent);
            first.into_iter().filter(|f| *f < from).chain(from..=position).collect()
        });
        loss(&rows, |row| {
            Session::on(&model, Masked::new(1, visible.clone()), 1).feed(std::slice::from_ref(row)).remove(0)
        })
    };
    let (last, sink, middle) = (masked(None), masked(Some(0)), masked(Some(3)));
    println!(
        "seed {seed}: BOS has {mass:.3}; full {full:.3}, last 8 {last:.3}, BOS + 7 {sink:.3}, token 3 + 7 {middle:.3}"
    );
    assert!(mass >= 0.9, "BOS has {mass:.3}");
    assert!(last >= full + 0.05, "the last 8: {last:.3} beside {full:.3}");
    assert!((sink - full).abs() <= 0.01, "BOS and 7: {sink:.3} beside {full:.3}");
    assert!(middle >= full + 0.05, "token 3 and 7: {middle:.3} beside {full:.3}");
    // The part itself is that mask.
    let part = policy("streaming", json!({ "start_size": 1, "recent_size": 7, "positions": "original" }));
    let streamed = loss(&rows[..64], |row| {
        Session::new(&model, &*part, shape(&model, 1, LENGTH, 0)).feed(std::slice::from_ref(row)).remove(0)
    });
    let full = loss(&rows[..64], |row| lab::logits(&model, &FlatBatch::new(std::slice::from_ref(row)), true));
    assert!((streamed - full).abs() <= 0.01, "streaming: {streamed:.3} beside {full:.3}");
}
