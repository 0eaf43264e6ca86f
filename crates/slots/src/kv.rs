//! Key/value caches.

use std::cell::RefCell;
use std::ops::Range;
use std::rc::Rc;

use anyhow::Result;
use ramekin_core::Array;
use ramekin_tape::ops::{self, AttentionSpec};
use ramekin_tape::{Tape, Value};

use crate::ModelFacts;

/// Sizes of a cache.
#[derive(Clone, Copy, Debug)]
pub struct KvShape {
    /// Attention layers.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key/value heads.
    pub kv_heads: usize,
    /// Numbers a head.
    pub head_dim: usize,
    /// Independent sequences.
    pub sequences: usize,
    /// Tokens of the longest prompt, which a sequence's first call brings whole.
    pub prompt: usize,
    /// Tokens a sequence will have at most, prompt included, for reserving room.
    pub capacity: usize,
    /// Newest tokens of a sequence that [`KvCache::truncate`] may be asked to take back.
    pub rollback: usize,
}

impl KvShape {
    /// A cache for this model: `sequences` with prompts of at most `prompt` tokens that grow to `capacity`.
    pub fn new(facts: &ModelFacts, sequences: usize, prompt: usize, capacity: usize) -> Self {
        KvShape {
            layers: facts.blocks,
            heads: facts.heads,
            kv_heads: facts.kv_heads,
            head_dim: facts.head_dim,
            sequences,
            prompt,
            capacity,
            rollback: 0,
        }
    }

    /// The same, ready to take back this many of the newest tokens.
    #[must_use]
    pub fn with_rollback(self, rollback: usize) -> Self {
        KvShape { rollback, ..self }
    }
}

/// What is kept of keys and values.
pub trait KvPolicy {
    /// Whether this policy makes sense for the model and these lengths; asked before [`KvPolicy::cache`],
    /// in a plan too.
    ///
    /// # Errors
    /// [`ramekin_core::BadSetting`] naming the setting.
    fn check(&self, facts: &ModelFacts, shape: KvShape) -> Result<()> {
        let _ = (facts, shape);
        Ok(())
    }
    /// An empty cache.
    fn cache(&self, shape: KvShape) -> Result<Rc<RefCell<dyn KvCache>>>;
    /// Bytes that a cache holds at most when every prompt is as long as the longest, for a plan.
    fn bytes(&self, shape: KvShape) -> u64;
}

/// What one layer brings to a cache in one forward: N rows of all sequences.
pub struct Attend<'a> {
    /// Queries before rotation, `[N, H·D]`.
    pub q: Array,
    /// Keys before rotation, `[N, K·D]`.
    pub k: Array,
    /// Values, `[N, K·D]`.
    pub v: Array,
    /// Position of each row in its sequence.
    pub positions: &'a Rc<Vec<u32>>,
    /// Rotary frequencies, for models that have them: a cache turns keys by true position or by its own.
    pub inv_freq: Option<&'a Rc<Vec<f32>>>,
    /// Entries that every row of every sequence sees before its own, whatever is dropped: `[P, K·D]` each,
    /// never turned. Positions count them.
    pub prefix: Option<KvPrefix>,
    /// Rows of each sequence; none for one that is finished.
    pub segments: &'a [Range<usize>],
    /// Heads and mask.
    pub spec: AttentionSpec,
}

/// A constant beginning of one layer's keys and values, such as a learnt one; it belongs to whoever made it.
#[derive(Clone)]
pub struct KvPrefix {
    /// Keys, `[P, K·D]`.
    pub k: Array,
    /// Values, `[P, K·D]`.
    pub v: Array,
}

impl Attend<'_> {
    /// Turns queries and keys by these positions, or leaves them where the model does not rotate.
    pub fn rotate(&mut self, positions: &Rc<Vec<u32>>) -> Result<()> {
        if let Some(inv_freq) = self.inv_freq {
            let turn = |x: &Array, heads| -> Result<Array> {
                let x = Value::constant(x.clone());
                Ok(ops::rotary(&Tape::off(), &x, heads, positions, inv_freq)?.array().clone())
            };
            self.q = turn(&self.q, self.spec.heads)?;
            self.k = turn(&self.k, self.spec.kv_heads)?;
        }
        Ok(())
    }
}

/// Keys and values of several sequences. What is stored may be less than what was seen, and differ by
/// layer and head.
pub trait KvCache {
    /// Adds this step's keys and values of a layer and attends, each row to what is stored of its own
    /// sequence up to itself. Returns `[N, H·D]`.
    fn attend(&mut self, layer: usize, step: Attend<'_>) -> Result<Array>;
    /// Tokens that a sequence has seen; the next one's position.
    fn seen(&self, sequence: usize) -> usize;
    /// Entries that a key/value head of a layer stores of a sequence.
    fn stored(&self, layer: usize, sequence: usize, head: usize) -> usize;
    /// Bytes of all stored keys and values, without room reserved for later ones.
    fn bytes(&self) -> u64;
    /// Takes back the newest tokens of a sequence until it has seen this many, as if they had never come.
    ///
    /// # Errors
    /// If that is more than [`KvShape::rollback`] and what was dropped meanwhile is gone.
    fn truncate(&mut self, sequence: usize, seen: usize) -> Result<()>;
    /// Makes sequence i a copy of what was sequence `from[i]`.
    ///
    /// # Errors
    /// If there is no such sequence.
    fn reorder(&mut self, from: &[usize]) -> Result<()>;
    /// A copy that goes its own way.
    fn snapshot(&self) -> Rc<RefCell<dyn KvCache>>;
}
