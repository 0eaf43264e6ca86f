//! Generalised knowledge distillation on given answers.
//!
//! P teacher, Q student, M = βP + (1 − β)Q          L = mean_t Σ_v βP log(P/M) + (1 − β)Q log(Q/M)
//!
//! β = 0 is KL(P ‖ Q) and β = 1 is KL(Q ‖ P), both at the temperature and without T².
//!
//! Source: Agarwal et al. 2023, arXiv:2306.13649; TRL `GKDTrainer`; sheet `objectives`, item 7.

use anyhow::Result;
use ramekin_core::BadSetting;
use ramekin_registry::{Part, part};
use ramekin_slots::{Loss, ModelRef, Objective, ObjectiveContext};
use ramekin_tape::ops::Divergence;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::teacher::{self, Mix, NAME};

part! { objective / "gkd" => Gkd, "generalised Jensen-Shannon divergence from a teacher, on given answers",
source = "arXiv:2306.13649; sheet objectives", traits = [NeedsBackboneBackward] }

/// Settings of `objective = { kind = "gkd", … }`.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct GkdSettings {
    /// The teacher. Default: the base with adapters off.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub teacher: Option<ModelRef>,
    /// Temperature of both distributions; above 0.
    pub temperature: f64,
    /// β in [0, 1]: 0 covers the teacher, 1 keeps to its best, 0.5 is Jensen and Shannon's.
    pub beta: f64,
    /// Labelled rows whose logits exist at once.
    pub chunk_tokens: usize,
}

impl Default for GkdSettings {
    fn default() -> Self {
        GkdSettings { teacher: None, temperature: 0.9, beta: 0.5, chunk_tokens: 256 }
    }
}

/// The objective.
pub struct Gkd(GkdSettings);

impl Part for Gkd {
    type Settings = GkdSettings;

    fn new(s: GkdSettings) -> Result<Self> {
        teacher::check(("temperature", s.temperature), s.chunk_tokens)?;
        if !(0.0..=1.0).contains(&s.beta) {
            return Err(BadSetting::new("beta", format!("is {}; it must be in [0, 1]", s.beta)).into());
        }
        Ok(Gkd(s))
    }
}

impl Objective for Gkd {
    fn models(&self) -> Vec<(&'static str, ModelRef)> {
        self.0.teacher.iter().map(|m| (NAME, m.clone())).collect()
    }

    fn compares_with_base(&self) -> Option<&'static str> {
        self.0.teacher.is_none().then_some(NAME)
    }

    fn loss(&self, cx: &ObjectiveContext<'_>) -> Result<Loss> {
        let s = &self.0;
        let divergence = if s.beta == 0.0 {
            Divergence::Forward
        } else if s.beta == 1.0 {
            Divergence::Reverse
        } else {
            Divergence::Jsd(s.beta)
        };
        let mix =
            Mix { temperature: s.temperature, divergence, weight: 1.0, hard: 0.0, chunk: s.chunk_tokens };
        Ok(teacher::loss(cx, s.teacher.as_ref(), &mix)?.into())
    }
}
