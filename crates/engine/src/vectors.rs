//! Task vectors of models in files: read piece by piece, checked on the way.

use std::cell::RefCell;
use std::collections::HashSet;
use std::ops::Range;

use anyhow::{Context, Result};
use ramekin_core::{Array, Category, DType, Lease, UserError};
use ramekin_slots::{
    Candidate, LinearBase, LinearSite, MergedTensor, PIECE, Piece, TaskVectors, WeightInfo, WeightSource,
    ranges,
};
use ramekin_store::delta::{Delta, Entries};

use crate::assembly::Assembly;
use crate::reader::{Reader, finite};

/// One model's differences from the base.
pub struct Task {
    /// How the recipe calls it.
    pub label: String,
    /// How much it counts.
    pub weight: f64,
    /// Where its numbers come from.
    pub source: TaskSource,
}

/// Where a model's numbers come from.
pub enum TaskSource {
    /// A model of the base's shape.
    Model(Reader),
    /// A file of sparse differences.
    Delta(Box<Delta>),
    /// Adapters, attached to a base of shapes.
    Adapters(Box<Assembly>),
    /// The same tensors as the base's, in memory: an adapter's own.
    Own(Vec<(String, Array)>),
}

/// A base and its tasks.
pub struct Vectors {
    tensors: Vec<MergedTensor>,
    base: Base,
    tasks: Vec<Task>,
}

/// Where the base's numbers come from.
pub enum Base {
    /// A model.
    Model(Reader),
    /// Tensors in memory, by name.
    Own(Vec<(String, Array)>),
}

/// One task's numbers of one tensor, from its first to its last.
enum Flow<'a> {
    Model(&'a Reader),
    Sparse(Option<Entries>),
    Whole(Option<Array>),
}

impl Vectors {
    /// These tensors of the base and the tasks.
    pub fn new(mut tensors: Vec<MergedTensor>, base: Base, tasks: Vec<Task>) -> Self {
        tensors.sort_by(|a, b| a.name.cmp(&b.name));
        Vectors { tensors, base, tasks }
    }

    /// What is held while pieces are handed over.
    pub fn buffers(tasks: usize) -> u64 {
        ((tasks + 2) * PIECE * size_of::<f64>()) as u64
    }

    fn base_piece(&self, name: &str, range: Range<usize>) -> Result<Vec<f64>> {
        match &self.base {
            Base::Model(reader) => reader.piece(name, range),
            Base::Own(tensors) => own_piece(tensors, name, range),
        }
    }

    /// The base's whole tensor, f32.
    fn base_whole(&self, tensor: &MergedTensor) -> Result<Array> {
        let mut all = Vec::with_capacity(tensor.len());
        for range in ranges(tensor.len()) {
            all.extend(self.base_piece(&tensor.name, range)?.into_iter().map(|x| x as f32));
        }
        Array::from_vec(all, &tensor.dims, Category::Workspace)
    }

    fn flow<'a>(&'a self, task: &'a Task, tensor: &MergedTensor) -> Result<Flow<'a>> {
        Ok(match &task.source {
            TaskSource::Model(reader) => Flow::Model(reader),
            TaskSource::Delta(delta) => Flow::Sparse(delta.entries(&tensor.name)?),
            TaskSource::Adapters(assembly) => Flow::Whole(self.adapted(assembly, tensor)?),
            TaskSource::Own(tensors) => {
                Flow::Whole(tensors.iter().find(|(n, _)| *n == tensor.name).map(|(_, a)| a.clone()))
            }
        })
    }

