//! One linear with an adapter on it, and the teacher that a `lora` learns from.

use std::rc::Rc;
use std::sync::Arc;

use ramekin_core::{Array, Category, DType, Element, Ledger, Param, Rng};
use ramekin_engine::parts;
use ramekin_slots::{
    Adapter, AttachContext, FlatBatch, Forward, LinearBase, LinearSite, Mode, ModelFacts, ParamGroup, Sites,
    StepInfo,
};
use ramekin_tape::{GradStore, Tape, Value};
use ramekin_tests::lab::part;
use serde_json::{Value as Json, json};

/// `n` draws of N(0, std²), by name.
pub fn normal(name: &str, n: usize, std: f64) -> Vec<f32> {
    let mut x = vec![0.0; n];
    Rng::new(17).named("tests/normal", name).fill_normal(0, std, &mut x);
    x
}

const PATH: &str = "model.layers.0.self_attn.q_proj";

/// A linear W `[O, I]` without bias and its adapter.
pub struct Lone {
    sites: Rc<Sites>,
    adapter: Box<dyn Adapter>,
    shape: (usize, usize),
}

impl Lone {
    /// A fresh adapter of these settings on this weight.
    pub fn new(kind: &str, weight: &[f32], (o, i): (usize, usize), mut settings: Json) -> Self {
        ramekin_catalog::link();
        settings["target_modules"] = json!(["q_proj"]);
        let name = format!("{PATH}.weight");
        let w = Array::from_vec(weight.to_vec(), &[o, i], Category::Weights).expect("a weight");
        let w = Param::new(name.clone(), w);
        let (mut ledger, mut sites) = (Ledger::default(), Sites::default());
        ledger.add(&w, Ledger::MODEL).expect("a new name");
        sites.add_param(w);
        sites.add_linear(LinearSite::new(PATH, (o, i), false, LinearBase::Dense(name), None));
        let sites = Rc::new(sites);
        let mut adapter = parts::adapter(&part(kind, settings)).expect("an adapter");
        let facts = ModelFacts {
            images: None,
            model_type: "linear".to_owned(),
            vocab_size: 1,
            hidden_size: i,
            intermediate_size: o,
            blocks: 1,
            heads: 1,
            kv_heads: 1,
            head_dim: 2,
            max_position_embeddings: 1,
            tie_word_embeddings: false,
            causal: true,
            reach: vec![ramekin_tape::ops::Reach::ALL],
            activation: ramekin_tape::ops::Activation::Linear,
            halves: Vec::new(),
        };
        let mut cx = AttachContext {
            sites: sites.clone(),
            ledger: &mut ledger,
            facts: &facts,
            rng: Rng::new(5),
            owner: "adapter.0".to_owned(),
            index: 0,
            stage: 0,
            shape_only: false,
        };
        adapter.attach(&mut cx).expect("it attaches");
        Lone { sites, adapter, shape: (o, i) }
    }

    /// What trains, in the order of the file.
    pub fn params(&self) -> Vec<Arc<Param>> {
        self.adapter.params().into_iter().map(|(_, p)| p).collect()
    }

    /// Goes on in f64.
    pub fn widen(&self) {
        let base = self.sites.param(&format!("{PATH}.weight")).expect("the weight").base().clone();
        for param in self.params().into_iter().chain([base]) {
            param.set(param.value().to_dtype(DType::F64, Category::Weights).expect("f64"));
        }
    }

    /// [`Lone::forward`] in f64.
    pub fn forward_f64(&self, x: &[f64]) -> Vec<f64> {
        self.run(&Tape::off(), x).array().view::<f64>().expect("f64").to_vec()
    }

    /// [`Lone::backward`] in f64.
    pub fn backward_f64(&self, x: &[f64], seed: &[f64]) -> Vec<(Arc<Param>, Vec<f64>)> {
        let mut found = self.gradients(x, seed);
        let place = |p: &Arc<Param>| self.params().iter().position(|q| q.id() == p.id());
        found.sort_by_key(|(p, _)| place(p));
        found.into_iter().map(|(p, g)| (p, g.view::<f64>().expect("f64").to_vec())).collect()
    }

    fn run<T: Element>(&self, tape: &Tape, x: &[T]) -> Value {
        let (_, i) = self.shape;
        let n = x.len() / i;
        let batch = FlatBatch::new(&[vec![0; n]]);
        let fx = Forward::new(tape.clone(), self.sites.clone(), batch, Mode::inference());
        let x = Array::from_vec(x.to_vec(), &[n, i], Category::Workspace).expect("rows");
        self.sites.linears()[0].forward(&fx, &Value::constant(x)).expect("a product")
    }

    /// Rows of inputs to rows of outputs.
    pub fn forward(&self, x: &[f32]) -> Vec<f32> {
        self.run(&Tape::off(), x).array().to_f32().expect("f32")
    }

    /// The gradients for this gradient of the outputs.
    pub fn backward(&self, x: &[f32], seed: &[f32]) -> Vec<(Arc<Param>, Vec<f32>)> {
        let found = self.gradients(x, seed);
        found.into_iter().map(|(p, g)| (p, g.to_f32().expect("f32"))).collect()
    }

