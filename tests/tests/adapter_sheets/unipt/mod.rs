//! Sheet `unipt`: a network beside a backbone without tape.
//!
//! Rows here are tokens of packed sequences without padding, so the sheet's padded row is a sequence of
//! its own.

mod behaviour;

use std::ops::Range;
use std::rc::Rc;

use ramekin_adapter_network::{Side, Unipt, UniptSettings};
use ramekin_core::{Category, DType, Ledger, Meter, Param, Rng, meter};
use ramekin_engine::assembly::Assembly;
use ramekin_engine::blueprint::Blueprint;
use ramekin_engine::parts;
use ramekin_registry::Part as _;
use ramekin_slots::{
    ActivationPolicy, Adapter, AttachContext, Block, FlatBatch, Forward, Mode, NetworkAdapter, Sites,
};
use ramekin_tape::{GradStore, Tape, Value, ops};
use ramekin_tests::compare::{close, difference, same_bits};
use ramekin_tests::lab::{self, assemble, new_adapter, sequences};
use serde_json::{Value as Json, json};

use crate::toy_vit::facts;
use crate::{normal, ok, value};

fn causal(extra: Json) -> Json {
    let mut settings = json!({ "causal": true, "pool": "prefix_mean" });
    for (key, v) in extra.as_object().expect("an object") {
        settings[key] = v.clone();
    }
    settings
}

fn beside(ffn: usize) -> Assembly {
    let mut config = lab::small_llama();
    config["intermediate_size"] = json!(ffn);
    let adapters = vec![new_adapter("unipt", causal(json!({})))];
    assemble(&Blueprint { adapters, ..lab::fresh_model(config) })
}

/// Fails if anything of a block is recorded.
struct NoPolicy;

impl ActivationPolicy for NoPolicy {
    fn run(&self, _: &Forward, _: usize, _: Block, _: &Value) -> anyhow::Result<Value> {
        anyhow::bail!("a policy is asked where nothing is kept")
    }
}

#[test]
fn check_1() {
    let batch = lab::batch(&sequences(&[20, 9, 14], 61, 4));
    let saved = |ffn: usize| {
        let own = Meter::new();
        let scope = meter::scope(own.clone());
        let assembly = beside(ffn);
        let mut trainer = lab::trainer(1e-2);
        trainer.activation = Box::new(NoPolicy);
        let mut store = GradStore::new();
        let totals = trainer.totals(std::slice::from_ref(&batch));
        ok(trainer.micro_batch(&assembly, &batch, &totals, 0, true, &mut store));
        for (param, _) in store.iter() {
            assert!(param.name().starts_with("unipt."), "`{}` received a gradient", param.name());
        }
        assert_eq!(store.len(), assembly.trainable().len());
        let peak = own.highest().activations;
        drop((store, assembly, scope));
        peak
    };
    let (narrow, wide) = (saved(48), saved(192));
    assert!(narrow > 0);
    assert_eq!(narrow, wide, "saved bytes with a FFN four times as wide");
    // The plan sees the same.
    let planned = |ffn: usize| {
        let own = Meter::new();
        let _scope = meter::scope(own.clone());
        let mut config = lab::small_llama();
        config["intermediate_size"] = json!(ffn);
        let adapters = vec![new_adapter("unipt", causal(json!({})))];
        let plan = Blueprint { adapters, ..lab::fresh_model(config) };
        let shapes = ok(plan.assemble(true));
        lab::train(&shapes, &mut lab::trainer(1e-2), &batch, 1);
        own.highest().activations
    };
    assert_eq!((planned(48), planned(192)), (narrow, narrow), "planned");
}

/// The states of a backbone, as the engine hands them to the network.
fn states_of(assembly: &Assembly, flat: &FlatBatch) -> Vec<Value> {
    let fx = Forward::new(Tape::off(), assembly.sites.clone(), flat.clone(), Mode::inference());
    let mut states = vec![ok(assembly.model.embed(&fx))];
    for i in 0..2 {
        let h = ok(assembly.model.block(i, &fx, &states[i]));
        states.push(if i == 1 { ok(assembly.model.final_norm(&fx, &h)) } else { h });
    }
    states
}

