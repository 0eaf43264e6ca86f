//! Entries in f32, as they come.

use std::ops::Range;

use ramekin_kernels::attention::Stored;

use crate::{Entries, Storage};

/// Keys and values in f32.
#[derive(Clone, Copy, Debug, Default)]
pub struct Dense;

/// `[entries, head_dim]` each.
#[derive(Clone)]
pub struct DenseLane {
    k: Vec<f32>,
    v: Vec<f32>,
    head_dim: usize,
}

impl Storage for Dense {
    type Lane = DenseLane;

    fn lane(&self, room: usize, head_dim: usize, _: usize) -> DenseLane {
        let reserve = || Vec::with_capacity(room * head_dim);
        DenseLane { k: reserve(), v: reserve(), head_dim }
    }

    fn bytes(&self, room: usize, head_dim: usize, _: usize) -> u64 {
        8 * (room * head_dim) as u64
    }
}

impl DenseLane {
    fn span(&self, entries: Range<usize>) -> Range<usize> {
        entries.start * self.head_dim..entries.end * self.head_dim
    }
}

impl Stored<f32> for DenseLane {
    fn keys<'a>(&'a self, entries: Range<usize>, _: &'a mut Vec<f32>) -> &'a [f32] {
        &self.k[self.span(entries)]
    }

    fn values<'a>(&'a self, entries: Range<usize>, _: &'a mut Vec<f32>) -> &'a [f32] {
        &self.v[self.span(entries)]
    }
}

impl Entries for DenseLane {
    /// Key and value.
    type Entry = (Vec<f32>, Vec<f32>);

    fn len(&self) -> usize {
        self.k.len() / self.head_dim
    }

    fn push(&mut self, k: &[f32], v: &[f32]) {
        self.k.extend_from_slice(k);
        self.v.extend_from_slice(v);
    }

    fn pop(&mut self) {
        let keep = self.k.len().saturating_sub(self.head_dim);
        self.k.truncate(keep);
        self.v.truncate(keep);
    }

    fn remove(&mut self, index: usize) -> Self::Entry {
        let span = self.span(index..index + 1);
        (self.k.drain(span.clone()).collect(), self.v.drain(span).collect())
    }

    fn insert(&mut self, index: usize, (k, v): Self::Entry) {
        let at = index * self.head_dim;
        self.k.splice(at..at, k);
        self.v.splice(at..at, v);
    }

    fn bytes(&self) -> u64 {
        4 * (self.k.len() + self.v.len()) as u64
    }
}
