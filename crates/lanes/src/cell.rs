//! What one layer stores of one sequence: its lanes, and the bytes they hold.

use std::sync::Arc;

use anyhow::{Result, ensure};
use ramekin_core::{Category, Lease};
use ramekin_slots::KvShape;

use crate::lane::Lane;
use crate::{Entries, Rule, Storage, Trigger};

/// One layer's lanes of one sequence. A plan's has no lanes.
pub(crate) struct Cell<S: Storage> {
    pub lanes: Vec<Lane<S::Lane>>,
    /// Tokens that came, kept or not.
    pub seen: usize,
    /// Tokens of the first call.
    pub prompt: usize,
    /// Whether the prompt was stored whole.
    pub whole: bool,
    held: Option<(u64, Arc<Lease>)>,
}

impl<S: Storage> Default for Cell<S> {
    fn default() -> Self {
        Cell { lanes: Vec::new(), seen: 0, prompt: 0, whole: true, held: None }
    }
}

impl<S: Storage> Clone for Cell<S> {
    fn clone(&self) -> Self {
        Cell {
            lanes: self.lanes.clone(),
            held: self.held.as_ref().map(|(bytes, _)| (*bytes, Lease::new(Category::Kv, *bytes))),
            ..*self
        }
    }
}

impl<S: Storage> Cell<S> {
    /// Charges the bytes of what is held from now on.
    pub fn hold(&mut self, bytes: u64) {
        self.held = Some((bytes, Lease::new(Category::Kv, bytes)));
    }

    /// Takes back the newest tokens until `seen` are left.
    pub fn truncate<R: Rule>(&mut self, rule: &R, shape: &KvShape, seen: usize) -> Result<()> {
        let back = self.seen.saturating_sub(seen);
        if back == 0 {
            return Ok(());
        }
        if seen == 0 {
            *self = Cell::default();
            return Ok(());
        }
        let later = self.seen - self.prompt;
        // What came after the prompt can go as it came; the prompt only where nothing of it was dropped.
        let free = if self.whole { self.seen } else { later };
        let noted = self.lanes.iter().map(Lane::undoable).min().unwrap_or(later);
        let most = match rule.trigger() {
            Trigger::Prompt => self.lanes.iter().map(Lane::poppable).min().unwrap_or(free).min(free),
            Trigger::Before | Trigger::After => noted,
        };
        ensure!(
            back <= most,
            "a cache made to take back {} tokens cannot take back {back}: what they drove out is gone",
            shape.rollback
        );
        for lane in &mut self.lanes {
            (0..back).for_each(|_| lane.undo());
        }
        self.seen = seen;
        self.prompt = self.prompt.min(seen);
        Ok(())
    }

    /// Bytes of the stored keys and values.
    pub fn bytes(&self) -> u64 {
        self.lanes.iter().map(|l| l.entries.bytes()).sum()
    }
}

/// Entries that a lane with `kept` entries of its prompt gets room for.
pub(crate) fn room<R: Rule>(rule: &R, shape: &KvShape, prompt: usize, kept: usize) -> usize {
    let grown = kept + (shape.capacity - shape.prompt) + shape.rollback;
    match rule.limit(prompt) {
        Some(limit) => grown.min(limit + usize::from(rule.trigger() == Trigger::After)),
        None => grown,
    }
}

/// Bytes of a lane with room for so many entries, with all that is known of them.
pub(crate) fn lane_bytes<R: Rule, S: Storage>(rule: &R, storage: &S, shape: &KvShape, room: usize) -> u64 {
    let known = 4 * (u64::from(drops(rule)) + u64::from(rule.accumulates()));
    let undo = match rule.trigger() {
        Trigger::Prompt => 0,
        _ => {
            let scores = if rule.accumulates() { 4 * room as u64 } else { 0 };
            shape.rollback as u64 * (storage.entry_bytes(shape.head_dim) + known + scores)
        }
    };
    storage.bytes(room, shape.head_dim, shape.rollback) + known * room as u64 + undo
}

/// Whether the rule ever drops an entry, so that positions are worth keeping.
pub(crate) fn drops<R: Rule>(rule: &R) -> bool {
    rule.selects() || rule.trigger() != Trigger::Prompt
}