/// The network on states that were computed once.
struct Cached {
    side: Rc<Side>,
    states: Vec<Value>,
}

impl NetworkAdapter for Cached {
    fn forward(&self, fx: &Forward, live: &[Value]) -> anyhow::Result<Value> {
        assert_eq!(live.len(), self.states.len());
        self.side.forward(fx, &self.states)
    }
}

#[test]
fn check_2() {
    let batch = lab::batch(&sequences(&[20, 9, 14], 61, 4));
    let live = beside(48);
    lab::train(&live, &mut lab::trainer(1e-2), &batch, 20);

    let cached = assemble(&lab::fresh_model(lab::small_llama()));
    let states = states_of(&cached, &batch.flat);
    let settings = serde_json::from_value(causal(json!({}))).expect("settings");
    let mut unipt = ok(Unipt::new(settings));
    ok(unipt.attach(&mut AttachContext {
        stage: 0,
        sites: Rc::new(Sites::default()),
        ledger: &mut cached.ledger.borrow_mut(),
        facts: cached.model.facts(),
        rng: Rng::new(5),
        owner: "adapter.0".to_owned(),
        index: 0,
        shape_only: false,
    }));
    let side = ok(unipt.side());
    ok(cached.sites.around().attach_network(Rc::new(Cached { side, states })));
    lab::train(&cached, &mut lab::trainer(1e-2), &batch, 20);
    for ((name, a), (_, b)) in lab::trained(&cached).iter().zip(lab::trained(&live)) {
        same_bits(name, a, &b);
    }
}

const EPS: f64 = 1e-8;

/// W + I of a call, by values that are the identity.
fn weights(q: &Value, u: &Value, segments: &[Range<usize>]) -> Vec<f32> {
    let n = q.dims()[0];
    let identity = (0..n * n).map(|i| if i / n == i % n { 1.0 } else { 0.0 }).collect();
    let segments = Rc::new(segments.to_vec());
    let w = ok(ops::relu_attention(&Tape::off(), q, u, &value(identity, &[n, n]), &segments, false, EPS));
    ok(w.array().to_f32())
}

/// The side network alone, on a backbone of this width with this many blocks that is not there.
fn alone(width: usize, blocks: usize, settings: Json) -> (Rc<Side>, Ledger, Unipt) {
    let settings: UniptSettings = serde_json::from_value(settings).expect("settings");
    let mut unipt = ok(Unipt::new(settings));
    let mut ledger = Ledger::default();
    ok(unipt.attach(&mut AttachContext {
        stage: 0,
        sites: Rc::new(Sites::default()),
        ledger: &mut ledger,
        facts: &facts(width, blocks),
        rng: Rng::new(3),
        owner: "adapter.0".to_owned(),
        index: 0,
        shape_only: false,
    }));
    (ok(unipt.side()), ledger, unipt)
}

#[test]
fn check_3() {
    let (side, _ledger, _unipt) = alone(16, 3, json!({ "reduction": 1 }));
    let states: Vec<Value> =
        (0..4).map(|i| value(normal(&format!("state {i}"), 7 * 16, 1.0), &[7, 16])).collect();
    // Six tokens and a padded row, which no other token sees.
    let apart = [0..6, 6..7];
    let u = ok(side.reduced(&Tape::off(), &states));
    for target in &u[..3] {
        let w = weights(&u[3], target, &apart);
        for (i, row) in w.chunks(7).enumerate() {
            let sum: f32 = row.iter().sum();
            assert!(
                (sum - 2.0).abs() < 1e-5 || (sum - 1.0).abs() < 1e-5,
                "with the identity row {i} sums to {sum}"
            );
            let bare = sum - 1.0;
            assert!((bare - 1.0).abs() < 1e-5 || bare.abs() < 1e-5, "row {i} sums to {bare}");
            assert!(i == 6 || row[6] == 0.0, "the padded key weighs {}", row[6]);
        }
    }
    let together = weights(&u[3], &u[0], std::slice::from_ref(&(0..7)));
    assert!(together.chunks(7).take(6).any(|row| row[6] > 0.0), "without the mask it is seen");

    let segments = Rc::new(apart.to_vec());
    let run = |states: &[Value]| ok(ok(side.run(&Tape::off(), states, &segments)).0.array().to_f32());
    let order = [4, 2, 0, 5, 1, 3, 6];
    let moved: Vec<Value> = states
        .iter()
        .map(|s| ok(ops::select_rows(&Tape::off(), s, &Rc::new(order.map(|i| i as u32).to_vec()))))
        .collect();
    let y = run(&states);
    let want: Vec<f32> = order.iter().flat_map(|i| y[i * 16..(i + 1) * 16].to_vec()).collect();
    close("permuted", &run(&moved), &want, 1e-5);
    assert!(difference(&y, &want) > 0.1, "the order matters");
}

