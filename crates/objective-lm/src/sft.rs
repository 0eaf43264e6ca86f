//! `sft`: the next token of every labelled place, among the whole vocabulary.
//!
//! L = scale · Σ over labelled tokens of −log softmax(z_t) at y_t, with the
//! label smoothing and the DFT weighting of TRL. The head runs on labelled
//! rows only and, unless `loss_type = "nll"`, one chunk of rows at a time, so
//! logits never exist all at once.
//!
//! NEFTune adds uniform noise to the embedded tokens while training.
//!
//! Source: sheet `objectives`, items 1, 4, 5 and 6; Jain et al. 2023, arXiv:2310.05914.

use anyhow::Result;
use ramekin_core::{Array, BadSetting, Category};
use ramekin_registry::{Part, part};
use ramekin_slots::{Forward, Labelled, Loss, Objective, ObjectiveContext};
use ramekin_tape::{Value, dispatch, ops};
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

/// Which length L the noise of NEFTune is scaled by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum NoiseLength {
    /// That of the micro-batch's longest sequence, to which transformers pads.
    #[default]
    Padded,
    /// That of the token's own sequence, as in NEFTune's original code.
    Own,
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
    /// NEFTune's α: in training the embedded tokens get noise of at most α/√(L·d); usually 5. Default: none.
    pub neftune_noise_alpha: Option<f64>,
    /// Which length L is: `padded` or `own`.
    pub neftune_length: NoiseLength,
}

impl Default for SftSettings {
    fn default() -> Self {
        SftSettings {
            loss_type: LossType::default(),
            label_smoothing_factor: 0.0,
            chunk_tokens: 256,
            neftune_noise_alpha: None,
            neftune_length: NoiseLength::default(),
        }
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
        if s.neftune_noise_alpha.is_some_and(|a| !(a.is_finite() && a >= 0.0)) {
            let why = format!("is {}; it must be 0 (off) or more", s.neftune_noise_alpha.unwrap_or_default());
            return Err(BadSetting::new("neftune_noise_alpha", why).into());
        }
        Ok(Sft(s))
    }
}

impl Sft {
    /// U ~ uniform(±α/√(L·d)) on every number of a token's embedding.
    fn noise(&self, fx: &Forward, embedded: &Value, alpha: f64) -> Result<Value> {
        let (_, d) = embedded.array().rows();
        let segments = &fx.batch.segments;
        let longest = segments.iter().map(|s| s.len()).max().unwrap_or(0);
        let stream = fx.stream("neftune", "embed_tokens");
        let dims = embedded.dims();
        let shape_only = embedded.array().is_shape_only();
        let noise = dispatch!(embedded.array(), T => Array::build::<T>(dims, shape_only, Category::Workspace, |out| {
            for s in segments.iter() {
                let length = if self.0.neftune_length == NoiseLength::Own { s.len() } else { longest };
                let bound = alpha / ((length * d).max(1) as f64).sqrt();
                stream.fill_uniform((s.start * d) as u64, -bound, bound, &mut out[s.start * d..s.end * d]);
            }
            Ok(())
        }))?;
        ops::add(&fx.tape, embedded, &Value::constant(noise))
    }
}

impl Objective for Sft {
    fn is_cross_entropy(&self) -> bool {
        self.0.label_smoothing_factor == 0.0 && self.0.loss_type != LossType::Dft
    }

    fn loss(&self, cx: &ObjectiveContext<'_>) -> Result<Loss> {
        let pass = match self.0.neftune_noise_alpha.filter(|a| cx.mode.training && *a > 0.0) {
            Some(alpha) => cx.forward_with(Some(&|fx, embedded| self.noise(fx, &embedded, alpha)))?,
            None => cx.forward()?,
        };
        let Labelled { hidden, targets, .. } = pass.labelled(cx.labels)?;
        let head = pass.head();
        drop(pass);
        let options = ops::CrossEntropy {
            label_smoothing: self.0.label_smoothing_factor,
            dft: self.0.loss_type == LossType::Dft,
        };
        let chunk = if self.0.loss_type == LossType::Nll { targets.len() } else { self.0.chunk_tokens };
        let scale = cx.scale(0);
        let loss = cx.tape.chunked(&hidden, chunk, &|tape, part, range| {
            let logits = head.logits(tape, part)?;
            ops::cross_entropy(tape, logits, &targets[range], scale, options)
        })?;
        Ok(loss.into())
    }
}
