//! Adam with decoupled weight decay, in torch's order of operations.
//!
//! p ← p·(1 − lr·λ);  m ← β₁m + (1−β₁)g;  v ← β₂v + (1−β₂)g²
//! p ← p − lr · (m / (1−β₁ᵗ)) / (√(v / (1−β₂ᵗ)) + ε)
//!
//! t counts a parameter's own updates. On a projected gradient ε is added to √v itself, as GaLore's
//! code (and transformers' old AdamW) has it: direction m / (√v + ε), rate lr · √(1−β₂ᵗ) / (1−β₁ᵗ).
//!
//! Source: Loshchilov & Hutter 2019, arXiv:1711.05101; torch.optim.AdamW.

use std::sync::Arc;

use anyhow::Result;
use ramekin_core::{Array, BadSetting, Category, Param};
use ramekin_kernels::adamw as kernel;
use ramekin_registry::{Part, part};
use ramekin_slots::{Optimizer, ParamGroup, ParamState, StateSpec, StateTable, StepInfo, Update};
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

impl AdamWSettings {
    /// Refuses values outside their ranges.
    pub(crate) fn check(&self) -> Result<(), BadSetting> {
        let natural = |x: f64| x.is_finite() && x >= 0.0;
        let number = "a number of at least 0";
        BadSetting::unless(natural(self.lr), "lr", self.lr, number)?;
        if let Some(b) = self.betas.iter().find(|b| !(0.0..1.0).contains(*b)) {
            return Err(BadSetting::new("betas", format!("holds {b}; both must be in [0, 1)")));
        }
        BadSetting::unless(natural(self.eps), "eps", self.eps, number)?;
        BadSetting::unless(natural(self.weight_decay), "weight_decay", self.weight_decay, number)
    }

    /// The scalars of a parameter's update number `step`.
    pub(crate) fn rule(&self, step: u64, info: StepInfo, group: ParamGroup) -> kernel::AdamW {
        kernel::AdamW {
            lr: info.lr * group.lr_scale,
            beta1: self.betas[0],
            beta2: self.betas[1],
            eps: self.eps,
            weight_decay: if group.decay { self.weight_decay } else { 0.0 },
            step,
        }
    }
}

/// The optimizer.
pub struct AdamW {
    settings: AdamWSettings,
    table: StateTable,
}

impl Part for AdamW {
    type Settings = AdamWSettings;

    fn new(settings: AdamWSettings) -> Result<Self> {
        settings.check()?;
        Ok(AdamW { settings, table: StateTable::new(&["exp_avg", "exp_avg_sq"]) })
    }
}

/// f32 moments of this shape.
pub(crate) fn moments(dims: &[usize]) -> [StateSpec; 2] {
    [StateSpec::f32("exp_avg", dims), StateSpec::f32("exp_avg_sq", dims)]
}

/// Changes `p` and a parameter's f32 moments.
pub(crate) fn run(rule: &kernel::AdamW, p: &mut [f32], grad: &Array, state: &ParamState) -> Result<()> {
    let g = grad.view::<f32>()?;
    let (m, v) = (state.array(0), state.array(1));
    m.update(|m: &mut [f32]| v.update(|v: &mut [f32]| kernel::step(rule, p, &g, m, v)))?
}

/// The direction m / (√v + ε) of a projected gradient and its rate: the rule's own arithmetic on zeros,
/// at the rate and ε that turn the one form into the other.
pub(crate) fn small(rule: kernel::AdamW, grad: &Array, state: &ParamState) -> Result<Update> {
    let (c1, c2) = corrections(&rule);
    let on_zeros = kernel::AdamW { lr: -c1 / c2, eps: rule.eps / c2, weight_decay: 0.0, ..rule };
    let direction =
        Array::build(grad.dims(), grad.is_shape_only(), Category::Workspace, |p: &mut [f32]| {
            run(&on_zeros, p, grad, state)
        })?;
    Ok(Update { direction, rate: rule.lr * c2 / c1, decay: rule.lr * rule.weight_decay })
}

/// 1 − β₁ᵗ and √(1 − β₂ᵗ).
pub(crate) fn corrections(rule: &kernel::AdamW) -> (f64, f64) {
    let t = rule.step as f64;
    (1.0 - rule.beta1.powf(t), (1.0 - rule.beta2.powf(t)).sqrt())
}

impl Optimizer for AdamW {
    fn lr(&self) -> f64 {
        self.settings.lr
    }

    fn step(&mut self, param: &Arc<Param>, grad: &Array, info: StepInfo, group: ParamGroup) -> Result<()> {
        let value = param.value();
        let state = self.table.advance(param, &moments(value.dims()), value.is_shape_only())?;
        if value.is_shape_only() {
            return Ok(());
        }
        let rule = self.settings.rule(state.steps(), info, group);
        value.update(|p: &mut [f32]| run(&rule, p, grad, state))?
    }

    fn update(
        &mut self,
        param: &Arc<Param>,
        grad: &Array,
        info: StepInfo,
        group: ParamGroup,
    ) -> Result<Update> {
        let state = self.table.advance(param, &moments(grad.dims()), grad.is_shape_only())?;
        small(self.settings.rule(state.steps(), info, group), grad, state)
    }

    fn table(&self) -> &StateTable {
        &self.table
    }

    fn table_mut(&mut self) -> &mut StateTable {
        &mut self.table
    }
}
