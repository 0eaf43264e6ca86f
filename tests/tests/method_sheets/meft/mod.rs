//! Sheet `meft`: reversible fine-tuning.
//!
//! All of it runs on the engine's own path, in f64 where the sheet says so: every tensor of the llama is then
//! held in f64, and every operation follows. The embedding and the head are as wide as the sheet's nets' states.

mod behaviour;

use std::cell::{Cell, RefCell};
use std::ops::Range;
use std::rc::Rc;

use ramekin_core::{Category, DType, Meter, Param, meter};
use ramekin_engine::assembly::Assembly;
use ramekin_engine::blueprint::Blueprint;
use ramekin_engine::hidden::hidden;
use ramekin_engine::step::{LabelledBatch, Trainer};
use ramekin_method_reversible::{MeftSettings, Reversible};
use ramekin_recipe::Part;
use ramekin_slots::{ActivationPolicy, Block, Forward, Half, Mode, Model};
use ramekin_tape::{Coupling, Streams, Tape, Value, ops};
use ramekin_tests::Kitchen;
use ramekin_tests::lab::{self, assemble, fresh_model, sequences};
use ramekin_tests::suite::loss_f64;
use ramekin_tests::toy;
use serde_json::{Value as Json, json};

use crate::ok;

const VARIANTS: [&str; 3] = ["meft1", "meft2", "meft3"];

fn settings(variant: &str, more: Json) -> Json {
    let mut all = json!({ "variant": variant });
    all.as_object_mut().expect("an object").extend(more.as_object().cloned().expect("an object"));
    all
}

/// The method with these settings.
fn method(variant: &str, more: Json) -> Part {
    lab::part("meft", settings(variant, more))
}

/// The policy of these settings.
fn policy(variant: &str, more: Json) -> Reversible {
    let settings: MeftSettings = serde_json::from_value(settings(variant, more)).expect("settings");
    Reversible::new(&settings)
}

fn stepping(policy: impl ActivationPolicy + 'static) -> Trainer {
    Trainer { activation: Box::new(policy), ..lab::trainer(1e-3) }
}

/// Width 64, weights N(0, 1/64), what goes into the residuals scaled by 1/√(2 layers).
fn net(method: &Part, layers: usize) -> Assembly {
    let mut config = toy::llama(61, 64, layers, 4, 128);
    config["initializer_range"] = json!(0.125);
    let assembly = assemble(&Blueprint { method: Some(method.clone()), ..fresh_model(config) });
    for name in assembly.sites.param_names() {
        if name.ends_with("o_proj.weight") || name.ends_with("down_proj.weight") {
            let by = (2.0 * layers as f32).powf(-0.5);
            let value = ok(assembly.sites.param(name)).base().value();
            ok(value.update(|w: &mut [f32]| w.iter_mut().for_each(|w| *w *= by)));
        }
    }
    assembly
}

fn rows() -> LabelledBatch {
    lab::batch(&sequences(&[9, 12, 7], 61, 21))
}

fn forward(assembly: &Assembly, tape: &Tape, training: bool, adapters: bool) -> Forward {
    let mode = Mode { training, adapters, ..Mode::inference() };
    Forward::new(tape.clone(), assembly.sites.clone(), rows().flat, mode)
}

/// Adapters of zeros and the vanishing factor at zero: the mean of two states of the plain model.
#[test]
fn check_1() {
    for (variant, zero) in [("meft1", "lambda"), ("meft2", "beta"), ("meft3", "lambda")] {
        let mut more = json!({ "num_rev_layers": 0 });
        more[zero] = json!(0.0);
        if variant == "meft3" {
            more["beta"] = json!(0.0);
        }
        let assembly = net(&method(variant, more.clone()), 4);
        for param in assembly.trainable() {
            ok(param.value().update(|x: &mut [f32]| x.fill(0.0)));
        }
        toy::to_f64(&assembly);
        let (model, plain) = (assembly.model.clone(), forward(&assembly, &Tape::off(), false, false));
        let mut states = vec![ok(model.embed(&plain))];
        for i in 0..4 {
            states.push(ok(model.block(i, &plain, &states[i])));
        }
        let other = match variant {
            "meft3" => ok(model.half(3, Half::Attention, &plain, &states[3])),
            _ => states[3].clone(),
        };
        let tape = Tape::off();
        let mean = ok(ops::scale(&tape, &ok(ops::add(&tape, &states[4], &other)), 0.5));
        let expected = ok(ok(model.final_norm(&plain, &mean)).array().to_f64());
        let recording = Tape::new();
        let fx = forward(&assembly, &recording, true, true);
        let found = ok(ok(hidden(&model, &fx, Some(&policy(variant, more)))).array().to_f64());
        let off = found.iter().zip(&expected).fold(0.0, |m: f64, (a, b)| m.max((a - b).abs()));
        println!("{variant}: off by {off:.1e}");
        assert!(off <= 1e-6 && expected.iter().any(|x| x.abs() > 0.5), "{variant}: off by {off:.1e}");
    }
}

