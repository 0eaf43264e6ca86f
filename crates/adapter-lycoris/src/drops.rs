//! Dropout of whole rows of an update, and of whole updates, in training.

use anyhow::Result;
use ramekin_core::{Array, Category};
use ramekin_slots::{Forward, LinearSite};
use ramekin_tape::{Value, dispatch, ops};

/// What is dropped; drawn by micro-batch and module, so that a forward that is run again drops the same.
pub(crate) struct Drops {
    /// The part, for the addresses of its randomness.
    pub(crate) name: &'static str,
    /// Chance of a row.
    pub(crate) rows: f64,
    /// Chance of a whole module.
    pub(crate) module: f64,
    /// Divides the rows that stay by their share.
    pub(crate) rescale: bool,
}

impl Drops {
    /// Whether this module's update is left out.
    pub(crate) fn module(&self, fx: &Forward, site: &LinearSite) -> bool {
        fx.mode.training
            && self.module > 0.0
            && fx.stream(&format!("{}/module_dropout", self.name), &site.path).uniform_at(0) < self.module
    }

    /// The branch `[…, O]` without the rows of ΔW that are dropped, as they are its columns.
    pub(crate) fn rows(&self, fx: &Forward, site: &LinearSite, branch: Value) -> Result<Value> {
        if !fx.mode.training || self.rows == 0.0 {
            return Ok(branch);
        }
        let stream = fx.stream(&format!("{}/rank_dropout", self.name), &site.path);
        let o = site.shape.0;
        let kept: Vec<bool> = (0..o).map(|i| stream.uniform_at(i as u64) >= self.rows).collect();
        let count = kept.iter().filter(|k| **k).count();
        let factor = if self.rescale { o as f64 / count.max(1) as f64 } else { 1.0 };
        let like = branch.array();
        let mask = dispatch!(like, T => Array::build::<T>(&[o], like.is_shape_only(), Category::Workspace, |out| {
            for (m, kept) in out.iter_mut().zip(&kept) {
                *m = if *kept { factor as T } else { 0.0 };
            }
            Ok(())
        }))?;
        ops::mul_row(&fx.tape, &branch, &Value::constant(mask))
    }
}
