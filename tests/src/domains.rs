//! Toy text of several domains: a tag token, then an order-1 Markov chain over 16 symbols.

use ramekin_core::{Draws, Rng};
use ramekin_engine::assembly::Assembly;
use ramekin_engine::parts;
use ramekin_engine::step::{LabelledBatch, Trainer};
use ramekin_recipe::Part;
use serde_json::{Value as Json, json};

use crate::lab;

/// Symbols of a chain.
pub const SYMBOLS: usize = 16;

/// Rows softmax(`sharpness` · N(0, 1)), each as its cumulative sums.
pub fn chain(rng: Rng, name: &str, symbols: usize, sharpness: f64) -> Vec<Vec<f64>> {
    let row = |i: usize| {
        let mut z = vec![0f32; symbols];
        rng.named(name, &i.to_string()).fill_normal(0, sharpness, &mut z);
        let e: Vec<f64> = z.iter().map(|z| f64::from(*z).exp()).collect();
        let sum: f64 = e.iter().sum();
        let mut so_far = 0.0;
        e.iter()
            .map(|e| {
                so_far += e / sum;
                so_far
            })
            .collect()
    };
    (0..symbols).map(row).collect()
}

/// `length` symbols of a chain from a uniform first one.
pub fn walk(chain: &[Vec<f64>], length: usize, draws: &mut Draws) -> Vec<u32> {
    let mut at = draws.below(chain.len());
    let mut all = vec![at as u32];
    while all.len() < length {
        let u = draws.uniform();
        at = chain[at].iter().position(|c| u < *c).unwrap_or(chain.len() - 1);
        all.push(at as u32);
    }
    all
}

/// One domain's text.
pub struct Domain {
    train: Vec<Vec<u32>>,
    held: Vec<Vec<u32>>,
}

impl Domain {
    /// 4096 sequences to train on and 256 to measure on: the tag, then 12 symbols.
    pub fn new(seed: u64, number: u32) -> Self {
        let rng = Rng::new(seed);
        let chain = chain(rng, &format!("domain{number}/chain"), SYMBOLS, 2.0);
        let mut draws = Draws::new(rng.stream("domain/text", u64::from(number)));
        let mut text = |n: usize| -> Vec<Vec<u32>> {
            (0..n)
                .map(|_| {
                    let mut all = vec![SYMBOLS as u32 + number];
                    all.extend(walk(&chain, 12, &mut draws));
                    all
                })
                .collect()
        };
        Domain { train: text(4096), held: text(256) }
    }

    /// Batch number `step` of 32, cycled.
    pub fn batch(&self, step: u64) -> LabelledBatch {
        let at = (step as usize * 32) % self.train.len();
        lab::batch(&self.train[at..at + 32])
    }

    /// The rows to measure on.
    pub fn held(&self) -> LabelledBatch {
        lab::batch(&self.held)
    }
}

/// A llama of 4 layers, width 32, 4 heads, gated feed-forward of 64, untied, for up to four domains.
pub fn config() -> Json {
    json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 32,
        "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4,
        "num_key_value_heads": 4, "max_position_embeddings": 64, "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0, "tie_word_embeddings": false, "vocab_size": SYMBOLS + 4,
        "initializer_range": 0.1, "eos_token_id": 2,
    })
}

/// AdamW without decay, 10 warm-up steps, then linear to 0 over `steps`.
pub fn trainer(lr: f64, steps: u64) -> Trainer {
    let mut linear = Part::of("linear");
    linear.settings.insert("warmup_steps".to_owned(), 10.into());
    Trainer { schedule: parts::schedule(&linear).expect("linear"), total_steps: steps, ..lab::trainer(lr) }
}

/// Trains on a domain; returns the trainer.
#[track_caller]
pub fn learn(assembly: &Assembly, domain: &Domain, lr: f64, steps: u64) -> Trainer {
    let mut trainer = trainer(lr, steps);
    trainer.calibrate(assembly).unwrap_or_else(|e| panic!("{e:#}"));
    for step in 0..steps {
        trainer.step(assembly, &[domain.batch(step)], step).unwrap_or_else(|e| panic!("{e:#}"));
    }
    trainer
}
