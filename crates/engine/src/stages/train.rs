//! `kind = "train"`.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use anyhow::{Context, Result};
use ramekin_core::{Interrupted, Rng, UserError, meter, units};
use ramekin_data::{DataSettings, Dataset, Sampler};
use ramekin_plan::Bill;
use ramekin_recipe::{Part, Recipe, TrainStage};
use ramekin_store::write_atomic;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value as Json, json};

use super::eval::{Answer, Evaluation, ensure_references, evaluate, names};
use super::save;
use super::tokens::TokenFile;
use crate::assembly::{Assembly, Blueprint, ensure_trainable};
use crate::bill::StepShape;
use crate::checkpoint;
use crate::journal::Journal;
use crate::parts;
use crate::run::StageContext;
use crate::step::{LabelledBatch, StepReport, Trainer};
use crate::{audit, bill};

/// The parts of a stage's step.
pub fn trainer(s: &TrainStage, seed: u64, total_steps: u64) -> Result<Trainer> {
    let mut gradient = s.gradient.iter().map(parts::gradient).collect::<Result<Vec<_>>>()?;
    if s.max_grad_norm > 0.0 {
        let mut clip = Part::of("clip");
        clip.settings.insert("max_norm".to_owned(), json!(s.max_grad_norm));
        gradient.push(parts::gradient(&clip)?);
    }
    Ok(Trainer {
        objective: parts::objective(&s.objective)?,
        activation: parts::activation(&s.activation)?,
        optimizer: parts::optimizer(&s.optimizer)?,
        schedule: parts::schedule(&s.schedule)?,
        gradient,
        groups: Vec::new(),
        total_steps,
        rng: Rng::new(seed),
    })
}

/// A data part's rows.
pub fn load_data(assembly: &Assembly, part: &Part, base_dir: &Path) -> Result<Dataset> {
    let settings = parts::data_settings(part)?;
    if let DataSettings::Tokens(t) = &settings {
        let path = base_dir.join(&t.path);
        let file = TokenFile::read(&path)?;
        return Dataset::from_token_rows(path.display().to_string(), file.ids, file.mask, file.labels);
    }
    settings.load(assembly.tokenizer()?, base_dir)
}

/// Rows a micro-batch and micro-batches a step.
fn batch_sizes(s: &TrainStage, data: &Dataset) -> (usize, usize) {
    let tokens_file = s.data.kind == "tokens";
    let rows = if tokens_file { data.rows.len() } else { s.batch.micro_batch_size as usize };
    let micros = match (s.batch.gradient_accumulation_steps, s.batch.tokens) {
        (Some(n), _) => n as usize,
        (None, Some(tokens)) => (tokens as f64 / (rows as f64 * data.mean_row())).round().max(1.0) as usize,
        (None, None) => 1,
    };
    (rows.max(1), micros.max(1))
}

fn total_steps(s: &TrainStage, sampler: &Sampler) -> u64 {
    s.steps.unwrap_or_else(|| sampler.steps_for(s.epochs.unwrap_or(3.0)) as u64).max(1)
}

fn shape_of(sampler: &Sampler, steps: u64) -> StepShape {
    let largest = sampler.largest(steps);
    StepShape {
        segments: largest.segments,
        active: largest.active,
        micro_batches: sampler.micros_per_step(),
        exact: largest.met,
    }
}

/// Text larger than this is not tokenised for a plan; its upper bound is billed.
const READ_FOR_PLAN: u64 = 4 << 20;

/// The stage's bill before anything is loaded.
pub fn bill(name: &str, recipe: &Recipe, s: &TrainStage, plan: &Blueprint) -> Result<Bill> {
    let mut trainer = trainer(s, recipe.seed, 100)?;
    let settings = parts::data_settings(&s.data)?;
    let small = settings
        .paths()
        .iter()
        .map(|p| std::fs::metadata(plan.base_dir.join(p)).map_or(u64::MAX, |m| m.len()))
        .fold(0u64, u64::saturating_add)
        <= READ_FOR_PLAN;
    let shape = if small && !matches!(settings, DataSettings::Builtin(_)) {
        let assembly = {
            let _scope = meter::scope(ramekin_core::Meter::new());
            plan.assemble(true)?
        };
        let data = load_data(&assembly, &s.data, &plan.base_dir)?;
        let (rows, micros) = batch_sizes(s, &data);
        let sampler = Sampler::new(Arc::new(data), recipe.seed, rows, micros);
        shape_of(&sampler, total_steps(s, &sampler))
    } else {
        let length = settings.preparation().map_or(1024, |p| p.max_length).max(2);
        let rows = s.batch.micro_batch_size as usize;
        let segments = vec![length; rows];
        StepShape { active: length * rows, segments, micro_batches: 2, exact: false }
    };
    bill::train(name, plan, &mut trainer, &shape)
}

struct Evaluator<'a> {
    data: Dataset,
    settings: Evaluation<'a>,
    every: u64,
}