/// Hands out the layers of a forward.
#[derive(Default)]
struct Capture(RefCell<Option<Rc<dyn Coupling>>>);

impl ActivationPolicy for Capture {
    fn run(&self, _: &Forward, _: usize, _: Block, _: &Value) -> anyhow::Result<Value> {
        anyhow::bail!("streams do not run as one block")
    }

    fn run_streams(
        &self,
        _: &Forward,
        net: &Rc<dyn Coupling>,
        _: Range<usize>,
        streams: Streams,
    ) -> anyhow::Result<Streams> {
        *self.0.borrow_mut() = Some(net.clone());
        Ok(streams)
    }
}

/// The policy with dropout drawn at another address in backward: what not replaying it does.
struct Forgetful {
    inner: Reversible,
    model: Rc<dyn Model>,
}

struct Turning {
    first: Rc<dyn Coupling>,
    then: Rc<dyn Coupling>,
    calls: Cell<usize>,
    after: usize,
}

impl Turning {
    fn now(&self) -> &dyn Coupling {
        let call = self.calls.replace(self.calls.get() + 1);
        if call < self.after { &*self.first } else { &*self.then }
    }
}

impl Coupling for Turning {
    fn f(&self, tape: &Tape, layer: usize, x2: &Value) -> anyhow::Result<Value> {
        self.now().f(tape, layer, x2)
    }

    fn g(&self, tape: &Tape, layer: usize, y1: &Value) -> anyhow::Result<Value> {
        self.now().g(tape, layer, y1)
    }

    fn factors(&self) -> [f64; 2] {
        self.first.factors()
    }

    fn switched(&self) -> bool {
        self.first.switched()
    }
}

impl ActivationPolicy for Forgetful {
    fn run(&self, fx: &Forward, _: usize, block: Block, x: &Value) -> anyhow::Result<Value> {
        block(fx, x)
    }

    fn run_streams(
        &self,
        fx: &Forward,
        net: &Rc<dyn Coupling>,
        layers: Range<usize>,
        streams: Streams,
    ) -> anyhow::Result<Streams> {
        let mut other = fx.on(&Tape::off());
        other.mode.micro_batch += 1;
        let capture = Capture::default();
        let path = fx.sites.around().path().expect("streams");
        path.forward(&other, &self.model, streams[0].detach(), Some(&capture))?;
        let then = capture.0.take().expect("layers");
        let after = 2 * layers.len();
        let turning: Rc<dyn Coupling> =
            Rc::new(Turning { first: net.clone(), then, calls: Cell::new(0), after });
        self.inner.run_streams(fx, &turning, layers, streams)
    }
}

/// Every layer's input comes out of its output, and does not where dropout is drawn anew.
#[test]
fn check_2() {
    for (variant, layers) in [("meft1", 6), ("meft2", 6), ("meft3", 3)] {
        let more = json!({ "dropout": 0.1, "checkpoint_every": 0, "report_drift": true });
        let assembly = net(&method(variant, more.clone()), layers);
        toy::to_f64(&assembly);
        let inner = policy(variant, more.clone());
        let drifts = inner.drifts();
        loss_f64(&assembly, &stepping(inner), &rows(), true);
        let found = drifts.take();
        println!("{variant}: {found:.1?}");
        assert_eq!(found.len(), layers, "{variant}: a figure for each layer");
        let most = found.values().copied().fold(0.0, f64::max);
        println!("{variant}: inputs off by {most:.1e}");
        assert!(most <= 1e-6 && most > 0.0, "{variant}: off by {most:.1e}");
        let inner = policy(variant, more);
        let drifts = inner.drifts();
        let model = assembly.model.clone();
        loss_f64(&assembly, &stepping(Forgetful { inner, model }), &rows(), true);
        let most = drifts.take().into_values().fold(0.0, f64::max);
        println!("{variant}: {most:.1e} without replay");
        assert!(most > 1.0, "{variant}: {most:.1e} without replay");
    }
}

fn train_the_head(assembly: &Assembly) {
    let head = ok(assembly.sites.param("lm_head.weight"));
    head.base().set_trainable(true);
}

/// ‖a − b‖ / ‖b‖ at most, over tensors.
fn apart(found: &[(String, Vec<f64>)], expected: &[(String, Vec<f64>)]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let square = |x: f64| x * x;
    let each = found.iter().zip(expected).map(|((name, a), (other, b))| {
        assert_eq!(name, other);
        let off: f64 = a.iter().zip(b).map(|(a, b)| square(a - b)).sum();
        let norm: f64 = b.iter().map(|b| square(*b)).sum();
        assert!(norm > 0.0, "{name}: nothing to compare with");
        (off / norm).sqrt()
    });
    // A NaN stays.
    each.fold(0.0, |m, off| if off <= m { m } else { off })
}

