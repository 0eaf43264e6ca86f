//! One rank of a training stage: what each does, alone or as one of several.

use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use anyhow::Result;
use ramekin_core::{Meter, Rng, Traffic, meter};
use ramekin_data::{Dataset, Sampler};
use ramekin_plan::Share;
use ramekin_recipe::TrainStage;
use ramekin_slots::{Event, Flow};
use ramekin_store::Checkpoints;
use serde_json::{Map, Value as Json};

use super::chief::Chief;
use super::prepare::set_length;
use super::trainer;
use crate::assembly::Assembly;
use crate::blueprint::{Blueprint, Loading};
use crate::pass::Draw;
use crate::step::{LabelledBatch, StepReport, Trainer};
use crate::team::Team;
use crate::{checkpoint, parts};

/// What every rank is told of the stage.
pub struct Job<'a> {
    /// The stage, in the way that was chosen.
    pub stage: &'a TrainStage,
    /// The run's seed.
    pub seed: u64,
    /// Updates in all.
    pub total: u64,
    /// The stage's folder.
    pub dir: &'a Path,
    /// Whether it goes on from a checkpoint, where there is one.
    pub resumed: bool,
    /// The rows in the order of the steps, for all ranks.
    pub sampler: &'a Sampler,
    /// Set when the user wants to stop.
    pub stop: &'a AtomicBool,
}

impl Job<'_> {
    /// Steps between measurements, and between texts.
    fn looks(&self) -> [Option<u64>; 2] {
        [self.stage.eval.as_ref().and_then(|e| e.every), self.stage.samples.as_ref().and_then(|w| w.every)]
    }
}

/// A model in training.
pub struct Rank<'a> {
    /// What is to be done.
    pub job: &'a Job<'a>,
    /// The model.
    pub assembly: Assembly,
    /// The parts of a step.
    pub trainer: Trainer,
    /// Updates done.
    pub step: u64,
    /// Why it ended before its last step, where a hook ended it.
    pub ended: Option<String>,
    checkpoints: Checkpoints,
    traffic: Traffic,
    taken: u64,
}

impl<'a> Rank<'a> {
    /// Loads the model and goes back to where the last run left it.
    ///
    /// # Errors
    /// What is wrong with the model, the parts' settings or every checkpoint.
    pub fn begin(job: &'a Job<'a>, plan: &Blueprint, team: Team, loading: Loading<'_>) -> Result<Self> {
        let s = job.stage;
        let mut assembly = plan.load(loading)?;
        let mut trainer = trainer(s, job.seed, job.total)?;
        trainer.team = team;
        parts::placed(&s.objective, trainer.join(&mut assembly, plan))?;
        let lr = trainer.optimizer.lr();
        trainer.groups = assembly.adapters.iter().flat_map(|a| a.adapter.groups(lr)).collect();
        trainer.draw = Some(draw(job.sampler.data().clone(), job.seed));
        trainer.calibrate(&assembly)?;
        set_length(&assembly, job.sampler)?;

        let checkpoints = checkpoint::open(job.dir, s.checkpoint.keep as usize)?;
        let (mut step, mut ended) = (0, None);
        if job.resumed
            && let Some(found) = checkpoint::restore(&checkpoints, &assembly, &mut trainer)?
        {
            (step, ended) = (found.step, found.ended);
            ramekin_core::say!("  resuming after step {step} of {}", job.total);
        }
        if step == 0 {
            trainer.choose(&assembly, 0)?;
        }
        let (traffic, taken) = (Traffic::default(), 0);
        Ok(Rank { job, assembly, trainer, step, ended, checkpoints, traffic, taken })
    }

