//! Candidates measured on held rows.

use anyhow::{Context, Result};
use ramekin_core::BadRecipe;
use ramekin_data::Dataset;
use ramekin_recipe::{MergeStage, Metric, Part};
use ramekin_slots::{Candidate, Held, Judge, WeightSource};

use super::super::data;
use super::super::eval::{Evaluation, ensure_measurable, evaluate};
use crate::assembly::Assembly;
use crate::blueprint::Blueprint;
use crate::parts;
use crate::vectors::Vectors;

/// From a candidate's tensors to a model that can run.
pub type Build<'a> = dyn Fn(&mut dyn WeightSource) -> Result<Assembly> + 'a;

/// The held rows of a stage.
pub struct Rows {
    tasks: Vec<Option<Dataset>>,
    controls: Vec<Dataset>,
    index: usize,
}

impl Rows {
    /// Reads them.
    ///
    /// # Errors
    /// What is wrong with the data.
    pub fn load(s: &MergeStage, plan: &Blueprint, shapes: &Assembly, index: usize) -> Result<Self> {
        let load = |part: &Part| data::load(shapes, part, &plan.base_dir, ramekin_data::Rows::Tokens);
        let tasks = s.models.iter().map(|m| m.data.as_ref().map(load).transpose()).collect::<Result<_>>()?;
        let controls = s.control.iter().map(load).collect::<Result<_>>()?;
        Ok(Rows { tasks, controls, index })
    }
}

impl Rows {
    /// Where the rows stand in the recipe.
    fn place(&self, held: Held) -> String {
        match held {
            Held::Task(t) => format!("stage.{}.models.{t}.data", self.index),
            Held::Control(c) => format!("stage.{}.control.{c}", self.index),
        }
    }
}

/// How held rows are measured.
pub fn evaluation(metric: &str) -> Result<Evaluation> {
    Ok(Evaluation {
        metrics: vec![if metric == "exact_match" { "exact_match" } else { "loss" }],
        decoder: parts::decoder(&Part::of("greedy"))?,
        kv: parts::kv(&Part::of("full"))?,
        max_rows: None,
        max_new_tokens: 64,
        rows: 16,
    })
}

/// Measures candidates of these vectors.
pub struct Bench<'a> {
    /// The rows.
    pub rows: &'a Rows,
    /// What candidates are made of.
    pub vectors: &'a Vectors,
    /// Makes a model of a candidate.
    pub build: &'a Build<'a>,
    /// What has been measured on.
    pub used: Vec<Held>,
}

impl Bench<'_> {
    /// Refuses rows that nothing was measured on.
    ///
    /// # Errors
    /// [`BadRecipe`] at the first of them.
    pub fn all_read(&self) -> Result<()> {
        let Some(unread) = self.held().into_iter().find(|h| !self.used.contains(h)) else { return Ok(()) };
        let place = self.rows.place(unread);
        let key = if matches!(unread, Held::Task(_)) { "data" } else { "control" };
        Err(BadRecipe::new(format!("`{key}` is never read"))
            .at(place, "the method chooses nothing by these rows")
            .help("leave it out, or give the method several values to choose from")
            .into())
    }
}

impl Judge for Bench<'_> {
    fn held(&self) -> Vec<Held> {
        let tasks = self.rows.tasks.iter().enumerate().filter(|(_, d)| d.is_some());
        let controls = (0..self.rows.controls.len()).map(Held::Control);
        tasks.map(|(t, _)| Held::Task(t)).chain(controls).collect()
    }

    fn score(&mut self, held: Held, metric: &str, candidate: &Candidate<'_>) -> Result<f64> {
        let data = match held {
            Held::Task(t) => self.rows.tasks[t].as_ref(),
            Held::Control(c) => self.rows.controls.get(c),
        };
        if !self.used.contains(&held) {
            self.used.push(held);
        }
        let data = data.context("held rows that are not there")?;
        let objective = parts::objective(&Part::of("sft"))?;
        if metric == "exact_match" {
            ensure_measurable(data, &*objective, &[Metric::ExactMatch], &self.rows.place(held))?;
        }
        let assembly = (self.build)(&mut self.vectors.candidate(candidate))?;
        let (found, _) = evaluate(&assembly, data, &evaluation(metric)?, &*objective)?;
        let figure = found.get(metric).and_then(serde_json::Value::as_f64).context("no figure")?;
        Ok(if metric == "loss" { (-figure).exp() } else { figure })
    }
}
