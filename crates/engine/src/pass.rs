//! Micro-batches forward and back: what an estimator may ask of a step's batches.

use std::rc::Rc;
use std::sync::Arc;

use anyhow::{Context, Result};
use ramekin_core::{Param, Rng};
use ramekin_slots::{
    ActivationPolicy, Figure, Forward, Loss, Mode, Objective, ParamView, Probe, Problem, StepInfo, Stop,
};
use ramekin_tape::{GradSink, Tape, ops};

use crate::assembly::Assembly;
use crate::hidden::hidden;
use crate::masks::Masking;
use crate::objective::{self, Figures};
use crate::step::LabelledBatch;
use crate::team::{Summed, Team};
use crate::walk;

/// How a micro-batch runs.
#[derive(Clone, Copy)]
pub struct Pass<'a> {
    /// The loss.
    pub objective: &'a dyn Objective,
    /// What survives until backward.
    pub activation: &'a dyn ActivationPolicy,
    /// The run's randomness.
    pub rng: Rng,
}

impl Pass<'_> {
    /// A micro-batch's share of the loss of a step with these totals, its gradients, and what else was seen.
    pub fn micro_batch(
        &self,
        assembly: &Assembly,
        batch: &LabelledBatch,
        totals: &[f64],
        micro: u64,
        training: bool,
        grads: &mut dyn GradSink,
    ) -> Result<(f64, Vec<Figure>)> {
        let tape = Tape::new();
        let mode = Mode { training, rng: self.rng, micro_batch: micro, adapters: true };
        let Loss { value: loss, figures, .. } = self.loss(assembly, batch, totals, &tape, mode)?;
        let value = loss.array().scalar()?;
        tape.backward_scalar(&loss, grads)?;
        Ok((value, figures))
    }

    fn loss(
        &self,
        assembly: &Assembly,
        batch: &LabelledBatch,
        totals: &[f64],
        tape: &Tape,
        mode: Mode,
    ) -> Result<Loss> {
        objective::loss(self.objective, assembly, Some(self.activation), batch, totals, tape, mode)
    }
}

/// From the name of an order of the training rows, the number of a batch and how many rows it has to
/// the batch.
pub type Draw = Rc<dyn Fn(&str, u64, usize) -> LabelledBatch>;

/// The training rows for looks beside the steps.
pub struct Look<'a> {
    /// How a batch runs.
    pub pass: Pass<'a>,
    /// The model.
    pub assembly: &'a Assembly,
    /// Where rows come from.
    pub draw: Option<&'a Draw>,
}

impl Look<'_> {
    fn batch(&self, stream: &str, index: u64, rows: usize) -> Result<LabelledBatch> {
        let draw = self.draw.context("there are no training rows to look at")?;
        Ok(draw(stream, index, rows))
    }
}

impl Probe for Look<'_> {
    fn loss(&mut self, stream: &str, index: u64, rows: usize) -> Result<f64> {
        let batch = self.batch(stream, index, rows)?;
        let mode = Mode { rng: self.pass.rng, ..Mode::inference() };
        let totals = objective::totals(self.pass.objective, std::slice::from_ref(&batch));
        self.pass.loss(self.assembly, &batch, &totals, &Tape::off(), mode)?.value.array().scalar()
    }

    fn backward(&mut self, stream: &str, index: u64, rows: usize, sink: &mut dyn GradSink) -> Result<f64> {
        let batch = self.batch(stream, index, rows)?;
        let totals = objective::totals(self.pass.objective, std::slice::from_ref(&batch));
        Ok(self.pass.micro_batch(self.assembly, &batch, &totals, 0, false, sink)?.0)
    }
}

/// A step's batches under the model that trains.
pub struct Batches<'a> {
    /// How each runs.
    pub pass: Pass<'a>,
    /// The model.
    pub assembly: &'a Assembly,
    /// The micro-batches.
    pub batches: &'a [LabelledBatch],
    /// What trains.
    pub params: &'a [Arc<Param>],
    /// What the objective's means are over.
    pub totals: Vec<f64>,
    /// Updates done so far.
    pub step: u64,
    /// Updates planned in all.
    pub total: u64,
    /// Where the optimizer stands at this update.
    pub info: StepInfo,
    /// What the objective saw besides, in training.
    pub figures: Figures,
    /// The ranks that the step's micro-batches are shared out among.
    pub team: Team,
}

/// Labelled rows whose logits exist at once while predictions are counted.
const CHUNK: usize = 256;

