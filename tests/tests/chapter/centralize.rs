//! Gradient centralization: `centralize`.
//!
//! Of the gradient of a matrix [O, I] each row's mean is taken away: g_oi ← g_oi − s · mean_j g_oj, with s = 1
//! in the paper. It keeps the sums of a weight's rows where they were, which constrains and smooths training.

use std::sync::Arc;

use anyhow::Result;
use ramekin_core::{Array, BadSetting, Param};
use ramekin_registry::{Part, part};
use ramekin_slots::GradientTransform;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

part! { gradient / "centralize" => Centralize, "takes the mean off each row of a matrix's gradient",
source = "arXiv:2004.01461", traits = [NeedsGlobalGradNorm] }

/// Settings of `gradient = [{ kind = "centralize", … }]`.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct CentralizeSettings {
    /// Share of the mean that is taken away, in (0, 1].
    pub share: f64,
}

impl Default for CentralizeSettings {
    fn default() -> Self {
        CentralizeSettings { share: 1.0 }
    }
}

/// The transform.
pub struct Centralize {
    share: f32,
}

impl Part for Centralize {
    type Settings = CentralizeSettings;

    fn new(s: CentralizeSettings) -> Result<Self> {
        if !(s.share > 0.0 && s.share <= 1.0) {
            let why = format!("is {}; it must be above 0 and at most 1", s.share);
            return Err(BadSetting::new("share", why).into());
        }
        Ok(Centralize { share: s.share as f32 })
    }
}

impl GradientTransform for Centralize {
    fn whole(&mut self, grads: &mut [(Arc<Param>, Array)], _norm: f64) -> Result<()> {
        // A plan runs this on arrays without numbers.
        let matrices = grads.iter().filter(|(_, g)| g.dims().len() == 2 && !g.is_shape_only());
        for (_, grad) in matrices {
            let (_, width) = grad.rows();
            grad.update(|g: &mut [f32]| {
                for row in g.chunks_mut(width) {
                    let mean = row.iter().sum::<f32>() / width as f32;
                    row.iter_mut().for_each(|x| *x -= self.share * mean);
                }
            })?;
        }
        Ok(())
    }
}
