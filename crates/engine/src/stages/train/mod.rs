//! `kind = "train"`.

mod beside;
mod prepare;

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use anyhow::{Context, Result};
use ramekin_core::{Interrupted, Rng, UserError, meter, units};
use ramekin_data::{Dataset, Sampler};
use ramekin_plan::Bill;
use ramekin_recipe::{Dtype, Part, Recipe, TrainStage};
use ramekin_slots::{Event, Flow, ObjectiveFile, TrackContext};
use ramekin_store::write_atomic;
use serde_json::{Map, Value as Json, json};

use self::beside::{Beside, Start, Texts};
use self::prepare::{Prepared, set_length, total_steps};
use super::save;
use crate::assembly::{Assembly, Blueprint};
use crate::journal::Journal;
use crate::masks::Masks;
use crate::pass::Draw;
use crate::run::StageContext;
use crate::step::{LabelledBatch, Trainer};
use crate::{audit, checkpoint, digest, parts};

/// The parts of a stage's step.
pub fn trainer(s: &TrainStage, seed: u64, total_steps: u64) -> Result<Trainer> {
    let mut gradient = s.gradient.iter().map(parts::gradient).collect::<Result<Vec<_>>>()?;
    if s.max_grad_norm > 0.0 {
        let mut clip = Part::of("clip");
        clip.settings.insert("max_norm".to_owned(), json!(s.max_grad_norm));
        gradient.push(parts::gradient(&clip)?);
    }
    let estimator = parts::estimator(&s.estimator)?;
    let one_by_one = gradient.iter().any(|g| g.updates_in_backward()) || !estimator.needs_backward();
    Ok(Trainer {
        objective: parts::objective(&s.objective)?,
        activation: parts::activation(&s.activation)?,
        estimator,
        optimizer: parts::optimizer(&s.optimizer)?,
        schedule: parts::schedule(&s.schedule)?,
        fused: s.fused_optimizer || one_by_one,
        gradient,
        hooks: s.hook.iter().map(parts::hook).collect::<Result<Vec<_>>>()?,
        groups: Vec::new(),
        total_steps,
        rng: Rng::new(seed),
        masks: Masks::default(),
        draw: None,
    })
}

/// The stage's bill before anything is loaded.
pub fn bill(name: &str, index: usize, recipe: &Recipe, s: &TrainStage, plan: &Blueprint) -> Result<Bill> {
    Ok(Prepared::new(index, recipe, s, plan, false)?.choose(name)?.1)
}

