//! Hinton's distillation.
//!
//! L = α·CE(y, z_S) + (1 − α)·T²·mean_t KL(softmax(z_T/T) ‖ softmax(z_S/T))
//!
//! Source: Hinton et al. 2015, arXiv:1503.02531; sheet `objectives`, item 7.

use anyhow::Result;
use ramekin_core::BadSetting;
use ramekin_registry::{Part, part};
use ramekin_slots::{Loss, ModelRef, Objective, ObjectiveContext};
use ramekin_tape::ops::Divergence;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::teacher::{self, Mix, NAME};

part! { objective / "distil" => Distil, "a teacher's softened distribution, and the labels",
source = "arXiv:1503.02531; sheet objectives", traits = [NeedsBackboneBackward] }

/// Which way round the divergence is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Kl {
    /// KL(teacher ‖ student): the student covers all that the teacher does.
    #[default]
    Forward,
    /// KL(student ‖ teacher): the student keeps to what the teacher does most.
    Reverse,
}

/// Settings of `objective = { kind = "distil", … }`.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct DistilSettings {
    /// The teacher. Default: the base with adapters off.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub teacher: Option<ModelRef>,
    /// Share of the labels' cross-entropy, in [0, 1]; the rest is the teacher's.
    pub kd_alpha: f64,
    /// Temperature T of both distributions; above 0.
    pub kd_temperature: f64,
    /// `forward` or `reverse`.
    pub kl: Kl,
    /// Labelled rows whose logits exist at once.
    pub chunk_tokens: usize,
}

impl Default for DistilSettings {
    fn default() -> Self {
        DistilSettings {
            teacher: None,
            kd_alpha: 0.5,
            kd_temperature: 2.0,
            kl: Kl::Forward,
            chunk_tokens: 256,
        }
    }
}

/// The objective.
pub struct Distil(DistilSettings);

impl Part for Distil {
    type Settings = DistilSettings;

    fn new(s: DistilSettings) -> Result<Self> {
        teacher::check(("kd_temperature", s.kd_temperature), s.chunk_tokens)?;
        if !(0.0..=1.0).contains(&s.kd_alpha) {
            return Err(
                BadSetting::new("kd_alpha", format!("is {}; it must be in [0, 1]", s.kd_alpha)).into()
            );
        }
        Ok(Distil(s))
    }
}

impl Objective for Distil {
    fn models(&self) -> Vec<(&'static str, ModelRef)> {
        self.0.teacher.iter().map(|m| (NAME, m.clone())).collect()
    }

    fn compares_with_base(&self) -> Option<&'static str> {
        self.0.teacher.is_none().then_some(NAME)
    }

    fn loss(&self, cx: &ObjectiveContext<'_>) -> Result<Loss> {
        let s = &self.0;
        let mix = Mix {
            temperature: s.kd_temperature,
            divergence: if s.kl == Kl::Forward { Divergence::Forward } else { Divergence::Reverse },
            weight: (1.0 - s.kd_alpha) * s.kd_temperature * s.kd_temperature,
            hard: s.kd_alpha,
            chunk: s.chunk_tokens,
        };
        Ok(teacher::loss(cx, s.teacher.as_ref(), &mix)?.into())
    }
}
