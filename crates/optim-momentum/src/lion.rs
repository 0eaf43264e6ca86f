//! Lion: the sign of an interpolated momentum.
//!
//! p ← p·(1 − lr·λ) − lr · sign(β₁m + (1−β₁)g);  m ← β₂m + (1−β₂)g
//!
//! Every entry moves by the same amount, so the rate wants to be 3 to 10 times smaller than Adam's and
//! the decay as many times larger.
//!
//! Source: Chen et al. 2023, arXiv:2302.06675.

use std::sync::Arc;

use anyhow::Result;
use ramekin_core::{Array, BadSetting, Category, Param};
use ramekin_kernels::lion as kernel;
use ramekin_registry::{Part, part};
use ramekin_slots::{Optimizer, ParamGroup, ParamState, StateSpec, StateTable, StepInfo, Update};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

part! { optimizer / "lion" => Lion, "the sign of a momentum; one f32 of state a trainable number",
source = "arXiv:2302.06675", traits = [StatefulAcrossSteps] }

/// Settings of `optimizer = { kind = "lion", … }`.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct LionSettings {
    /// Learning rate at the top of the schedule.
    #[serde(alias = "learning_rate")]
    pub lr: f64,
    /// Weight of the momentum in the step, and its decay, each in [0, 1).
    pub betas: [f64; 2],
    /// Decoupled decay a step, as a factor of the learning rate.
    pub weight_decay: f64,
}

impl Default for LionSettings {
    fn default() -> Self {
        LionSettings { lr: 1e-4, betas: [0.9, 0.99], weight_decay: 0.0 }
    }
}

/// The optimizer.
pub struct Lion {
    settings: LionSettings,
    table: StateTable,
}

impl Part for Lion {
    type Settings = LionSettings;

    fn new(settings: LionSettings) -> Result<Self> {
        let s = &settings;
        let natural = |x: f64| x.is_finite() && x >= 0.0;
        BadSetting::unless(natural(s.lr), "lr", s.lr, "a number of at least 0")?;
        if let Some(b) = s.betas.iter().find(|b| !(0.0..1.0).contains(*b)) {
            return Err(BadSetting::new("betas", format!("holds {b}; both must be in [0, 1)")).into());
        }
        BadSetting::unless(
            natural(s.weight_decay),
            "weight_decay",
            s.weight_decay,
            "a number of at least 0",
        )?;
        Ok(Lion { settings, table: StateTable::new(&["exp_avg"]) })
    }
}

fn run(rule: &kernel::Lion, p: &mut [f32], grad: &Array, state: &ParamState) -> Result<()> {
    let g = grad.view::<f32>()?;
    state.array(0).update(|m: &mut [f32]| kernel::step(rule, p, &g, m))
}

impl Optimizer for Lion {
    fn lr(&self) -> f64 {
        self.settings.lr
    }

    fn step(&mut self, param: &Arc<Param>, grad: &Array, info: StepInfo, group: ParamGroup) -> Result<()> {
        let value = param.value();
        let specs = [StateSpec::f32("exp_avg", value.dims())];
        let state = self.table.advance(param, &specs, value.is_shape_only())?;
        if value.is_shape_only() {
            return Ok(());
        }
        let rule = kernel::Lion {
            lr: info.lr * group.lr_scale,
            beta1: self.settings.betas[0],
            beta2: self.settings.betas[1],
            weight_decay: if group.decay { self.settings.weight_decay } else { 0.0 },
        };
        value.update(|p: &mut [f32]| run(&rule, p, grad, state))?
    }

    fn update(
        &mut self,
        param: &Arc<Param>,
        grad: &Array,
        info: StepInfo,
        group: ParamGroup,
    ) -> Result<Update> {
        let specs = [StateSpec::f32("exp_avg", grad.dims())];
        let state = self.table.advance(param, &specs, grad.is_shape_only())?;
        let [beta1, beta2] = self.settings.betas;
        let on_zeros = kernel::Lion { lr: -1.0, beta1, beta2, weight_decay: 0.0 };
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
