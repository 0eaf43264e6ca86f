//! `kind = "search"`: a recipe is cooked again and again with other values of some of its keys.
//!
//! Each trial is a run in a folder of its own, `trials/NNN`. What is tried is a
//! pure function of what is done, so an interrupted search goes on where it
//! was, inside a trial too.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context, Result, bail};
use ramekin_core::{BadRecipe, Rng};
use ramekin_plan::Bill;
use ramekin_recipe::{Goal, SearchStage, Values, setting};
use ramekin_slots::{Axis, Space, Trial};
use ramekin_store::write_atomic;
use serde_json::{Map, Value as Json, json};

use super::tried::{Tried, columns};
use crate::parts;
use crate::run::StageContext;

/// The bills of the recipe as it is written.
pub fn bills(index: usize, s: &SearchStage, base_dir: &Path) -> Result<Vec<Bill>> {
    Tried::load((index, "search"), &s.recipe, base_dir, &[])?.plan()
}

fn space(s: &SearchStage) -> Space {
    let axis = |values: &Values| match values {
        Values::List(all) => Axis::Values(all.clone()),
        Values::Range(r) => Axis::Range { min: r.min, max: r.max, log: r.log, integer: r.integer },
    };
    s.space.iter().map(|(key, values)| (key.clone(), axis(values))).collect()
}

/// The figure that `STAGE/KEY.KEY` names.
fn figure(stages: &Map<String, Json>, metric: &str) -> Option<f64> {
    let (stage, key) = metric.split_once('/')?;
    key.split('.').try_fold(stages.get(stage)?, |at, k| at.get(k))?.as_f64()
}

/// A trial with what went wrong, if anything did.
struct Done {
    trial: Trial,
    figure: Option<f64>,
    fault: Option<String>,
}

/// Runs the stage.
pub fn run(cx: &mut StageContext<'_>, s: &SearchStage) -> Result<Json> {
    let (space, search) = (space(s), parts::search(&s.search)?);
    let rng = Rng::new(cx.recipe.seed);
    let total = parts::placed(&s.search, search.trials(&space))?;
    let mut tried: Vec<Done> = Vec::new();
    loop {
        let done: Vec<Trial> = tried.iter().map(|t| t.trial.clone()).collect();
        let Some(values) = parts::placed(&s.search, search.next(&space, &done, rng))? else { break };
        let named: Vec<String> = space.iter().zip(&values).map(|((k, _), v)| setting(k, v)).collect();
        ramekin_core::say!("trial {} of {total}: {}", tried.len() + 1, named.join("  "));
        let (found, fault) = cook(cx, s, tried.len(), &named)?;
        let score = found.map(|x| if s.goal == Goal::Max { -x } else { x });
        tried.push(Done { trial: Trial { values, score }, figure: found, fault });
        write_lines(cx, &space, &tried)?;
    }
    let best = best(&tried).with_context(|| format!("none of the {total} trials gave `{}`", s.metric))?;
    let cells = cells(&space, &tried, best, &s.metric);
    let table = columns(&cells, usize::MAX);
    ramekin_core::say!("{}", table.trim_end());
    write_atomic(cx.dir.join("trials.txt"), table.as_bytes())?;
    let points: Vec<(f64, f64)> =
        tried.iter().enumerate().filter_map(|(i, t)| Some((i as f64, t.figure?))).collect();
    let marked = tried[..best].iter().filter(|t| t.figure.is_some()).count();
    let title = format!("{} by trial", s.metric);
    write_atomic(cx.dir.join("trials.svg"), ramekin_report::scatter(&title, &points, marked).as_bytes())?;
    let chosen: Map<String, Json> =
        space.iter().map(|(k, _)| k.clone()).zip(tried[best].trial.values.iter().cloned()).collect();
    Ok(json!({
        "trials": tried.len(),
        "failed": tried.iter().filter(|t| t.fault.is_some()).count(),
        "metric": s.metric,
        "best": tried[best].figure,
        "best_trial": best,
        "values": chosen,
        "table": cells,
    }))
}

/// Runs one trial, or reads what it left before.
fn cook(
    cx: &StageContext<'_>,
    s: &SearchStage,
    number: usize,
    overrides: &[String],
) -> Result<(Option<f64>, Option<String>)> {
    let out = cx.dir.join("trials").join(format!("{number:03}"));
    let tried = Tried::load((cx.index, "search"), &s.recipe, &cx.options.base_dir, overrides)?;
    match tried.cook(cx, out) {
        Ok(outcome) => match figure(&outcome.stages, &s.metric) {
            Some(x) if x.is_finite() => Ok((Some(x), None)),
            Some(x) => Ok((None, Some(format!("`{}` is {x}", s.metric)))),
            None => {
                let stages: Vec<&String> = outcome.stages.keys().collect();
                Err(BadRecipe::new(format!("there is no figure `{}`", s.metric))
                    .at(format!("stage.{}.metric", cx.index), format!("stages of a trial: {stages:?}"))
                    .help("write `STAGE/KEY`, such as `0-train/eval.loss`; `summary.json` of a trial shows them all")
                    .into())
            }
        },
        // A trial that diverges or does not fit is a result; a mistake in the recipe is everybody's.
        Err(e) if matches!(ramekin_core::exit_code(&e), 1 | 3) => {
            ramekin_core::say!("  trial failed: {e:#}");
            Ok((None, Some(format!("{e:#}"))))
        }
        Err(e) if ramekin_core::exit_code(&e) == 2 => bail!(e.context(format!("trial {number}"))),
        Err(e) => Err(e),
    }
}

fn best(tried: &[Done]) -> Option<usize> {
    let scored = tried.iter().enumerate().filter_map(|(i, t)| Some((i, t.trial.score?)));
    scored.min_by(|a, b| a.1.total_cmp(&b.1)).map(|(i, _)| i)
}

/// `trials.jsonl`: a line a trial.
fn write_lines(cx: &StageContext<'_>, space: &Space, tried: &[Done]) -> Result<()> {
    let mut text = String::new();
    for (i, t) in tried.iter().enumerate() {
        let values: Map<String, Json> =
            space.iter().map(|(k, _)| k.clone()).zip(t.trial.values.iter().cloned()).collect();
        let line = json!({ "trial": i, "values": values, "figure": t.figure, "fault": t.fault });
        let _ = writeln!(text, "{line}");
    }
    write_atomic(cx.dir.join("trials.jsonl"), text.as_bytes())
}

/// Trials, the best first, the best marked.
fn cells(space: &Space, tried: &[Done], best: usize, metric: &str) -> Vec<Vec<String>> {
    let mut rows: Vec<usize> = (0..tried.len()).collect();
    rows.sort_by(|a, b| {
        let score = |i: &usize| tried[*i].trial.score.unwrap_or(f64::INFINITY);
        score(a).total_cmp(&score(b)).then(a.cmp(b))
    });
    let mut cells = vec![vec!["trial".to_owned(), metric.to_owned()]];
    cells[0].extend(space.iter().map(|(k, _)| k.clone()));
    for i in rows {
        let t = &tried[i];
        let figure = t.figure.map_or_else(|| "failed".to_owned(), |x| format!("{x:.6}"));
        let mut row = vec![format!("{i:03}{}", if i == best { " *" } else { "" }), figure];
        row.extend(t.trial.values.iter().map(ToString::to_string));
        cells.push(row);
    }
    cells
}
