//! Trained slices on one base: added, exchanged, and mixed in a batch.
//!
//! ΔW = D Pᵀ (columns) or P D (rows), P one-hot: adding one touches n columns or rows of its matrix.
//! Slices that overlap add up.

use std::cell::RefCell;
use std::path::Path;
use std::rc::Rc;

use anyhow::{Context, Result, ensure};
use ramekin_core::{Array, Category, UserError};
use ramekin_slots::{Below, Forward, LinearAdapter, LinearBase, LinearSite, SelectionFile, Sites};
use ramekin_store::Index;
use ramekin_tape::Value;
use serde_json::Value as Json;

use crate::ops;
use crate::site::{Side, add};

/// One slice as it was saved.
pub struct SavedSlice {
    /// The linear.
    pub path: String,
    /// Rows or columns.
    pub side: Side,
    /// Places in the model's own order.
    pub indices: Rc<Vec<u32>>,
    /// `[O, n]` or `[n, I]`.
    pub delta: Array,
}

/// What one training left.
pub struct SliceSet {
    /// A slice a linear.
    pub slices: Vec<SavedSlice>,
}

impl SliceSet {
    /// From the folder `delta/` that a stage left.
    ///
    /// # Errors
    /// [`UserError`] naming the file where it holds something else.
    pub fn read(folder: &Path) -> Result<Self> {
        let file = folder.join("selection.json");
        let text = std::fs::read(&file).with_context(|| format!("cannot read `{}`", file.display()))?;
        let config: Json = serde_json::from_slice(&text)
            .map_err(|e| UserError::new(format!("is no JSON: {e}")).in_file(&file))?;
        let index = Index::open(folder.join("delta.safetensors"))?;
        Self::build(&config, &mut |name| Array::from_tensor(index.read(name)?, Category::Weights))
            .map_err(|e| UserError::new(format!("{e:#}")).in_file(&file).into())
    }

    /// From what a selection has in memory.
    ///
    /// # Errors
    /// If it is another selection's.
    pub fn of(file: &SelectionFile) -> Result<Self> {
        Self::build(&file.config, &mut |name| {
            let found = file.tensors.iter().find(|(n, _)| n == name);
            found.map(|(_, a)| a.clone()).with_context(|| format!("there is no `{name}`"))
        })
    }

    fn build(config: &Json, get: &mut dyn FnMut(&str) -> Result<Array>) -> Result<Self> {
        ensure!(config["kind"] == "s2ft", "holds no slices of `s2ft`");
        ensure!(
            config["settings"]["storage"] == "separate",
            "holds slices trained in place, whose difference from the base is not known"
        );
        let list = config["slices"].as_array().context("lists no slices")?;
        let slices = list
            .iter()
            .map(|entry| {
                let path = entry["path"].as_str().context("a slice without a path")?.to_owned();
                let side: Side = serde_json::from_value(entry["side"].clone())?;
                let indices = Rc::new(get(&format!("{path}.indices"))?.view::<u32>()?.to_vec());
                let delta = get(&format!("{path}.delta"))?;
                Ok(SavedSlice { path, side, indices, delta })
            })
            .collect::<Result<_>>()?;
        Ok(SliceSet { slices })
    }

    /// Adds every slice, `factor` times, to the base's weights; −1 takes it off again.
    ///
    /// # Errors
    /// If a matrix is missing, packed, or of another shape.
    pub fn add(&self, sites: &Sites, factor: f32) -> Result<()> {
        for slice in &self.slices {
            let site = sites.linear(&slice.path)?;
            let LinearBase::Dense(name) = site.base() else {
                anyhow::bail!("`{}` is held packed: slices can be mixed into it, not added", slice.path)
            };
            slice.check(site)?;
            add(&sites.param(&name)?.base().value(), &slice.delta, slice.side, &slice.indices, factor)?;
        }
        Ok(())
    }

