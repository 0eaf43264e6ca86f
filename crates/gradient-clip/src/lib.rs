//! Clipping by the global norm: `clip`.
//!
//! g ← g · min(1, max_norm / (‖g‖ + 1e-6)) over all trainable numbers at once,
//! as `torch.nn.utils.clip_grad_norm_`.

use std::sync::Arc;

use anyhow::Result;
use ramekin_core::{Array, BadSetting, Param};
use ramekin_kernels::elementwise;
use ramekin_registry::{Part, part};
use ramekin_slots::GradientTransform;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

part! { gradient / "clip" => Clip, "scales all gradients down to a global norm",
source = "arXiv:1211.5063", traits = [NeedsGlobalGradNorm] }

/// Settings of `gradient = [{ kind = "clip", … }]`.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ClipSettings {
    /// The largest norm that passes unchanged.
    #[serde(alias = "max_grad_norm")]
    pub max_norm: f64,
}

impl Default for ClipSettings {
    fn default() -> Self {
        ClipSettings { max_norm: 1.0 }
    }
}

/// The transform.
pub struct Clip {
    max_norm: f64,
}

impl Part for Clip {
    type Settings = ClipSettings;

    fn new(s: ClipSettings) -> Result<Self> {
        if !(s.max_norm.is_finite() && s.max_norm > 0.0) {
            let why = format!("is {}; it must be a number above 0", s.max_norm);
            return Err(BadSetting::new("max_norm", why).into());
        }
        Ok(Clip { max_norm: s.max_norm })
    }
}

impl GradientTransform for Clip {
    fn whole(&mut self, grads: &mut [(Arc<Param>, Array)], norm: f64) -> Result<()> {
        let factor = self.max_norm / (norm + 1e-6);
        if factor >= 1.0 {
            return Ok(());
        }
        for (_, grad) in grads.iter().filter(|(_, g)| !g.is_shape_only()) {
            grad.update(|g: &mut [f32]| elementwise::scale_assign(g, factor as f32))?;
        }
        Ok(())
    }
}
