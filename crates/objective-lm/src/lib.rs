//! Language-model objectives: `sft`.
//!
//! L = scale · Σ over labelled tokens of −log softmax(z_t) at y_t, with the
//! label smoothing and the DFT weighting of TRL. The head runs on labelled
//! rows only and, unless `loss_type = "nll"`, one chunk of rows at a time, so
//! logits never exist all at once.
//!
//! Source: sheet `objectives`, items 1, 4 and 6.

use std::rc::Rc;

use anyhow::Result;
use ramekin_core::BadSetting;
use ramekin_registry::{Part, part};
use ramekin_slots::{Forward, Model, Objective};
use ramekin_tape::{Value, ops};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

part! { objective / "sft" => Sft, "cross-entropy on labelled tokens, normalised over the whole optimizer step",
source = "TRL SFTTrainer; sheet objectives", traits = [] }

/// How the tokens' losses are formed and computed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LossType {
    /// The negative log-likelihood, a chunk of rows at a time.
    #[default]
    ChunkedNll,
    /// The same value with all logits at once.
    Nll,
    /// Each token's loss times its probability, without gradient through it.
    Dft,
}

/// Settings of `objective = { kind = "sft", … }`.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct SftSettings {
    /// `chunked_nll`, `nll` or `dft`.
    pub loss_type: LossType,
    /// Share of the target spread evenly over the vocabulary, in [0, 1).
    pub label_smoothing_factor: f64,
    /// Labelled rows whose logits exist at once (all with `nll`).
    pub chunk_tokens: usize,
}

impl Default for SftSettings {
    fn default() -> Self {
        SftSettings { loss_type: LossType::default(), label_smoothing_factor: 0.0, chunk_tokens: 256 }
    }
}

/// The objective.
pub struct Sft(SftSettings);

impl Part for Sft {
    type Settings = SftSettings;

    fn new(s: SftSettings) -> Result<Self> {
        if !(0.0..1.0).contains(&s.label_smoothing_factor) {
            let why = format!("is {}; it must be in [0, 1)", s.label_smoothing_factor);
            return Err(BadSetting::new("label_smoothing_factor", why).into());
        }
        if s.chunk_tokens == 0 {
            return Err(BadSetting::new("chunk_tokens", "is 0; it must be at least 1").into());
        }
        Ok(Sft(s))
    }
}

impl Objective for Sft {
    fn loss(
        &self,
        fx: &Forward,
        model: &Rc<dyn Model>,
        hidden: &Value,
        labels: &[i64],
        scale: f64,
    ) -> Result<Value> {
        let rows: Vec<u32> = (0..labels.len() as u32).filter(|i| labels[*i as usize] != -100).collect();
        let targets: Vec<i64> = rows.iter().map(|i| labels[*i as usize]).collect();
        let hidden = if rows.len() == labels.len() {
            hidden.clone()
        } else {
            ops::select_rows(&fx.tape, hidden, &Rc::new(rows))?
        };
        let options = ops::CrossEntropy {
            label_smoothing: self.0.label_smoothing_factor,
            dft: self.0.loss_type == LossType::Dft,
        };
        let chunk = if self.0.loss_type == LossType::Nll { targets.len() } else { self.0.chunk_tokens };
        fx.tape.chunked(&hidden, chunk, &|tape, part, range| {
            let logits = model.head(&fx.on(tape), part)?;
            ops::cross_entropy(tape, logits, &targets[range], scale, options)
        })
    }
}
