//! Check 6: what MEFT1 learns beside a plain parallel adapter.

use std::collections::HashMap;
use std::ops::Range;
use std::rc::Rc;

use ramekin_core::{Array, Category};
use ramekin_engine::assembly::Assembly;
use ramekin_engine::blueprint::Blueprint;
use ramekin_engine::parts;
use ramekin_engine::step::{LabelledBatch, Trainer};
use ramekin_recipe::Part;
use ramekin_slots::{ActivationPolicy, Block, Forward};
use ramekin_tape::{Coupling, Streams, Value};
use ramekin_tests::lab::{self, assemble, fresh_model};
use ramekin_tests::toy::{self, Chain, draws};
use ramekin_tests::toy_model::values;
use serde_json::{Value as Json, json};

use super::{method, policy};
use crate::ok;

/// The blocks one after the other with the adapters beside their MLPs, and no streams: what F of MEFT1 is.
struct OneStream;

impl ActivationPolicy for OneStream {
    fn run(&self, fx: &Forward, _: usize, block: Block, x: &Value) -> anyhow::Result<Value> {
        block(fx, x)
    }

    fn run_streams(
        &self,
        fx: &Forward,
        net: &Rc<dyn Coupling>,
        layers: Range<usize>,
        [h, _]: Streams,
    ) -> anyhow::Result<Streams> {
        let h = layers.into_iter().try_fold(h, |h, layer| net.f(&fx.tape, layer, &h))?;
        Ok([h.clone(), h])
    }
}

fn rows(chain: &Chain, name: &str, seed: u64, count: usize) -> LabelledBatch {
    let mut draws = draws(name, seed);
    let texts: Vec<Vec<u32>> = (0..count).map(|_| chain.text(16, &mut draws)).collect();
    lab::batch(&texts)
}

fn trainer(lr: f64, activation: Box<dyn ActivationPolicy>) -> Trainer {
    let schedule = ok(parts::schedule(&Part::of("cosine")));
    Trainer { activation, schedule, ..lab::trainer(lr) }
}

/// Trains on a chain with rows of their own for each step; held-out losses before and after.
fn learn(assembly: &Assembly, trainer: &mut Trainer, chain: &Chain, steps: u64, seed: u64) -> (f64, f64) {
    let held = [rows(chain, "meft/held", seed, 200)];
    let before = toy::loss(assembly, trainer, &held);
    toy::train(assembly, trainer, steps, |s| rows(chain, &format!("meft/rows/{s}"), seed, 16));
    (before, toy::loss(assembly, trainer, &held))
}

fn tuned(
    config: &Json,
    base: &HashMap<String, Vec<f32>>,
    chain: &Chain,
    seed: u64,
    activation: impl ActivationPolicy + 'static,
) -> (f64, f64) {
    let method = method("meft1", json!({ "adapter_bottleneck_dim": 8 }));
    let assembly = assemble(&Blueprint { method: Some(method), seed, ..fresh_model(config.clone()) });
    for name in assembly.sites.param_names() {
        let param = ok(assembly.sites.param(name)).base().clone();
        let dims = param.value().dims().to_vec();
        param.set(ok(Array::from_vec(base[name].clone(), &dims, Category::Weights)));
    }
    learn(&assembly, &mut trainer(5e-3, Box::new(activation)), chain, 200, seed)
}

fn behaves(seed: u64) {
    let config = toy::llama(32, 64, 4, 4, 128);
    let (first, second) = (Chain::new(32, 1, 2.0, 10 + seed), Chain::new(32, 1, 2.0, 20 + seed));
    let whole = assemble(&Blueprint { full_training: true, seed, ..fresh_model(config.clone()) });
    let keep = || ok(parts::activation(&Part::of("keep")));
    let pretrained = learn(&whole, &mut trainer(3e-3, keep()), &first, 400, seed);
    let base = values(&whole);
    let (_, plain) = tuned(&config, &base, &second, seed, OneStream);
    let (start, guarded) =
        tuned(&config, &base, &second, seed, policy("meft1", json!({ "checkpoint_every": 2 })));
    let (_, free) = tuned(&config, &base, &second, seed, policy("meft1", json!({ "checkpoint_every": 0 })));
    println!(
        "seed {seed}: pretrained {pretrained:.3?}; tuned from {start:.3}: parallel {plain:.3}, meft1 {guarded:.4}, \
         without copies {free:.4}"
    );
    assert!(guarded <= 1.03 * plain, "seed {seed}: {guarded:.3} beside {plain:.3} of a parallel adapter");
    assert!(guarded <= start - 1.0, "seed {seed}: {start:.3} → {guarded:.3}");
    assert!((guarded - free).abs() <= 0.01, "seed {seed}: {guarded:.4} with copies, {free:.4} without");
}

#[test]
fn check_6() {
    behaves(1);
}

#[test]
fn check_6_another_seed() {
    behaves(2);
}
