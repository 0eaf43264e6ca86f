//! Before a training stage loads its weights: its rows, its way of running, its bill.

use std::sync::Arc;

use anyhow::{Context, Result};
use ramekin_core::{BadRecipe, Meter, meter};
use ramekin_data::{DataSettings, Dataset, Sampler};
use ramekin_plan::Bill;
use ramekin_recipe::{Recipe, TrainStage};
use ramekin_slots::{Comm, Objective, Rows as RowKind};

use super::beside::Beside;
use super::trainer;
use crate::assembly::{Assembly, ensure_trainable};
use crate::bill::{self, StepShape};
use crate::blueprint::Blueprint;
use crate::compat;
use crate::fit::{self, Way};
use crate::stages::data;
use crate::stages::eval::ensure_measurable;
use crate::update::check_in_backward;
use crate::{objective, parts, walk};

/// A stage's rows.
pub struct Rows {
    /// To train on.
    pub train: Arc<Dataset>,
    /// To measure on.
    pub eval: Option<Arc<Dataset>>,
}

/// A stage that knows its shapes and rows but has no weights yet.
pub struct Prepared<'a> {
    index: usize,
    recipe: &'a Recipe,
    stage: &'a TrainStage,
    plan: &'a Blueprint,
    rows: Option<Rows>,
    kind: RowKind,
    comm: Option<Box<dyn Comm>>,
    ranks: usize,
    /// Tokens of an image, where the model reads images.
    image: Option<usize>,
}

impl<'a> Prepared<'a> {
    /// Reads configs, headers and rows; a plan leaves out rows that take long (`whole` false).
    ///
    /// # Errors
    /// What is wrong with any of them, or that nothing would train.
    pub fn new(
        index: usize,
        recipe: &'a Recipe,
        stage: &'a TrainStage,
        plan: &'a Blueprint,
        whole: bool,
    ) -> Result<Self> {
        check_hooks(index, stage)?;
        compat::method(stage, plan)?;
        compat::one_reducer(stage)?;
        compat::trainable_dtype(index, stage, plan)?;
        let _scope = meter::scope(Meter::new());
        let mut assembly = plan.assemble(true)?;
        let mut objective = parts::objective(&stage.objective)?;
        let place = &stage.objective.path;
        parts::placed(&stage.objective, objective::join(&mut assembly, plan, &mut *objective, place, true))?;
        compat::objective(stage, &assembly, &*objective)?;
        ensure_trainable(&assembly)?;
        compat::check(index, stage, plan, &assembly)?;
        walk::check(index, stage, plan, &assembly)?;
        let settings = parts::data_settings(&stage.data)?;
        let wanted = whole || data::is_small(&settings, &plan.base_dir);
        let rows = if wanted { Some(read(index, stage, plan, &assembly, &*objective)?) } else { None };
        let comm = stage.comm.as_ref().map(parts::comm).transpose()?;
        let ranks = comm.as_ref().map_or(1, |c| c.ranks());
        let image = assembly.model.facts().images.map(|i| i.tokens);
        Ok(Prepared { index, recipe, stage, plan, rows, kind: objective.rows(), image, comm, ranks })
    }

    /// The rows.
    ///
    /// # Errors
    /// If they were left out.
    pub fn rows(&self) -> Result<&Rows> {
        self.rows.as_ref().context("the rows have not been read")
    }

    /// The ranks, where the stage has several.
    pub fn comm(&self) -> Option<&dyn Comm> {
        self.comm.as_deref()
    }

    /// The rows in the order of the steps; the ranks take a step's micro-batches in turn.
    pub fn sampler(&self, way: &Way) -> Result<Sampler> {
        let micros = way.micros * self.ranks;
        Ok(Sampler::new(self.rows()?.train.clone(), self.recipe.seed, way.rows, micros))
    }

    /// The way to run within the budget, and its bill.
    pub fn choose(&self, name: &str) -> Result<(Way, Bill)> {
        let (rows, micros) = batch_sizes(self.stage, self.rows.as_ref().map(|r| &*r.train), self.ranks)?;
        let written = Way::as_written(self.stage, self.plan, rows, micros);
        fit::choose(written, &self.recipe.memory, &|way| self.bill(name, way))
    }

    fn bill(&self, name: &str, way: &Way) -> Result<Bill> {
        check_in_backward(self.index, &way.stage, way.micros)?;
        let mut trainer = trainer(&way.stage, self.recipe.seed, 100)?;
        let shape = match &self.rows {
            Some(_) => {
                let sampler = self.sampler(way)?;
                shape_of(&sampler, total_steps(self.index, self.stage, &sampler)?, way.micros)
            }
            None => self.bound(way, if trainer.fused { 1 } else { 2 })?,
        };
        let beside = Beside::new(self.stage, self.rows.as_ref(), way)?;
        bill::train(name, &way.plan, &mut trainer, &shape, self.comm(), &|assembly, objective| {
            beside.run(assembly, objective)
        })
    }

