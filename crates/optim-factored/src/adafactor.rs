//! Adafactor: row and column means in the place of a second moment, updates of bounded size.
//!
//! β₂ₜ = 1 − t^decay_rate;  r, c ← means of g² + ε₁ over columns and rows, decayed by β₂ₜ
//! u = g / √(r cᵀ / mean r), or g / √v for anything but a matrix;  u ← lr · u / max(1, RMS(u) / d)
//! with β₁: u is averaged;  p ← p·(1 − lr·λ) − u
//!
//! lr: the setting, or with `relative_step` min(10⁻² (10⁻⁶·t with `warmup_init`), 1/√t); with
//! `scale_parameter` times max(ε₂, RMS(p)).
//!
//! Source: Shazeer & Stern 2018, arXiv:1804.04235; transformers' `Adafactor`, with the defaults of its
//! trainer (a rate from outside).

use std::sync::Arc;

use anyhow::Result;
use ramekin_core::{Array, BadSetting, Category, Param, ParamId};
use ramekin_kernels::adafactor as kernel;
use ramekin_kernels::elementwise::{scale_assign, sum_of_squares};
use ramekin_registry::{Part, part};
use ramekin_slots::{
    Optimizer, ParamGroup, ParamState, StateSpec, StateTable, StepInfo, Update, carried, last_of,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

part! { optimizer / "adafactor" => Adafactor, "a second moment of rows and columns; state of a matrix: one f32 a row and a column",
source = "arXiv:1804.04235", traits = [StatefulAcrossSteps] }

/// Settings of `optimizer = { kind = "adafactor", … }`.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct AdafactorSettings {
    /// Learning rate at the top of the schedule. Default: 1e-3; none with `relative_step`.
    #[serde(alias = "learning_rate", skip_serializing_if = "Option::is_none")]
    pub lr: Option<f64>,
    /// Added to the squared gradient, and the least RMS that a parameter is taken to have.
    pub eps: [f64; 2],
    /// The largest RMS of an update, before the rate.
    pub clip_threshold: f64,
    /// The power of the step in the second moment's decay; below 0.
    pub decay_rate: f64,
    /// Decay of the first moment, in [0, 1). Default: no first moment.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub beta1: Option<f64>,
    /// Decoupled decay a step, as a factor of the learning rate.
    pub weight_decay: f64,
    /// Whether the rate is multiplied by the parameter's RMS.
    pub scale_parameter: bool,
    /// Whether the rate is made from the step; the schedule's factor is on top.
    pub relative_step: bool,
    /// Whether the relative rate begins small; needs `relative_step`.
    pub warmup_init: bool,
}

impl Default for AdafactorSettings {
    fn default() -> Self {
        AdafactorSettings {
            lr: None,
            eps: [1e-30, 1e-3],
            clip_threshold: 1.0,
            decay_rate: -0.8,
            beta1: None,
            weight_decay: 0.0,
            scale_parameter: false,
            relative_step: false,
            warmup_init: false,
        }
    }
}

/// The optimizer.
pub struct Adafactor {
    settings: AdafactorSettings,
    table: StateTable,
}

impl Part for Adafactor {
    type Settings = AdafactorSettings;

    fn new(settings: AdafactorSettings) -> Result<Self> {
        let s = &settings;
        let natural = |x: f64| x.is_finite() && x >= 0.0;
        if let Some(lr) = s.lr {
            BadSetting::unless(natural(lr), "lr", lr, "a number of at least 0")?;
            if s.relative_step {
                return Err(
                    BadSetting::new("lr", "cannot go with `relative_step`; leave one of them out").into()
                );
            }
        }
        if let Some(e) = s.eps.iter().find(|e| !(e.is_finite() && **e > 0.0)) {
            return Err(BadSetting::new("eps", format!("holds {e}; both must be above 0")).into());
        }
        let clip = s.clip_threshold;
        BadSetting::unless(clip.is_finite() && clip > 0.0, "clip_threshold", clip, "a number above 0")?;
        BadSetting::unless(
            s.decay_rate.is_finite() && s.decay_rate < 0.0,
            "decay_rate",
            s.decay_rate,
            "below 0",
        )?;
        if let Some(b) = s.beta1 {
            BadSetting::unless((0.0..1.0).contains(&b), "beta1", b, "in [0, 1)")?;
        }
        BadSetting::unless(
            natural(s.weight_decay),
            "weight_decay",
            s.weight_decay,
            "a number of at least 0",
        )?;
        if s.warmup_init && !s.relative_step {
            return Err(BadSetting::new("warmup_init", "needs `relative_step = true`").into());
        }
        let names = &["exp_avg_sq_row", "exp_avg_sq_col", "exp_avg_sq", "exp_avg"];
        Ok(Adafactor { settings, table: StateTable::new(names) })
    }
}

impl Adafactor {
    fn advance(&mut self, param: &Arc<Param>, like: &Array) -> Result<&mut ParamState> {
        let dims = like.dims();
        let mut specs = match dims {
            [stack @ .., rows, cols] => vec![
                StateSpec::f32("exp_avg_sq_row", &[stack, &[*rows]].concat()),
                StateSpec::f32("exp_avg_sq_col", &[stack, &[*cols]].concat()),
            ],
            _ => vec![StateSpec::f32("exp_avg_sq", dims)],
        };
        if self.settings.beta1.is_some() {
            specs.push(StateSpec::f32("exp_avg", dims));
        }
        self.table.advance(param, &specs, like.is_shape_only())
    }
}

