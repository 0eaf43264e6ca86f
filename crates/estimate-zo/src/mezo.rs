//! MeZO: fine-tuning with two forwards a step and the memory of inference.
//!
//! c = (L(θ + εz) − L(θ − εz)) / 2ε, z drawn again from its seed wherever it is used;
//! the gradient handed on is (1/n) Σᵢ cᵢ zᵢ, one parameter at a time.
//!
//! A step is known by its seed and c: the log of both replays a run from its first weights.
//!
//! Source: Malladi et al. 2023, arXiv:2305.17333; sheet `mezo`.

use std::rc::Rc;
use std::sync::Arc;

use anyhow::{Context, Result};
use ramekin_core::{Array, BadSetting, Category, Param};
use ramekin_registry::{Part, part};
use ramekin_slots::{Estimator, Problem, StateTensor, Stateful};
use ramekin_tape::{GradSink, ParamView};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::direction::{Direction, Dist};
use crate::perturb::{PerturbMode, Unmoved, check_eps, emit, shift, shift_and_emit};

part! { estimator / "mezo" => Mezo, "gradients from two forwards along a direction that its seed gives again",
source = "arXiv:2305.17333; sheet mezo", traits = [StatefulAcrossSteps] }

/// How many directions a step takes, by step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum NSchedule {
    /// Always `n_directions`.
    #[default]
    Constant,
    /// `max(1, ⌊n_directions · t / steps⌋)` at step t.
    Linear,
}

/// What is made smaller.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// The objective's loss.
    #[default]
    Loss,
    /// 1 − the share of labelled tokens that are predicted right.
    Accuracy,
    /// 1 − the mean over the labels of the F1 of predicting them.
    F1,
}

/// Settings of `estimator = { kind = "mezo", … }`.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct MezoSettings {
    /// Perturbation scale ε. Full tuning 1e-3, LoRA 1e-2, prefixes 1e-1.
    pub zo_eps: f64,
    /// `in_place`, or `scratch`.
    pub perturb_mode: PerturbMode,
    /// Directions a step, each with two forwards; the gradient is their mean.
    pub n_directions: usize,
    /// `constant`, or `linear` growth up to `n_directions`.
    pub n_schedule: NSchedule,
    /// `loss`, `accuracy` or `f1`.
    pub objective: Metric,
    /// `gaussian`, `rademacher` or `sphere`.
    pub dist: Dist,
    /// Checkpoints hold the log alone, 16 bytes a direction; a run that goes on replays it from its first weights.
    pub log_only: bool,
}

impl Default for MezoSettings {
    fn default() -> Self {
        MezoSettings {
            zo_eps: 1e-3,
            perturb_mode: PerturbMode::default(),
            n_directions: 1,
            n_schedule: NSchedule::default(),
            objective: Metric::default(),
            dist: Dist::default(),
            log_only: false,
        }
    }
}

/// The estimator with its log.
pub struct Mezo {
    settings: MezoSettings,
    /// For each step done: seeds and projected gradients of its directions, NaN where the step was skipped.
    log: Vec<Vec<(u64, f64)>>,
}

impl Part for Mezo {
    type Settings = MezoSettings;

    fn new(settings: MezoSettings) -> Result<Self> {
        check_eps(settings.zo_eps)?;
        if settings.n_directions == 0 {
            return Err(BadSetting::new("n_directions", "is 0; it must be at least 1").into());
        }
        Ok(Mezo { settings, log: Vec::new() })
    }
}

impl Mezo {
    /// Seeds and projected gradients of every step so far.
    pub fn log(&self) -> &[Vec<(u64, f64)>] {
        &self.log
    }

    fn directions(&self, step: u64, total: u64) -> u64 {
        let n = self.settings.n_directions as u64;
        match self.settings.n_schedule {
            NSchedule::Constant => n,
            NSchedule::Linear => (n * step / total.max(1)).clamp(1, n),
        }
    }

    fn value(&self, problem: &mut dyn Problem, view: Option<ParamView>) -> Result<f64> {
        Ok(match self.settings.objective {
            Metric::Loss => problem.loss(view)?,
            Metric::Accuracy => {
                let found = problem.predictions(view)?;
                found.iter().filter(|(a, b)| a != b).count() as f64 / found.len().max(1) as f64
            }
            Metric::F1 => 1.0 - macro_f1(&problem.predictions(view)?),
        })
    }

    /// L(θ + εz) and L(θ − εz), where [`Mezo::back`] has to follow: in place the weights stay at θ − εz.
    fn two_sided(&self, problem: &mut dyn Problem, z: Direction) -> Result<(f64, f64)> {
        let eps = self.settings.zo_eps;
        if self.settings.perturb_mode == PerturbMode::Scratch {
            let view = |s: f64| -> Option<ParamView> {
                Some(Rc::new(move |p: &Arc<Param>| z.moved(p, &p.value(), s)))
            };
            return Ok((self.value(problem, view(eps))?, self.value(problem, view(-eps))?));
        }
        let params = problem.params().to_vec();
        shift(&params, z, eps)?;
        let plus = self.value(problem, None);
        shift(&params, z, -2.0 * eps)?;
        let both = plus.and_then(|plus| Ok((plus, self.value(problem, None)?)));
        if both.is_err() {
            // Whatever went wrong, the weights come back first.
            self.back(&params, z)?;
        }
        both
    }

    /// Weights that were moved in place are as before again, to an ulp.
    fn back(&self, params: &[Arc<Param>], z: Direction) -> Result<()> {
        match self.settings.perturb_mode {
            PerturbMode::InPlace => shift(params, z, self.settings.zo_eps),
            PerturbMode::Scratch => Ok(()),
        }
    }
}

