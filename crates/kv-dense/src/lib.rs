//! Key/value caches that keep every entry: `full`.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use ramekin_core::{Array, Category, Lease};
use ramekin_kernels::attention as kernel;
use ramekin_registry::{Part, part};
use ramekin_slots::{Attend, KvCache, KvPolicy, KvShape};
use ramekin_tape::ops::Segment;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

part! { kv / "full" => Full, "keeps every key and value in f32", source = "plain decoding", traits = [] }

/// `kv = { kind = "full" }` has no settings.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct FullSettings {}

/// The policy.
pub struct Full;

impl Part for Full {
    type Settings = FullSettings;

    fn new(_: FullSettings) -> Result<Self> {
        Ok(Full)
    }
}

impl KvPolicy for Full {
    fn cache(&self, shape: KvShape) -> Result<Rc<RefCell<dyn KvCache>>> {
        let one = || Entry { k: Vec::new(), v: Vec::new(), seen: 0 };
        let layers = (0..shape.layers)
            .map(|_| (0..shape.sequences).map(|_| one()).collect())
            .collect::<Vec<Vec<Entry>>>();
        Ok(Rc::new(RefCell::new(FullCache {
            layers,
            shape,
            held: Lease::new(Category::Kv, self.bytes(shape)),
        })))
    }

    fn bytes(&self, shape: KvShape) -> u64 {
        (2 * shape.layers * shape.sequences * shape.capacity * shape.kv_heads * shape.head_dim * 4) as u64
    }
}

/// Keys and values of one sequence in one layer, `[seen, K·D]` each.
#[derive(Clone)]
struct Entry {
    k: Vec<f32>,
    v: Vec<f32>,
    seen: usize,
}

#[derive(Clone)]
struct FullCache {
    layers: Vec<Vec<Entry>>,
    shape: KvShape,
    #[allow(dead_code, reason = "held for its bytes on the meter")]
    held: Arc<Lease>,
}

impl KvCache for FullCache {
    fn attend(&mut self, layer: usize, mut step: Attend<'_>) -> Result<Array> {
        step.rotate(step.positions)?;
        let Attend { q, k, v, segments, spec, .. } = step;
        let entries = &mut self.layers[layer];
        ensure!(
            segments.len() == entries.len(),
            "{} sequences in a cache of {}",
            segments.len(),
            entries.len()
        );
        let key_width = spec.kv_heads * spec.head_dim;
        let query_width = spec.heads * spec.head_dim;
        Array::build::<f32>(q.dims(), q.is_shape_only(), Category::Workspace, |out| {
            let (qv, kv, vv) = (q.view::<f32>()?, k.view::<f32>()?, v.view::<f32>()?);
            for (entry, rows) in entries.iter_mut().zip(segments) {
                if rows.is_empty() {
                    continue;
                }
                let full = entry.seen + rows.len() > self.shape.capacity;
                ensure!(!full, "a cache of {} tokens is full", self.shape.capacity);
                // Reserved once and whole, so that growing never copies; a plan's shapes reserve nothing.
                entry.k.reserve_exact(self.shape.capacity * key_width - entry.k.len());
                entry.v.reserve_exact(self.shape.capacity * key_width - entry.v.len());
                entry.k.extend_from_slice(&kv[rows.start * key_width..rows.end * key_width]);
                entry.v.extend_from_slice(&vv[rows.start * key_width..rows.end * key_width]);
                entry.seen += rows.len();
                let segment = Segment { q_start: 0, q_len: rows.len(), k_start: 0, k_len: entry.seen };
                let mut lse = vec![0.0f32; rows.len() * spec.heads];
                let range = rows.start * query_width..rows.end * query_width;
                kernel::forward(
                    &qv[range.clone()],
                    &entry.k,
                    &entry.v,
                    &[segment],
                    &spec.shape(),
                    &mut out[range],
                    &mut lse,
                );
            }
            Ok(())
        })
    }

    fn seen(&self, sequence: usize) -> usize {
        self.layers.first().and_then(|l| l.get(sequence)).map_or(0, |e| e.seen)
    }

    fn stored(&self, layer: usize, sequence: usize, _head: usize) -> usize {
        self.layers.get(layer).and_then(|l| l.get(sequence)).map_or(0, |e| e.seen)
    }

    fn bytes(&self) -> u64 {
        self.layers.iter().flatten().map(|e| 4 * (e.k.len() + e.v.len()) as u64).sum()
    }

    fn truncate(&mut self, sequence: usize, seen: usize) -> Result<()> {
        let width = self.shape.kv_heads * self.shape.head_dim;
        for layer in &mut self.layers {
            let entry = layer.get_mut(sequence).with_context(|| format!("no sequence {sequence}"))?;
            entry.k.truncate(seen * width);
            entry.v.truncate(seen * width);
            entry.seen = entry.seen.min(seen);
        }
        Ok(())
    }

    fn reorder(&mut self, from: &[usize]) -> Result<()> {
        for layer in &mut self.layers {
            ensure!(from.iter().all(|i| *i < layer.len()), "no such sequences: {from:?}");
            *layer = from.iter().map(|i| layer[*i].clone()).collect();
        }
        Ok(())
    }

    fn snapshot(&self) -> Rc<RefCell<dyn KvCache>> {
        let held = Lease::new(Category::Kv, Full.bytes(self.shape));
        Rc::new(RefCell::new(FullCache { held, ..self.clone() }))
    }
}
