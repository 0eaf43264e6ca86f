//! Cached decoding by hand: tokens in, logits out, with the cache at hand.

use std::cell::RefCell;
use std::ops::Range;
use std::rc::Rc;

use anyhow::{Result, bail};
use ramekin_core::{Array, Category};
use ramekin_engine::assembly::Assembly;
use ramekin_engine::hidden::hidden;
use ramekin_lanes::{Cache, Rule, Storage};
use ramekin_slots::{Attend, FlatBatch, Forward, KvCache, KvPolicy, KvShape, Mode};
use ramekin_tape::Tape;

/// A model with a cache of some sequences.
pub struct Session<'a> {
    model: &'a Assembly,
    /// The cache.
    pub cache: Rc<RefCell<dyn KvCache>>,
    sequences: usize,
}

/// Sizes for prompts of `prompt` tokens and `later` more.
pub fn shape(model: &Assembly, sequences: usize, prompt: usize, later: usize) -> KvShape {
    KvShape::new(model.model.facts(), sequences, prompt, prompt + later)
}

impl<'a> Session<'a> {
    /// With a new cache of a policy.
    pub fn new(model: &'a Assembly, policy: &dyn KvPolicy, shape: KvShape) -> Self {
        Self::on(model, policy.cache(shape).expect("a cache"), shape.sequences)
    }

    /// With a cache.
    pub fn on(model: &'a Assembly, cache: Rc<RefCell<dyn KvCache>>, sequences: usize) -> Self {
        Session { model, cache, sequences }
    }

    /// Adds tokens to each sequence; returns each one's logits, `[tokens, V]`.
    pub fn feed(&mut self, new: &[Vec<u32>]) -> Vec<Vec<f32>> {
        assert_eq!(new.len(), self.sequences);
        let mut batch = FlatBatch::new(new);
        let seen = |i| self.cache.borrow().seen(i) as u32;
        let positions = new.iter().enumerate().flat_map(|(i, ids)| seen(i)..seen(i) + ids.len() as u32);
        batch.positions = Rc::new(positions.collect());
        let fx = Forward::new(Tape::off(), self.model.sites.clone(), batch, Mode::inference())
            .with_cache(self.cache.clone());
        let h = hidden(&self.model.model, &fx, None).unwrap_or_else(|e| panic!("{e:#}"));
        let z = self.model.model.head(&fx, &h).and_then(|z| z.array().to_f32()).expect("logits");
        let v = self.model.model.facts().vocab_size;
        let mut from = 0;
        new.iter()
            .map(|ids| {
                let part = z[from..from + ids.len() * v].to_vec();
                from += ids.len() * v;
                part
            })
            .collect()
    }

    /// The prompt, then the others one by one, of the only sequence; all logits.
    pub fn one_by_one(&mut self, ids: &[u32], prompt: usize) -> Vec<f32> {
        let mut all = self.feed(&[ids[..prompt].to_vec()]).remove(0);
        for id in &ids[prompt..] {
            all.extend(self.feed(&[vec![*id]]).remove(0));
        }
        all
    }
}

/// Which entries a query sees: layer, query head, and its position decide; ascending positions.
pub type Visible = Rc<dyn Fn(usize, usize, u32) -> Vec<u32>>;

/// A cache that keeps everything and shows each query what a test wants it to see, in plain arithmetic.
pub struct Masked {
    visible: Visible,
    /// Keys, turned by true position, and values of the only sequence, by layer.
    layers: Vec<[Vec<f32>; 2]>,
    seen: Vec<usize>,
}

impl Masked {
    /// Nothing stored.
    pub fn new(layers: usize, visible: Visible) -> Rc<RefCell<Self>> {
        Rc::new(RefCell::new(Masked {
            visible,
            layers: vec![[Vec::new(), Vec::new()]; layers],
            seen: vec![0; layers],
        }))
    }
}

impl KvCache for Masked {
    fn attend(&mut self, layer: usize, mut step: Attend<'_>) -> Result<Array> {
        step.rotate(step.positions)?;
        let [k, v] = &mut self.layers[layer];
        k.extend_from_slice(&step.k.view::<f32>()?);
        v.extend_from_slice(&step.v.view::<f32>()?);
        self.seen[layer] += step.positions.len();
        let (q, s) = (step.q.to_f32()?, step.spec);
        let (d, group) = (s.head_dim, s.heads / s.kv_heads);
        Array::build::<f32>(step.q.dims(), false, Category::Workspace, |out| {
            for (i, position) in step.positions.iter().enumerate() {
                for h in 0..s.heads {
                    let at = (i * s.heads + h) * d;
                    let entry = |j: &u32| (*j as usize * s.kv_heads + h / group) * d;
                    let seen = (self.visible)(layer, h, *position);
                    let dot = |j: &u32| -> f64 {
                        let k = &k[entry(j)..entry(j) + d];
                        q[at..at + d].iter().zip(k).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
                    };
                    let scores: Vec<f64> = seen.iter().map(|j| dot(j) * s.scale).collect();
                    let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                    let total: f64 = scores.iter().map(|x| (x - top).exp()).sum();
                    let mut sum = vec![0.0f64; d];
                    for (j, x) in seen.iter().zip(&scores) {
                        let p = (x - top).exp() / total;
                        sum.iter_mut().zip(&v[entry(j)..]).for_each(|(s, v)| *s += p * f64::from(*v));
                    }
                    out[at..at + d].iter_mut().zip(sum).for_each(|(o, s)| *o = s as f32);
                }
            }
            Ok(())
        })
    }

