//! The stages of a recipe, one file each.

mod eval;
mod generate;
mod logits;
mod merge;
mod save;
mod tokens;
mod train;

use anyhow::Result;
use ramekin_plan::Bill;
use ramekin_recipe::{Recipe, Stage};
use serde_json::Value as Json;

use crate::assembly::Blueprint;
use crate::run::StageContext;

pub use train::trainer;

/// Runs a stage and returns its figures for the summary.
pub fn run(cx: &mut StageContext<'_>, stage: &Stage, plan: &Blueprint) -> Result<Json> {
    match stage {
        Stage::Train(s) => train::run(cx, s, plan),
        Stage::Generate(s) => generate::run(cx, s, plan),
        Stage::Merge(s) => merge::run(cx, s, plan),
        Stage::Eval(s) => eval::run(cx, s, plan),
        Stage::Logits(s) => logits::run(cx, s, plan),
    }
}

/// A stage's bill, from configs, headers and data.
pub fn bill(name: &str, recipe: &Recipe, stage: &Stage, plan: &Blueprint) -> Result<Bill> {
    match stage {
        Stage::Train(s) => train::bill(name, recipe, s, plan),
        Stage::Logits(_) | Stage::Merge(_) => crate::bill::forward(name, plan, 256),
        Stage::Generate(s) => crate::bill::forward(name, plan, s.max_new_tokens as usize),
        Stage::Eval(s) => crate::bill::forward(name, plan, s.max_new_tokens as usize + 256),
    }
}
