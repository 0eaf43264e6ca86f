//! One optimizer step: micro-batches forward and back, then the update.

use std::rc::Rc;
use std::sync::Arc;

use anyhow::{Result, bail, ensure};
use ramekin_core::{Array, Category, Ledger, Param, ParamId, Rng};
use ramekin_kernels::elementwise;
use ramekin_slots::{
    ActivationPolicy, Estimator, Event, FlatBatch, Flow, GradientTransform, Hook, HookContext, Objective,
    Optimizer, ParamGroup, Problem, RoundContext, Schedule, StateTensor, Stateful, StepInfo,
};
use ramekin_tape::{GradSink, GradStore};
use serde_json::{Map, Value as Json};

use crate::assembly::Assembly;
use crate::blame;
use crate::blueprint::Blueprint;
use crate::masks::{Masking, Masks, masked, put_back};
use crate::objective::{self, Figures};
use crate::pass::{Batches, Draw, Look, Pass};
use crate::team::Team;
use crate::update::{self, How, InBackward, one_by_one};

/// Tokens with their targets.
#[derive(Clone)]
pub struct LabelledBatch {
    /// The tokens.
    pub flat: FlatBatch,
    /// The id to predict at each token, −100 for none.
    pub labels: Vec<i64>,
    /// The numbers to predict of each segment; empty where rows have none.
    pub targets: Vec<Vec<f32>>,
}

impl LabelledBatch {
    /// From the data crate's batch.
    pub fn new(batch: ramekin_data::Batch) -> Self {
        let flat = FlatBatch {
            ids: Rc::new(batch.ids),
            positions: Rc::new(batch.positions),
            segments: Rc::new(batch.segments),
            images: batch.images,
        };
        LabelledBatch { flat, labels: batch.labels, targets: batch.targets }
    }

    /// Tokens with their labels alone.
    pub fn of(flat: FlatBatch, labels: Vec<i64>) -> Self {
        LabelledBatch { flat, labels, targets: Vec::new() }
    }

    /// Tokens with a target.
    pub fn active(&self) -> usize {
        self.labels.iter().filter(|l| **l != -100).count()
    }
}

/// What a step is made of.
pub struct Trainer {
    /// The loss.
    pub objective: Box<dyn Objective>,
    /// What survives until backward.
    pub activation: Box<dyn ActivationPolicy>,
    /// How gradients are obtained.
    pub estimator: Box<dyn Estimator>,
    /// The rule.
    pub optimizer: Box<dyn Optimizer>,
    /// The rate.
    pub schedule: Box<dyn Schedule>,
    /// Whether each parameter is updated inside backward, as soon as its gradient is complete.
    pub fused: bool,
    /// Applied in order between backward and update.
    pub gradient: Vec<Box<dyn GradientTransform>>,
    /// What reacts to events, in order.
    pub hooks: Vec<Box<dyn Hook>>,
    /// Groups of parameters that differ from the optimizer's settings.
    pub groups: Vec<(ParamId, ParamGroup)>,
    /// Updates planned in all.
    pub total_steps: u64,
    /// The run's randomness.
    pub rng: Rng,
    /// The masks under which the optimizer's state stands.
    pub masks: Masks,
    /// Where parts that look at rows beside the steps get them.
    pub draw: Option<Draw>,
    /// The ranks that share out each step's micro-batches.
    pub team: Team,
}

/// What a step left to report.
#[derive(Clone, Debug)]
pub struct StepReport {
    /// Loss of the step, before the update.
    pub loss: f64,
    /// Global norm of the gradient before any transform.
    pub grad_norm: f64,
    /// Rate of this update.
    pub lr: f64,
    /// Tokens seen.
    pub tokens: usize,
    /// Whether a hook wants to end training here.
    pub flow: Flow,
    /// What the objective saw besides.
    pub figures: Vec<(&'static str, f64)>,
}

impl Trainer {
    /// How a micro-batch runs.
    fn pass(&self) -> Pass<'_> {
        Pass { objective: &*self.objective, activation: &*self.activation, rng: self.rng }
    }

    /// Puts the objective in place on a model, once, before the first step.
    ///
    /// # Errors
    /// Those of [`objective::join`].
    pub fn join(&mut self, assembly: &mut Assembly, plan: &Blueprint) -> Result<()> {
        objective::join(assembly, plan, &mut *self.objective, "", true)
    }

    /// What the means of a step over these micro-batches are over.
    pub fn totals(&self, batches: &[LabelledBatch]) -> Vec<f64> {
        objective::totals(&*self.objective, batches)
    }

