//! Tasks that train in seconds: Markov text, streams of batches, held-out loss and accuracy.

use ramekin_core::{DType, Draws, Rng};
use ramekin_engine::assembly::Assembly;
use ramekin_engine::pass::{Batches, Pass};
use ramekin_engine::step::{LabelledBatch, Trainer};
use ramekin_engine::team::Team;
use ramekin_slots::{FlatBatch, Problem, StepInfo};
use serde_json::{Value as Json, json};

/// Numbers of one stream.
pub fn draws(name: &str, seed: u64) -> Draws {
    Draws::new(Rng::new(seed).stream(name, 0))
}

/// A standard normal number.
pub fn normal(draws: &mut Draws) -> f64 {
    let (a, b) = (1.0 - draws.uniform(), draws.uniform());
    (-2.0 * a.ln()).sqrt() * (std::f64::consts::TAU * b).cos()
}

/// An index drawn with these weights, which sum to 1.
pub fn pick(weights: &[f64], draws: &mut Draws) -> usize {
    let mut left = draws.uniform();
    for (i, w) in weights.iter().enumerate() {
        left -= w;
        if left < 0.0 {
            return i;
        }
    }
    weights.len() - 1
}

/// softmax(scale · N(0, 1)) over `n` entries.
pub fn random_distribution(n: usize, scale: f64, draws: &mut Draws) -> Vec<f64> {
    let logits: Vec<f64> = (0..n).map(|_| scale * normal(draws)).collect();
    let most = logits.iter().fold(f64::NEG_INFINITY, |m, x| m.max(*x));
    let e: Vec<f64> = logits.iter().map(|x| (x - most).exp()).collect();
    let sum: f64 = e.iter().sum();
    e.into_iter().map(|x| x / sum).collect()
}

/// Markov text over `n` symbols: the next one depends on the last `order`.
pub struct Chain {
    n: usize,
    order: usize,
    rows: Vec<Vec<f64>>,
}

impl Chain {
    /// Rows softmax(scale · N(0, 1)).
    pub fn new(n: usize, order: usize, scale: f64, seed: u64) -> Self {
        let mut draws = draws("toy/chain", seed);
        let rows = (0..n.pow(order as u32)).map(|_| random_distribution(n, scale, &mut draws)).collect();
        Chain { n, order, rows }
    }

    /// What may follow `past`, whose last `order` symbols count.
    pub fn next(&self, past: &[u32]) -> &[f64] {
        let tail = &past[past.len() - self.order..];
        &self.rows[tail.iter().fold(0, |row, s| row * self.n + *s as usize)]
    }

    /// A text of this length whose first `order` symbols are uniform.
    pub fn text(&self, length: usize, draws: &mut Draws) -> Vec<u32> {
        let mut text: Vec<u32> = (0..self.order.min(length)).map(|_| draws.below(self.n) as u32).collect();
        while text.len() < length {
            let next = pick(self.next(&text), draws);
            text.push(next as u32);
        }
        text
    }
}

/// A small llama of these sizes, SwiGLU of width `ffn`.
pub fn llama(vocabulary: usize, width: usize, layers: usize, heads: usize, ffn: usize) -> Json {
    json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": width,
        "intermediate_size": ffn, "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": heads, "max_position_embeddings": 256, "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0, "tie_word_embeddings": false, "vocab_size": vocabulary,
        "initializer_range": 0.02, "eos_token_id": 0,
    })
}

/// Sequences in which the tokens that `learn` picks (by their position) are targets.
pub fn labelled(sequences: &[Vec<u32>], learn: impl Fn(usize, usize) -> bool) -> LabelledBatch {
    let mut labels = Vec::new();
    for s in sequences {
        let target = |i: usize| if learn(i, s.len()) { i64::from(s[i]) } else { -100 };
        labels.extend((1..s.len()).map(target));
        labels.push(-100);
    }
    LabelledBatch::of(FlatBatch::new(sequences), labels)
}

/// Runs `steps` updates, each on the batch that `data` makes for it; returns the losses before each.
#[track_caller]
pub fn train(
    assembly: &Assembly,
    trainer: &mut Trainer,
    steps: u64,
    mut data: impl FnMut(u64) -> LabelledBatch,
) -> Vec<f64> {
    trainer.total_steps = steps;
    (0..steps)
        .map(|s| trainer.step(assembly, &[data(s)], s).unwrap_or_else(|e| panic!("{e:#}")).loss)
        .collect()
}

/// What estimators ask of a step's batches, outside of a step.
pub fn problem<'a>(
    assembly: &'a Assembly,
    trainer: &'a Trainer,
    params: &'a [std::sync::Arc<ramekin_core::Param>],
    batches: &'a [LabelledBatch],
) -> Batches<'a> {
    let pass = Pass { objective: &*trainer.objective, activation: &*trainer.activation, rng: trainer.rng };
    let totals = trainer.totals(batches);
    let figures = ramekin_engine::objective::Figures::default();
    let info = StepInfo { step: 1, lr: 0.0 };
    Batches { pass, assembly, batches, params, totals, step: 0, total: 1, info, figures, team: Team::alone() }
}

/// Mean loss of the targets, by forwards alone.
#[track_caller]
pub fn loss(assembly: &Assembly, trainer: &Trainer, batches: &[LabelledBatch]) -> f64 {
    problem(assembly, trainer, &[], batches).loss(None).unwrap_or_else(|e| panic!("{e:#}"))
}

/// Share of the targets that are predicted right.
#[track_caller]
pub fn accuracy(assembly: &Assembly, trainer: &Trainer, batches: &[LabelledBatch]) -> f64 {
    let found = problem(assembly, trainer, &[], batches).predictions(None);
    let found = found.unwrap_or_else(|e| panic!("{e:#}"));
    found.iter().filter(|(a, b)| a == b).count() as f64 / found.len() as f64
}

/// Holds every dense tensor in f64, for checks of gradients.
pub fn to_f64(assembly: &Assembly) {
    for entry in assembly.ledger.borrow().entries() {
        let param = entry.param.as_ref().expect("dense");
        let wide = param.value().to_dtype(DType::F64, ramekin_core::Category::Weights).expect("f64");
        param.set(wide);
    }
}