    /// The tensor under the adapters; `None` where they leave it alone.
    fn adapted(&self, assembly: &Assembly, tensor: &MergedTensor) -> Result<Option<Array>> {
        let sites = &assembly.sites;
        let name = tensor.name.as_str();
        let weight_of = |l: &&LinearSite| matches!(l.base(), LinearBase::Dense(own) if own == name);
        let linears = sites.linears().iter();
        if let Some(site) = linears.clone().filter(|l| !l.is_tied() && l.adapter_count() > 0).find(weight_of)
        {
            return self.with_base(assembly, &[name], || site.merged(sites).map(Some));
        }
        if let Some(site) = linears.clone().find(|l| l.bias.as_deref() == Some(name)) {
            let weight = format!("{}.weight", site.path);
            return self.with_base(assembly, &[name, &weight], || sites.folded_bias(site));
        }
        if let Some(folded) = self.with_base(assembly, &[name], || sites.folded_norm(name))? {
            return Ok(Some(folded));
        }
        Ok(Some(sites.param(name)?.active(true).value()).filter(|a| !a.is_shape_only()))
    }

    /// Runs `f` while these tensors of the base of shapes hold the base's own numbers.
    fn with_base<R>(&self, assembly: &Assembly, names: &[&str], f: impl FnOnce() -> Result<R>) -> Result<R> {
        let mut lent = Vec::new();
        for name in names {
            let param = assembly.sites.param(name)?.base().clone();
            let shape = param.value();
            if let Some(tensor) = self.position(name).filter(|_| shape.is_shape_only()) {
                param.set(self.base_whole(&self.tensors[tensor])?);
                lent.push((param, shape));
            }
        }
        let result = f();
        lent.into_iter().for_each(|(param, shape)| param.set(shape));
        result
    }

    /// A model made of these vectors, as a source of tensors.
    pub fn candidate<'a>(&'a self, candidate: &'a Candidate<'a>) -> CandidateSource<'a> {
        CandidateSource { vectors: self, candidate }
    }

    /// One tensor as a candidate makes it, f32.
    ///
    /// # Errors
    /// What the candidate says; numbers that are not finite.
    pub fn made(&self, tensor: usize, candidate: &Candidate<'_>) -> Result<Array> {
        let info = &self.tensors[tensor];
        Array::build::<f32>(&info.dims, false, Category::Workspace, |all| {
            self.pieces_of(tensor, &mut |piece| {
                let mut out = vec![0.0; piece.base.len()];
                candidate(piece, &mut out)?;
                for (to, x) in all[piece.start..].iter_mut().zip(&out) {
                    *to = *x as f32;
                }
                finite(&info.name, "the merged model", &out)
            })
        })
    }

    /// Number of a tensor.
    pub fn position(&self, name: &str) -> Option<usize> {
        self.tensors.binary_search_by(|t| t.name.as_str().cmp(name)).ok()
    }

    /// Type of the base's tensor in its files.
    fn dtype(&self, name: &str) -> DType {
        match &self.base {
            Base::Model(reader) => reader.info(name).map_or(DType::F32, |i| i.dtype),
            Base::Own(_) => DType::F32,
        }
    }
}

fn own_piece(tensors: &[(String, Array)], name: &str, range: Range<usize>) -> Result<Vec<f64>> {
    let (_, array) = tensors.iter().find(|(n, _)| n == name).context("a tensor that is listed")?;
    Ok(array.view::<f32>()?[range].iter().map(|x| f64::from(*x)).collect())
}

impl TaskVectors for Vectors {
    fn tensors(&self) -> &[MergedTensor] {
        &self.tensors
    }

    fn count(&self) -> usize {
        self.tasks.len()
    }

    fn weight(&self, task: usize) -> f64 {
        self.tasks[task].weight
    }

    fn label(&self, task: usize) -> String {
        self.tasks[task].label.clone()
    }

