//! The cache: cells by layer and sequence.

use std::cell::RefCell;
use std::rc::Rc;

use anyhow::{Context, Result, ensure};
use ramekin_core::Array;
use ramekin_kernels::rope::Table;
use ramekin_slots::{Attend, KvCache, KvShape};

use crate::cell::{self, Cell};
use crate::{Entries, Rule, Storage};

/// Keys and values of several sequences under one rule.
pub struct Cache<R: Rule, S: Storage> {
    pub(crate) rule: R,
    pub(crate) storage: S,
    pub(crate) shape: KvShape,
    /// By layer, then sequence.
    pub(crate) cells: Vec<Vec<Cell<S>>>,
    /// Angles of the slots, for rules that turn keys by slot.
    pub(crate) slots: Option<Rc<Table<f32>>>,
}

/// An empty cache.
pub fn open<R: Rule, S: Storage>(rule: R, storage: S, shape: KvShape) -> Result<Rc<RefCell<dyn KvCache>>> {
    Ok(Rc::new(RefCell::new(Cache::new(rule, storage, shape)?)))
}

/// Bytes of a cache whose prompts are all as long as the longest.
pub fn bytes<R: Rule, S: Storage>(rule: &R, storage: &S, shape: KvShape) -> u64 {
    let lanes = if rule.by_query_head() { shape.heads } else { shape.kv_heads };
    let layer = |l| {
        let kept = rule.kept(l, shape.layers, lanes, shape.prompt);
        layer_bytes(rule, storage, &shape, shape.prompt, lanes, kept)
    };
    shape.sequences as u64 * (0..shape.layers).map(layer).sum::<u64>()
}

/// Bytes of a layer's lanes of one sequence that together keep `kept` entries of its prompt.
pub(crate) fn layer_bytes<R: Rule, S: Storage>(
    rule: &R,
    storage: &S,
    shape: &KvShape,
    prompt: usize,
    lanes: usize,
    kept: usize,
) -> u64 {
    let (each, more) = (kept / lanes, kept % lanes);
    let bytes = |kept| cell::lane_bytes(rule, storage, shape, cell::room(rule, shape, prompt, kept));
    (lanes - more) as u64 * bytes(each) + more as u64 * bytes(each + 1)
}

impl<R: Rule, S: Storage> Cache<R, S> {
    /// An empty cache.
    ///
    /// # Errors
    /// If the sizes contradict each other.
    pub fn new(rule: R, storage: S, shape: KvShape) -> Result<Self> {
        ensure!(
            shape.kv_heads > 0 && shape.heads.is_multiple_of(shape.kv_heads),
            "{} heads cannot share {} key/value heads",
            shape.heads,
            shape.kv_heads
        );
        ensure!(shape.capacity >= shape.prompt, "a prompt of {} in {shape:?}", shape.prompt);
        let row = || (0..shape.sequences).map(|_| Cell::default()).collect();
        let cells = (0..shape.layers).map(|_| row()).collect();
        Ok(Cache { rule, storage, shape, cells, slots: None })
    }

    /// Positions of the entries that a lane stores, where the rule drops any.
    pub fn positions(&self, layer: usize, sequence: usize, lane: usize) -> &[u32] {
        self.cell(layer, sequence).and_then(|c| c.lanes.get(lane)).map_or(&[], |l| &l.positions)
    }

    /// What the rule added up for the entries that a lane stores.
    pub fn scores(&self, layer: usize, sequence: usize, lane: usize) -> &[f32] {
        self.cell(layer, sequence).and_then(|c| c.lanes.get(lane)).map_or(&[], |l| &l.scores)
    }

    fn cell(&self, layer: usize, sequence: usize) -> Option<&Cell<S>> {
        self.cells.get(layer)?.get(sequence)
    }
}

impl<R: Rule, S: Storage> KvCache for Cache<R, S> {
    fn attend(&mut self, layer: usize, step: Attend<'_>) -> Result<Array> {
        self.take(layer, step)
    }

    fn seen(&self, sequence: usize) -> usize {
        self.cell(0, sequence).map_or(0, |c| c.seen)
    }

    fn stored(&self, layer: usize, sequence: usize, head: usize) -> usize {
        let lane =
            |c: &Cell<S>| c.lanes.get(head * c.lanes.len() / self.shape.kv_heads).map(|l| l.entries.len());
        self.cell(layer, sequence).and_then(lane).unwrap_or(0)
    }

    fn bytes(&self) -> u64 {
        self.cells.iter().flatten().map(Cell::bytes).sum()
    }

    fn truncate(&mut self, sequence: usize, seen: usize) -> Result<()> {
        for layer in &mut self.cells {
            let cell = layer.get_mut(sequence).with_context(|| format!("no sequence {sequence}"))?;
            cell.truncate(&self.rule, &self.shape, seen)?;
        }
        Ok(())
    }

    fn reorder(&mut self, from: &[usize]) -> Result<()> {
        for layer in &mut self.cells {
            ensure!(from.iter().all(|i| *i < layer.len()), "no such sequences: {from:?}");
            let mut old: Vec<Option<Cell<S>>> = layer.drain(..).map(Some).collect();
            // What nobody wants goes first, so that a copy never stands beside it.
            for (_, cell) in old.iter_mut().enumerate().filter(|(i, _)| !from.contains(i)) {
                *cell = None;
            }
            for (at, i) in from.iter().enumerate() {
                // The last one that wants a cell takes it; the others copy.
                let last = !from[at + 1..].contains(i);
                layer.extend(if last { old[*i].take() } else { old[*i].clone() });
            }
        }
        self.shape.sequences = from.len();
        Ok(())
    }

    fn snapshot(&self) -> Rc<RefCell<dyn KvCache>> {
        Rc::new(RefCell::new(Cache {
            rule: self.rule.clone(),
            storage: self.storage.clone(),
            shape: self.shape,
            cells: self.cells.clone(),
            slots: self.slots.clone(),
        }))
    }
}
