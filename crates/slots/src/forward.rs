//! The context of one forward: the batch, the mode, the sites and the tape.

use std::cell::RefCell;
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;

use anyhow::{Context, Result, anyhow};
use ramekin_core::Rng;
use ramekin_kernels::philox::Stream;
use ramekin_tape::ops::{self, Segment};
use ramekin_tape::{Tape, Value};

use crate::around::{Longer, pieces};
use crate::reducer::{Merged, Reducing};
use crate::{Attend, Images, KvCache, KvPrefix, LinearSite, Sites};

/// Tokens of several independent sequences, one after the other, without padding.
#[derive(Clone, Debug)]
pub struct FlatBatch {
    /// Token ids, `N` of them; of an image's tokens its number among `images`.
    pub ids: Rc<Vec<u32>>,
    /// Position of each token in its sequence.
    pub positions: Rc<Vec<u32>>,
    /// The sequences, as ranges of tokens.
    pub segments: Rc<Vec<Range<usize>>>,
    /// The images that the segments are of, where the model reads images.
    pub images: Option<Arc<Images>>,
}

impl FlatBatch {
    /// Whole sequences, each from position 0.
    pub fn new(sequences: &[Vec<u32>]) -> Self {
        let mut segments = Vec::new();
        let mut ids = Vec::new();
        let mut positions = Vec::new();
        for s in sequences {
            segments.push(ids.len()..ids.len() + s.len());
            ids.extend_from_slice(s);
            positions.extend(0..s.len() as u32);
        }
        FlatBatch {
            ids: Rc::new(ids),
            positions: Rc::new(positions),
            segments: Rc::new(segments),
            images: None,
        }
    }

    /// These images, in order, for a model that makes so many tokens of one.
    pub fn of_images(images: Arc<Images>, tokens: usize) -> Self {
        let numbers: Vec<Vec<u32>> = (0..images.len()).map(|i| vec![i as u32; tokens]).collect();
        FlatBatch { images: Some(images), ..Self::new(&numbers) }
    }

    /// How many tokens.
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// The segments as attention within the batch sees them, each with `prefix` keys before its own.
    pub fn attention_segments(&self, prefix: usize) -> Rc<Vec<Segment>> {
        let of = |(i, r): (usize, &Range<usize>)| Segment {
            q_start: r.start,
            q_len: r.len(),
            k_start: r.start + i * prefix,
            k_len: r.len() + prefix,
        };
        Rc::new(self.segments.iter().enumerate().map(of).collect())
    }
}

/// Whether a forward trains, and at which address its randomness lies.
#[derive(Clone, Copy, Debug)]
pub struct Mode {
    /// Dropout and the like are on.
    pub training: bool,
    /// The run's randomness.
    pub rng: Rng,
    /// Number of the micro-batch since the beginning of the stage.
    pub micro_batch: u64,
    /// Adapters take part; off gives the base model, bit for bit.
    pub adapters: bool,
}

impl Mode {
    /// No randomness, adapters on.
    pub fn inference() -> Self {
        Mode { training: false, rng: Rng::new(0), micro_batch: 0, adapters: true }
    }
}

/// What a model's forward is given.
#[derive(Clone)]
pub struct Forward {
    /// Where operations are recorded.
    pub tape: Tape,
    /// The model's linears and parameters with what is attached to them.
    pub sites: Rc<Sites>,
    /// The tokens.
    pub batch: FlatBatch,
    /// Training or not.
    pub mode: Mode,
    /// Keys and values of earlier tokens; there is one sequence a cache entry.
    pub cache: Option<Rc<RefCell<dyn KvCache>>>,
    segments: Rc<Vec<Segment>>,
    pub(crate) reducing: Option<Rc<Reducing>>,
    pub(crate) merged: Option<Merged>,
}

impl Forward {
    /// A forward over a batch, without a cache. A prefix of keys and values moves the positions.
    pub fn new(tape: Tape, sites: Rc<Sites>, mut batch: FlatBatch, mode: Mode) -> Self {
        let prefix = if mode.adapters { sites.around().prefix_tokens() } else { 0 };
        if prefix > 0 {
            batch.positions = Rc::new(batch.positions.iter().map(|p| p + prefix as u32).collect());
        }
        let segments = batch.attention_segments(prefix);
        let reducer = sites.around().reducer().filter(|_| mode.adapters);
        let reducing = reducer.map(Reducing::new);
        Forward { tape, sites, batch, mode, cache: None, segments, reducing, merged: None }
    }

    /// The same forward over tokens whose positions are final.
    pub(crate) fn over(&self, batch: FlatBatch) -> Self {
        let prefix = if self.mode.adapters { self.sites.around().prefix_tokens() } else { 0 };
        Forward { segments: batch.attention_segments(prefix), batch, ..self.clone() }
    }

    /// Whether sequence `i` begins in this forward.
    pub(crate) fn begins(&self, i: usize) -> bool {
        self.cache.as_ref().is_none_or(|c| c.borrow().seen(i) == 0)
    }

