//! `kind = "train"`.

mod beside;
mod chief;
mod prepare;
mod rank;
mod side_by_side;

use std::time::Instant;

use anyhow::Result;
use ramekin_core::{Interrupted, Link, Rng, meter, units};
use ramekin_plan::Bill;
use ramekin_recipe::{Dtype, Part, Recipe, TrainStage};
use ramekin_slots::{ObjectiveFile, TrackContext};
use ramekin_store::write_atomic;
use serde_json::{Map, Value as Json, json};

use self::beside::Beside;
use self::chief::Chief;
use self::prepare::{Prepared, total_steps};
use self::rank::{Job, Rank};
use self::side_by_side::side_by_side;
use super::save;
use crate::assembly::Assembly;
use crate::blueprint::{Blueprint, Loading};
use crate::journal::Journal;
use crate::masks::Masks;
use crate::run::StageContext;
use crate::shared::Shared;
use crate::step::Trainer;
use crate::team::Team;
use crate::{checkpoint, digest, parts};

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
        activation: parts::policy(s)?,
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
        team: Team::alone(),
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
    let mut peers = prepared.comm().map(|c| c.join()).transpose()?.unwrap_or_default().into_iter();
    drop(prepared);

    let plan = &way.plan;
    let rss_before = meter::resident().0;
    let job = Job {
        stage: &way.stage,
        seed: cx.recipe.seed,
        total,
        dir: &cx.dir,
        resumed: cx.resumed,
        sampler: &sampler,
        stop: &cx.options.stop,
    };
    let team = peers.next().map_or_else(Team::alone, |peer| Team::with(peer));
    let mut rank = Rank::begin(&job, plan, team.clone(), Loading::Whole)?;
    let shared = if team.ranks() > 1 { Shared::of(&rank.assembly, plan) } else { Shared::default() };
    let mut journal = Journal::open(&cx.options.out, cx.index, &stage, rank.step, total, s.log_every)?;
    journal.track(
        &s.track,
        &TrackContext {
            run: &cx.recipe.name,
            stage: cx.index,
            out: &cx.options.out,
            base_dir: &cx.options.base_dir,
            recipe: &cx.options.resolved,
            after: rank.step,
        },
    )?;
    let Chief { mut journal, start, mut texts, .. } =
        side_by_side(&job, plan, peers.collect(), &shared, &team, || {
            let mut chief = Chief::begin(&rank, &beside, journal)?;
            if rank.train(Some(&mut chief))? {
                return Ok(chief);
            }
            let (step, out) = (rank.step, cx.options.out.display());
            let where_to = format!("the state is in `{out}`, go on with --resume");
            Err(Interrupted(format!("stopped after step {step} of {total}; {where_to}")).into())
        })?;
    if let Some(why) = &rank.ended {
        ramekin_core::say!("  ended after step {} of {total}: {why}", rank.step);
    }
    let traffic = rank.traffic();
    let Rank { assembly, trainer, step: total, .. } = rank;
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
    for ((link, planned), (_, seen)) in bill.traffic.links().into_iter().zip(traffic.links()) {
        if planned.is_idle() && seen.is_idle() {
            continue;
        }
        let way = |l: Link| format!("{} sent and {} fetched", units::bytes(l.sent), units::bytes(l.fetched));
        ramekin_core::say!("  {link} a step: planned {}, measured {}", way(planned), way(seen));
    }
    let more = json!({
        "loss": loss,
        "tokens_per_s": rate,
        "steps": total,
        "trainable": bill.trainable,
        "planned_peak": bill.peak,
        "measured_peak": measured_peak,
        "planned": bill.at_peak,
        "measured": measured,
        "ranks": team.ranks(),
        "planned_traffic": bill.traffic,
        "measured_traffic": traffic,
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

/// Samples in the summary and on the report page.
const SHOWN: usize = 12;

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
