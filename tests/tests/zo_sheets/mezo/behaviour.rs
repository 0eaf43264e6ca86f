//! `mezo`, item 7: a pretrained toy learns a classification by forwards alone.

use std::sync::Arc;

use anyhow::Result;
use ramekin_core::{Array, Draws, Param};
use ramekin_engine::assembly::Assembly;
use ramekin_engine::blueprint::Blueprint;
use ramekin_engine::parts;
use ramekin_engine::step::{LabelledBatch, Trainer};
use ramekin_estimate_zo::{Mezo, MezoSettings, PerturbMode, replay};
use ramekin_registry::Part as _;
use ramekin_slots::{
    Estimator, FlatBatch, Labelled, Loss, Objective, ObjectiveContext, Problem, Stateful, labelled_tokens,
};
use ramekin_tape::{GradSink, GradStore, ops};
use ramekin_tests::{lab, toy};
use serde_json::json;

const SYMBOLS: usize = 24;
const QUERY: u32 = 24;
const NAMES: u32 = 25; // four tokens that name the tables
const ANSWERS: u32 = 29; // two tokens that only the task uses
const LENGTH: usize = 12;

struct Task {
    tables: Vec<toy::Chain>,
}

impl Task {
    fn new(seed: u64) -> Self {
        Task { tables: (0..4).map(|t| toy::Chain::new(SYMBOLS, 1, 2.5, seed * 10 + t)).collect() }
    }

    fn text(&self, draws: &mut Draws) -> (usize, Vec<u32>) {
        let table = draws.below(4);
        let mut text = self.tables[table].text(LENGTH, draws);
        text.push(QUERY);
        (table, text)
    }

    /// Texts with the name of their table, wrong one time in ten.
    fn pretraining(&self, rows: usize, draws: &mut Draws) -> Vec<Vec<u32>> {
        let row = |_| {
            let (table, mut text) = self.text(draws);
            let named = if draws.uniform() < 0.9 { table } else { draws.below(4) };
            text.push(NAMES + named as u32);
            text
        };
        (0..rows).map(row).collect()
    }

    /// Texts with the answer token of their class, which alone is learnt.
    fn examples(&self, rows: usize, draws: &mut Draws) -> Vec<Vec<u32>> {
        let row = |_| {
            let (table, mut text) = self.text(draws);
            text.push(ANSWERS + (table % 2) as u32);
            text
        };
        (0..rows).map(row).collect()
    }
}

/// The mean over every token and, once more, the mean over the tokens that name the tables.
struct NamesToo;

impl Objective for NamesToo {
    fn counts(&self, _: &FlatBatch, labels: &[i64]) -> Vec<f64> {
        vec![labelled_tokens(labels) as f64, labels.iter().filter(|l| **l >= i64::from(NAMES)).count() as f64]
    }

    fn loss(&self, cx: &ObjectiveContext<'_>) -> Result<Loss> {
        let pass = cx.forward()?;
        let names = |l: &i64| if *l >= i64::from(NAMES) { *l } else { -100 };
        let term = |labels: &[i64], scale: f64| {
            let Labelled { hidden, targets, .. } = pass.labelled(labels)?;
            let logits = pass.head().logits(cx.tape, &hidden)?;
            ops::cross_entropy(cx.tape, logits, &targets, scale, ops::CrossEntropy::default())
        };
        let all = term(cx.labels, cx.scale(0))?;
        let named = term(&cx.labels.iter().map(names).collect::<Vec<_>>(), cx.scale(1))?;
        Ok(ops::add(cx.tape, &all, &named)?.into())
    }
}

fn answer_only(rows: &[Vec<u32>]) -> LabelledBatch {
    toy::labelled(rows, |i, n| i + 1 == n)
}

fn pretrained(plan: &Blueprint, seed: u64, task: &Task) -> Assembly {
    let assembly = lab::assemble(plan);
    let mut draws = toy::draws("mezo/pretraining", seed);
    let rows = task.pretraining(4000, &mut draws);
    let mut trainer = Trainer { objective: Box::new(NamesToo), ..lab::trainer(3e-3) };
    let mut order = toy::draws("mezo/order", seed);
    toy::train(&assembly, &mut trainer, 500, |_| {
        let picked: Vec<Vec<u32>> = (0..32).map(|_| rows[order.below(rows.len())].clone()).collect();
        lab::batch(&picked)
    });
    assembly
}

