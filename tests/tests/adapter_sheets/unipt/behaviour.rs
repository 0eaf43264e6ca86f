//! Check 6: labels that only the earlier states know.

use std::rc::Rc;

use ramekin_core::{Draws, Param, Rng};
use ramekin_engine::parts;
use ramekin_slots::{
    FlatBatch, Forward, LoadOptions, Loader, Mode, ParamGroup, RandomSource, Sites, StepInfo,
};
use ramekin_tape::ops::{self, AttentionSpec, CrossEntropy};
use ramekin_tape::{GradStore, Tape, Value};
use ramekin_tests::lab::{part, sequences};
use serde_json::json;

use super::alone;
use crate::{normal, ok, value};

const D: usize = 32;
const BLOCKS: usize = 6;
const CLASSES: usize = 8;

/// A frozen bidirectional backbone whose last three states know nothing of a token but a shadow in two
/// dimensions.
struct Backbone {
    sites: Rc<Sites>,
    shadow: Vec<f32>,
    map: Vec<u32>,
}

impl Backbone {
    fn new(seed: u64) -> Self {
        let mut source = RandomSource { rng: Rng::new(seed), std: 1.0 / (D as f64).sqrt() };
        let mut loader = Loader::new(&mut source, LoadOptions::default());
        ok(loader.table("embed", 32, D));
        for b in 0..BLOCKS {
            let at = |name: &str| format!("{b}.{name}");
            ok(loader.norm(&at("norm1"), D, false, &[]));
            ["q", "k", "v", "o"].iter().for_each(|n| ok(loader.linear(&at(n), D, D, false, false)));
            ok(loader.norm(&at("norm2"), D, false, &[]));
            ["gate", "up"].iter().for_each(|n| ok(loader.linear(&at(n), 64, D, false, false)));
            ok(loader.linear(&at("down"), D, 64, false, false));
        }
        let (_, sites, _) = ok(loader.finish());
        let mut draws = Draws::new(Rng::new(seed).stream("labels", 0));
        let map = (0..32).map(|_| draws.below(CLASSES) as u32).collect();
        let mut axes = normal(&format!("axes {seed}"), 2 * D, 1.0);
        // Two orthonormal directions.
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
        let (first, second) = axes.split_at_mut(D);
        let n = dot(first, first).sqrt();
        first.iter_mut().for_each(|x| *x /= n);
        let along = dot(first, second);
        second.iter_mut().zip(first.iter()).for_each(|(s, f)| *s -= along * f);
        let n = dot(second, second).sqrt();
        second.iter_mut().for_each(|x| *x /= n);
        let shadow =
            (0..D * D).map(|i| first[i / D] * first[i % D] + second[i / D] * second[i % D]).collect();
        Backbone { sites: Rc::new(sites), shadow, map }
    }

    fn states(&self, batch: &FlatBatch) -> Vec<Value> {
        let fx = Forward::new(Tape::off(), self.sites.clone(), batch.clone(), Mode::inference());
        let tape = Tape::off();
        let spec = AttentionSpec {
            heads: 4,
            kv_heads: 4,
            head_dim: 8,
            scale: 8f64.powf(-0.5),
            reach: ramekin_tape::ops::Reach::ALL,
            causal: false,
            bf16: false,
        };
        let norm =
            |path: String, x: &Value| ops::rms_norm(&tape, x, &ok(fx.param(&format!("{path}.weight"))), 1e-5);
        let mut states = vec![ok(ops::embedding(&tape, &ok(fx.param("embed")), &batch.ids))];
        for b in 0..BLOCKS {
            let at = |name: &str| format!("{b}.{name}");
            let mut h = states[b].clone();
            let n = ok(norm(at("norm1"), &h));
            let one = |name: &str| ok(fx.linear(&at(name), &n));
            let mixed = ok(fx.attention(b, one("q"), one("k"), one("v"), None, spec));
            h = ok(ops::add(&tape, &h, &ok(fx.linear(&at("o"), &mixed))));
            let n = ok(norm(at("norm2"), &h));
            let gated =
                ok(ops::swiglu(&tape, &ok(fx.linear(&at("gate"), &n)), &ok(fx.linear(&at("up"), &n))));
            h = ok(ops::add(&tape, &h, &ok(fx.linear(&at("down"), &gated))));
            if b >= 3 {
                h = ok(ops::linear(&tape, &h, &value(self.shadow.clone(), &[D, D]), None));
            }
            states.push(h);
        }
        states
    }