    /// What no micro-batch can exceed, from the settings alone.
    fn bound(&self, way: &Way, least_micros: usize) -> Result<StepShape> {
        let settings = parts::data_settings(&self.stage.data)?;
        let length = settings.preparation().map_or(1024, |p| p.max_length).max(2);
        let length = self.image.unwrap_or(length);
        let each = if self.kind == RowKind::Pairs { 2 } else { 1 };
        Ok(StepShape {
            segments: vec![length; each * way.rows],
            active: each * length * way.rows,
            micro_batches: way.micros.max(least_micros),
            exact: false,
        })
    }
}

fn read(
    index: usize,
    s: &TrainStage,
    plan: &Blueprint,
    assembly: &Assembly,
    objective: &dyn Objective,
) -> Result<Rows> {
    let mut train = data::load(assembly, &s.data, &plan.base_dir, objective.rows())?;
    objective::check_targets(&train, objective, &s.data)?;
    let held_out = train.dev.take();
    let eval = match &s.eval {
        None => None,
        Some(e) => {
            let rows = match (&e.data, held_out) {
                (Some(part), _) => {
                    let rows = data::load(assembly, part, &plan.base_dir, objective.rows())?;
                    objective::check_targets(&rows, objective, part)?;
                    rows
                }
                (None, Some(dev)) => {
                    objective::check_targets(&dev, objective, &s.data)?;
                    *dev
                }
                (None, None) => anyhow::bail!("`eval` has no rows"), // the recipe's reader refuses that
            };
            ensure_measurable(&rows, objective, &e.metrics, &format!("stage.{index}.eval.metrics"))?;
            Some(Arc::new(rows))
        }
    };
    Ok(Rows { train: Arc::new(train), eval })
}

/// Rows a micro-batch, and micro-batches a step of each rank.
fn batch_sizes(s: &TrainStage, data: Option<&Dataset>, ranks: usize) -> Result<(usize, usize)> {
    let rows = match (parts::data_settings(&s.data)?, data) {
        (DataSettings::Tokens(t), Some(data)) if t.repeat => data.rows.len(), // the file is the batch
        _ => s.batch.micro_batch_size as usize,
    };
    let micros = match (s.batch.gradient_accumulation_steps, s.batch.tokens, data) {
        (Some(n), _, _) => n as usize,
        (None, Some(tokens), Some(data)) => {
            (tokens as f64 / ((rows * ranks) as f64 * data.mean_row())).round().max(1.0) as usize
        }
        _ => 1,
    };
    Ok((rows.max(1), micros.max(1)))
}

/// Updates of the stage: what it says, or what its selection makes of the rows.
///
/// # Errors
/// If neither says, or both do.
pub fn total_steps(index: usize, s: &TrainStage, sampler: &Sampler) -> Result<u64> {
    let own = match &s.selection {
        Some(part) => {
            let epoch = sampler.steps_for(1.0) as f64;
            parts::placed(part, parts::selection(part)?.updates(epoch))?.map(|n| (n, part))
        }
        None => None,
    };
    let place = |key: &str| format!("stage.{index}.{key}");
    let said = match (s.steps, s.epochs) {
        (Some(steps), _) => Some(("steps", steps)),
        (None, Some(epochs)) => Some(("epochs", sampler.steps_for(epochs) as u64)),
        (None, None) => None,
    };
    match (own, said) {
        (None, Some((_, steps))) => Ok(steps.max(1)),
        (Some((steps, _)), None) => Ok(steps.max(1)),
        (Some((_, part)), Some((key, _))) => {
            let message = format!("`{}` sets the length of its stage by its own phases", part.kind);
            Err(BadRecipe::new(message)
                .at(place(key), "says another")
                .help(format!("leave `{key}` out"))
                .into())
        }
        (None, None) => {
            let message = "a `train` stage needs `steps` or `epochs`";
            Err(BadRecipe::new(message).at(place("kind"), "add `steps = …` or `epochs = …`").into())
        }
    }
}

/// Tells the selection how long its phases are.
pub fn set_length(assembly: &Assembly, sampler: &Sampler) -> Result<()> {
    match assembly.selection.borrow_mut().as_mut() {
        Some(selection) => selection.updates(sampler.steps_for(1.0) as f64).map(drop),
        None => Ok(()),
    }
}

/// Hooks that act on evaluations need some.
fn check_hooks(index: usize, s: &TrainStage) -> Result<()> {
    if s.eval.as_ref().is_some_and(|e| e.every.is_some()) {
        return Ok(());
    }
    for part in &s.hook {
        if parts::hook(part)?.needs_eval() {
            let message =
                format!("`{}` goes by measurements between the steps, and there are none", part.kind);
            let place = if part.path.is_empty() { format!("stage.{index}.hook") } else { part.path.clone() };
            let help = "add `eval = { every = …, metrics = [\"loss\"], … }` to the stage";
            return Err(BadRecipe::new(message).at(place, "").help(help).into());
        }
    }
    Ok(())
}

fn shape_of(sampler: &Sampler, steps: u64, micro_batches: usize) -> StepShape {
    let largest = sampler.largest(steps);
    StepShape { segments: largest.segments, active: largest.active, micro_batches, exact: largest.met }
}