    /// A micro-batch's share of the loss of a step with these totals, and its gradients.
    pub fn micro_batch(
        &self,
        assembly: &Assembly,
        batch: &LabelledBatch,
        totals: &[f64],
        micro: u64,
        training: bool,
        grads: &mut dyn GradSink,
    ) -> Result<f64> {
        Ok(self.pass().micro_batch(assembly, batch, totals, micro, training, grads)?.0)
    }

    /// Lets the selection go on with its choice after a look at rows, once before everything else.
    ///
    /// # Errors
    /// If it finds nothing to choose, or there are no rows to look at.
    pub fn calibrate(&mut self, assembly: &Assembly) -> Result<()> {
        let Some(mut selection) = assembly.selection.borrow_mut().take() else { return Ok(()) };
        let mut look = Look { pass: self.pass(), assembly, draw: self.draw.as_ref() };
        let done = assembly.seated(assembly.is_shape_only(), |cx| selection.calibrate(cx, &mut look));
        *assembly.selection.borrow_mut() = Some(selection);
        done
    }

    /// Lets the selection choose what update number `step` (from 0) trains. Idempotent.
    pub fn choose(&mut self, assembly: &Assembly, step: u64) -> Result<()> {
        if let Some(selection) = assembly.selection.borrow_mut().as_mut() {
            selection.before_step(&mut self.round(assembly, &assembly.ledger.borrow(), step))?;
        }
        self.masks.follow(&assembly.trainable(), &mut *self.optimizer)
    }

    /// Lets the selection end its work after the last update, which was number `step − 1`.
    pub fn finish(&mut self, assembly: &Assembly, step: u64) -> Result<()> {
        match assembly.selection.borrow_mut().as_mut() {
            None => Ok(()),
            Some(selection) => selection.finish(&mut self.round(assembly, &assembly.ledger.borrow(), step)),
        }
    }

