//! A step's rows, and the ways in which a query sees what came before it.

use std::ops::Range;

use ramekin_kernels::attention::Stored;
use ramekin_kernels::rope::Table;
use ramekin_tape::ops::AttentionSpec;

use crate::Entries;

/// The numbers of a step, rows of heads side by side.
pub(crate) struct Rows<'a> {
    pub q: &'a [f32],
    pub k: &'a [f32],
    pub v: &'a [f32],
    pub positions: &'a [u32],
    pub prefix: Option<Prefix<'a>>,
    pub spec: AttentionSpec,
}

impl Rows<'_> {
    pub fn key_width(&self) -> usize {
        self.spec.kv_heads * self.spec.head_dim
    }

    pub fn query_width(&self) -> usize {
        self.spec.heads * self.spec.head_dim
    }

    /// Numbers of a row from head `head` on, `heads` of them.
    pub fn query<'b>(&self, q: &'b [f32], row: usize, head: usize, heads: usize) -> &'b [f32] {
        let at = row * self.query_width() + head * self.spec.head_dim;
        &q[at..at + heads * self.spec.head_dim]
    }

    /// A head's numbers of a row of keys or values.
    pub fn key<'b>(&self, x: &'b [f32], row: usize, head: usize) -> &'b [f32] {
        let at = row * self.key_width() + head * self.spec.head_dim;
        &x[at..at + self.spec.head_dim]
    }
}

/// Keys and values that come before everything, `[len, key heads · head_dim]` each.
#[derive(Clone, Copy)]
pub(crate) struct Prefix<'a> {
    pub k: &'a [f32],
    pub v: &'a [f32],
    pub len: usize,
}

/// One head of a prefix.
pub(crate) struct PrefixLane<'a> {
    pub prefix: Prefix<'a>,
    pub head: usize,
    pub head_dim: usize,
}

impl PrefixLane<'_> {
    fn cut<'a>(&self, x: &[f32], entries: Range<usize>, scratch: &'a mut Vec<f32>) -> &'a [f32] {
        let width = x.len() / self.prefix.len;
        scratch.clear();
        for row in x.chunks_exact(width).take(entries.end).skip(entries.start) {
            scratch.extend_from_slice(&row[self.head * self.head_dim..(self.head + 1) * self.head_dim]);
        }
        scratch
    }
}

impl Stored<f32> for PrefixLane<'_> {
    fn keys<'a>(&'a self, entries: Range<usize>, scratch: &'a mut Vec<f32>) -> &'a [f32] {
        self.cut(self.prefix.k, entries, scratch)
    }

    fn values<'a>(&'a self, entries: Range<usize>, scratch: &'a mut Vec<f32>) -> &'a [f32] {
        self.cut(self.prefix.v, entries, scratch)
    }
}

/// A lane whose keys are turned by slot as they are read.
pub(crate) struct Turned<'a, E> {
    pub entries: &'a E,
    pub slots: &'a Table<f32>,
    /// Slot of the first entry.
    pub first: usize,
}

impl<E: Entries> Stored<f32> for Turned<'_, E> {
    fn keys<'a>(&'a self, entries: Range<usize>, scratch: &'a mut Vec<f32>) -> &'a [f32] {
        let mut spare = Vec::new();
        let keys = self.entries.keys(entries.clone(), &mut spare);
        scratch.clear();
        scratch.extend_from_slice(keys);
        self.slots.turn(scratch, 1, self.first + entries.start);
        scratch
    }

    fn values<'a>(&'a self, entries: Range<usize>, scratch: &'a mut Vec<f32>) -> &'a [f32] {
        self.entries.values(entries, scratch)
    }
}
