//! The toy of check 6: pairs from a chain whose even tokens one answer likes and the other does not.

use ramekin_core::{Draws, Rng};
use ramekin_engine::assembly::Assembly;
use ramekin_engine::blueprint::Blueprint;
use ramekin_engine::objective::{self, Figures};
use ramekin_engine::parts;
use ramekin_engine::step::{LabelledBatch, Trainer};
use ramekin_slots::{FlatBatch, Mode};
use ramekin_tape::Tape;
use ramekin_tests::compare::same_bits;
use ramekin_tests::lab::{self, assemble, part};
use serde_json::{Value as Json, json};

const V: usize = 24;

/// An order-1 chain: logits of the next token by the last, 1.5·N(0, 1).
struct Chain(Vec<f64>);

impl Chain {
    fn new(seed: u64) -> Self {
        let mut logits = vec![0.0; V * V];
        Rng::new(seed).named("objectives/chain", "rows").fill_normal(0, 1.5, &mut logits);
        Chain(logits)
    }

    /// Goes on for `n` tokens, even ones tilted up and odd ones down by `tilt`.
    fn go_on(&self, text: &mut Vec<u32>, n: usize, tilt: f64, draws: &mut Draws) {
        for _ in 0..n {
            let last = text.last().map_or(0, |t| *t as usize);
            let weight =
                |t: usize| (self.0[last * V + t] + if t.is_multiple_of(2) { tilt } else { -tilt }).exp();
            let all: f64 = (0..V).map(weight).sum();
            let mut left = draws.uniform() * all;
            let next = (0..V).find(|t| {
                left -= weight(*t);
                left < 0.0
            });
            text.push(next.unwrap_or(V - 1) as u32);
        }
    }

    fn start(&self, n: usize, draws: &mut Draws) -> Vec<u32> {
        let mut text = vec![draws.below(V) as u32];
        self.go_on(&mut text, n - 1, 0.0, draws);
        text
    }

    /// Pairs of answers of 8 tokens to the same 8.
    fn pairs(&self, count: usize, swap: bool, draws: &mut Draws) -> LabelledBatch {
        let (mut sequences, mut labels) = (Vec::new(), Vec::new());
        for _ in 0..count {
            let prompt = self.start(8, draws);
            let tilt = if swap { -1.0 } else { 1.0 };
            for tilt in [tilt, -tilt] {
                let mut text = prompt.clone();
                self.go_on(&mut text, 8, tilt, draws);
                labels.extend((1..16).map(|t| if t < 8 { -100 } else { i64::from(text[t]) }));
                labels.push(-100);
                sequences.push(text);
            }
        }
        LabelledBatch::of(FlatBatch::new(&sequences), labels)
    }
}

fn draws(name: &str, seed: u64) -> Draws {
    Draws::new(Rng::new(seed).stream(name, 0))
}

fn config() -> Json {
    json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 32,
        "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 4, "max_position_embeddings": 64, "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0, "tie_word_embeddings": false, "vocab_size": V,
        "initializer_range": 0.02, "eos_token_id": 0,
    })
}

/// The chain's model after 200 steps on its text, then frozen under a LoRA.
fn pretrained(chain: &Chain, seed: u64) -> Assembly {
    let fresh = Blueprint { seed, ..lab::fresh_model(config()) };
    let base = assemble(&Blueprint { full_training: true, ..fresh.clone() });
    let mut trainer = lab::trainer(3e-3);
    let mut draws = draws("objectives/text", seed);
    for step in 0..200 {
        let texts: Vec<Vec<u32>> = (0..32).map(|_| chain.start(17, &mut draws)).collect();
        trainer.step(&base, &[lab::batch(&texts)], step).expect("a step");
    }
    let settings = json!({ "r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj", "o_proj"] });
    let adapted = assemble(&Blueprint { adapters: vec![lab::new_adapter("lora", settings)], ..fresh });
    for name in base.sites.param_names() {
        let value = base.sites.param(name).expect("a parameter").base().value();
        adapted.sites.param(name).expect("the same").base().set(value);
    }
    adapted
}

fn dpo() -> Trainer {
    let mut trainer = lab::trainer(3e-3);
    trainer.objective = parts::objective(&part("dpo", json!({ "beta": 0.1 }))).expect("dpo");
    trainer
}

/// Accuracy, margin and loss over pairs.
fn measured(assembly: &Assembly, trainer: &Trainer, batch: &LabelledBatch) -> (f64, f64, f64) {
    let seen = Figures::default();
    let totals = trainer.totals(std::slice::from_ref(batch));
    let (tape, mode) = (Tape::off(), Mode::inference());
    let found = objective::loss(&*trainer.objective, assembly, None, batch, &totals, &tape, mode);
    let found = found.unwrap_or_else(|e| panic!("{e:#}"));
    seen.add(found.figures);
    let of = |name: &str| seen.mean(name).expect("a figure");
    let loss = found.value.array().scalar().expect("a scalar");
    (of("rewards/accuracies"), of("rewards/margins"), loss)
}

pub fn learns(seed: u64) {
    let chain = Chain::new(seed);
    let assembly = pretrained(&chain, seed);
    let held = chain.pairs(256, false, &mut draws("objectives/held", seed));
    let before = lab::logits(&assembly, &held.flat, false);
    let mut trainer = dpo();
    let (accuracy, margin, loss) = measured(&assembly, &trainer, &held);
    assert_eq!((accuracy, margin), (0.0, 0.0), "every Δ is exactly 0, and ties are not right");
    assert!((loss - 2f64.ln()).abs() <= 1e-6, "{loss}");
    let mut draws = draws("objectives/pairs", seed);
    let (mut losses, mut early) = (Vec::new(), 0.0);
    for step in 0..100 {
        if step == 25 {
            early = measured(&assembly, &trainer, &held).1;
        }
        let report = trainer.step(&assembly, &[chain.pairs(16, false, &mut draws)], step).expect("a step");
        losses.push(report.loss);
    }
    let (accuracy, margin, _) = measured(&assembly, &trainer, &held);
    let last = losses[90..].iter().sum::<f64>() / 10.0;
    println!(
        "seed {seed}: accuracy {accuracy:.3}, margin {margin:.2} (after 25 steps {early:.2}), loss {last:.3}"
    );
    assert!(accuracy >= 0.92 && margin >= 0.6 && margin > early, "{accuracy}, {margin} after {early}");
    assert!(last <= 0.45, "the last ten losses are {last}");
    same_bits("adapters off", &lab::logits(&assembly, &held.flat, false), &before);
}

pub fn swapped(seed: u64) {
    let chain = Chain::new(seed);
    let assembly = pretrained(&chain, seed);
    let held = chain.pairs(256, false, &mut draws("objectives/held", seed));
    let mut trainer = dpo();
    let mut draws = draws("objectives/pairs", seed);
    for step in 0..100 {
        trainer.step(&assembly, &[chain.pairs(16, true, &mut draws)], step).expect("a step");
    }
    let accuracy = measured(&assembly, &trainer, &held).0;
    println!("swapped: accuracy {accuracy:.3}");
    assert!(accuracy < 0.1, "{accuracy}");
}
