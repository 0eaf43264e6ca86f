//! The plan: a stage's own code on shape-only arrays, under a meter of its own.

use std::rc::Rc;
use std::sync::Arc;

use anyhow::Result;
use ramekin_core::{Meter, meter};
use ramekin_plan::{Bill, Share};
use ramekin_slots::{Comm, FlatBatch, Forward, Mode, Objective};
use ramekin_tape::Tape;

use crate::assembly::Assembly;
use crate::blueprint::Blueprint;
use crate::hidden::hidden;
use crate::shared::Shared;
use crate::step::{LabelledBatch, Trainer};
use crate::team::Team;

/// The shape of a training step.
#[derive(Clone, Debug)]
pub struct StepShape {
    /// Lengths of the segments of the largest micro-batch.
    pub segments: Vec<usize>,
    /// Tokens with a target among them.
    pub active: usize,
    /// Micro-batches a step, of each rank.
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
        LabelledBatch::of(flat, labels)
    }

    /// Rows of one length in which every token has a target.
    fn full(rows: usize, length: usize) -> Self {
        StepShape { segments: vec![length; rows], active: rows * length, micro_batches: 1, exact: false }
    }

    fn tokens(&self) -> usize {
        self.segments.iter().sum()
    }
}

/// What a stage does besides its steps, such as an evaluation.
pub type Beside<'a> = dyn Fn(&Assembly, &dyn Objective) -> Result<()> + 'a;

/// What a stage does that trains nothing.
pub type Work<'a> = dyn Fn(&mut Assembly) -> Result<()> + 'a;

/// What a training stage holds: loading, two micro-batches where there are
/// several, the update, and what happens `beside` the steps; one rank's share stands for every rank's.
pub fn train(
    stage: &str,
    blueprint: &Blueprint,
    trainer: &mut Trainer,
    shape: &StepShape,
    comm: Option<&dyn Comm>,
    beside: &Beside<'_>,
) -> Result<Bill> {
    trainer.team = comm.map_or_else(Team::alone, |c| Team::with(c.rehearse()));
    let ranks = trainer.team.ranks();
    let meter = Meter::new();
    let _scope = meter::scope(meter.clone());
    let mut assembly = blueprint.assemble(true)?;
    trainer.join(&mut assembly, blueprint)?;
    let load_peak = meter.peak();
    trainer.groups.clear();
    let batches = vec![shape.batch(); shape.micro_batches.clamp(1, 2)];
    let longest = shape.segments.iter().copied().max().unwrap_or(1);
    trainer.draw = Some(Rc::new(move |_, _, rows| StepShape::full(rows, longest).batch()));
    trainer.calibrate(&assembly)?;
    // The second step is the larger one: optimizer state exists from its start.
    trainer.step(&assembly, &batches, 0)?;
    meter.reset_peak();
    let (before, worked) = (meter.traffic(), meter.worked());
    trainer.step(&assembly, &batches, 1)?;
    let (traffic, work) = (meter.traffic().since(&before), meter.worked() - worked);
    let shared = if ranks > 1 { Shared::of(&assembly, blueprint).bytes() } else { 0 };
    let mut rest = Share { peak: meter.peak(), at_peak: meter.at_peak() };
    rest.peak -= shared;
    rest.at_peak.weights -= shared;
    trainer.flush(&assembly, 2)?;
    beside(&assembly, &*trainer.objective)?;
    let (params, state) = trainer.kept(&assembly)?;
    let kept: u64 = params.iter().map(|p| p.value().bytes()).sum();
    let state: u64 = state.iter().map(|s| s.array.bytes()).sum();
    let bill = finish(stage, &meter, &assembly, load_peak).shared_out(ranks, rest, shared);
    let (all, billed) = ((shape.micro_batches * ranks) as u64, batches.len() as u64);
    Ok(Bill {
        tokens: shape.tokens(),
        tokens_exact: shape.exact,
        checkpoint: kept + state,
        step_flops: work as f64 * all as f64 / billed as f64,
        step_tokens: shape.tokens() as u64 * all,
        traffic: traffic.scaled(all, billed),
        ..bill
    })
}

/// What a stage holds that trains nothing: loading, then `work` on shapes.
pub fn inference(stage: &str, blueprint: &Blueprint, tokens: usize, work: &Work<'_>) -> Result<Bill> {
    let meter = Meter::new();
    let _scope = meter::scope(meter.clone());
    let mut assembly = blueprint.assemble(true)?;
    let load_peak = meter.peak();
    meter.reset_peak();
    work(&mut assembly)?;
    Ok(Bill { tokens, ..finish(stage, &meter, &assembly, load_peak) })
}

/// One forward over a sequence of this many tokens, or as many images as make them, with all its logits.
pub fn forward(assembly: &Assembly, tokens: usize) -> Result<()> {
    let each = assembly.model.facts().images.map_or(tokens.max(1), |i| i.tokens);
    let batch = FlatBatch::new(&vec![vec![0u32; each]; tokens.div_ceil(each).max(1)]);
    let fx = Forward::new(Tape::off(), assembly.sites.clone(), batch, Mode::inference());
    let h = hidden(&assembly.model, &fx, None)?;
    assembly.model.head(&fx, &h).map(drop)
}

fn finish(stage: &str, meter: &Arc<Meter>, assembly: &Assembly, load_peak: u64) -> Bill {
    let (parameters, trainable) = assembly.ledger.borrow().counts();
    Bill {
        stage: stage.to_owned(),
        parameters,
        trainable,
        sites: assembly.adapters.iter().map(|a| (a.owner.clone(), a.sites.len())).collect(),
        at_peak: meter.at_peak(),
        peak: meter.peak(),
        load_peak,
        read: assembly.read,
        ..Bill::default()
    }
}
