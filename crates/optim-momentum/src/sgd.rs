//! Stochastic gradient descent, with momentum where it is wanted, as torch does it.
//!
//! g ← g + λp;  b ← μb + (1−τ)g (at first b ← g);  p ← p − lr · b, or − lr · (g + μb) with Nesterov
//!
//! Decay is part of the gradient here, as in torch. On a projected gradient it cannot be; there it is
//! taken off the weight after the step, which without momentum is the same to first order in lr.
//!
//! Source: Sutskever et al. 2013; torch.optim.SGD.

use std::sync::Arc;

use anyhow::Result;
use ramekin_core::{Array, BadSetting, Category, Param};
use ramekin_kernels::sgd as kernel;
use ramekin_registry::{Part, part};
use ramekin_slots::{
    Optimizer, ParamGroup, ParamState, StateSpec, StateTable, StepEntries, StepInfo, Update,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

part! { optimizer / "sgd" => Sgd, "plain gradient descent, or with momentum and one f32 of state a trainable number",
source = "torch.optim.SGD", traits = [StatefulAcrossSteps] }

/// Settings of `optimizer = { kind = "sgd", … }`.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct SgdSettings {
    /// Learning rate at the top of the schedule.
    #[serde(alias = "learning_rate")]
    pub lr: f64,
    /// Share of the momentum that stays from step to step, in [0, 1); 0 keeps no state.
    pub momentum: f64,
    /// What is taken off a new gradient's weight in the momentum, in [0, 1].
    pub dampening: f64,
    /// Added to the gradient as this factor of the weight.
    pub weight_decay: f64,
    /// Whether the step looks ahead along the momentum; needs momentum and no dampening.
    pub nesterov: bool,
}

impl Default for SgdSettings {
    fn default() -> Self {
        SgdSettings { lr: 1e-3, momentum: 0.0, dampening: 0.0, weight_decay: 0.0, nesterov: false }
    }
}

/// The optimizer.
pub struct Sgd {
    settings: SgdSettings,
    table: StateTable,
}

impl Part for Sgd {
    type Settings = SgdSettings;

    fn new(settings: SgdSettings) -> Result<Self> {
        let s = &settings;
        let natural = |x: f64| x.is_finite() && x >= 0.0;
        let number = "a number of at least 0";
        BadSetting::unless(natural(s.lr), "lr", s.lr, number)?;
        BadSetting::unless((0.0..1.0).contains(&s.momentum), "momentum", s.momentum, "in [0, 1)")?;
        BadSetting::unless((0.0..=1.0).contains(&s.dampening), "dampening", s.dampening, "in [0, 1]")?;
        BadSetting::unless(natural(s.weight_decay), "weight_decay", s.weight_decay, number)?;
        if s.nesterov && (s.momentum == 0.0 || s.dampening != 0.0) {
            let why = format!(
                "needs `momentum` above 0 and `dampening` 0; they are {} and {}",
                s.momentum, s.dampening
            );
            return Err(BadSetting::new("nesterov", why).into());
        }
        Ok(Sgd { settings, table: StateTable::new(&["momentum_buffer"]) })
    }
}

impl Sgd {
    fn decay(&self, group: ParamGroup) -> f64 {
        if group.decay { self.settings.weight_decay } else { 0.0 }
    }

    fn advance(&mut self, param: &Arc<Param>, like: &Array) -> Result<&mut ParamState> {
        let spec = StateSpec::f32("momentum_buffer", like.dims());
        let specs = if self.settings.momentum > 0.0 { vec![spec] } else { Vec::new() };
        self.table.advance(param, &specs, like.is_shape_only())
    }
}

fn rule(s: &SgdSettings, step: u64, lr: f64, weight_decay: f64) -> kernel::Sgd {
    let (momentum, dampening, nesterov) = (s.momentum, s.dampening, s.nesterov);
    kernel::Sgd { lr, momentum, dampening, weight_decay, nesterov, step }
}

fn run(rule: &kernel::Sgd, p: &mut [f32], grad: &Array, state: &ParamState) -> Result<()> {
    let g = grad.view::<f32>()?;
    match state.arrays() {
        [(_, buffer)] => buffer.update(|b: &mut [f32]| kernel::step(rule, p, &g, b)),
        _ => {
            kernel::step(rule, p, &g, &mut []);
            Ok(())
        }
    }
}

impl Optimizer for Sgd {
    fn lr(&self) -> f64 {
        self.settings.lr
    }

    fn step(&mut self, param: &Arc<Param>, grad: &Array, info: StepInfo, group: ParamGroup) -> Result<()> {
        let value = param.value();
        let (settings, decay) = (self.settings.clone(), self.decay(group));
        let state = self.advance(param, &value)?;
        if value.is_shape_only() {
            return Ok(());
        }
        let rule = rule(&settings, state.steps(), info.lr * group.lr_scale, decay);
        value.update(|p: &mut [f32]| run(&rule, p, grad, state))?
    }

    fn by_entries(&self, info: StepInfo, group: ParamGroup) -> Option<StepEntries> {
        if self.settings.momentum > 0.0 {
            return None;
        }
        let rule = rule(&self.settings, 1, info.lr * group.lr_scale, self.decay(group));
        Some(Box::new(move |p, g| kernel::step(&rule, p, g, &mut [])))
    }

    fn update(
        &mut self,
        param: &Arc<Param>,
        grad: &Array,
        info: StepInfo,
        group: ParamGroup,
    ) -> Result<Update> {
        let settings = self.settings.clone();
        let state = self.advance(param, grad)?;
        let on_zeros = rule(&settings, state.steps(), -1.0, 0.0);
        let fill = |p: &mut [f32]| run(&on_zeros, p, grad, state);
        let direction = Array::build(grad.dims(), grad.is_shape_only(), Category::Workspace, fill)?;
        let rate = info.lr * group.lr_scale;
        let decay = if group.decay { rate * self.settings.weight_decay } else { 0.0 };
        Ok(Update { direction, rate, decay })
    }

    fn table(&self) -> &StateTable {
        &self.table
    }

    fn table_mut(&mut self) -> &mut StateTable {
        &mut self.table
    }
}