/// Runs the stage.
pub fn run(cx: &mut StageContext<'_>, s: &TrainStage, plan: &Blueprint) -> Result<Json> {
    let stage = cx.name();
    let started = Instant::now();
    let assembly = plan.assemble(false)?;
    ensure_trainable(&assembly)?;
    let mut data = load_data(&assembly, &s.data, &plan.base_dir)?;
    for note in &data.report.notes {
        eprintln!("  data: {note}");
    }
    let held_out = data.dev.take();
    let (rows, micros) = batch_sizes(s, &data);
    let (decoder, kv) = (parts::decoder(&Part::of("greedy"))?, parts::kv(&Part::of("full"))?);
    let evaluator = s
        .eval
        .as_ref()
        .map(|e| -> Result<Evaluator<'_>> {
            let settings = Evaluation {
                metrics: names(&e.metrics),
                decoder: &*decoder,
                kv: &*kv,
                max_rows: e.max_rows.map(|n| n as usize),
                max_new_tokens: e.max_new_tokens as usize,
                rows,
            };
            let data = match (&e.data, &held_out) {
                (Some(part), _) => load_data(&assembly, part, &plan.base_dir)?,
                (None, Some(dev)) => (**dev).clone(),
                (None, None) => anyhow::bail!("`eval` has no rows"), // the recipe's reader refuses that
            };
            ensure_references(&data, &e.metrics, &format!("stage.{}.eval.metrics", cx.index))?;
            Ok(Evaluator { data, settings, every: e.every.unwrap_or(u64::MAX) })
        })
        .transpose()?;

    let data = Arc::new(data);
    let sampler = Sampler::new(data.clone(), cx.recipe.seed, rows, micros);
    let total = total_steps(s, &sampler);
    let mut trainer = trainer(s, cx.recipe.seed, total)?;

    let bill = bill::train(&stage, plan, &mut trainer, &shape_of(&sampler, total))?;
    trainer = self::trainer(s, cx.recipe.seed, total)?;
    eprint!("{}", bill.table());
    if let Some(budget) = cx.recipe.memory.budget {
        bill.check(budget.0, None)?;
    }
    write_atomic(cx.dir.join("plan.json"), &serde_json::to_vec_pretty(&bill)?)?;
    trainer.groups = assembly.adapters.iter().flat_map(|a| a.adapter.groups()).collect();

    let checkpoints = checkpoint::open(&cx.dir, s.checkpoint.keep as usize)?;
    let mut step = 0;
    if cx.resumed
        && let Some(at) = checkpoint::restore(&checkpoints, &assembly, &mut trainer)?
    {
        step = at;
        eprintln!("  resuming after step {step} of {total}");
    }
    let mut journal = Journal::open(&cx.options.out, cx.index, &stage, step, total, s.log_every)?;
    let start = if step == 0 {
        let audit =
            if s.audit { check_first(&assembly, &trainer, &sampler, &data, &journal)? } else { Vec::new() };
        let start = Start::look(&assembly, evaluator.as_ref(), audit, &mut journal)?;
        write_atomic(cx.dir.join("start.json"), &serde_json::to_vec(&start)?)?;
        start
    } else {
        let file = cx.dir.join("start.json");
        serde_json::from_slice(&std::fs::read(&file).unwrap_or_default())
            .with_context(|| format!("`{}` is damaged", file.display()))?
    };
    let meter = meter::current();
    let mut last = None;
    while step < total {
        let begun = Instant::now();
        meter.reset_peak();
        let batches: Vec<LabelledBatch> =
            sampler.step(step as usize).into_iter().map(LabelledBatch::new).collect();
        let report = trainer.step(&assembly, &batches, step)?;
        drop(batches);
        step += 1;
        journal.step(step, &report, begun)?;
        last = Some(report);
        if let Some(e) = evaluator.as_ref().filter(|e| step.is_multiple_of(e.every) && step < total) {
            let (found, _) = evaluate(&assembly, &e.data, &e.settings)?;
            journal.eval(step, &found)?;
        }
        let stop = cx.options.stop.load(Ordering::SeqCst);
        let due = s.checkpoint.every.is_some_and(|n| step.is_multiple_of(n)) || step == total;
        if due || stop {
            checkpoint::save(&checkpoints, step, sampler.epoch_at(step as usize), &assembly, &trainer)?;
        }
        if stop && step < total {
            let out = cx.options.out.display();
            let message =
                format!("stopped after step {step} of {total}; the state is in `{out}`, go on with --resume");
            return Err(Interrupted(message).into());
        }
    }
    let mut figures = Map::new();
    let mut samples = Vec::new();
    if let Some(e) = &evaluator {
        let (found, answers) = evaluate(&assembly, &e.data, &e.settings)?;
        journal.eval(total, &found)?;
        figures.insert("eval".to_owned(), json!(found));
        figures.insert("eval_before".to_owned(), json!(start.eval));
        samples = start.beside(answers);
    }
    let (measured_peak, measured, rate) = journal.finish();
    leave(cx, plan, &assembly)?;
    write_samples(cx, &samples)?;
    samples.truncate(SHOWN);
    let peak_rss = meter::resident().1;
    eprintln!(
        "  peak: planned {}, measured {}, resident {}",
        units::bytes(bill.peak),
        units::bytes(measured_peak),
        units::bytes(peak_rss)
    );
    let more = json!({
        "loss": last.map(|r: StepReport| r.loss),
        "tokens_per_s": rate,
        "steps": total,
        "trainable": bill.trainable,
        "planned_peak": bill.peak,
        "measured_peak": measured_peak,
        "planned": bill.at_peak,
        "measured": measured,
        "peak_rss": peak_rss,
        "budget": cx.recipe.memory.budget.map(|b| b.0),
        "seconds": started.elapsed().as_secs_f64(),
        "audit": start.audit,
        "samples": samples,
    });
    figures.extend(more.as_object().cloned().unwrap_or_default());
    Ok(Json::Object(figures))
}

