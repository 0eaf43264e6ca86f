//! ZO2: forwards along a direction, block by block, each update made when its block is visited next.
//!
//! A step walks through the network once. At each module it makes the update of the step before, then runs
//! the module on x⁺ with θ + εz and on x⁻ with θ − εz; c = (L⁺ − L⁻) / 2ε waits for the next walk. A block
//! that lives elsewhere comes in once and goes back once a step, and the numbers are those of `mezo`, bit
//! for bit, as z is drawn by (seed, parameter, entry) and needs no order. Only a tied head in place rounds
//! once more, at its second use.
//!
//! What is pending is the step's seeds, c, number and rate; it is part of a checkpoint. Whatever looks at
//! the weights between steps has it made first.
//!
//! Source: Wang et al. 2025, arXiv:2503.12668; sheet `zo2`.

use std::rc::Rc;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use ramekin_core::{Array, BadSetting, Category, DType, Param};
use ramekin_registry::{Part, part};
use ramekin_slots::{Estimator, Problem, StateTensor, Stateful, StepInfo, Stop};
use ramekin_tape::{GradSink, ParamView};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::direction::{Direction, Dist};
use crate::perturb::{PerturbMode, Unmoved, check_eps, emit, shift};

part! { estimator / "zo2" => Zo2, "mezo with blocks visited one at a time, each updated on its next visit",
source = "arXiv:2503.12668; sheet zo2", traits = [StatefulAcrossSteps] }

/// The type in which the products with perturbed matrices are made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Autocast {
    /// That of the weights.
    #[default]
    Off,
    /// Trainable matrices are shown as bf16; the weights themselves keep their type.
    Bf16,
}

/// Settings of `estimator = { kind = "zo2", … }`. Where the blocks live is `placement`'s, usually
/// `placement = { kind = "offload" }`.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Zo2Settings {
    /// Perturbation scale ε. Full tuning 1e-3, LoRA 1e-2.
    pub zo_eps: f64,
    /// `in_place`, or `scratch`.
    pub perturb_mode: PerturbMode,
    /// Directions a step; each brings two more hidden states along, and no more traffic.
    pub n_directions: usize,
    /// `off`, or `bf16` for the forwards of steps.
    pub autocast: Autocast,
}

impl Default for Zo2Settings {
    fn default() -> Self {
        let (perturb_mode, autocast) = (PerturbMode::default(), Autocast::default());
        Zo2Settings { zo_eps: 1e-3, perturb_mode, n_directions: 1, autocast }
    }
}

/// A step whose update is still to come.
struct Pending {
    info: StepInfo,
    directions: Vec<(u64, f64)>,
}

/// The estimator with what is pending.
pub struct Zo2 {
    settings: Zo2Settings,
    pending: Option<Pending>,
}

impl Part for Zo2 {
    type Settings = Zo2Settings;

    fn new(settings: Zo2Settings) -> Result<Self> {
        check_eps(settings.zo_eps)?;
        let n = settings.n_directions;
        BadSetting::unless(n > 0, "n_directions", n, "at least 1")?;
        Ok(Zo2 { settings, pending: None })
    }
}

/// What a branch sees of a parameter; `None` where it sees the weights as they are.
fn view(z: Direction, shift: f64, autocast: Autocast) -> Option<ParamView> {
    if shift == 0.0 && autocast == Autocast::Off {
        return None;
    }
    Some(Rc::new(move |param: &Arc<Param>| {
        let value = param.value();
        let moved = if shift == 0.0 { value } else { z.moved(param, &value, shift)? };
        let cast = autocast == Autocast::Bf16 && moved.dims().len() > 1;
        if cast { moved.to_dtype(DType::BF16, Category::Workspace) } else { Ok(moved) }
    }))
}

impl Zo2 {
    fn directions(&self, problem: &dyn Problem) -> Result<Vec<(Direction, f64)>> {
        let Some(pending) = &self.pending else { return Ok(Vec::new()) };
        let of = |(seed, c): &(u64, f64)| {
            Ok((Direction::new(problem.rng(), *seed, Dist::Gaussian, problem.params())?, *c))
        };
        pending.directions.iter().map(of).collect()
    }

    /// Both branches of one direction through a module; the weights are as before afterwards, to an ulp in place.
    fn both(&self, stop: &mut Stop<'_>, pair: usize, z: Direction) -> Result<()> {
        let (eps, cast) = (self.settings.zo_eps, self.settings.autocast);
        if self.settings.perturb_mode == PerturbMode::Scratch {
            (stop.run)(pair, view(z, eps, cast))?;
            return (stop.run)(pair + 1, view(z, -eps, cast));
        }
        shift(stop.params, z, eps)?;
        (stop.run)(pair, view(z, 0.0, cast))?;
        shift(stop.params, z, -2.0 * eps)?;
        (stop.run)(pair + 1, view(z, 0.0, cast))?;
        shift(stop.params, z, eps)
    }
}