    /// This forward with virtual tokens before its segments, where an adapter makes some; `h` are the
    /// embedded tokens.
    pub fn longer(&self, h: &Value) -> Result<Option<Longer>> {
        Longer::of(self, h)
    }

    /// The same forward, reading and extending a cache.
    #[must_use]
    pub fn with_cache(mut self, cache: Rc<RefCell<dyn KvCache>>) -> Self {
        self.cache = Some(cache);
        self
    }

    /// The same forward on another tape.
    #[must_use]
    pub fn on(&self, tape: &Tape) -> Self {
        Forward { tape: tape.clone(), ..self.clone() }
    }

    /// The linear of this module path, with its adapters.
    pub fn linear(&self, path: &str, x: &Value) -> Result<Value> {
        self.sites.linear(path)?.forward(self, x)
    }

    /// Several linears of one input, each with its adapters. Packed ones without any read a few rows together.
    pub fn linears<const N: usize>(&self, paths: [&str; N], x: &Value) -> Result<[Value; N]> {
        let sites = paths.iter().map(|path| self.sites.linear(path)).collect::<Result<Vec<_>>>()?;
        let alone: Option<Vec<_>> = sites.iter().map(|site| site.packed_alone(self)).collect();
        let ys = match alone {
            Some(weights) => {
                let bias = |site: &LinearSite| site.bias.as_ref().map(|b| self.param(b)).transpose();
                let all = weights.into_iter().zip(sites).map(|(w, site)| Ok((w, bias(site)?)));
                ops::linears_packed(&self.tape, x, &all.collect::<Result<Vec<_>>>()?)?
            }
            None => sites.iter().map(|site| site.forward(self, x)).collect::<Result<Vec<_>>>()?,
        };
        ys.try_into().map_err(|_| anyhow!("{N} linears gave other than {N} outputs"))
    }

    /// The output of the module of this path, which `f` computes, with what is attached to the module.
    /// The input lives on beyond `f` only where something is.
    pub fn module(&self, path: &str, x: Value, f: impl FnOnce(Value) -> Result<Value>) -> Result<Value> {
        let site = self.sites.module(path).with_context(|| format!("the model has no module `{path}`"))?;
        if !self.mode.adapters || site.adapter_count() == 0 {
            return f(x);
        }
        let y = f(x.clone())?;
        site.adapt(self, Some(&x), y)
    }

    /// As [`Forward::module`] for a module whose input are the batch's ids.
    pub fn module_of_ids(&self, path: &str, f: impl FnOnce() -> Result<Value>) -> Result<Value> {
        let site = self.sites.module(path).with_context(|| format!("the model has no module `{path}`"))?;
        let y = f()?;
        if self.mode.adapters { site.adapt(self, None, y) } else { Ok(y) }
    }

    /// A parameter by its tensor name.
    pub fn param(&self, name: &str) -> Result<Value> {
        self.sites.param(name)?.value(self)
    }

    /// Self-attention of one layer: within the segments, or against the cache. `q` and `k` come before
    /// rotation; they are turned here by `inv_freq`, where the model has rotary positions, so that a cache
    /// may turn keys by other positions than the true ones.
    pub fn attention(
        &self,
        layer: usize,
        q: Value,
        k: Value,
        v: Value,
        inv_freq: Option<&Rc<Vec<f32>>>,
        spec: ops::AttentionSpec,
    ) -> Result<Value> {
        let positions = &self.batch.positions;
        let prefix = self.sites.around().prefix().filter(|_| self.mode.adapters);
        let prefix = prefix.map(|p| p.prefix(self, layer)).transpose()?;
        if let Some(cache) = &self.cache {
            let (q, k, v) = (q.into_array(), k.into_array(), v.into_array());
            let prefix = prefix.map(|(k, v)| KvPrefix { k: k.into_array(), v: v.into_array() });
            let segments = &self.batch.segments[..];
            let step = Attend { q, k, v, positions, inv_freq, prefix, segments, spec };
            return cache.borrow_mut().attend(layer, step).map(Value::constant);
        }
        let turn = |x: Value, heads| match inv_freq {
            Some(inv_freq) => ops::rotary(&self.tape, &x, heads, positions, inv_freq),
            None => Ok(x),
        };
        let (q, mut k, mut v) = (turn(q, spec.heads)?, turn(k, spec.kv_heads)?, v);
        if let Some((before_k, before_v)) = prefix {
            let pieces = pieces(&self.batch.segments);
            k = ops::prepend(&self.tape, &before_k, &k, &pieces)?;
            v = ops::prepend(&self.tape, &before_v, &v, &pieces)?;
        }
        let counts = self.counts_in_attention();
        let kv = ops::KeyValue { k: &k, v: &v };
        ops::counted_attention(&self.tape, &q, &kv, counts.as_ref(), &self.segments, spec)
    }

    /// The stream of a part's randomness in this micro-batch, for one site.
    pub fn stream(&self, purpose: &str, site: &str) -> Stream {
        self.mode.rng.named(&format!("{purpose}/{}", self.mode.micro_batch), site)
    }
}