/// The scalars of a parameter's update number `step`.
fn rule(
    s: &AdafactorSettings,
    step: u64,
    param: &Array,
    info: StepInfo,
    group: ParamGroup,
) -> Result<kernel::Adafactor> {
    let t = step as f64;
    let mut lr = info.lr * group.lr_scale;
    if s.relative_step {
        lr *= (if s.warmup_init { 1e-6 * t } else { 1e-2 }).min(1.0 / t.sqrt());
    }
    if s.scale_parameter {
        let rms = (sum_of_squares(&param.view::<f32>()?) / param.len().max(1) as f64).sqrt();
        lr *= rms.max(s.eps[1]);
    }
    Ok(kernel::Adafactor {
        lr,
        beta2: 1.0 - t.powf(s.decay_rate),
        eps: s.eps[0],
        clip: s.clip_threshold,
        beta1: s.beta1,
        weight_decay: if group.decay { s.weight_decay } else { 0.0 },
    })
}

/// r cᵀ / mean r.
fn outer(r: &[f32], c: &[f32]) -> Vec<f32> {
    let mean = (r.iter().map(|r| f64::from(*r)).sum::<f64>() / r.len() as f64) as f32;
    r.iter().flat_map(|r| c.iter().map(move |c| r / mean * c)).collect()
}

/// Calls `f` with the first moment, or with nothing where none is kept.
fn with_first(state: &ParamState, index: usize, f: impl FnOnce(&mut [f32])) -> Result<()> {
    match state.arrays().get(index) {
        Some((_, first)) => first.update(f),
        None => {
            f(&mut []);
            Ok(())
        }
    }
}

fn run(rule: &kernel::Adafactor, p: &mut [f32], grad: &Array, state: &ParamState) -> Result<()> {
    let g = grad.view::<f32>()?;
    match *grad.dims() {
        [.., rows, cols] => state.array(0).update(|row: &mut [f32]| {
            state.array(1).update(|col: &mut [f32]| {
                let second = kernel::Second::Factored { row, col, rows, cols };
                with_first(state, 2, |first| kernel::step(rule, p, &g, second, first))
            })
        })??,
        _ => state.array(0).update(|v: &mut [f32]| {
            with_first(state, 1, |first| kernel::step(rule, p, &g, kernel::Second::Full(v), first))
        })?,
    }
}

impl Optimizer for Adafactor {
    fn lr(&self) -> f64 {
        self.settings.lr.unwrap_or(if self.settings.relative_step { 1.0 } else { 1e-3 })
    }

    fn step(&mut self, param: &Arc<Param>, grad: &Array, info: StepInfo, group: ParamGroup) -> Result<()> {
        let value = param.value();
        let settings = self.settings.clone();
        let state = self.advance(param, &value)?;
        if value.is_shape_only() {
            return Ok(());
        }
        let rule = rule(&settings, state.steps(), &value, info, group)?;
        value.update(|p: &mut [f32]| run(&rule, p, grad, state))?
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
        if grad.is_shape_only() {
            let direction = Array::shape_only(grad.dims(), grad.dtype(), Category::Workspace)?;
            return Ok(Update { direction, rate: info.lr, decay: 0.0 });
        }
        let rule = rule(&settings, state.steps(), &param.value(), info, group)?;
        // The first moment averages updates that have their rate in them; the direction is without.
        let on_zeros = kernel::Adafactor { weight_decay: 0.0, ..rule };
        let direction = Array::build(grad.dims(), false, Category::Workspace, |p: &mut [f32]| {
            run(&on_zeros, p, grad, state)
        })?;
        let rate = if rule.lr > 0.0 { rule.lr } else { 1.0 };
        direction.update(|d: &mut [f32]| scale_assign(d, (-1.0 / rate) as f32))?;
        Ok(Update { direction, rate, decay: rule.lr * rule.weight_decay })
    }

    /// Rows and columns of a matrix become one second moment an entry of those that stay.
    fn remap(&mut self, param: ParamId, from: &[Option<usize>]) -> Result<()> {
        let Some([("exp_avg_sq_row", row), ("exp_avg_sq_col", col), first @ ..]) =
            self.table.get(param).map(ParamState::arrays)
        else {
            return self.table.remap(param, from);
        };
        if row.len() * col.rows().1 < last_of(from) {
            self.table.forget(param);
            return Ok(());
        }
        let shape_only = row.is_shape_only();
        let full = || {
            let (r, c) = (row.view::<f32>()?, col.view::<f32>()?);
            let (rows, cols) = (row.rows().1, col.rows().1);
            let matrices = r.chunks(rows.max(1)).zip(c.chunks(cols.max(1)));
            Ok(matrices.flat_map(|(r, c)| outer(r, c)).collect())
        };
        let mut arrays = vec![("exp_avg_sq", carried(shape_only, from, full)?)];
        for (name, e) in first {
            arrays.push((name, carried(shape_only, from, || Ok(e.view::<f32>()?.to_vec()))?));
        }
        self.table.replace(param, arrays);
        Ok(())
    }

    fn table(&self) -> &StateTable {
        &self.table
    }

    fn table_mut(&mut self) -> &mut StateTable {
        &mut self.table
    }
}
