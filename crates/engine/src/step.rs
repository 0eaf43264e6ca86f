//! One optimizer step: micro-batches forward and back, then the update.

use std::rc::Rc;
use std::sync::Arc;

use anyhow::{Result, bail};
use ramekin_core::{Array, Param, ParamId, Rng};
use ramekin_kernels::elementwise;
use ramekin_slots::{
    ActivationPolicy, Block, FlatBatch, Forward, GradientTransform, Mode, Model, Objective, Optimizer,
    ParamGroup, Schedule, StepInfo,
};
use ramekin_tape::{GradStore, Tape, Value};

use crate::assembly::Assembly;

/// Tokens with their targets.
#[derive(Clone)]
pub struct LabelledBatch {
    /// The tokens.
    pub flat: FlatBatch,
    /// The id to predict at each token, −100 for none.
    pub labels: Vec<i64>,
}

impl LabelledBatch {
    /// From the data crate's batch.
    pub fn new(batch: ramekin_data::Batch) -> Self {
        let flat = FlatBatch {
            ids: Rc::new(batch.ids),
            positions: Rc::new(batch.positions),
            segments: Rc::new(batch.segments),
        };
        LabelledBatch { flat, labels: batch.labels }
    }

    /// Tokens with a target.
    pub fn active(&self) -> usize {
        self.labels.iter().filter(|l| **l != -100).count()
    }
}

/// Embedding, blocks under the activation policy, final norm: `[N, d]`.
pub fn hidden(model: &Rc<dyn Model>, fx: &Forward, policy: Option<&dyn ActivationPolicy>) -> Result<Value> {
    let mut h = model.embed(fx)?;
    for i in 0..model.facts().blocks {
        h = match policy {
            None => model.block(i, fx, &h)?,
            Some(policy) => {
                let model = model.clone();
                let block: Block = Rc::new(move |fx, x| model.block(i, fx, x));
                policy.run(fx, i, block, &h)?
            }
        };
    }
    model.final_norm(fx, &h)
}

/// What a step is made of.
pub struct Trainer {
    /// The loss.
    pub objective: Box<dyn Objective>,
    /// What survives until backward.
    pub activation: Box<dyn ActivationPolicy>,
    /// The rule.
    pub optimizer: Box<dyn Optimizer>,
    /// The rate.
    pub schedule: Box<dyn Schedule>,
    /// Applied in order between backward and update.
    pub gradient: Vec<Box<dyn GradientTransform>>,
    /// Groups of parameters that differ from the optimizer's settings.
    pub groups: Vec<(ParamId, ParamGroup)>,
    /// Updates planned in all.
    pub total_steps: u64,
    /// The run's randomness.
    pub rng: Rng,
}

/// What a step left to report.
#[derive(Clone, Copy, Debug)]
pub struct StepReport {
    /// Mean loss over the step's active tokens, before the update.
    pub loss: f64,
    /// Global norm of the gradient before any transform.
    pub grad_norm: f64,
    /// Rate of this update.
    pub lr: f64,
    /// Tokens seen.
    pub tokens: usize,
}

impl Trainer {
    /// Loss and gradients of a micro-batch; the loss is divided by `normaliser` tokens.
    pub fn micro_batch(
        &self,
        assembly: &Assembly,
        batch: &LabelledBatch,
        normaliser: usize,
        micro: u64,
        training: bool,
        grads: &mut GradStore,
    ) -> Result<f64> {
        let tape = Tape::new();
        let mode = Mode { training, rng: self.rng, micro_batch: micro, adapters: true };
        let loss = {
            let fx = Forward::new(tape.clone(), assembly.sites.clone(), batch.flat.clone(), mode);
            let h = hidden(&assembly.model, &fx, Some(&*self.activation))?;
            self.objective.loss(&fx, &assembly.model, &h, &batch.labels, 1.0 / normaliser.max(1) as f64)?
        };
        let value = loss.array().scalar()?;
        tape.backward_scalar(&loss, grads)?;
        Ok(value)
    }

    /// Update number `step` (from 0) on these micro-batches.
    ///
    /// # Errors
    /// If no token has a target, or loss or gradient are not finite.
    pub fn step(&mut self, assembly: &Assembly, batches: &[LabelledBatch], step: u64) -> Result<StepReport> {
        let active: usize = batches.iter().map(LabelledBatch::active).sum();
        if active == 0 {
            bail!("step {} has no token with a target", step + 1);
        }
        let mut store = GradStore::new();
        let mut loss = 0.0;
        for (i, batch) in batches.iter().enumerate() {
            let micro = step * batches.len() as u64 + i as u64;
            loss += self.micro_batch(assembly, batch, active, micro, true, &mut store)?;
        }
        let mut grads = store.take();
        let grad_norm = global_norm(&grads)?;
        if !(loss.is_finite() && grad_norm.is_finite()) {
            bail!(
                "the loss at step {} is {loss} and the gradient's norm {grad_norm}: training has diverged",
                step + 1
            );
        }
        for transform in &mut self.gradient {
            transform.apply(&mut grads, grad_norm)?;
        }
        let lr = self.optimizer.lr() * self.schedule.factor(step, self.total_steps);
        let info = StepInfo { step: step + 1, lr };
        for (param, grad) in grads {
            let group = self
                .groups
                .iter()
                .find(|(id, _)| *id == param.id())
                .map_or_else(ParamGroup::default, |g| g.1);
            self.optimizer.step(&param, &grad, info, group)?;
        }
        Ok(StepReport { loss, grad_norm, lr, tokens: batches.iter().map(|b| b.flat.len()).sum() })
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