    fn seen(&self, _: usize) -> usize {
        self.seen[0]
    }

    fn stored(&self, layer: usize, _: usize, _: usize) -> usize {
        self.seen[layer]
    }

    fn bytes(&self) -> u64 {
        self.layers.iter().flatten().map(|x| 4 * x.len() as u64).sum()
    }

    fn truncate(&mut self, _: usize, _: usize) -> Result<()> {
        bail!("a masked cache only grows")
    }

    fn reorder(&mut self, _: &[usize]) -> Result<()> {
        bail!("a masked cache has one sequence")
    }

    fn snapshot(&self) -> Rc<RefCell<dyn KvCache>> {
        let (visible, layers, seen) = (self.visible.clone(), self.layers.clone(), self.seen.clone());
        Rc::new(RefCell::new(Masked { visible, layers, seen }))
    }
}

/// Positions that each lane of each layer stores of the first sequence.
pub fn kept<R: Rule, S: Storage>(cache: &Cache<R, S>, layers: usize, lanes: usize) -> Vec<Vec<Vec<u32>>> {
    let lane = |l, h| cache.positions(l, 0, h).to_vec();
    (0..layers).map(|l| (0..lanes).map(|h| lane(l, h)).collect()).collect()
}

/// Runs a rule's cache and the masked one over the same tokens, the second seeing at each token what the
/// first had stored; returns the logits of both. `lanes` is the rule's number of lanes a layer.
pub fn with_and_masked<R: Rule, S: Storage>(
    model: &Assembly,
    cache: Cache<R, S>,
    lanes: usize,
    ids: &[u32],
    prompt: usize,
) -> (Vec<f32>, Vec<f32>, Vec<Vec<Vec<u32>>>) {
    let facts = model.model.facts();
    let (layers, heads) = (facts.blocks, facts.heads);
    let typed = Rc::new(RefCell::new(cache));
    let mut session = Session::on(model, typed.clone(), 1);
    let mut got = session.feed(&[ids[..prompt].to_vec()]).remove(0);
    // What was stored before each token.
    let mut stored = Vec::new();
    for id in &ids[prompt..] {
        stored.push(kept(&typed.borrow(), layers, lanes));
        got.extend(session.feed(&[vec![*id]]).remove(0));
    }
    let end = kept(&typed.borrow(), layers, lanes);
    let visible: Visible = Rc::new(move |layer, head, position| {
        if (position as usize) < prompt {
            return (0..=position).collect();
        }
        let mut seen = stored[position as usize - prompt][layer][head * lanes / heads].clone();
        seen.push(position);
        seen
    });
    let want = Session::on(model, Masked::new(layers, visible), 1).one_by_one(ids, prompt);
    (got, want, end)
}

/// Rows of a step without a model: `[rows, heads·D]` of each.
pub struct Made {
    /// Queries.
    pub q: Vec<f32>,
    /// Keys.
    pub k: Vec<f32>,
    /// Values.
    pub v: Vec<f32>,
}

/// Hands made rows to a layer of a cache with one sequence, without rotation; returns `[rows, heads·D]`.
pub fn attend(
    cache: &mut dyn KvCache,
    layer: usize,
    spec: ramekin_tape::ops::AttentionSpec,
    made: &Made,
) -> Vec<f32> {
    let rows = made.q.len() / (spec.heads * spec.head_dim);
    let array = |x: &Vec<f32>| {
        Array::from_vec(x.clone(), &[rows, x.len() / rows], Category::Workspace).expect("rows")
    };
    let from = cache.seen(0) as u32;
    let positions = Rc::new((from..from + rows as u32).collect::<Vec<u32>>());
    let all: Range<usize> = 0..rows;
    let step = Attend {
        q: array(&made.q),
        k: array(&made.k),
        v: array(&made.v),
        positions: &positions,
        inv_freq: None,
        prefix: None,
        segments: std::slice::from_ref(&all),
        spec,
    };
    cache.attend(layer, step).and_then(|y| y.to_f32()).unwrap_or_else(|e| panic!("{e:#}"))
}
