//! Adam with decoupled weight decay, in torch's order of operations.
//!
//! p ← p·(1 − lr·λ);  m ← β₁m + (1−β₁)g;  v ← β₂v + (1−β₂)g²
//! p ← p − lr · (m / (1−β₁ᵗ)) / (√(v / (1−β₂ᵗ)) + ε)
//!
//! Source: Loshchilov & Hutter 2019, arXiv:1711.05101; torch.optim.AdamW.

use std::sync::Arc;

use anyhow::{Result, ensure};
use ramekin_core::{Array, BadSetting, Category, Param, ParamId};
use ramekin_kernels::adamw as kernel;
use ramekin_registry::{Part, part};
use ramekin_slots::{Optimizer, ParamGroup, StateTensor, StepInfo};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

part! { optimizer / "adamw" => AdamW, "Adam with decoupled weight decay; two f32 of state a trainable number",
source = "arXiv:1711.05101", traits = [StatefulAcrossSteps] }

/// Settings of `optimizer = { kind = "adamw", … }`.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct AdamWSettings {
    /// Learning rate at the top of the schedule.
    #[serde(alias = "learning_rate")]
    pub lr: f64,
    /// Decay rates of the first and second moment, each in [0, 1).
    pub betas: [f64; 2],
    /// Added to the root of the second moment.
    #[serde(alias = "adam_epsilon")]
    pub eps: f64,
    /// Decoupled decay a step, as a factor of the learning rate.
    pub weight_decay: f64,
}

impl Default for AdamWSettings {
    fn default() -> Self {
        AdamWSettings { lr: 2e-4, betas: [0.9, 0.999], eps: 1e-8, weight_decay: 0.0 }
    }
}

struct Moments {
    param: ParamId,
    name: String,
    m: Array,
    v: Array,
}

/// The optimizer.
pub struct AdamW {
    settings: AdamWSettings,
    moments: Vec<Moments>,
}

impl Part for AdamW {
    type Settings = AdamWSettings;

    fn new(settings: AdamWSettings) -> Result<Self> {
        let s = &settings;
        if !(s.lr.is_finite() && s.lr >= 0.0) {
            return Err(
                BadSetting::new("lr", format!("is {}; it must be a number of at least 0", s.lr)).into()
            );
        }
        if let Some(b) = s.betas.iter().find(|b| !(0.0..1.0).contains(*b)) {
            return Err(BadSetting::new("betas", format!("holds {b}; both must be in [0, 1)")).into());
        }
        if !(s.eps.is_finite() && s.eps >= 0.0) {
            return Err(
                BadSetting::new("eps", format!("is {}; it must be a number of at least 0", s.eps)).into()
            );
        }
        if !(s.weight_decay.is_finite() && s.weight_decay >= 0.0) {
            let why = format!("is {}; it must be a number of at least 0", s.weight_decay);
            return Err(BadSetting::new("weight_decay", why).into());
        }
        Ok(AdamW { settings, moments: Vec::new() })
    }
}

fn zeros_like(x: &Array) -> Result<Array> {
    if x.is_shape_only() {
        return Array::shape_only(x.dims(), x.dtype(), Category::Optimizer);
    }
    Array::zeros(x.dims(), x.dtype(), Category::Optimizer)
}

impl Optimizer for AdamW {
    fn lr(&self) -> f64 {
        self.settings.lr
    }

    fn step(&mut self, param: &Arc<Param>, grad: &Array, info: StepInfo, group: ParamGroup) -> Result<()> {
        let value = param.value();
        let known = self.moments.iter().position(|m| m.param == param.id());
        let index = match known {
            Some(i) => i,
            None => {
                let (m, v) = (zeros_like(&value)?, zeros_like(&value)?);
                self.moments.push(Moments { param: param.id(), name: param.name().to_owned(), m, v });
                self.moments.len() - 1
            }
        };
        if value.is_shape_only() {
            return Ok(());
        }
        let Moments { m, v, .. } = &self.moments[index];
        let rule = kernel::AdamW {
            lr: info.lr * group.lr_scale,
            beta1: self.settings.betas[0],
            beta2: self.settings.betas[1],
            eps: self.settings.eps,
            weight_decay: if group.decay { self.settings.weight_decay } else { 0.0 },
            step: info.step,
        };
        let g = grad.view::<f32>()?;
        value.update(|p: &mut [f32]| {
            m.update(|m: &mut [f32]| v.update(|v: &mut [f32]| kernel::step(&rule, p, &g, m, v)))
        })???;
        Ok(())
    }

    fn state(&self) -> Vec<StateTensor> {
        let mut all = Vec::with_capacity(2 * self.moments.len());
        for m in &self.moments {
            all.push(StateTensor { name: format!("exp_avg.{}", m.name), array: m.m.clone() });
            all.push(StateTensor { name: format!("exp_avg_sq.{}", m.name), array: m.v.clone() });
        }
        all
    }

    fn restore(&mut self, params: &[Arc<Param>], get: &mut dyn FnMut(&str) -> Option<Array>) -> Result<()> {
        self.moments.clear();
        for param in params {
            let name = param.name();
            let (Some(m), Some(v)) = (get(&format!("exp_avg.{name}")), get(&format!("exp_avg_sq.{name}")))
            else {
                continue;
            };
            let dims = param.value().dims().to_vec();
            ensure!(
                m.dims() == dims && v.dims() == dims,
                "saved state of `{name}` has another shape than {dims:?}"
            );
            m.recategorise(Category::Optimizer);
            v.recategorise(Category::Optimizer);
            self.moments.push(Moments { param: param.id(), name: name.to_owned(), m, v });
        }
        Ok(())
    }

    fn forget(&mut self, param: ParamId) {
        self.moments.retain(|m| m.param != param);
    }

    fn remap(&mut self, param: ParamId, from: &[Option<usize>]) -> Result<()> {
        if let Some(moments) = self.moments.iter_mut().find(|m| m.param == param) {
            moments.m = carried(&moments.m, from)?;
            moments.v = carried(&moments.v, from)?;
        }
        Ok(())
    }
}

/// The entries that stay, in their new order; new ones begin at zero.
fn carried(state: &Array, from: &[Option<usize>]) -> Result<Array> {
    Array::build::<f32>(&[from.len()], state.is_shape_only(), Category::Optimizer, |out| {
        let old = state.view::<f32>()?;
        for (o, place) in out.iter_mut().zip(from) {
            *o = place.map_or(0.0, |i| old[i]);
        }
        Ok(())
    })
}
