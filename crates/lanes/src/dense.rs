//! Entries as they come, in f32 or rounded to bf16.

use std::ops::Range;

use ramekin_kernels::attention::Stored;
use ramekin_kernels::bf16;

use crate::{Entries, Storage};

/// A form of single numbers.
pub trait Number: Copy + Send + Sync + 'static {
    /// Adds these to the end.
    fn append(numbers: &[f32], to: &mut Vec<Self>);
    /// These in f32, by way of `scratch` where they are not.
    fn read<'a>(numbers: &'a [Self], scratch: &'a mut Vec<f32>) -> &'a [f32];
}

impl Number for f32 {
    fn append(numbers: &[f32], to: &mut Vec<f32>) {
        to.extend_from_slice(numbers);
    }

    fn read<'a>(numbers: &'a [f32], _: &'a mut Vec<f32>) -> &'a [f32] {
        numbers
    }
}

/// The bits of bf16.
impl Number for u16 {
    fn append(numbers: &[f32], to: &mut Vec<u16>) {
        let at = to.len();
        to.resize(at + numbers.len(), 0);
        bf16::round_all(numbers, &mut to[at..]);
    }

    fn read<'a>(numbers: &'a [u16], scratch: &'a mut Vec<f32>) -> &'a [f32] {
        bf16::widen_into(numbers, scratch);
        scratch
    }
}

/// Keys and values in f32.
#[derive(Clone, Copy, Debug, Default)]
pub struct Dense;

/// Keys and values in bf16: half the memory, and half of what a token reads of it.
#[derive(Clone, Copy, Debug, Default)]
pub struct DenseBf16;

/// `[entries, head_dim]` each.
#[derive(Clone)]
pub struct DenseLane<N> {
    k: Vec<N>,
    v: Vec<N>,
    head_dim: usize,
}

impl Storage for Dense {
    type Lane = DenseLane<f32>;

    fn lane(&self, room: usize, head_dim: usize, _: usize) -> DenseLane<f32> {
        DenseLane::with_room(room, head_dim)
    }

    fn bytes(&self, room: usize, head_dim: usize, _: usize) -> u64 {
        self.entry_bytes(head_dim) * room as u64
    }
}

impl Storage for DenseBf16 {
    type Lane = DenseLane<u16>;

    fn lane(&self, room: usize, head_dim: usize, _: usize) -> DenseLane<u16> {
        DenseLane::with_room(room, head_dim)
    }

    fn bytes(&self, room: usize, head_dim: usize, _: usize) -> u64 {
        self.entry_bytes(head_dim) * room as u64
    }

    fn entry_bytes(&self, head_dim: usize) -> u64 {
        4 * head_dim as u64
    }
}

impl<N> DenseLane<N> {
    fn with_room(room: usize, head_dim: usize) -> Self {
        let reserve = || Vec::with_capacity(room * head_dim);
        DenseLane { k: reserve(), v: reserve(), head_dim }
    }

    fn span(&self, entries: Range<usize>) -> Range<usize> {
        entries.start * self.head_dim..entries.end * self.head_dim
    }
}

impl<N: Number> Stored<f32> for DenseLane<N> {
    fn keys<'a>(&'a self, entries: Range<usize>, scratch: &'a mut Vec<f32>) -> &'a [f32] {
        N::read(&self.k[self.span(entries)], scratch)
    }

    fn values<'a>(&'a self, entries: Range<usize>, scratch: &'a mut Vec<f32>) -> &'a [f32] {
        N::read(&self.v[self.span(entries)], scratch)
    }
}

impl<N: Number> Entries for DenseLane<N> {
    /// Key and value.
    type Entry = (Vec<N>, Vec<N>);

    fn len(&self) -> usize {
        self.k.len() / self.head_dim
    }

    fn push(&mut self, k: &[f32], v: &[f32]) {
        N::append(k, &mut self.k);
        N::append(v, &mut self.v);
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
        (size_of::<N>() * (self.k.len() + self.v.len())) as u64
    }
}