/// Share of texts whose class has the larger of the two answers' logits.
fn accuracy(assembly: &Assembly, rows: &[Vec<u32>]) -> f64 {
    let prompts: Vec<Vec<u32>> = rows.iter().map(|r| r[..r.len() - 1].to_vec()).collect();
    let batch = lab::batch(&prompts);
    let logits = lab::logits(assembly, &batch.flat, true);
    let right = rows.iter().zip(batch.flat.segments.iter()).filter(|(row, at)| {
        let z = &logits[(at.end - 1) * 32..at.end * 32];
        let guess = if z[ANSWERS as usize + 1] > z[ANSWERS as usize] { ANSWERS + 1 } else { ANSWERS };
        guess == row[row.len() - 1]
    });
    right.count() as f64 / rows.len() as f64
}

pub fn trainer(objective: &str, eps: f64, lr: f64) -> Trainer {
    let mut trainer = lab::trainer(lr);
    let settings = json!({ "zo_eps": eps, "objective": objective });
    trainer.estimator = parts::estimator(&lab::part("mezo", settings)).expect("mezo");
    trainer.optimizer = parts::optimizer(&lab::part("sgd", json!({ "lr": lr }))).expect("sgd");
    let words = json!({ "label_words": [ANSWERS, ANSWERS + 1] });
    trainer.objective = parts::objective(&lab::part("label-words", words)).expect("label words");
    trainer.fused = true;
    trainer
}

/// Accuracy on new texts before and after 3,000 steps of `batch` rows.
pub fn run(seed: u64, batch: usize, mut trainer: Trainer) -> (f64, f64) {
    let task = Task::new(seed);
    let plan = lab::fresh_model(toy::llama(32, 32, 2, 4, 64));
    let plan = Blueprint { seed, full_training: true, ..plan };
    let mut assembly = pretrained(&plan, seed, &task);
    trainer.join(&mut assembly, &plan).expect("an objective in place");
    let mut draws = toy::draws("mezo/task", seed);
    let (train, test) = (task.examples(1000, &mut draws), task.examples(1000, &mut draws));
    let before = accuracy(&assembly, &test);
    let mut order = toy::draws("mezo/batches", seed);
    toy::train(&assembly, &mut trainer, 3000, |_| {
        let rows: Vec<Vec<u32>> = (0..batch).map(|_| train[order.below(1000)].clone()).collect();
        answer_only(&rows)
    });
    (before, accuracy(&assembly, &test))
}

/// The estimate with its sign turned.
struct Flipped(Mezo);

/// The estimate along another direction than the one that was measured.
struct Fresh(Mezo);

impl Stateful for Flipped {}
impl Stateful for Fresh {}

struct Negating<'a>(&'a mut dyn GradSink);

impl GradSink for Negating<'_> {
    fn ready(&mut self, param: &Arc<Param>, grad: Array) -> Result<()> {
        grad.update(|g: &mut [f32]| g.iter_mut().for_each(|g| *g = -*g))?;
        self.0.ready(param, grad)
    }
}

impl Estimator for Flipped {
    fn needs_backward(&self) -> bool {
        false
    }

    fn estimate(&mut self, problem: &mut dyn Problem, sink: &mut dyn GradSink) -> Result<f64> {
        self.0.estimate(problem, &mut Negating(sink))
    }
}

impl Estimator for Fresh {
    fn needs_backward(&self) -> bool {
        false
    }

    fn estimate(&mut self, problem: &mut dyn Problem, sink: &mut dyn GradSink) -> Result<f64> {
        let loss = self.0.estimate(problem, &mut GradStore::new())?;
        let step: Vec<(u64, f64)> =
            self.0.log()[self.0.log().len() - 1].iter().map(|(s, c)| (s + (1 << 40), *c)).collect();
        let scratch = MezoSettings { perturb_mode: PerturbMode::Scratch, ..MezoSettings::default() };
        replay(&scratch, problem.rng(), problem.params(), &step, sink)?;
        Ok(loss)
    }
}

fn mezo() -> Mezo {
    Mezo::new(MezoSettings::default()).expect("settings that hold")
}

/// A trainer whose update goes the other way.
pub fn flipped() -> Trainer {
    Trainer { estimator: Box::new(Flipped(mezo())), ..trainer("loss", 1e-3, 1e-4) }
}

/// A trainer that updates along a direction nobody measured.
pub fn fresh() -> Trainer {
    Trainer { estimator: Box::new(Fresh(mezo())), ..trainer("loss", 1e-3, 1e-4) }
}