    fn round<'a>(&'a mut self, assembly: &'a Assembly, ledger: &'a Ledger, step: u64) -> RoundContext<'a> {
        RoundContext {
            sites: assembly.sites.clone(),
            ledger,
            facts: assembly.model.facts(),
            optimizer: &mut *self.optimizer,
            rng: self.rng,
            step,
            total: self.total_steps,
        }
    }

    /// Tells every hook of an event after `step` updates; the first that wants to stop says why.
    pub fn event(
        &mut self,
        event: Event,
        assembly: &Assembly,
        step: u64,
        loss: f64,
        figures: &Map<String, Json>,
    ) -> Result<Flow> {
        if self.hooks.iter().any(|h| h.handles_weights(event)) {
            self.flush(assembly, step)?;
        }
        let mut flow = Flow::Go;
        let pass = Pass { objective: &*self.objective, activation: &*self.activation, rng: self.rng };
        let mut look = Look { pass, assembly, draw: self.draw.as_ref() };
        for (i, hook) in self.hooks.iter_mut().enumerate() {
            let mut cx = HookContext {
                sites: assembly.sites.clone(),
                ledger: &assembly.ledger.borrow(),
                facts: assembly.model.facts(),
                optimizer: &mut *self.optimizer,
                probe: &mut look,
                rng: self.rng,
                step,
                total: self.total_steps,
                loss,
                figures,
            };
            let wish = hook.on(event, &mut cx);
            let wish = blame::part(wish, || format!("stage.{}.hook.{i}", assembly.stage()))?;
            if flow == Flow::Go {
                flow = wish;
            }
        }
        Ok(flow)
    }

    /// Tokens of a step and the totals of its means, over all ranks' micro-batches.
    fn over_all(&self, batches: &[LabelledBatch]) -> Result<(usize, Vec<f64>)> {
        let own = batches.iter().map(|b| {
            let counts = self.objective.counts(&b.flat, &b.labels);
            std::iter::once(b.flat.len() as f64).chain(counts).collect()
        });
        let mut sums = Vec::new();
        for record in self.team.in_order(own.collect())? {
            objective::add_counts(&mut sums, record);
        }
        let totals = sums.split_off(1.min(sums.len()));
        Ok((sums.first().map_or(0, |n| *n as usize), totals))
    }

    /// Update number `step` (from 0) on these micro-batches, which are this rank's share.
    ///
    /// # Errors
    /// If nothing has a target, or loss or gradient are not finite; if another rank has failed.
    pub fn step(&mut self, assembly: &Assembly, batches: &[LabelledBatch], step: u64) -> Result<StepReport> {
        let (tokens, totals) = self.over_all(batches)?;
        if totals.first().is_none_or(|n| *n == 0.0) {
            bail!("step {} has no token with a target", step + 1);
        }
        self.choose(assembly, step)?;
        let none = Map::new();
        self.event(Event::StepBegin, assembly, step, f64::NAN, &none)?;
        let info = self.info(assembly, step);
        let params = assembly.trainable();
        let pass = Pass { objective: &*self.objective, activation: &*self.activation, rng: self.rng };
        let mut problem = Batches {
            pass,
            assembly,
            batches,
            params: &params,
            totals,
            step,
            total: self.total_steps,
            info,
            figures: Figures::default(),
            team: self.team.clone(),
        };
        // An estimator that is a step behind hands on gradients of that step.
        let lr = info.lr;
        let info = self.estimator.pending().unwrap_or(info);
        let (loss, grad_norm) = if self.fused {
            let whole = self.estimator.needs_backward() && batches.len() != 1;
            ensure!(!whole, "{} micro-batches in a step that updates in backward", batches.len());
            let (optimizer, transforms) = (&mut *self.optimizer, &mut self.gradient[..]);
            let (groups, params) = (&self.groups[..], &params[..]);
            let category =
                if self.estimator.needs_backward() { Category::Gradients } else { Category::Workspace };
            let (rng, squares) = (self.rng, 0.0);
            let sink = InBackward { optimizer, transforms, groups, info, params, category, rng, squares };
            let estimate = |sink: &mut dyn GradSink| self.estimator.estimate(&mut problem, sink);
            let (loss, added, norm) = one_by_one(sink, &assembly.selection, estimate)?;
            (loss + added, norm)
        } else {
            let mut store = GradStore::new();
            let mut loss = self.estimator.estimate(&mut problem, &mut Masking(&mut store))?;
            let mut grads = store.take();
            if let Some(selection) = assembly.selection.borrow_mut().as_mut() {
                for (param, grad) in &grads {
                    loss += selection.gradient(param, grad)?;
                }
            }
            let norm = global_norm(&grads)?;
            if !(loss.is_finite() && norm.is_finite()) {
                bail!(
                    "the loss at step {} is {loss} and the gradient's norm {norm}: training has diverged",
                    step + 1
                );
            }
            for transform in &mut self.gradient {
                transform.whole(&mut grads, norm)?;
            }
            for (param, grad) in grads {
                let how = How { info, group: update::group(&self.groups, param.id()), rng: self.rng };
                update::apply(&mut *self.optimizer, &mut self.gradient, &param, grad, how)?;
                put_back(&params, &param)?;
            }
            (loss, norm)
        };
        let figures = problem.figures;
        // What trains next may be another choice.
        let chooses = assembly.selection.borrow().is_some();
        let (added, late) = if chooses { self.flush(assembly, step + 1)? } else { (0.0, 0.0) };
        let (loss, grad_norm) = (loss + added, f64::max(grad_norm, late));
        if let Some(selection) = assembly.selection.borrow_mut().as_mut() {
            selection.after_step(&mut self.round(assembly, &assembly.ledger.borrow(), step + 1))?;
        }
        let flow = self.event(Event::AfterUpdate, assembly, step + 1, loss, &none)?;
        let mut figures = figures.means();
        figures.extend(self.activation.figures());
        Ok(StepReport { loss, grad_norm, lr, tokens, flow, figures })
    }

    /// Where the optimizer stands at update `step` (from 0).
    fn info(&self, assembly: &Assembly, step: u64) -> StepInfo {
        let (at, of) = match assembly.selection.borrow().as_ref() {
            Some(selection) => selection.clock(step, self.total_steps),
            None => (step, self.total_steps),
        };
        StepInfo { step: at + 1, lr: self.optimizer.lr() * self.schedule.factor(at, of) }
    }

    /// Makes the update that an estimator still has to hand on, after `step` updates in all. Called before
    /// weights are looked at or what trains may change; a checkpoint holds what is pending instead.
    /// Returns what a selection added to the loss, and the gradient's norm.
    ///
    /// # Errors
    /// As those of a step.
    pub fn flush(&mut self, assembly: &Assembly, step: u64) -> Result<(f64, f64)> {
        let Some(info) = self.estimator.pending() else { return Ok((0.0, 0.0)) };
        self.hand_on(assembly, step, info, |estimator, problem, sink| estimator.flush(problem, sink))
    }

    /// Does the first `step` updates again as the estimator's log tells them, from the first weights.
    fn replay(&mut self, assembly: &Assembly, step: u64) -> Result<()> {
        for at in 0..step {
            self.choose(assembly, at)?;
            let info = self.info(assembly, at);
            self.hand_on(assembly, at, info, |estimator, problem, sink| estimator.replay(problem, sink))?;
        }
        Ok(())
    }

    /// Lets the estimator hand on gradients without a batch.
    fn hand_on(
        &mut self,
        assembly: &Assembly,
        step: u64,
        info: StepInfo,
        f: impl FnOnce(&mut dyn Estimator, &mut dyn Problem, &mut dyn GradSink) -> Result<()>,
    ) -> Result<(f64, f64)> {
        let params = &assembly.trainable()[..];
        let pass = Pass { objective: &*self.objective, activation: &*self.activation, rng: self.rng };
        let (total, figures) = (self.total_steps, Figures::default());
        let mut problem = Batches {
            pass,
            assembly,
            batches: &[],
            params,
            totals: Vec::new(),
            step,
            total,
            info,
            figures,
            team: self.team.clone(),
        };
        let (optimizer, transforms) = (&mut *self.optimizer, &mut self.gradient[..]);
        let (groups, category) = (&self.groups[..], Category::Workspace);
        let (rng, squares) = (self.rng, 0.0);
        let sink = InBackward { optimizer, transforms, groups, info, params, category, rng, squares };
        let run = |sink: &mut dyn GradSink| f(&mut *self.estimator, &mut problem, sink);
        let ((), added, norm) = one_by_one(sink, &assembly.selection, run)?;
        Ok((added, norm))
    }

    /// What a checkpoint holds: parameters, and state by the place of the part that keeps it.
    ///
    /// # Errors
    /// As those of [`Trainer::state`].
    pub fn kept(&self, assembly: &Assembly) -> Result<(Vec<Arc<Param>>, Vec<StateTensor>)> {
        let mut state = self.state(assembly)?;
        if self.estimator.log_only() {
            // Everything else comes again with the log.
            state.retain(|t| t.name.starts_with("estimator/") || t.name.starts_with("hook."));
            return Ok((Vec::new(), state));
        }
        Ok((assembly.ledger.borrow().touched(), state))
    }

    /// All state by the place of the part that keeps it.
    ///
    /// # Errors
    /// If a part cannot tell.
    pub fn state(&self, assembly: &Assembly) -> Result<Vec<StateTensor>> {
        let mut all = self.optimizer.state()?;
        let mut add = |place: &str, part: Vec<StateTensor>| {
            let named = part.into_iter().map(|t| StateTensor { name: format!("{place}/{}", t.name), ..t });
            all.extend(named);
        };
        add("estimator", self.estimator.state()?);
        for (i, g) in self.gradient.iter().enumerate() {
            add(&format!("gradient.{i}"), g.state()?);
        }
        if let Some(s) = assembly.selection.borrow().as_ref() {
            add("selection", s.state()?);
        }
        for (i, h) in self.hooks.iter().enumerate() {
            add(&format!("hook.{i}"), h.state()?);
        }
        Ok(all)
    }

    /// Puts back what [`Trainer::kept`] gave of state, after `step` updates; with a log alone, on the first
    /// weights, what trains as well.
    ///
    /// # Errors
    /// If something is missing or does not fit.
    pub fn restore(
        &mut self,
        assembly: &Assembly,
        step: u64,
        get: &mut dyn FnMut(&str) -> Option<Array>,
    ) -> Result<()> {
        let mut placed =
            |place: &str, part: &mut dyn Stateful| part.restore(&mut |name| get(&format!("{place}/{name}")));
        // The choice of what trains comes first: the optimizer's state stands under it.
        if let Some(s) = assembly.selection.borrow_mut().as_mut() {
            placed("selection", s.as_mut())?;
        }
        placed("estimator", self.estimator.as_mut())?;
        for (i, h) in self.hooks.iter_mut().enumerate() {
            placed(&format!("hook.{i}"), h.as_mut())?;
        }
        if self.estimator.log_only() {
            return self.replay(assembly, step);
        }
        let all: Vec<Arc<Param>> =
            assembly.ledger.borrow().entries().iter().filter_map(|e| e.param.clone()).collect();
        for (i, g) in self.gradient.iter_mut().enumerate() {
            g.restore(&all, &mut |name| get(&format!("gradient.{i}/{name}")))?;
        }
        // The state was saved under the choice of the last update that was done.
        self.choose(assembly, step.saturating_sub(1))?;
        // What is frozen in this round may keep its state for a later one.
        let params = assembly.ledger.borrow().touched();
        let parts = params.iter().map(masked).collect::<Result<Vec<_>>>()?;
        self.optimizer.restore(&parts, get)
    }
}

/// √Σ‖g‖² over all gradients; 0 for shape-only ones.
pub fn global_norm(grads: &[(Arc<Param>, Array)]) -> Result<f64> {
    let mut sum = 0.0;
    for (_, g) in grads.iter().filter(|(_, g)| !g.is_shape_only()) {
        sum += elementwise::sum_of_squares(&g.view::<f32>()?);
    }
    Ok(sum.sqrt())
}
