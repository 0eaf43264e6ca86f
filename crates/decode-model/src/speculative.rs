//! Speculative decoding: a small model drafts, the model in work verifies several tokens at once.
//!
//! What comes out is what the model in work alone would give: token for token without sampling, in
//! distribution with it. The rules of a round are in [`crate::round`].
//!
//! Source: Leviathan et al. 2022, arXiv:2211.17192; transformers' `assistant_model`.

use anyhow::Result;
use ramekin_core::BadSetting;
use ramekin_kernels::sampling::Filters;
use ramekin_registry::{Part, part};
use ramekin_slots::{Decoder, ModelRef, Session};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::round::{Choice, last_rows, run};
use crate::tracked::Tracked;

part! { decode / "speculative" => Speculative, "a draft model proposes, the model in work verifies several tokens in one pass",
source = "arXiv:2211.17192; transformers assisted generation", traits = [] }

/// Settings of `decode = { kind = "speculative", … }`.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct SpeculativeSettings {
    /// The draft model; it is needed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub assistant_model: Option<ModelRef>,
    /// Tokens drafted a round.
    pub num_assistant_tokens: usize,
    /// Whether tokens are drawn; otherwise the most probable ones are taken.
    pub do_sample: bool,
    /// Logits are divided by it where tokens are drawn; above 0.
    pub temperature: f64,
    /// Keeps this many of the most probable tokens; 0 is off.
    pub top_k: usize,
    /// Keeps the most probable tokens whose sum just reaches this share; 1 is off.
    pub top_p: f64,
}

impl Default for SpeculativeSettings {
    fn default() -> Self {
        SpeculativeSettings {
            assistant_model: None,
            num_assistant_tokens: 5,
            do_sample: false,
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
        }
    }
}

/// The decoder.
pub struct Speculative(SpeculativeSettings);

const DRAFT: &str = "assistant_model";

pub(crate) fn check_sampling(temperature: f64, top_p: f64, least: f64) -> Result<(), BadSetting> {
    if !(temperature.is_finite() && temperature >= least) {
        let range = if least > 0.0 { "above 0" } else { "0 (the most probable token) or more" };
        return Err(BadSetting::new("temperature", format!("is {temperature}; it must be {range}")));
    }
    if !(top_p > 0.0 && top_p <= 1.0) {
        return Err(BadSetting::new("top_p", format!("is {top_p}; it must be in (0, 1]")));
    }
    Ok(())
}

impl Part for Speculative {
    type Settings = SpeculativeSettings;

    fn new(s: SpeculativeSettings) -> Result<Self> {
        if s.num_assistant_tokens == 0 {
            return Err(BadSetting::new("num_assistant_tokens", "is 0; it must be at least 1").into());
        }
        check_sampling(s.temperature, s.top_p, f64::MIN_POSITIVE)?;
        Ok(Speculative(s))
    }
}

impl Decoder for Speculative {
    fn check(&self) -> Result<()> {
        if self.0.assistant_model.is_none() {
            let why =
                "is missing: a small model drafts, as `{ source = \"…\" }` (without one: `greedy`, `sample`)";
            return Err(BadSetting::new(DRAFT, why).into());
        }
        Ok(())
    }

    fn models(&self) -> Vec<(String, ModelRef)> {
        self.0.assistant_model.iter().map(|m| (DRAFT.to_owned(), m.clone())).collect()
    }

    fn rollback(&self) -> usize {
        self.0.num_assistant_tokens
    }

    fn decode(&self, session: &mut Session<'_>) -> Result<()> {
        let s = &self.0;
        let filters = Filters { temperature: s.temperature, top_k: s.top_k, top_p: s.top_p, min_p: 0.0 };
        let choice = Choice { sampling: s.do_sample.then_some(filters) };
        let (drafter, target) = (Tracked(Some(DRAFT.to_owned())), Tracked(None));
        let models = [drafter.clone(), target.clone()];
        let k = s.num_assistant_tokens;
        run(session, &drafter, k, false, choice, &models, &mut |session, drafts, active| {
            let logits = target.feed(session, &drafts.tokens, active, k + 1)?;
            if logits.array.is_shape_only() {
                return Ok(None);
            }
            let rows = |(i, tokens): (usize, &Vec<u32>)| last_rows(&logits, i, tokens.len() + 1);
            drafts.tokens.iter().enumerate().map(rows).collect::<Result<_>>().map(Some)
        })
    }
}