impl Stateful for Zo2 {
    fn state(&self) -> Result<Vec<StateTensor>> {
        let Some(Pending { info, directions }) = &self.pending else { return Ok(Vec::new()) };
        let n = directions.len();
        let seeds: Vec<u32> = directions.iter().map(|(s, _)| *s as u32).collect();
        let c: Vec<f64> = directions.iter().map(|(_, c)| *c).collect();
        let tensor = |name: &str, array: Array| StateTensor { name: name.to_owned(), array };
        let held = Category::Optimizer;
        Ok(vec![
            tensor("seed", Array::from_vec(seeds, &[n], held)?),
            tensor("projected_grad", Array::from_vec(c, &[n], held)?),
            tensor("step", Array::from_vec(vec![info.step as i64], &[1], held)?),
            tensor("lr", Array::from_vec(vec![info.lr], &[1], held)?),
        ])
    }

    fn restore(&mut self, get: &mut dyn FnMut(&str) -> Option<Array>) -> Result<()> {
        self.pending = None;
        let Some(seeds) = get("seed") else { return Ok(()) };
        let mut find = |name: &str| get(name).with_context(|| format!("what is pending has no `{name}`"));
        let (c, step, lr) = (find("projected_grad")?, find("step")?, find("lr")?);
        let (seeds, c) = (seeds.view::<u32>()?, c.view::<f64>()?);
        let (step, lr) = (step.view::<i64>()?, lr.view::<f64>()?);
        ensure!(seeds.len() == c.len() && step.len() == 1 && lr.len() == 1, "what is pending is damaged");
        let directions = seeds.iter().zip(c.iter()).map(|(s, c)| (u64::from(*s), *c)).collect();
        let info = StepInfo { step: step[0] as u64, lr: lr[0] };
        self.pending = Some(Pending { info, directions });
        Ok(())
    }
}

impl Estimator for Zo2 {
    fn needs_backward(&self) -> bool {
        false
    }

    fn walks(&self) -> bool {
        true
    }

    fn wants_f32(&self) -> Option<&'static str> {
        self.settings.perturb_mode.wants_f32()
    }

    fn pending(&self) -> Option<StepInfo> {
        self.pending.as_ref().map(|p| p.info)
    }

    fn flush(&mut self, problem: &mut dyn Problem, sink: &mut dyn GradSink) -> Result<()> {
        let due = self.directions(problem)?;
        if !due.is_empty() {
            problem.walk(0, &mut |stop| emit(stop.fresh, &due, sink))?;
        }
        self.pending = None;
        Ok(())
    }

    fn estimate(&mut self, problem: &mut dyn Problem, sink: &mut dyn GradSink) -> Result<f64> {
        let (n, eps) = (self.settings.n_directions, self.settings.zo_eps);
        let (rng, step, info) = (problem.rng(), problem.step(), problem.info());
        let seeds: Vec<u64> =
            (0..n as u64).map(|i| u64::from(rng.stream("zo/seed", step).u32_at(i))).collect();
        let new = |s: &u64| Direction::new(rng, *s, Dist::Gaussian, problem.params());
        let directions = seeds.iter().map(new).collect::<Result<Vec<_>>>()?;
        let due = self.directions(problem)?;
        let mut unmoved = Unmoved::default();
        let losses = problem.walk(2 * n, &mut |stop| {
            emit(stop.fresh, &due, sink)?;
            if step == 0 {
                unmoved.count(stop.fresh, directions[0], eps)?;
            }
            directions.iter().enumerate().try_for_each(|(i, z)| self.both(stop, 2 * i, *z))
        })?;
        unmoved.verdict(eps)?;
        self.pending = None;
        if let Some(bad) = losses.iter().find(|l| !l.is_finite()) {
            ramekin_core::say!("  step {}: a perturbed loss is {bad}; skipped", step + 1);
            return problem.loss(None);
        }
        let c = |pair: &[f64]| (pair[0] - pair[1]) / (2.0 * eps);
        let directions = seeds.into_iter().zip(losses.chunks(2).map(c)).collect();
        self.pending = Some(Pending { info, directions });
        Ok(losses.chunks(2).map(|pair| (pair[0] + pair[1]) / (2.0 * n as f64)).sum())
    }
}
