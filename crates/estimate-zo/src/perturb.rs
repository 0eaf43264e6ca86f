//! What the estimators of this family share: where perturbed weights live, and gradients made of directions.

use std::sync::Arc;

use anyhow::Result;
use ramekin_core::{BadSetting, DType, Param};
use ramekin_tape::GradSink;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::direction::{Direction, zeros};

/// Where the perturbed weights live.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum PerturbMode {
    /// In the weights themselves: +ε, −2ε, +ε. Nothing is copied; the restored weights may be an ulp off.
    #[default]
    InPlace,
    /// In a copy of one tensor at a time, made where a layer uses it. The weights keep their bits.
    Scratch,
}

impl PerturbMode {
    /// What stands against weights in bf16.
    pub(crate) fn wants_f32(self) -> Option<&'static str> {
        let moved = "moves them in place, and bf16 would not bring them back; `perturb_mode = \"scratch\"` leaves them";
        (self == PerturbMode::InPlace).then_some(moved)
    }
}

/// `θ ← θ + s·z`, every parameter.
pub(crate) fn shift(params: &[Arc<Param>], z: Direction, s: f64) -> Result<()> {
    params.iter().try_for_each(|p| z.add(p, &p.value(), s))
}

/// Hands on (1/n) Σ c z, one parameter alive at a time.
pub(crate) fn emit(
    params: &[Arc<Param>],
    directions: &[(Direction, f64)],
    sink: &mut dyn GradSink,
) -> Result<()> {
    if directions.is_empty() {
        return Ok(()); // a step that was skipped
    }
    let n = directions.len() as f64;
    for param in params {
        if known_by_entries(param) {
            let each: Vec<_> = directions.iter().map(|(z, c)| z.add_there(param, c / n)).collect();
            sink.ready_by_entries(param, &|first, _, grad| {
                grad.fill(0.0);
                each.iter().for_each(|add| add(first, grad));
            })?;
            continue;
        }
        let grad = zeros(param)?;
        directions.iter().try_for_each(|(z, c)| z.add(param, &grad, c / n))?;
        sink.ready(param, grad)?;
    }
    Ok(())
}

/// Whether a parameter's gradient along directions need not exist as a whole.
fn known_by_entries(param: &Param) -> bool {
    param.mask().is_none() && matches!(param.value().dtype(), DType::F32 | DType::BF16)
}

/// [`shift`] by `s·z` and [`emit`] of one direction in one pass over the weights, which draws once. The bits are those of
/// the one after the other.
pub(crate) fn shift_and_emit(
    params: &[Arc<Param>],
    (z, c): (Direction, f64),
    s: f64,
    sink: &mut dyn GradSink,
) -> Result<()> {
    for (i, param) in params.iter().enumerate() {
        let given = match known_by_entries(param) {
            true => sink.ready_by_entries(param, &z.move_and_give(param, s, c)),
            false => z.add(param, &param.value(), s).and_then(|()| emit(&params[i..=i], &[(z, c)], sink)),
        };
        if given.is_err() {
            // Whatever went wrong, the other weights come back too.
            shift(&params[i + 1..], z, s)?;
            return given;
        }
    }
    Ok(())
}

/// Refuses a perturbation scale that is no number above 0.
pub(crate) fn check_eps(eps: f64) -> Result<()> {
    let holds = eps.is_finite() && eps > 0.0;
    Ok(BadSetting::unless(holds, "zo_eps", eps, "a number above 0")?)
}

/// Counts the weights that a perturbation leaves as they were: a step below half an ulp of most measures
/// rounding alone.
#[derive(Default)]
pub(crate) struct Unmoved {
    same: usize,
    all: usize,
}

impl Unmoved {
    /// Tries `θ + εz` on these parameters.
    pub(crate) fn count(&mut self, params: &[Arc<Param>], z: Direction, eps: f64) -> Result<()> {
        for param in params.iter().filter(|p| !p.value().is_shape_only()) {
            self.same += z.unmoved(param, eps)?;
            self.all += param.trainable_len();
        }
        Ok(())
    }

    /// Refuses ε if most of what was counted stayed.
    pub(crate) fn verdict(&self, eps: f64) -> Result<()> {
        if self.same * 2 <= self.all {
            return Ok(());
        }
        let share = 100.0 * self.same as f64 / self.all.max(1) as f64;
        let why = format!(
            "is {eps:e}, which leaves {share:.0} % of the weights as they were: it is below their rounding"
        );
        Err(BadSetting::new("zo_eps", why).into())
    }
}