fn wide(ledger: &Ledger) {
    for entry in ledger.entries() {
        let param: &Param = entry.param.as_ref().expect("dense");
        param.set(ok(param.value().to_dtype(DType::F64, Category::Trainable)));
    }
}

#[test]
fn check_4() {
    let segments = Rc::new(vec![0..5, 5..8]);
    let states = |dtype: DType| -> Vec<Value> {
        let of = |i: usize| value(normal(&format!("state {i}"), 8 * 16, 1.0), &[8, 16]);
        (0..5).map(|i| Value::constant(ok(of(i).array().to_dtype(dtype, Category::Workspace)))).collect()
    };
    let (side, ledger, _unipt) = alone(16, 4, json!({}));
    let gate = ledger.get("unipt.gate.weight").and_then(|e| e.param.clone()).expect("a gate");
    let (_, a) = ok(side.run(&Tape::off(), &states(DType::F32), &segments));
    for row in ok(a.to_f32()).chunks(4) {
        assert!((row.iter().sum::<f32>() - 1.0).abs() < 1e-6, "{row:?}");
        assert!(row.iter().any(|a| (a - 0.25).abs() > 1e-3), "the gate says something: {row:?}");
    }
    let was = ok(gate.value().to_f32());
    gate.value().update(|x: &mut [f32]| x.fill(0.0)).expect("f32");
    let (_, a) = ok(side.run(&Tape::off(), &states(DType::F32), &segments));
    assert!(ok(a.to_f32()).iter().all(|a| *a == 0.25), "all alike");
    gate.value().update(|x: &mut [f32]| x.copy_from_slice(&was)).expect("f32");

    wide(&ledger);
    let states = states(DType::F64);
    let c = ok(crate::array(normal("c", 8 * 16, 1.0), &[8, 16]).to_dtype(DType::F64, Category::Workspace));
    let total = || -> f64 {
        let y = ok(side.run(&Tape::off(), &states, &segments)).0;
        let (y, c) = (y.array().view::<f64>().expect("f64"), c.view::<f64>().expect("f64"));
        y.iter().zip(c.iter()).map(|(y, c)| y * c).sum()
    };
    let tape = Tape::new();
    let y = ok(side.run(&tape, &states, &segments)).0;
    let mut store = GradStore::new();
    ok(tape.backward(&y, c.clone(), &[], &mut store));
    for (name, entry) in [("unipt.down.1.weight", 37), ("unipt.phi.0.weight", 5), ("unipt.gate.weight", 3)] {
        let param = ledger.get(name).and_then(|e| e.param.clone()).expect("a parameter");
        let grad = store.get(param.id()).expect("a gradient").view::<f64>().expect("f64")[entry];
        let nudge = |by: f64| param.value().update(|x: &mut [f64]| x[entry] += by).expect("f64");
        nudge(1e-5);
        let up = total();
        nudge(-2e-5);
        let down = total();
        nudge(1e-5);
        let off = ((up - down) / 2e-5 - grad).abs();
        assert!(grad.abs() > 1e-4, "{name}: nothing to compare");
        assert!(off <= 1e-6 * grad.abs(), "{name}: off by {:.1e}", off / grad.abs());
    }
}