impl Batches<'_> {
    fn evaluation(&self, view: Option<&ParamView>) -> (Tape, Mode) {
        let tape = view.map_or_else(Tape::off, |v| Tape::viewing(v.clone()));
        (tape, Mode { rng: self.pass.rng, ..Mode::inference() })
    }

    fn predict(&self, batch: &LabelledBatch, view: Option<&ParamView>) -> Result<Vec<(i64, i64)>> {
        let (tape, mode) = self.evaluation(view);
        let fx = Forward::new(tape.clone(), self.assembly.sites.clone(), batch.flat.clone(), mode);
        let h = hidden(&self.assembly.model, &fx, Some(self.pass.activation))?;
        let labelled = |i: &u32| batch.labels[*i as usize] != -100;
        let rows: Vec<u32> = (0..batch.labels.len() as u32).filter(labelled).collect();
        let mut found = Vec::with_capacity(rows.len());
        for chunk in rows.chunks(CHUNK) {
            let part = ops::select_rows(&tape, &h, &Rc::new(chunk.to_vec()))?;
            let logits = self.assembly.model.head(&fx, &part)?;
            if logits.array().is_shape_only() {
                continue;
            }
            let (v, z) = (logits.array().rows().1, logits.array().to_f32()?);
            found.extend(chunk.iter().zip(z.chunks(v)).map(|(i, z)| (best(z), batch.labels[*i as usize])));
        }
        Ok(found)
    }
}

/// The first of the largest.
fn best(row: &[f32]) -> i64 {
    (0..row.len()).fold(0, |b, i| if row[i] > row[b] { i } else { b }) as i64
}

impl Problem for Batches<'_> {
    fn params(&self) -> &[Arc<Param>] {
        self.params
    }

    fn step(&self) -> u64 {
        self.step
    }

    fn total(&self) -> u64 {
        self.total
    }

    fn rng(&self) -> Rng {
        self.pass.rng
    }

    fn lr(&self) -> f64 {
        self.info.lr
    }

    fn info(&self) -> StepInfo {
        self.info
    }

    fn loss(&mut self, view: Option<ParamView>) -> Result<f64> {
        let each = self.batches.iter().map(|batch| {
            let (tape, mode) = self.evaluation(view.as_ref());
            let loss = self.pass.loss(self.assembly, batch, &self.totals, &tape, mode)?;
            Ok::<_, anyhow::Error>(vec![loss.value.array().scalar()?])
        });
        let losses = self.team.in_order(each.collect::<Result<_>>()?)?;
        Ok(losses.iter().fold(0.0, |sum, l| sum + l[0]))
    }

    fn predictions(&mut self, view: Option<ParamView>) -> Result<Vec<(i64, i64)>> {
        let own = self.pass.objective.predicts();
        let each = self.batches.iter().map(|batch| {
            if !own {
                return self.predict(batch, view.as_ref());
            }
            let (tape, mode) = self.evaluation(view.as_ref());
            Ok(self.pass.loss(self.assembly, batch, &self.totals, &tape, mode)?.predictions)
        });
        let flat = |found: Vec<(i64, i64)>| found.iter().flat_map(|(a, b)| [*a as f64, *b as f64]).collect();
        let own = each.map(|found| found.map(flat)).collect::<Result<Vec<Vec<f64>>>>()?;
        let all = self.team.in_order(own)?.concat();
        Ok(all.as_chunks::<2>().0.iter().map(|[a, b]| (*a as i64, *b as i64)).collect())
    }

    fn walk(
        &mut self,
        branches: usize,
        visit: &mut dyn FnMut(&mut Stop<'_>) -> Result<()>,
    ) -> Result<Vec<f64>> {
        walk::walk(self, branches, visit)
    }

    fn backward(&mut self, sink: &mut dyn GradSink) -> Result<f64> {
        let (count, team) = (self.batches.len(), self.team.clone());
        let first = self.step * (count * team.ranks()) as u64;
        let mut summed = Summed::new(team.peer(), self.params, sink);
        let (mut records, mut names) = (Vec::new(), Vec::new());
        for (i, batch) in self.batches.iter().enumerate() {
            let micro = first + team.number(i) as u64;
            summed.begin(i + 1 == count);
            let grads = &mut Masking(&mut summed);
            let (share, figures) =
                self.pass.micro_batch(self.assembly, batch, &self.totals, micro, true, grads)?;
            summed.end()?;
            // An objective gives the same figures of every micro-batch.
            names = figures.iter().map(|f| f.name).collect();
            records
                .push(std::iter::once(share).chain(figures.iter().flat_map(|f| [f.sum, f.count])).collect());
        }
        let mut loss = 0.0;
        for record in team.in_order(records)? {
            loss += record[0];
            let pairs = record[1..].as_chunks::<2>().0;
            let figures =
                names.iter().zip(pairs).map(|(name, [sum, count])| Figure { name, sum: *sum, count: *count });
            self.figures.add(figures.collect());
        }
        Ok(loss)
    }
}
