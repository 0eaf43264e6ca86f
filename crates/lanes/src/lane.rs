//! How the entries of a lane are held.

use std::collections::VecDeque;

use ramekin_kernels::attention::Stored;

/// A form to hold entries in.
pub trait Storage: Clone + 'static {
    /// The lanes of this form.
    type Lane: Entries;
    /// An empty lane with room for this many entries; it may be asked to [`Entries::pop`] the last
    /// `rollback` of them.
    fn lane(&self, room: usize, head_dim: usize, rollback: usize) -> Self::Lane;
    /// Bytes of such a lane, filled.
    fn bytes(&self, room: usize, head_dim: usize, rollback: usize) -> u64;
    /// Whether an entry's form changes as newer ones come: then tokens are taken one by one.
    fn ages(&self) -> bool {
        false
    }
    /// Bytes of one entry that was dropped and may come back.
    fn entry_bytes(&self, head_dim: usize) -> u64 {
        8 * head_dim as u64
    }
}

/// The entries of a lane, oldest first.
pub trait Entries: Stored<f32> + Clone + Send + 'static {
    /// An entry out of its lane.
    type Entry: Clone + Send + Sync;
    /// How many there are.
    fn len(&self) -> usize;
    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Adds the newest, `[head_dim]` each.
    fn push(&mut self, k: &[f32], v: &[f32]);
    /// Undoes the last push that is not undone yet.
    fn pop(&mut self);
    /// How many times [`Entries::pop`] gives exactly what was there before.
    fn poppable(&self) -> usize {
        self.len()
    }
    /// Takes an entry out.
    fn remove(&mut self, index: usize) -> Self::Entry;
    /// Puts an entry back where it was.
    fn insert(&mut self, index: usize, entry: Self::Entry);
    /// Bytes of the entries, without room reserved for later ones.
    fn bytes(&self) -> u64;
}

/// A lane with what rules know of its entries.
#[derive(Clone)]
pub(crate) struct Lane<E: Entries> {
    pub entries: E,
    /// How much each entry was looked at so far, where a rule adds that up.
    pub scores: Vec<f32>,
    /// Position of each entry, where a rule drops some.
    pub positions: Vec<u32>,
    /// Whether positions are kept.
    pub placed: bool,
    /// What to undo, newest last.
    undo: VecDeque<Undo<E::Entry>>,
}

/// An entry that was dropped, with all that was known of it.
#[derive(Clone)]
struct Dropped<T> {
    index: usize,
    entry: T,
    position: Option<u32>,
    score: Option<f32>,
}

/// What one token changed.
#[derive(Clone)]
struct Undo<T> {
    before: Option<Dropped<T>>,
    scores: Vec<f32>,
    after: Option<Dropped<T>>,
}

impl<E: Entries> Lane<E> {
    pub fn new(entries: E, placed: bool) -> Self {
        Lane { entries, scores: Vec::new(), positions: Vec::new(), placed, undo: VecDeque::new() }
    }

    /// Adds the newest entry after dropping the one at `victim`. The last `rollback` tokens can be undone.
    pub fn push(&mut self, k: &[f32], v: &[f32], position: u32, victim: Option<usize>, rollback: usize) {
        let before = victim.map(|index| self.drop_entry(index));
        if rollback > 0 {
            if self.undo.len() == rollback {
                self.undo.pop_front();
            }
            self.undo.push_back(Undo { before, scores: self.scores.clone(), after: None });
        }
        self.entries.push(k, v);
        if self.placed {
            self.positions.push(position);
        }
    }

    /// Drops an entry in answer to the newest one.
    pub fn drop_after(&mut self, index: usize) {
        let dropped = self.drop_entry(index);
        if let Some(undo) = self.undo.back_mut() {
            undo.after = Some(dropped);
        }
    }

    fn drop_entry(&mut self, index: usize) -> Dropped<E::Entry> {
        Dropped {
            index,
            entry: self.entries.remove(index),
            position: self.placed.then(|| self.positions.remove(index)),
            score: (!self.scores.is_empty()).then(|| self.scores.remove(index)),
        }
    }

    fn restore(&mut self, dropped: Dropped<E::Entry>) {
        self.entries.insert(dropped.index, dropped.entry);
        if let Some(position) = dropped.position {
            self.positions.insert(dropped.index, position);
        }
        if let Some(score) = dropped.score {
            self.scores.insert(dropped.index, score);
        }
    }

    /// How many of the newest tokens are noted with what they dropped.
    pub fn undoable(&self) -> usize {
        self.undo.len()
    }

    /// How many of the newest tokens can be undone.
    pub fn poppable(&self) -> usize {
        self.entries.poppable()
    }

    /// Undoes the newest token.
    pub fn undo(&mut self) {
        let noted = self.undo.pop_back();
        let (before, scores, after) = match noted {
            Some(undo) => (undo.before, Some(undo.scores), undo.after),
            None => (None, None, None),
        };
        if let Some(dropped) = after {
            self.restore(dropped);
        }
        self.entries.pop();
        self.positions.pop();
        if let Some(scores) = scores {
            self.scores = scores;
        }
        if let Some(dropped) = before {
            self.restore(dropped);
        }
    }
}