    /// Takes this set off the base and adds another.
    ///
    /// # Errors
    /// As [`SliceSet::add`].
    pub fn exchange(&self, other: &SliceSet, sites: &Sites) -> Result<()> {
        self.add(sites, -1.0)?;
        other.add(sites, 1.0)
    }
}

impl SavedSlice {
    fn check(&self, site: &LinearSite) -> Result<()> {
        let ((o, i), n) = (site.shape, self.indices.len());
        let (dims, most) = if self.side == Side::Columns { ([o, n], i) } else { ([n, i], o) };
        let fits = self.delta.dims() == dims && self.indices.iter().all(|x| (*x as usize) < most);
        ensure!(fits, "the slice of `{}` {:?} belongs to another base", self.path, self.delta.dims());
        Ok(())
    }
}

/// Which set a token's sequence uses; changed from batch to batch.
pub type Assignment = Rc<RefCell<Vec<Option<usize>>>>;

/// Lets each token of a batch use the set that its assignment names; no weight is changed.
///
/// # Errors
/// If a slice fits no linear.
pub fn mix(sites: &Sites, sets: &[SliceSet], assignment: &Assignment) -> Result<()> {
    for site in sites.linears() {
        let mut here = Vec::new();
        for (number, set) in sets.iter().enumerate() {
            for slice in set.slices.iter().filter(|s| s.path == site.path) {
                slice.check(site)?;
                here.push((number, slice.side, slice.indices.clone(), slice.delta.clone()));
            }
        }
        if !here.is_empty() {
            site.attach(Box::new(Mixed { slices: here, assignment: assignment.clone() }));
        }
    }
    Ok(())
}

struct Mixed {
    slices: Vec<(usize, Side, Rc<Vec<u32>>, Array)>,
    assignment: Assignment,
}

/// Rows of a matrix that stand at these places.
fn pick(x: &Array, tokens: &[usize]) -> Result<Array> {
    let width = x.rows().1;
    Array::build::<f32>(&[tokens.len(), width], x.is_shape_only(), Category::Workspace, |out| {
        let x = x.view::<f32>()?;
        for (to, t) in out.chunks_mut(width).zip(tokens) {
            to.copy_from_slice(&x[t * width..][..width]);
        }
        Ok(())
    })
}

impl LinearAdapter for Mixed {
    fn forward(&self, fx: &Forward, site: &LinearSite, x: &Value, below: &Below<'_>) -> Result<Value> {
        let y = below(x)?;
        ensure!(!y.is_tracked() && !x.is_tracked(), "mixed slices serve; `{}` is being trained", site.path);
        let assignment = self.assignment.borrow();
        let (x, y) = (x.array(), y.into_array());
        ensure!(assignment.len() == y.rows().0, "{} assignments for {} tokens", assignment.len(), y.rows().0);
        let out = Array::build::<f32>(y.dims(), y.is_shape_only(), Category::Workspace, |out| {
            out.copy_from_slice(&y.view::<f32>()?);
            Ok(())
        })?;
        for (number, side, idx, delta) in &self.slices {
            let tokens: Vec<usize> =
                (0..assignment.len()).filter(|t| assignment[*t] == Some(*number)).collect();
            if tokens.is_empty() || out.is_shape_only() {
                continue;
            }
            let (some, before) = (Value::constant(pick(x, &tokens)?), Value::constant(pick(&out, &tokens)?));
            let d = Value::constant(delta.clone());
            let after = match side {
                Side::Columns => ops::columns(&fx.tape, &before, &some, &d, idx, false)?,
                Side::Rows => ops::rows(&fx.tape, &before, &some, &d, idx, false)?,
            };
            let (after, width) = (after.array().view::<f32>()?, site.shape.0);
            out.update(|out: &mut [f32]| {
                for (from, t) in after.chunks(width).zip(&tokens) {
                    out[t * width..][..width].copy_from_slice(from);
                }
            })?;
        }
        Ok(Value::constant(out))
    }

    fn fold(&self, _: &Sites, site: &LinearSite, _: Array) -> Result<Array> {
        anyhow::bail!("slices mixed at `{}` belong to several models", site.path)
    }
}
