//! Task vectors that are in memory whole.

use anyhow::Result;
use ramekin_slots::{Candidate, Held, Judge, MergedTensor, Merger, PIECE, Piece, TaskVectors};

/// A base and its task vectors, flattened.
pub struct InMemory {
    tensors: Vec<MergedTensor>,
    base: Vec<f64>,
    deltas: Vec<Vec<f64>>,
    weights: Vec<f64>,
    piece: usize,
}

impl InMemory {
    /// Tensors by name and length, the base's numbers one after the other, and each task's differences.
    pub fn new(tensors: &[(&str, usize)], base: &[f64], deltas: &[Vec<f64>]) -> Self {
        InMemory {
            tensors: tensors
                .iter()
                .map(|(name, len)| MergedTensor {
                    name: (*name).to_owned(),
                    dims: vec![*len],
                    early: name.contains("embed"),
                })
                .collect(),
            base: base.to_vec(),
            deltas: deltas.to_vec(),
            weights: vec![1.0; deltas.len()],
            piece: PIECE,
        }
    }

    /// The same with other weights of the tasks.
    #[must_use]
    pub fn weighted(mut self, weights: &[f64]) -> Self {
        self.weights = weights.to_vec();
        self
    }

    /// The same in pieces of another length.
    #[must_use]
    pub fn in_pieces_of(mut self, piece: usize) -> Self {
        self.piece = piece;
        self
    }

    /// What a candidate makes of all tensors, flattened.
    pub fn made(&self, candidate: &Candidate<'_>) -> Result<Vec<f64>> {
        let mut all = Vec::with_capacity(self.base.len());
        self.pieces(&mut |piece| {
            let mut out = vec![0.0; piece.base.len()];
            candidate(piece, &mut out)?;
            all.extend(out);
            Ok(())
        })?;
        Ok(all)
    }

    /// Prepares a merger without held rows and merges everything.
    pub fn merged(&self, merger: &mut dyn Merger) -> Result<Vec<f64>> {
        merger.prepare(self, &mut Nobody)?;
        self.made(&|piece, out| merger.merge(piece, out))
    }
}

impl TaskVectors for InMemory {
    fn tensors(&self) -> &[MergedTensor] {
        &self.tensors
    }

    fn count(&self) -> usize {
        self.deltas.len()
    }

    fn weight(&self, task: usize) -> f64 {
        self.weights[task]
    }

    fn label(&self, task: usize) -> String {
        format!("task {task}")
    }

    fn pieces_of(&self, tensor: usize, each: &mut dyn FnMut(&Piece<'_>) -> Result<()>) -> Result<()> {
        let from: usize = self.tensors[..tensor].iter().map(MergedTensor::len).sum();
        let len = self.tensors[tensor].len();
        for start in (0..len).step_by(self.piece) {
            let at = from + start..from + (start + self.piece).min(len);
            let deltas: Vec<Vec<f64>> = self.deltas.iter().map(|d| d[at.clone()].to_vec()).collect();
            each(&Piece { tensor, start, base: &self.base[at], deltas: &deltas })?;
        }
        Ok(())
    }
}

/// A judge without held rows.
pub struct Nobody;

impl Judge for Nobody {
    fn held(&self) -> Vec<Held> {
        Vec::new()
    }

    fn score(&mut self, _: Held, _: &str, _: &Candidate<'_>) -> Result<f64> {
        anyhow::bail!("there are no held rows to measure on")
    }
}