fn gradients(assembly: &Assembly, trainer: &Trainer) -> Vec<(String, Vec<f64>)> {
    let mut store = ramekin_tape::GradStore::new();
    let totals = [rows().active() as f64];
    ok(trainer.micro_batch(assembly, &rows(), &totals, 0, true, &mut store));
    let mut all: Vec<(String, Vec<f64>)> =
        store.iter().map(|(p, g)| (p.name().to_owned(), g.to_f64().expect("numbers"))).collect();
    all.sort_by(|a, b| a.0.cmp(&b.0));
    all
}

/// Gradients of adapters and head as those of plain backpropagation through the same function.
#[test]
fn check_3() {
    for variant in VARIANTS {
        for (dtype, every, bound) in [(DType::F64, 0, 1e-6), (DType::F32, 2, 2e-3)] {
            let every = match (variant, dtype) {
                ("meft3", DType::F64) => 2,
                ("meft3", _) => 1,
                _ => every,
            };
            let more = json!({ "dropout": 0.1, "checkpoint_every": every });
            let assembly = net(&method(variant, more.clone()), 6);
            train_the_head(&assembly);
            if dtype == DType::F64 {
                toy::to_f64(&assembly);
            }
            let expected = gradients(
                &assembly,
                &stepping(policy(variant, json!({ "dropout": 0.1, "num_rev_layers": 0 }))),
            );
            assert_eq!(expected.len(), assembly.trainable().len());
            let off = apart(&gradients(&assembly, &stepping(policy(variant, more.clone()))), &expected);
            println!("{variant}, {dtype:?}, every {every}: off by {off:.1e}");
            assert!(off <= bound, "{variant}, {dtype:?}: off by {off:.1e}, allowed {bound:.0e}");
            if dtype == DType::F64 {
                let unguarded = policy(variant, json!({ "dropout": 0.1, "checkpoint_every": 0 }));
                let forgetful = Forgetful { inner: unguarded, model: assembly.model.clone() };
                let off = apart(&gradients(&assembly, &stepping(forgetful)), &expected);
                println!("{variant}: {off:.1e} without replay");
                assert!(off > 1.0 || off.is_nan(), "{variant}: {off:.1e} without replay");
                one_difference(variant, &assembly, &stepping(policy(variant, more)));
            }
        }
    }
}

/// One entry of the lowest block's adapter against a central difference, dropout as it was drawn.
fn one_difference(variant: &str, assembly: &Assembly, trainer: &Trainer) {
    let param: std::sync::Arc<Param> = assembly
        .trainable()
        .into_iter()
        .find(|p| p.name().ends_with("layers.0.ffn_adapter.dense1.weight"))
        .expect("an adapter");
    let (_, grads) = loss_f64(assembly, trainer, &rows(), true);
    let grad = &grads[param.name()];
    let at = (0..grad.len()).max_by(|a, b| grad[*a].abs().total_cmp(&grad[*b].abs())).expect("an entry");
    let nudged = |by: f64| {
        ok(param.value().update(|x: &mut [f64]| x[at] += by));
        loss_f64(assembly, trainer, &rows(), true).0
    };
    let (up, down) = (nudged(1e-4), nudged(-2e-4));
    nudged(1e-4);
    let off = ((up - down) / 2e-4 - grad[at]).abs() / grad[at].abs();
    println!("{variant}: the gradient {:.2e} is off its difference by {off:.1e}", grad[at]);
    assert!(off <= 1e-5, "{variant}: the gradient is off its difference by {off:.1e}");
}

/// Bytes alive between forward and backward that are neither weights nor what trains.
fn kept(variant: &str, layers: usize, more: Json) -> u64 {
    let own = Meter::new();
    let scope = meter::scope(own.clone());
    let assembly = net(&method(variant, more.clone()), layers);
    let before = own.live().total();
    let tape = Tape::new();
    let fx = forward(&assembly, &tape, true, true);
    let h = ok(hidden(&assembly.model, &fx, Some(&policy(variant, more))));
    let after = own.live();
    assert!(h.is_tracked() && after.get(Category::Activations) > 0);
    drop(scope);
    after.total() - before
}