    fn gradients<T: Element>(&self, x: &[T], seed: &[T]) -> Vec<(Arc<Param>, Array)> {
        let tape = Tape::new();
        let y = self.run(&tape, x);
        let seed = Array::from_vec(seed.to_vec(), y.dims(), Category::Workspace).expect("rows");
        let mut store = GradStore::new();
        tape.backward(&y, seed, &[], &mut store).expect("gradients");
        store.take()
    }
}

const D: usize = 32;
const INPUTS: usize = 2048;
const BATCH: usize = 128;
const STEPS: u64 = 400;

/// y = (W + P)x, P of rank 4, on 2048 inputs.
pub struct Teacher {
    w: Vec<f32>,
    x: Vec<f32>,
    y: Vec<f32>,
    /// The four σ² of P, falling.
    pub spectrum: Vec<f64>,
}

impl Teacher {
    /// Number `seed` of these teachers.
    pub fn new(seed: u64) -> Self {
        let w = normal(&format!("W {seed}"), D * D, 1.0);
        let (u, v) = (normal(&format!("U {seed}"), D * 4, 1.0), normal(&format!("V {seed}"), 4 * D, 1.0));
        let entry = |i: usize, j: usize| {
            (0..4).map(|k| f64::from(u[i * 4 + k]) * f64::from(v[k * D + j])).sum::<f64>()
        };
        let p: Vec<f64> = (0..D * D).map(|n| entry(n / D, n % D) / D as f64).collect();
        let x = normal(&format!("x {seed}"), INPUTS * D, 1.0);
        let row = |x: &[f32], o: usize| -> f64 {
            (0..D).map(|i| (f64::from(w[o * D + i]) + p[o * D + i]) * f64::from(x[i])).sum()
        };
        let y = x.chunks(D).flat_map(|x| (0..D).map(|o| row(x, o) as f32).collect::<Vec<_>>()).collect();
        Teacher { w, x, y, spectrum: squared_singular_values(&p) }
    }

    /// Loss after 400 steps of Adam (1e-2 falling linearly, batches of 128, alpha = 2r) over the initial loss.
    pub fn loss_share(&self, r: usize, train_a: bool) -> f64 {
        let lone = Lone::new("lora", &self.w, (D, D), json!({ "r": r, "lora_alpha": 2 * r }));
        for a in lone.params().iter().filter(|p| p.name().contains("lora_A")) {
            a.set_trainable(train_a);
        }
        let mut adam =
            parts::optimizer(&part("adamw", json!({ "lr": 1e-2, "weight_decay": 0.0 }))).expect("adamw");
        let schedule = parts::schedule(&part("linear", json!({}))).expect("linear");
        let before = self.loss(&lone);
        for step in 0..STEPS {
            let at = step as usize * BATCH % INPUTS * D..(step as usize * BATCH % INPUTS + BATCH) * D;
            let (x, y) = (&self.x[at.clone()], &self.y[at]);
            let scale = 2.0 / y.len() as f32;
            let seed: Vec<f32> = lone.forward(x).iter().zip(y).map(|(a, b)| scale * (a - b)).collect();
            let info = StepInfo { step: step + 1, lr: adam.lr() * schedule.factor(step, STEPS) };
            for (param, grad) in lone.gradients(x, &seed) {
                adam.step(&param, &grad, info, ParamGroup::default()).expect("a step");
            }
        }
        self.loss(&lone) / before
    }

    fn loss(&self, lone: &Lone) -> f64 {
        let square = |(a, b): (f32, &f32)| (f64::from(a) - f64::from(*b)).powi(2);
        lone.forward(&self.x).into_iter().zip(&self.y).map(square).sum::<f64>() / self.y.len() as f64
    }
}

/// The largest four eigenvalues of PᵀP, by power iteration with deflation.
fn squared_singular_values(p: &[f64]) -> Vec<f64> {
    let mut m = vec![0.0; D * D];
    for (i, row) in m.chunks_mut(D).enumerate() {
        for (j, out) in row.iter_mut().enumerate() {
            *out = (0..D).map(|k| p[k * D + i] * p[k * D + j]).sum();
        }
    }
    let mut found = Vec::new();
    for n in 0..4 {
        let mut v: Vec<f64> = normal(&format!("power {n}"), D, 1.0).into_iter().map(f64::from).collect();
        let mut value = 0.0;
        for _ in 0..2000 {
            let next: Vec<f64> =
                m.chunks(D).map(|row| row.iter().zip(&v).map(|(a, b)| a * b).sum()).collect();
            value = next.iter().map(|x| x * x).sum::<f64>().sqrt();
            v = next.into_iter().map(|x| x / value).collect();
        }
        for (i, row) in m.chunks_mut(D).enumerate() {
            row.iter_mut().zip(&v).for_each(|(out, b)| *out -= value * v[i] * b);
        }
        found.push(value);
    }
    found
}