/// Runs the stage.
pub fn run(cx: &mut StageContext<'_>, s: &TrainStage, plan: &Blueprint) -> Result<Json> {
    let stage = cx.name();
    let started = Instant::now();
    let prepared = Prepared::new(cx.index, cx.recipe, s, plan, true)?;
    for note in &prepared.rows()?.train.report.notes {
        ramekin_core::say!("  data: {note}");
    }
    let (way, bill) = prepared.choose(&stage)?;
    ramekin_core::say!("{}", bill.table().trim_end());
    if let Some(budget) = cx.recipe.memory.budget {
        bill.check(budget.0)?;
    }
    write_atomic(cx.dir.join("plan.json"), &serde_json::to_vec_pretty(&bill)?)?;
    let sampler = prepared.sampler(&way)?;
    let total = total_steps(cx.index, s, &sampler)?;
    let beside = Beside::new(s, Some(prepared.rows()?), &way)?;
    drop(prepared);

    let plan = &way.plan;
    let rss_before = meter::resident().0;
    let mut assembly = plan.assemble(false)?;
    let mut trainer = trainer(&way.stage, cx.recipe.seed, total)?;
    parts::placed(&s.objective, trainer.join(&mut assembly, plan))?;
    trainer.groups = assembly.adapters.iter().flat_map(|a| a.adapter.groups()).collect();
    trainer.draw = Some(draw(sampler.data().clone(), cx.recipe.seed));
    trainer.calibrate(&assembly)?;
    set_length(&assembly, &sampler)?;

    let checkpoints = checkpoint::open(&cx.dir, s.checkpoint.keep as usize)?;
    let (mut step, mut ended) = (0, None);
    if cx.resumed
        && let Some(found) = checkpoint::restore(&checkpoints, &assembly, &mut trainer)?
    {
        (step, ended) = (found.step, found.ended);
        ramekin_core::say!("  resuming after step {step} of {total}");
    }
    let mut journal = Journal::open(&cx.options.out, cx.index, &stage, step, total, s.log_every)?;
    journal.track(
        &s.track,
        &TrackContext {
            run: &cx.recipe.name,
            stage: cx.index,
            out: &cx.options.out,
            base_dir: &cx.options.base_dir,
            recipe: &cx.options.resolved,
            after: step,
        },
    )?;
    let start = if step == 0 {
        trainer.choose(&assembly, 0)?;
        let audit = if s.audit { check_first(&assembly, &trainer, &sampler, &journal)? } else { Vec::new() };
        // The audit's own copies of gradients are no part of a step.
        meter::current().reset_peak();
        let start = Start::look(&assembly, &*trainer.objective, &beside, audit, &mut journal)?;
        write_atomic(cx.dir.join("start.json"), &serde_json::to_vec(&start)?)?;
        start
    } else {
        let file = cx.dir.join("start.json");
        serde_json::from_slice(&std::fs::read(&file).unwrap_or_default())
            .with_context(|| format!("`{}` is damaged", file.display()))?
    };
    let mut texts = Texts::open(&cx.dir, &start, step.min(total - 1))?;
    let meter = meter::current();
    if step < total && ended.is_none() {
        trainer.event(Event::Begin, &assembly, step, f64::NAN, &Map::new())?;
    }
    while step < total && ended.is_none() {
        let begun = Instant::now();
        meter.reset_peak();
        let batches: Vec<LabelledBatch> =
            sampler.step(step as usize).into_iter().map(LabelledBatch::new).collect();
        let report = trainer.step(&assembly, &batches, step)?;
        drop(batches);
        step += 1;
        journal.step(step, &report, begun)?;
        let mut flow = report.flow;
        if step < total {
            let eval = beside.eval.as_ref().filter(|e| step.is_multiple_of(e.every));
            let writer = beside.samples.as_ref().filter(|w| step.is_multiple_of(w.every));
            if eval.is_some() || writer.is_some() {
                trainer.event(Event::BeforeEval, &assembly, step, report.loss, &Map::new())?;
                let mut figures = Map::new();
                if let Some(e) = eval {
                    figures = e.run(&assembly, &*trainer.objective)?.0;
                    journal.eval(step, &figures)?;
                }
                if let Some(w) = writer {
                    texts.add(step, w.run(&assembly)?)?;
                    journal.observe();
                }
                let wish = trainer.event(Event::AfterEval, &assembly, step, report.loss, &figures)?;
                flow = if flow == Flow::Go { wish } else { flow };
            }
        }
        if let Flow::Stop(why) = flow {
            ended = Some(why).filter(|_| step < total);
        }
        let stop = cx.options.stop.load(Ordering::SeqCst);
        let due = s.checkpoint.every.is_some_and(|n| step.is_multiple_of(n));
        if due || stop || step == total || ended.is_some() {
            let epoch = sampler.epoch_at(step as usize);
            checkpoint::save(&checkpoints, step, epoch, &assembly, &trainer, ended.as_deref())?;
        }
        if stop && step < total && ended.is_none() {
            let out = cx.options.out.display();
            let message =
                format!("stopped after step {step} of {total}; the state is in `{out}`, go on with --resume");
            return Err(Interrupted(message).into());
        }
    }
    if let Some(why) = &ended {
        ramekin_core::say!("  ended after step {step} of {total}: {why}");
    }
    let total = step;
    trainer.finish(&assembly, step)?;
    trainer.event(Event::End, &assembly, step, journal.last_loss().unwrap_or(f64::NAN), &Map::new())?;
    let mut figures = Map::new();
    if let Some(e) = &beside.eval {
        let (found, answers) = e.run(&assembly, &*trainer.objective)?;
        journal.eval(total, &found)?;
        figures.insert("eval".to_owned(), json!(found));
        figures.insert("eval_before".to_owned(), json!(start.eval));
        texts.add(total, start.beside(answers))?;
    }
    if let Some(w) = &beside.samples {
        texts.add(total, start.beside_samples(w.run(&assembly)?))?;
        journal.observe();
    }
    let loss = journal.last_loss();
    let (measured_peak, measured, rate) = journal.finish();
    leave(cx, plan, &assembly, &trainer.objective.file())?;
    let peak_rss = meter::resident().1;
    ramekin_core::say!(
        "  peak: planned {}, measured {}, resident {}",
        units::bytes(bill.peak),
        units::bytes(measured_peak),
        units::bytes(peak_rss)
    );
    let more = json!({
        "loss": loss,
        "tokens_per_s": rate,
        "steps": total,
        "trainable": bill.trainable,
        "planned_peak": bill.peak,
        "measured_peak": measured_peak,
        "planned": bill.at_peak,
        "measured": measured,
        "rss_before": rss_before,
        "peak_rss": peak_rss,
        "budget": cx.recipe.memory.budget.map(|b| b.0),
        "seconds": started.elapsed().as_secs_f64(),
        "audit": start.audit,
        "changes": bill.changes,
        "samples": texts.last(SHOWN),
    });
    figures.extend(more.as_object().cloned().unwrap_or_default());
    Ok(Json::Object(figures))
}

