//! Merging: what several models learnt from one base, put into one model.
//!
//! T models θ_t of one base θ₀ give T task vectors τ_t = θ_t − θ₀. They are read in pieces, so that a
//! merge holds a few pieces and one tensor of its result, however large the models are.

use std::ops::Range;

use anyhow::Result;
use serde_json::Value as Json;

/// A tensor that is merged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MergedTensor {
    /// Its name in files.
    pub name: String,
    /// Dimensions, outermost first.
    pub dims: Vec<usize>,
    /// Whether the model uses it before its first block, as an embedding.
    pub early: bool,
}

impl MergedTensor {
    /// How many numbers it has.
    pub fn len(&self) -> usize {
        self.dims.iter().product()
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Some successive numbers of one tensor: the base's, and each task's difference from them.
///
/// Differences of f32 and narrower numbers are exact in f64, so base + τ is the tuned model to the bit.
pub struct Piece<'a> {
    /// Number of the tensor in [`TaskVectors::tensors`].
    pub tensor: usize,
    /// Index of the first number within the tensor.
    pub start: usize,
    /// θ₀.
    pub base: &'a [f64],
    /// τ_t, one a task.
    pub deltas: &'a [Vec<f64>],
}

/// A base and the differences of T models from it.
pub trait TaskVectors {
    /// What is merged, sorted by name: the order of the flattened vector.
    fn tensors(&self) -> &[MergedTensor];
    /// How many models there are.
    fn count(&self) -> usize;
    /// How the recipe weights a model.
    fn weight(&self, task: usize) -> f64;
    /// How the recipe calls a model, for messages.
    fn label(&self, task: usize) -> String;
    /// Hands over the pieces of one tensor in order.
    fn pieces_of(&self, tensor: usize, each: &mut dyn FnMut(&Piece<'_>) -> Result<()>) -> Result<()>;

    /// Hands over every piece of every tensor in order.
    fn pieces(&self, each: &mut dyn FnMut(&Piece<'_>) -> Result<()>) -> Result<()> {
        (0..self.tensors().len()).try_for_each(|tensor| self.pieces_of(tensor, each))
    }

    /// How many numbers a task vector has.
    fn numbers(&self) -> u64 {
        self.tensors().iter().map(|t| t.len() as u64).sum()
    }
}

/// From a piece to the numbers of a model, as many as the piece has.
pub type Candidate<'a> = dyn Fn(&Piece<'_>, &mut [f64]) -> Result<()> + 'a;

/// Held rows that settings can be chosen on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Held {
    /// Those of a model's own task.
    Task(usize),
    /// Those of a task that no model was tuned for.
    Control(usize),
}

/// Measures models that a merger thinks of.
pub trait Judge {
    /// The held rows there are, tasks first.
    fn held(&self) -> Vec<Held>;
    /// How good a model is on held rows, above 0, higher is better. `metric`: `loss` gives e^(−loss),
    /// `exact_match` the share of right answers.
    fn score(&mut self, held: Held, metric: &str, candidate: &Candidate<'_>) -> Result<f64>;
}

/// What the numbers of an adapter are compared with where the adapter itself is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Zeros.
    Zero,
    /// Ones.
    One,
    /// The adapter's own initial values, drawn again from its seed.
    Start,
    /// Whatever is known: the start where there is one, else the kind's neutral value.
    Known,
}

/// A way to put models together.
pub trait Merger {
    /// Whether attached adapters are folded in and no models are named.
    fn folds_adapters(&self) -> bool {
        false
    }

    /// Where one adapter alone is compressed as it is, not as a difference of weights: from where its
    /// numbers are counted.
    fn adapter_origin(&self) -> Option<Origin> {
        None
    }

    /// Bytes that tables over the whole vectors take, for plans.
    fn table_bytes(&self, tasks: usize) -> u64;

    /// Learns what must be known of all tensors before the first is merged; returns figures to report.
    ///
    /// # Errors
    /// [`ramekin_core::BadSetting`] for what these vectors do not allow.
    fn prepare(&mut self, vectors: &dyn TaskVectors, judge: &mut dyn Judge) -> Result<Json>;

    /// The merged model's numbers of one piece; after [`Merger::prepare`].
    fn merge(&self, piece: &Piece<'_>, out: &mut [f64]) -> Result<()>;

    /// What is stored of each task vector beside the merged model; `None` stores nothing.
    fn stored(&self) -> Option<&dyn Stored> {
        None
    }
}

/// How a stored vector's codes are written; see the format of sparse differences.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Codec {
    Golomb,
    Bitmask,
    Raw,
}

/// Task vectors in few bits.
pub trait Stored {
    /// How codes are written.
    fn codec(&self) -> Codec;
    /// Share of numbers that are not zero.
    fn density(&self, task: usize) -> f64;
    /// The size of every number of a tensor that is not zero; `None` where each has its own.
    fn scale(&self, task: usize, tensor: usize) -> Option<f32>;
    /// The stored vector's numbers of a piece.
    fn values(&self, task: usize, piece: &Piece<'_>, out: &mut [f64]) -> Result<()>;
}

/// Pieces of a slice as long as [`PIECE`], the last one shorter.
pub fn ranges(len: usize) -> impl Iterator<Item = Range<usize>> {
    (0..len).step_by(PIECE).map(move |start| start..(start + PIECE).min(len))
}

/// Numbers of a piece at most.
pub const PIECE: usize = 1 << 17;