    fn sample(&self, n: usize, seed: u64) -> (FlatBatch, Vec<i64>) {
        let ids = sequences(&vec![8; n], 32, seed);
        let labels = ids.iter().map(|s| i64::from(self.map[s[0] as usize])).collect();
        (FlatBatch::new(&ids), labels)
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Side,
    HeadAlone,
    NothingMixedIn,
}

fn accuracy(backbone: &Backbone, seed: u64, kind: Kind) -> f64 {
    let (side, ledger, _unipt) = alone(D, BLOCKS, json!({ "reduction": 1 }));
    let head = ["head.weight", "head.bias"].map(|name| {
        let dims = if name.ends_with("weight") { vec![CLASSES, D] } else { vec![CLASSES] };
        let numbers = normal(&format!("{name} {seed}"), dims.iter().product(), 0.1);
        let param = Param::new(name, crate::array(numbers, &dims));
        param.set_trainable(true);
        param
    });
    let logits = |tape: &Tape, batch: &FlatBatch| {
        let states = backbone.states(batch);
        let y = match kind {
            Kind::HeadAlone => states[BLOCKS].clone(),
            Kind::Side => ok(side.run(tape, &states, &batch.segments)).0,
            Kind::NothingMixedIn => {
                let u = ok(side.reduced(tape, &states));
                let nothing = ok(ops::scale(tape, &u[BLOCKS], 0.0));
                ok(side.merge(tape, &u[BLOCKS], &nothing, &states[BLOCKS]))
            }
        };
        let first = Rc::new(batch.segments.iter().map(|s| s.start as u32).collect());
        let y = ok(ops::select_rows(tape, &y, &first));
        let [w, b] = head.each_ref().map(|p| ok(tape.param(p)));
        ok(ops::linear(tape, &y, &w, Some(&b)))
    };
    let mut adam =
        parts::optimizer(&part("adamw", json!({ "lr": 3e-3, "weight_decay": 0.0 }))).expect("adamw");
    for step in 0..300u64 {
        let (batch, labels) = backbone.sample(64, 1000 * seed + step);
        let tape = Tape::new();
        let z = logits(&tape, &batch);
        let loss = ok(ops::cross_entropy(&tape, z, &labels, 1.0 / 64.0, CrossEntropy::default()));
        let mut store = GradStore::new();
        ok(tape.backward_scalar(&loss, &mut store));
        let info = StepInfo { step: step + 1, lr: 3e-3 * (1.0 - step as f64 / 300.0) };
        for (param, grad) in store.take() {
            ok(adam.step(&param, &grad, info, ParamGroup::default()));
        }
    }
    drop(ledger);
    let (batch, labels) = backbone.sample(2048, 77 + seed);
    let z = ok(logits(&Tape::off(), &batch).array().to_f32());
    let best = |row: &[f32]| (0..CLASSES).fold(0, |b, i| if row[i] > row[b] { i } else { b }) as i64;
    z.chunks(CLASSES).zip(&labels).filter(|(row, l)| best(row) == **l).count() as f64 / 2048.0
}

fn behaviour(seed: u64) {
    let backbone = Backbone::new(seed);
    let of = |kind| {
        let a = accuracy(&backbone, seed, kind);
        println!("seed {seed}, {kind:?}: {:.1} %", 100.0 * a);
        a
    };
    let (side, head, nothing) = (of(Kind::Side), of(Kind::HeadAlone), of(Kind::NothingMixedIn));
    assert!(side >= 0.90, "seed {seed}: {side}");
    assert!(head <= 0.45, "seed {seed}: the head on the last state reaches {head}");
    assert!(nothing <= 0.65, "seed {seed}: without the states {nothing}");
}

#[test]
fn check_6_seed_1() {
    behaviour(1);
}

#[test]
fn check_6_seed_2() {
    behaviour(2);
}

#[test]
fn check_6_seed_3() {
    behaviour(3);
}