/// What is kept does not grow with depth; with plain backpropagation it does, by the same for each layer.
#[test]
fn check_4() {
    for variant in VARIANTS {
        let off = json!({ "checkpoint_every": 0, "dropout": 0.1 });
        let bytes = [4, 12].map(|layers| kept(variant, layers, off.clone()));
        let plain = json!({ "num_rev_layers": 0, "dropout": 0.1 });
        let grown = [4, 8, 12].map(|layers| kept(variant, layers, plain.clone()));
        println!("{variant}: {bytes:?} undone, {grown:?} kept");
        assert_eq!(bytes[0], bytes[1], "{variant}");
        assert_eq!(grown[1] - grown[0], grown[2] - grown[1], "{variant}: linear");
        assert!(grown[1] > grown[0] && grown[0] > bytes[0], "{variant}");
        // A pair of states for each exact copy; the lowest one is the embedding's output alone.
        let pair = 2 * (rows().flat.len() * 64 * 4) as u64;
        let guarded = kept(variant, 12, json!({ "checkpoint_every": 3 }));
        assert_eq!(guarded - bytes[1], 3 * pair + pair / 2, "{variant}: copies at layers 0, 3, 6 and 9");
    }
}

/// Rounding grows by 1/λ a layer, and a run that it would spoil says so.
#[test]
fn check_5() {
    for lambda in [0.1, 0.5] {
        let more = json!({ "lambda": lambda, "checkpoint_every": 0, "report_drift": true });
        let assembly = net(&method("meft1", more.clone()), 8);
        toy::to_f64(&assembly);
        // Rounding is chance: the geometric mean over some batches tells how it grows.
        const BATCHES: u64 = 8;
        let mut found = [1.0f64; 8];
        for seed in 21..21 + BATCHES {
            let policy = policy("meft1", more.clone());
            let drifts = policy.drifts();
            let rows = lab::batch(&sequences(&[9, 12, 7], 61, seed));
            loss_f64(&assembly, &stepping(policy), &rows, true);
            let drifts = drifts.take();
            assert_eq!(drifts.len(), found.len());
            for (mean, drift) in found.iter_mut().zip(drifts.into_values()) {
                *mean *= drift.powf(1.0 / BATCHES as f64);
            }
        }
        let growths: Vec<f64> = (1..7).map(|layer| found[layer] / found[layer + 1]).collect();
        println!("λ {lambda}: {found:?}, growth {growths:.1?}");
        for growth in growths {
            let by = growth * lambda;
            assert!((0.5..=2.0).contains(&by), "λ {lambda}: {growth:.2} a layer");
        }
    }
    let recipe = |more: &str| {
        format!(
            r#"
seed = 3
[model]
source = "init"
tokenizer = {{ kind = "bpe", data = "builtin:text", vocab_size = 300 }}
[model.config]
architectures = ["LlamaForCausalLM"]
model_type = "llama"
hidden_size = 32
intermediate_size = 48
num_hidden_layers = 12
num_attention_heads = 4
max_position_embeddings = 128
rms_norm_eps = 1e-5
[[stage]]
kind = "train"
method = {{ kind = "meft", lambda = 0.1, report_drift = true{more} }}
data = {{ kind = "builtin", name = "records", rows = 8, max_length = 96 }}
batch = {{ micro_batch_size = 2 }}
steps = 2
audit = false
"#
        )
    };
    let said = |more: &str| {
        let kitchen = Kitchen::new(&recipe(more));
        let outcome = kitchen.run(&[]);
        outcome.expect(0);
        let metrics = std::fs::read_to_string(kitchen.out("metrics.jsonl")).expect("metrics");
        let drift = metrics.lines().find_map(|l| serde_json::from_str::<Json>(l).ok()?["drift"].as_f64());
        (outcome.stderr, drift)
    };
    let (stderr, drift) = said(", checkpoint_every = 0");
    println!("unguarded drift {drift:?}");
    assert!(stderr.contains("warning: undoing 12 layers"), "{stderr}");
    let (stderr, guarded) = said("");
    println!("guarded drift {guarded:?}");
    assert!(!stderr.contains("warning: undoing"), "{stderr}");
    assert!(guarded.is_some_and(|off| off > 0.0 && off < 1e-3), "{guarded:?}");
}

/// Streams in half precision are not undone without exact copies.
#[test]
fn half_precision_needs_copies() {
    let more = json!({ "checkpoint_every": 0 });
    let assembly = net(&method("meft1", more.clone()), 2);
    let fx = forward(&assembly, &Tape::new(), true, true);
    let h = ok(assembly.model.embed(&fx)).into_array();
    let path = assembly.sites.around().path().expect("streams");
    let run = |dtype: DType, more: Json| {
        let h = Value::constant(ok(h.to_dtype(dtype, Category::Workspace)));
        path.forward(&fx, &assembly.model, h, Some(&policy("meft1", more)))
    };
    assert!(run(DType::F32, more.clone()).is_ok());
    let Err(refused) = run(DType::BF16, more) else { panic!("bf16 without copies") };
    assert!(format!("{refused:#}").contains("`checkpoint_every` is 0"), "{refused:#}");
}