    fn pieces_of(&self, tensor: usize, each: &mut dyn FnMut(&Piece<'_>) -> Result<()>) -> Result<()> {
        let info = &self.tensors[tensor];
        let _held = Lease::new(Category::Workspace, Self::buffers(self.tasks.len()));
        let flows = self.tasks.iter().map(|t| self.flow(t, info)).collect::<Result<Vec<_>>>()?;
        let flows = RefCell::new(flows);
        for range in ranges(info.len()) {
            let base = self.base_piece(&info.name, range.clone())?;
            let mut deltas = Vec::with_capacity(self.tasks.len());
            for (task, flow) in self.tasks.iter().zip(flows.borrow_mut().iter_mut()) {
                deltas.push(delta(task, flow, info, &base, range.clone())?);
            }
            each(&Piece { tensor, start: range.start, base: &base, deltas: &deltas })?;
        }
        Ok(())
    }
}

fn delta(
    task: &Task,
    flow: &mut Flow<'_>,
    info: &MergedTensor,
    base: &[f64],
    range: Range<usize>,
) -> Result<Vec<f64>> {
    let minus = |mut numbers: Vec<f64>| {
        numbers.iter_mut().zip(base).for_each(|(x, b)| *x -= b);
        numbers
    };
    Ok(match flow {
        Flow::Model(reader) => minus(reader.piece(&info.name, range)?),
        Flow::Sparse(None) | Flow::Whole(None) => vec![0.0; base.len()],
        Flow::Sparse(Some(entries)) => {
            let mut out = vec![0.0; base.len()];
            entries.fill(range.start, &mut out)?;
            finite(&info.name, &task.label, &out)?;
            out
        }
        Flow::Whole(Some(array)) => {
            let numbers: Vec<f64> = array.view::<f32>()?[range].iter().map(|x| f64::from(*x)).collect();
            finite(&info.name, &task.label, &numbers)?;
            minus(numbers)
        }
    })
}

/// A model that is made tensor by tensor.
pub struct CandidateSource<'a> {
    vectors: &'a Vectors,
    candidate: &'a Candidate<'a>,
}

impl WeightSource for CandidateSource<'_> {
    fn info(&self, name: &str) -> Option<WeightInfo> {
        let tensor = &self.vectors.tensors[self.vectors.position(name)?];
        Some(WeightInfo { dims: tensor.dims.clone(), dtype: self.vectors.dtype(name) })
    }

    fn read(&mut self, name: &str, _: &[usize]) -> Result<Array> {
        let tensor = self.vectors.position(name).context("no such tensor")?;
        self.vectors.made(tensor, self.candidate)
    }

    fn names(&self) -> Vec<String> {
        self.vectors.tensors.iter().map(|t| t.name.clone()).collect()
    }

    fn label(&self) -> String {
        "the merged model".to_owned()
    }
}

/// Refuses a model whose tensors are not the base's; the symmetric difference is told.
///
/// # Errors
/// [`UserError`] with the names that one side lacks, or the first shape that differs.
pub fn same_tensors(
    tensors: &[MergedTensor],
    model: &Reader,
    unused: &HashSet<String>,
    label: &str,
) -> Result<()> {
    let names: HashSet<String> = model.names().into_iter().filter(|n| !unused.contains(n)).collect();
    let wanted: HashSet<&str> = tensors.iter().map(|t| t.name.as_str()).collect();
    let mut missing: Vec<&str> = wanted.iter().copied().filter(|n| !names.contains(*n)).collect();
    let mut more: Vec<&str> = names.iter().map(String::as_str).filter(|n| !wanted.contains(n)).collect();
    missing.sort_unstable();
    more.sort_unstable();
    let wrong = |what: String| UserError::new(what).in_file(model.label());
    if !(missing.is_empty() && more.is_empty()) {
        return Err(wrong(format!(
            "`{label}` is no model of this base: it {}{}",
            listed("lacks", &missing),
            listed(if missing.is_empty() { "has besides" } else { "; has besides" }, &more)
        ))
        .into());
    }
    for tensor in tensors {
        let dims = model.info(&tensor.name).map(|i| i.dims).unwrap_or_default();
        if dims != tensor.dims {
            let what =
                format!("the tensor `{}` is {dims:?} here and {:?} in the base", tensor.name, tensor.dims);
            return Err(wrong(what).help("models are merged only with the base they were tuned from").into());
        }
    }
    Ok(())
}

fn listed(verb: &str, names: &[&str]) -> String {
    match names {
        [] => String::new(),
        [one] => format!("{verb} `{one}`"),
        [first, second] => format!("{verb} `{first}` and `{second}`"),
        [first, .., last] => format!("{verb} {} tensors, `{first}` to `{last}`", names.len()),
    }
}