#[test]
fn check_5() {
    let segments = Rc::new(std::iter::once(0..9).collect::<Vec<_>>());
    let random: Vec<Vec<f32>> = (0..4).map(|i| normal(&format!("state {i}"), 9 * 16, 1.0)).collect();
    let outputs = |settings: Json, changed: bool| {
        let (side, _ledger, _unipt) = alone(16, 3, settings);
        let mut states = random.clone();
        if changed {
            states.iter_mut().for_each(|s| s[5 * 16..6 * 16].iter_mut().for_each(|x| *x = 2.0 - *x));
        }
        let states: Vec<Value> = states.into_iter().map(|s| value(s, &[9, 16])).collect();
        ok(ok(side.run(&Tape::off(), &states, &segments)).0.array().to_f32())
    };
    for pool in ["prefix_mean", "first"] {
        let settings = json!({ "causal": true, "pool": pool });
        let (before, after) = (outputs(settings.clone(), false), outputs(settings, true));
        same_bits(pool, &after[..5 * 16], &before[..5 * 16]);
        assert!(difference(&after[5 * 16..], &before[5 * 16..]) > 0.1, "later positions see it");
    }
    let (before, after) = (outputs(json!({}), false), outputs(json!({}), true));
    let leak = difference(&after[..5 * 16], &before[..5 * 16]);
    println!("the plain form leaks {leak:.2}");
    assert!(leak > 0.05, "the plain form leaks only {leak}");
}

#[test]
fn parameters_are_counted() {
    let (n, wide, narrow) = (5, 32, 16);
    let (_side, ledger, _unipt) = alone(wide, n, json!({}));
    let all = (n + 1) * (wide * narrow + 3 * narrow)
        + narrow * narrow
        + 3 * narrow
        + narrow * wide
        + wide
        + narrow
        + 1;
    let (held, trained) = ledger.counts();
    assert_eq!(held, all as u64);
    assert_eq!(trained, all as u64 - 1, "all but the gate's bias, which cancels");
}

#[test]
fn bad_input() {
    let refused = |settings: Json, more: Option<&str>| {
        let mut adapters = vec![new_adapter("unipt", settings)];
        adapters.extend(more.map(|kind| new_adapter(kind, json!({}))));
        let plan = Blueprint { adapters, ..lab::fresh_model(lab::small_llama()) };
        format!("{:#}", plan.assemble(true).err().expect("a refusal"))
    };
    for (settings, more, part) in [
        (json!({}), None, "predicts the next token"),
        (json!({ "causal": true }), None, "sees later tokens"),
        (causal(json!({ "layers": [0, 1] })), None, "the last one (2)"),
        (causal(json!({ "layers": [2] })), None, "at least two states"),
        (causal(json!({ "layers": [0, 7] })), None, "states 0 to 2"),
        (causal(json!({ "reduction": 0 })), None, "at least 1"),
        (causal(json!({ "reduction": 33 })), None, "leaves nothing"),
        (causal(json!({ "l1_eps": 0.0 })), None, "above 0"),
        (causal(json!({ "output": "residual", "phi": "mlp" })), None, "no phi"),
        (causal(json!({})), Some("lora"), "without tape"),
        (causal(json!({})), Some("unipt"), "causal"),
    ] {
        let text = refused(settings, more);
        assert!(text.contains(part), "{text}");
    }
}

/// Every step runs the whole sequence again, to the same tokens as without a cache.
#[test]
fn generation() {
    use ramekin_engine::generation::{Generator, Limits};
    let assembly = beside(48);
    let decoder = parts::decoder(&ramekin_recipe::Part::of("greedy")).expect("greedy");
    let full = parts::kv(&ramekin_recipe::Part::of("full")).expect("full");
    let prompts = sequences(&[7, 3], 61, 2);
    let run = |cached: bool| {
        let kv = cached.then_some(&*full);
        let generator =
            Generator { assembly: &assembly, decoder: &*decoder, kv, rng: Rng::new(0), adapters: true };
        ok(generator.run(&prompts, &Limits { max_new_tokens: 6, eos: &[] }, &mut |_, _| {})).ids
    };
    assert_eq!(run(true), run(false));
}