/// Rows for looks beside the steps: each stream has an order of its own.
fn draw(data: Arc<Dataset>, seed: u64) -> Draw {
    Rc::new(move |stream, index, rows| {
        let own = Rng::new(seed).named("probe", stream).u64_at(0);
        LabelledBatch::new(Sampler::new(data.clone(), own, rows, 1).batch(index as usize, 0))
    })
}

/// Samples in the summary and on the report page.
const SHOWN: usize = 12;

/// The audit before step 1.
fn check_first(
    assembly: &Assembly,
    trainer: &Trainer,
    sampler: &Sampler,
    journal: &Journal,
) -> Result<Vec<audit::Check>> {
    let begun = Instant::now();
    let first = LabelledBatch::new(sampler.batch(0, 0));
    let mut checks = audit::run(assembly, trainer, &first).context("the audit before step 1")?;
    checks.extend(text_audit(assembly, sampler)?);
    for c in &checks {
        journal.say(&format!("audit: {}: {}", c.name, c.result));
    }
    journal.say(&format!("audit passed in {:.1} s", begun.elapsed().as_secs_f64()));
    Ok(checks)
}

/// Looks at real rows: BOS, EOS, masks.
fn text_audit(assembly: &Assembly, sampler: &Sampler) -> Result<Vec<audit::Check>> {
    let Some(tokenizer) = &assembly.tokenizer else { return Ok(Vec::new()) };
    let (data, vocabulary) = (sampler.data(), assembly.model.facts().vocab_size);
    let found = ramekin_data::audit::audit(data, tokenizer, vocabulary, 200, 1, false);
    if let Some(error) = found.errors.first() {
        return Err(UserError::new(format!("audit: {error}")).in_file(&data.name).into());
    }
    Ok(found.lines().into_iter().map(|l| audit::Check { name: "rows".to_owned(), result: l }).collect())
}

/// Saves what was trained and leaves it to the next stage.
fn leave(
    cx: &mut StageContext<'_>,
    plan: &Blueprint,
    assembly: &Assembly,
    beside: &ObjectiveFile,
) -> Result<()> {
    if plan.trains_base() {
        let folder = cx.dir.join("model");
        let dtype = save::dtype(plan.model.dtype.unwrap_or(Dtype::F32));
        let notes = Map::from_iter([(digest::BASES.to_owned(), digest::lineage(plan)?)]);
        save::model(assembly, beside, &folder, dtype, 5_000_000_000, notes)?;
        let mut made = vec![folder.clone()];
        if let Some(file) = assembly.selection.borrow().as_ref().map(|s| s.file()).transpose()?.flatten() {
            let delta = cx.dir.join("delta");
            save::selection(plan, &file, &delta)?;
            made.push(delta);
        }
        cx.publish(&made)?;
        cx.carry.leave_model(&folder.canonicalize()?);
        return Ok(());
    }
    let folder = cx.dir.join("adapter");
    let made = save::adapters(assembly, beside, &folder, cx.recipe.seed, &digest::lineage(plan)?)?;
    cx.publish(&made)?;
    let file = folder.join("adapter_model.safetensors");
    cx.carry.note_hash("adapter/adapter_model.safetensors", checkpoint::sha256(&file)?);
    let made =
        made.iter().map(|f| Ok(f.canonicalize()?.display().to_string())).collect::<Result<Vec<_>>>()?;
    cx.carry.leave_adapters(plan, made);
    Ok(())
}