/// Samples in the summary and on the report page.
const SHOWN: usize = 12;

/// How things stood before step 1; kept for a run that is resumed.
#[derive(Serialize, Deserialize)]
struct Start {
    eval: Map<String, Json>,
    answers: Vec<Answer>,
    audit: Vec<audit::Check>,
}

impl Start {
    fn look(
        assembly: &Assembly,
        evaluator: Option<&Evaluator<'_>>,
        audit: Vec<audit::Check>,
        journal: &mut Journal,
    ) -> Result<Self> {
        let Some(e) = evaluator else { return Ok(Start { eval: Map::new(), answers: Vec::new(), audit }) };
        let (eval, answers) = evaluate(assembly, &e.data, &e.settings)?;
        journal.eval(0, &eval)?;
        Ok(Start { eval, answers, audit })
    }

    /// Each answer with what it was before.
    fn beside(&self, after: Vec<Answer>) -> Vec<Json> {
        let mut all = Vec::with_capacity(after.len());
        for (i, answer) in after.into_iter().enumerate() {
            let mut line = json!(answer);
            if let Some(before) = self.answers.get(i) {
                line["before"] = json!(before.completion);
                line["before_right"] = json!(before.right);
            }
            all.push(line);
        }
        all
    }
}

/// The audit before step 1.
fn check_first(
    assembly: &Assembly,
    trainer: &Trainer,
    sampler: &Sampler,
    data: &Dataset,
    journal: &Journal,
) -> Result<Vec<audit::Check>> {
    let begun = Instant::now();
    let first = LabelledBatch::new(sampler.batch(0, 0));
    let mut checks = audit::run(assembly, trainer, &first).context("the audit before step 1")?;
    checks.extend(text_audit(assembly, data)?);
    for c in &checks {
        journal.say(&format!("audit: {}: {}", c.name, c.result));
    }
    journal.say(&format!("audit passed in {:.1} s", begun.elapsed().as_secs_f64()));
    Ok(checks)
}

/// Looks at real rows: BOS, EOS, masks.
fn text_audit(assembly: &Assembly, data: &Dataset) -> Result<Vec<audit::Check>> {
    let Some(tokenizer) = &assembly.tokenizer else { return Ok(Vec::new()) };
    let found = ramekin_data::audit::audit(data, tokenizer, assembly.model.facts().vocab_size, 200, 1, false);
    if let Some(error) = found.errors.first() {
        return Err(UserError::new(format!("audit: {error}")).in_file(&data.name).into());
    }
    Ok(found.lines().into_iter().map(|l| audit::Check { name: "rows".to_owned(), result: l }).collect())
}

/// Saves what was trained and leaves it to the next stage.
fn leave(cx: &mut StageContext<'_>, plan: &Blueprint, assembly: &Assembly) -> Result<()> {
    let out = &cx.options.out;
    if plan.full_training {
        let folder = out.join("model");
        save::model(assembly, &folder, save::dtype(plan.model.dtype), 5_000_000_000)?;
        let folder = folder.canonicalize()?;
        cx.carry.leave_model(&folder);
        return Ok(());
    }
    let folder = out.join("adapter");
    let made = save::adapters(assembly, &folder, cx.recipe.seed)?;
    let file = folder.join("adapter_model.safetensors");
    cx.carry.note_hash("adapter/adapter_model.safetensors", checkpoint::sha256(&file)?);
    let made =
        made.iter().map(|f| Ok(f.canonicalize()?.display().to_string())).collect::<Result<Vec<_>>>()?;
    cx.carry.leave_adapters(plan, made);
    Ok(())
}

/// `samples.jsonl`: prompts with the answers before and after.
fn write_samples(cx: &StageContext<'_>, samples: &[Json]) -> Result<()> {
    if samples.is_empty() {
        return Ok(());
    }
    let mut text = String::new();
    for line in samples {
        text.push_str(&line.to_string());
        text.push('\n');
    }
    write_atomic(cx.options.out.join("samples.jsonl"), text.as_bytes())?;
    Ok(())
}
