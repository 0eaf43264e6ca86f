//! Key/value caches.

use std::cell::RefCell;
use std::ops::Range;
use std::rc::Rc;

use anyhow::Result;
use ramekin_core::Array;
use ramekin_tape::ops::AttentionSpec;

/// Sizes of a cache.
#[derive(Clone, Copy, Debug)]
pub struct KvShape {
    /// Attention layers.
    pub layers: usize,
    /// Key/value heads.
    pub kv_heads: usize,
    /// Numbers a head.
    pub head_dim: usize,
    /// Independent sequences.
    pub sequences: usize,
    /// Tokens a sequence will have at most, for reserving room.
    pub capacity: usize,
}

/// What is kept of keys and values.
pub trait KvPolicy {
    /// An empty cache.
    fn cache(&self, shape: KvShape) -> Result<Rc<RefCell<dyn KvCache>>>;
    /// Bytes of a full cache in f32, for the plan.
    fn bytes(&self, shape: KvShape) -> u64;
}

/// Keys and values of several sequences.
pub trait KvCache {
    /// Adds this step's keys and values of a layer (rotated, `[N, K·D]`) and
    /// attends: `segments[i]` are the rows of sequence i. Returns `[N, H·D]`.
    fn attend(
        &mut self,
        layer: usize,
        q: &Array,
        k: &Array,
        v: &Array,
        segments: &[Range<usize>],
        spec: AttentionSpec,
    ) -> Result<Array>;
    /// Tokens that a sequence has seen; the next one's position.
    fn seen(&self, sequence: usize) -> usize;
}
