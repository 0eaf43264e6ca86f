//! The stages of a recipe, one file each.

pub(crate) mod bench;
mod compress;
mod data;
mod eval;
mod generate;
mod logits;
mod merge;
mod save;
pub(crate) mod search;
mod tokens;
mod train;
mod tried;

use anyhow::Result;
use ramekin_core::meter;
use ramekin_plan::Bill;
use ramekin_recipe::{Recipe, Stage};
use ramekin_store::write_atomic;
use serde_json::Value as Json;

use crate::blueprint::Blueprint;
use crate::run::StageContext;

pub use train::trainer;

/// Runs a stage and returns its figures for the summary.
///
/// # Errors
/// [`ramekin_core::Unfit`] where the bill is beyond the budget; else what goes wrong in the stage.
pub fn run(cx: &mut StageContext<'_>, stage: &Stage, plan: &Blueprint) -> Result<Json> {
    if let Stage::Train(s) = stage {
        return train::run(cx, s, plan); // chooses among what the budget's `allow` names
    }
    let bill = bill(&cx.name(), cx.index, cx.recipe, stage, plan)?;
    if let Some(budget) = cx.recipe.memory.budget {
        bill.check(budget.0)?;
    }
    write_atomic(cx.dir.join("plan.json"), &serde_json::to_vec_pretty(&bill)?)?;
    let meter = meter::current();
    meter.reset_peak();
    let mut figures = match stage {
        Stage::Generate(s) => generate::run(cx, s, plan)?,
        Stage::Merge(s) => merge::run(cx, s, plan)?,
        Stage::Eval(s) => eval::run(cx, s, plan)?,
        Stage::Logits(s) => logits::run(cx, s, plan)?,
        Stage::Compress(s) => compress::run(cx, s, plan)?,
        Stage::Train(s) => train::run(cx, s, plan)?,
        Stage::Search(s) => return search::run(cx, s),
        Stage::Bench(s) => return bench::run(cx, s),
    };
    figures["planned_peak"] = bill.total().into();
    figures["measured_peak"] = meter.peak().into();
    figures["peak_rss"] = meter::resident().1.into();
    Ok(figures)
}

/// A stage's bill, from configs, headers and data.
pub fn bill(name: &str, index: usize, recipe: &Recipe, stage: &Stage, plan: &Blueprint) -> Result<Bill> {
    match stage {
        Stage::Train(s) => train::bill(name, index, recipe, s, plan),
        Stage::Logits(s) => logits::bill(name, s, plan),
        Stage::Compress(s) => compress::bill(name, s, plan),
        Stage::Merge(s) => merge::bill(name, s, plan),
        Stage::Generate(s) => generate::bill(name, s, plan),
        Stage::Eval(s) => eval::bill(name, index, s, plan),
        Stage::Search(_) | Stage::Bench(_) => Ok(Bill { stage: name.to_owned(), ..Bill::default() }), // what they try has its own
    }
}