    /// Steps to the end, or until the user stops it; says which. Rank 0 brings its chief.
    ///
    /// # Errors
    /// What goes wrong here, or that another rank has failed.
    pub fn train(&mut self, mut chief: Option<&mut Chief<'_>>) -> Result<bool> {
        let Job { total, stage: s, .. } = *self.job;
        let team = self.trainer.team.clone();
        if s.audit {
            team.agree(&self.assembly, self.step)?;
        }
        if self.step < total && self.ended.is_none() {
            self.event(Event::Begin, f64::NAN, &Map::new())?;
        }
        while self.step < total && self.ended.is_none() {
            let begun = Instant::now();
            let report = self.update()?;
            let others = self.others()?;
            if let Some(chief) = &mut chief {
                chief.stepped(self.step, &report, begun, others)?;
            }
            let mut flow = report.flow;
            let step = self.step;
            let due = |every: &Option<u64>| every.is_some_and(|n| step.is_multiple_of(n));
            if self.step < total && self.job.looks().iter().any(due) {
                self.trainer.flush(&self.assembly, self.step)?;
                self.event(Event::BeforeEval, report.loss, &Map::new())?;
                let figures = chief.as_mut().map(|chief| chief.look(self)).transpose()?;
                let figures = team.told(figures.unwrap_or_default())?;
                let wish = self.event(Event::AfterEval, report.loss, &figures)?;
                flow = if flow == Flow::Go { wish } else { flow };
            }
            if let Flow::Stop(why) = flow {
                self.ended = Some(why).filter(|_| self.step < total);
            }
            let stop = team.told(self.job.stop.load(Ordering::SeqCst))?;
            let over = self.step == total || self.ended.is_some();
            if chief.is_some() && (due(&s.checkpoint.every) || stop || over) {
                self.save()?;
            }
            if stop && !over {
                return Ok(false);
            }
        }
        let loss = team.told(chief.as_ref().and_then(|chief| chief.journal.last_loss()))?;
        self.trainer.flush(&self.assembly, self.step)?;
        self.trainer.finish(&self.assembly, self.step)?;
        self.event(Event::End, loss.unwrap_or(f64::NAN), &Map::new())?;
        let tensors = team.agree(&self.assembly, self.step)?;
        if let Some(chief) = &chief
            && team.ranks() > 1
        {
            let ranks = team.ranks();
            chief.journal.say(&format!("all {tensors} trained tensors are the same bits on {ranks} ranks"));
        }
        let all = team.gathered(self.traffic)?;
        self.traffic = all.iter().fold(Traffic::default(), |sum, own| sum.plus(own));
        Ok(true)
    }

    /// Bytes over each link in a step, all ranks together: the mean over those that this process took.
    pub fn traffic(&self) -> Traffic {
        self.traffic.scaled(1, self.taken)
    }

    fn update(&mut self) -> Result<StepReport> {
        let meter = meter::current();
        meter.reset_peak();
        let sampler = self.job.sampler;
        let team = &self.trainer.team;
        let own = 0..sampler.micros_per_step() / team.ranks();
        let batch = |i| LabelledBatch::new(sampler.batch(self.step as usize, team.number(i)));
        let batches: Vec<LabelledBatch> = own.map(batch).collect();
        let before = meter.traffic();
        let report = self.trainer.step(&self.assembly, &batches, self.step)?;
        self.traffic = self.traffic.plus(&meter.traffic().since(&before));
        self.taken += 1;
        self.step += 1;
        Ok(report)
    }

    fn event(&mut self, event: Event, loss: f64, figures: &Map<String, Json>) -> Result<Flow> {
        self.trainer.event(event, &self.assembly, self.step, loss, figures)
    }

    /// What the other ranks held at the peak of the last step.
    fn others(&self) -> Result<Share> {
        let (meter, team) = (meter::current(), &self.trainer.team);
        let mut all = team.gathered(Share { peak: meter.peak(), at_peak: meter.at_peak() })?;
        all.remove(team.rank());
        Ok(Share::sum(&all))
    }

    fn save(&self) -> Result<()> {
        let epoch = self.job.sampler.epoch_at(self.step as usize);
        let Rank { checkpoints, assembly, trainer, ended, .. } = self;
        checkpoint::save(checkpoints, self.step, epoch, assembly, trainer, ended.as_deref())
    }
}

/// Rows for looks beside the steps: each stream has an order of its own.
fn draw(data: Arc<Dataset>, seed: u64) -> Draw {
    Rc::new(move |stream, index, rows| {
        let own = Rng::new(seed).named("probe", stream).u64_at(0);
        LabelledBatch::new(Sampler::new(data.clone(), own, rows, 1).batch(index as usize, 0))
    })
}

/// A rank beside rank 0, from its first to its last step, in a thread of its own.
///
/// # Errors
/// Those of [`Rank::begin`] and [`Rank::train`].
pub fn other(job: &Job<'_>, plan: &Blueprint, team: Team, loading: Loading<'_>) -> Result<()> {
    let _scope = meter::scope(Meter::new());
    Rank::begin(job, plan, team, loading)?.train(None).map(drop)
}
