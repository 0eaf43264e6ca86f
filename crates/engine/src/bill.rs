//! The plan: the stage's own code on shape-only arrays, under a meter of its own.

use anyhow::Result;
use ramekin_core::{Meter, meter};
use ramekin_plan::Bill;
use ramekin_slots::FlatBatch;

use crate::assembly::{Assembly, Blueprint};
use crate::step::{LabelledBatch, Trainer};

/// The shape of a training step.
#[derive(Clone, Debug)]
pub struct StepShape {
    /// Lengths of the segments of the largest micro-batch.
    pub segments: Vec<usize>,
    /// Tokens with a target among them.
    pub active: usize,
    /// Micro-batches a step.
    pub micro_batches: usize,
    /// Whether the data was read to know this.
    pub exact: bool,
}

impl StepShape {
    fn batch(&self) -> LabelledBatch {
        let flat = FlatBatch::new(&self.segments.iter().map(|n| vec![0u32; *n]).collect::<Vec<_>>());
        let mut labels = vec![-100i64; flat.len()];
        for l in labels.iter_mut().take(self.active) {
            *l = 0;
        }
        LabelledBatch { flat, labels }
    }

    fn tokens(&self) -> usize {
        self.segments.iter().sum()
    }
}

/// What one training stage holds: load, two micro-batches where there are
/// several, the update.
pub fn train(stage: &str, blueprint: &Blueprint, trainer: &mut Trainer, shape: &StepShape) -> Result<Bill> {
    let meter = Meter::new();
    let _scope = meter::scope(meter.clone());
    let assembly = blueprint.assemble(true)?;
    let load_peak = meter.peak();
    trainer.groups.clear();
    let batches = vec![shape.batch(); shape.micro_batches.clamp(1, 2)];
    // The second step is the larger one: optimizer state exists from its start.
    trainer.step(&assembly, &batches, 0)?;
    meter.reset_peak();
    trainer.step(&assembly, &batches, 1)?;
    Ok(finish(stage, &meter, &assembly, shape.tokens(), shape.exact, load_peak, Some((trainer, shape))))
}

/// What a stage holds that only runs forward over a batch of this many tokens.
pub fn forward(stage: &str, blueprint: &Blueprint, tokens: usize) -> Result<Bill> {
    let meter = Meter::new();
    let _scope = meter::scope(meter.clone());
    let assembly = blueprint.assemble(true)?;
    let load_peak = meter.peak();
    meter.reset_peak();
    let batch = FlatBatch::new(&[vec![0u32; tokens.max(1)]]);
    let mode = ramekin_slots::Mode::inference();
    let fx = ramekin_slots::Forward::new(ramekin_tape::Tape::off(), assembly.sites.clone(), batch, mode);
    let h = crate::step::hidden(&assembly.model, &fx, None)?;
    drop(assembly.model.head(&fx, &h)?);
    drop(h);
    Ok(finish(stage, &meter, &assembly, tokens, false, load_peak, None))
}

fn finish(
    stage: &str,
    meter: &std::sync::Arc<Meter>,
    assembly: &Assembly,
    tokens: usize,
    exact: bool,
    load_peak: u64,
    training: Option<(&Trainer, &StepShape)>,
) -> Bill {
    let (parameters, trainable) = assembly.ledger.borrow().counts();
    let state: u64 = training.map_or(0, |(t, _)| t.optimizer.state().iter().map(|s| s.array.bytes()).sum());
    let kept: u64 = assembly.trainable().iter().map(|p| p.value().bytes()).sum();
    // Forward 2 and backward to the inputs 2 operations a parameter and token; 2 more for what trains.
    let micro = training.map_or(1, |(_, s)| s.micro_batches) as f64;
    let step_flops =
        training.map_or(0.0, |_| (4.0 * parameters as f64 + 2.0 * trainable as f64) * tokens as f64 * micro);
    Bill {
        stage: stage.to_owned(),
        parameters,
        trainable,
        sites: assembly.adapters.iter().map(|a| (a.owner.clone(), a.sites.len())).collect(),
        tokens,
        tokens_exact: exact,
        at_peak: meter.at_peak(),
        peak: meter.peak(),
        load_peak,
        read: assembly.read,
        checkpoint: if training.is_some() { kept + state } else { 0 },
        step_flops,
        changes: Vec::new(),
    }
}