/// Mean over the labels that occur of 2·TP / (2·TP + FP + FN).
fn macro_f1(found: &[(i64, i64)]) -> f64 {
    let mut labels: Vec<i64> = found.iter().map(|(_, wanted)| *wanted).collect();
    labels.sort_unstable();
    labels.dedup();
    let f1 = |label: &i64| {
        let hits = found.iter().filter(|(a, b)| a == label && b == label).count();
        let named = found.iter().filter(|(a, b)| a == label || b == label).count();
        // |A ∪ B| + |A ∩ B| = |A| + |B|
        2.0 * hits as f64 / (named + hits).max(1) as f64
    };
    labels.iter().map(f1).sum::<f64>() / labels.len().max(1) as f64
}

impl Stateful for Mezo {
    fn state(&self) -> Result<Vec<StateTensor>> {
        let tensor = |name: &str, array: Array| StateTensor { name: name.to_owned(), array };
        let steps: Vec<u32> = self.log.iter().map(|s| s.len() as u32).collect();
        let flat: Vec<(u64, f64)> = self.log.iter().flatten().copied().collect();
        let seeds: Vec<u32> = flat.iter().map(|(s, _)| *s as u32).collect();
        let c: Vec<f64> = flat.iter().map(|(_, c)| *c).collect();
        Ok(vec![
            tensor("directions", Array::from_vec(steps, &[self.log.len()], Category::Optimizer)?),
            tensor("seed", Array::from_vec(seeds, &[flat.len()], Category::Optimizer)?),
            tensor("projected_grad", Array::from_vec(c, &[flat.len()], Category::Optimizer)?),
        ])
    }

    fn restore(&mut self, get: &mut dyn FnMut(&str) -> Option<Array>) -> Result<()> {
        let mut find = |name: &str| get(name).with_context(|| format!("the log has no `{name}`"));
        let (steps, seeds, c) = (find("directions")?, find("seed")?, find("projected_grad")?);
        let (seeds, c) = (seeds.view::<u32>()?, c.view::<f64>()?);
        let mut flat = seeds.iter().zip(c.iter()).map(|(s, c)| (u64::from(*s), *c));
        self.log = steps.view::<u32>()?.iter().map(|n| flat.by_ref().take(*n as usize).collect()).collect();
        Ok(())
    }
}

impl Estimator for Mezo {
    fn needs_backward(&self) -> bool {
        false
    }

    fn wants_f32(&self) -> Option<&'static str> {
        self.settings.perturb_mode.wants_f32()
    }

    fn log_only(&self) -> bool {
        self.settings.log_only
    }

    fn replay(&mut self, problem: &mut dyn Problem, sink: &mut dyn GradSink) -> Result<()> {
        let step = problem.step();
        let noted =
            self.log.get(step as usize).with_context(|| format!("the log has no step {}", step + 1))?;
        replay(&self.settings, problem.rng(), problem.params(), noted, sink)
    }

    fn estimate(&mut self, problem: &mut dyn Problem, sink: &mut dyn GradSink) -> Result<f64> {
        let n = self.directions(problem.step(), problem.total());
        let (mut directions, mut noted, mut loss) = (Vec::new(), Vec::new(), 0.0);
        for i in 0..n {
            let seed = u64::from(problem.rng().stream("zo/seed", problem.step()).u32_at(i));
            let z = Direction::new(problem.rng(), seed, self.settings.dist, problem.params())?;
            if problem.step() == 0 && i == 0 {
                let mut unmoved = Unmoved::default();
                unmoved.count(problem.params(), z, self.settings.zo_eps)?;
                unmoved.verdict(self.settings.zo_eps)?;
            }
            let (plus, minus) = self.two_sided(problem, z)?;
            let finite = plus.is_finite() && minus.is_finite();
            let at_once = finite && n == 1 && self.settings.perturb_mode == PerturbMode::InPlace;
            if !at_once {
                self.back(problem.params(), z)?;
            }
            if !finite {
                ramekin_core::say!(
                    "  step {}: a perturbed loss is {plus}, {minus}; skipped",
                    problem.step() + 1
                );
                noted.push((seed, f64::NAN));
                self.log.push(noted);
                return problem.loss(None);
            }
            let c = (plus - minus) / (2.0 * self.settings.zo_eps);
            directions.push((z, c));
            noted.push((seed, c));
            loss += (plus + minus) / (2.0 * n as f64);
            if at_once {
                shift_and_emit(problem.params(), (z, c), self.settings.zo_eps, sink)?;
                self.log.push(noted);
                return Ok(loss);
            }
        }
        emit(problem.params(), &directions, sink)?;
        self.log.push(noted);
        Ok(loss)
    }
}

/// Takes a logged step again: what happened to the weights before the update, and its gradient.
///
/// With the run's first weights and its optimizer this gives the run's last ones, bit for bit.
pub fn replay(
    settings: &MezoSettings,
    rng: ramekin_core::Rng,
    params: &[Arc<Param>],
    step: &[(u64, f64)],
    sink: &mut dyn GradSink,
) -> Result<()> {
    let mut directions = Vec::new();
    for (seed, c) in step {
        let z = Direction::new(rng, *seed, settings.dist, params)?;
        if settings.perturb_mode == PerturbMode::InPlace {
            // The perturbations' rounding is part of what happened.
            for s in [1.0, -2.0, 1.0] {
                shift(params, z, s * settings.zo_eps)?;
            }
        }
        directions.push((z, *c));
    }
    if directions.iter().any(|(_, c)| c.is_nan()) {
        return Ok(()); // a step that was skipped, after its perturbations
    }
    emit(params, &directions, sink)
}
