//! Padding-free micro-batches in an order that is a pure function of (seed, step).
//!
//! Row number p of the endless stream of rows is row `order(epoch)[p mod n]`
//! with epoch = p div n; micro-batch m of step s takes rows
//! (s·M + m)·R … (s·M + m + 1)·R of that stream (R rows a micro-batch, M
//! micro-batches a step). Resuming needs the step's number only.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use ramekin_core::{Draws, Rng};
use ramekin_slots::Images;

use crate::dataset::Dataset;
use crate::example::IGNORED;
use crate::pack::Row;

/// Rows side by side in one flat list of N tokens, without padding.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Batch {
    /// Token ids, `[N]`.
    pub ids: Vec<u32>,
    /// Targets, `[N]`, already shifted: the id that position t has to predict, −100 where it predicts nothing.
    pub labels: Vec<i64>,
    /// Position ids, `[N]`; they restart at 0 in every segment.
    pub positions: Vec<u32>,
    /// Independent causal sequences as ranges of the flat list; they cover it in order.
    pub segments: Vec<Range<usize>>,
    /// For each segment the numbers to predict of it; mostly none.
    pub targets: Vec<Vec<f32>>,
    /// The images that ids are numbers of, where rows are images.
    pub images: Option<Arc<Images>>,
    /// How many rows the batch was made of.
    pub rows: usize,
}

impl Batch {
    /// How many positions have a target: what the loss is normalised by.
    pub fn active_tokens(&self) -> usize {
        self.labels.iter().filter(|l| **l != IGNORED).count()
    }

    /// How many tokens.
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Whether there is no token.
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// Tokens of the longest segment.
    pub fn longest_segment(&self) -> usize {
        self.segments.iter().map(|s| s.len()).max().unwrap_or(0)
    }

    /// A batch of these rows of a data set, in this order.
    pub fn of_rows<'a>(data: &Dataset, rows: impl IntoIterator<Item = &'a Row>) -> Self {
        let mut batch = Batch { images: data.images.clone(), ..Batch::default() };
        for row in rows {
            batch.push(data, row);
        }
        batch
    }

    fn push(&mut self, data: &Dataset, row: &Row) {
        let first = self.ids.len();
        for piece in &row.pieces {
            let Some(example) = data.examples.get(piece.example) else {
                continue;
            };
            self.ids.extend_from_slice(&example.ids[piece.tokens.clone()]);
            self.labels.extend_from_slice(&example.labels[piece.tokens.clone()]);
        }
        // Where examples share a segment no number belongs to it.
        let apart = row.pieces.len() == row.segments.len();
        let mut at = first;
        for (i, len) in row.segments.iter().enumerate() {
            let example = row.pieces.get(i).filter(|_| apart).and_then(|p| data.examples.get(p.example));
            self.targets.push(example.map_or_else(Vec::new, |x| x.target.clone()));
            let segment = at..at + len;
            // Position t predicts the label of t + 1; the segment's own first label has nobody to predict it.
            self.labels[segment.clone()].rotate_left(usize::from(*len > 0));
            if *len > 0 {
                self.labels[segment.end - 1] = IGNORED;
            }
            self.positions.extend(0..*len as u32);
            self.segments.push(segment);
            at += len;
        }
        self.rows += 1;
    }
}

/// Hands out a data set's rows, step by step.
pub struct Sampler {
    data: Arc<Dataset>,
    rng: Rng,
    shuffle: bool,
    rows_per_micro: usize,
    micros_per_step: usize,
    /// The last two epochs' orders: a step may cross from one to the next.
    orders: Mutex<Vec<(u64, Arc<Vec<u32>>)>>,
}

impl Sampler {
    /// A sampler that takes `rows_per_micro` rows a micro-batch and
    /// `micros_per_step` micro-batches a step (0 counts as 1 in both). Rows come in file order
    /// where the data says so, else in a new order each epoch.
    pub fn new(data: Arc<Dataset>, seed: u64, rows_per_micro: usize, micros_per_step: usize) -> Self {
        let shuffle = data.shuffle;
        Sampler {
            data,
            rng: Rng::new(seed),
            shuffle,
            rows_per_micro: rows_per_micro.max(1),
            micros_per_step: micros_per_step.max(1),
            orders: Mutex::new(Vec::new()),
        }
    }

    /// The data set.
    pub fn data(&self) -> &Arc<Dataset> {
        &self.data
    }

    /// Rows of one optimizer step.
    pub fn rows_per_step(&self) -> usize {
        self.rows_per_micro * self.micros_per_step
    }

    /// Micro-batches of one optimizer step.
    pub fn micros_per_step(&self) -> usize {
        self.micros_per_step
    }

    /// Steps that show every row `epochs` times, rounded up.
    pub fn steps_for(&self, epochs: f64) -> usize {
        (self.data.rows.len() as f64 * epochs / self.rows_per_step() as f64).ceil() as usize
    }

    /// Epochs gone when this step (from 0) begins.
    pub fn epoch_at(&self, step: usize) -> f64 {
        step as f64 * self.rows_per_step() as f64 / self.data.rows.len().max(1) as f64
    }

    /// Micro-batch `micro` of step `step`, both from 0. Empty only if the data set is.
    pub fn batch(&self, step: usize, micro: usize) -> Batch {
        let first = (step as u64 * self.micros_per_step as u64 + micro as u64) * self.rows_per_micro as u64;
        let mut batch = Batch { images: self.data.images.clone(), ..Batch::default() };
        for p in first..first + self.rows_per_micro as u64 {
            if let Some(row) = self.row_at(p) {
                batch.push(&self.data, row);
            }
        }
        batch
    }

    /// All micro-batches of a step.
    pub fn step(&self, step: usize) -> Vec<Batch> {
        (0..self.micros_per_step).map(|micro| self.batch(step, micro)).collect()
    }

    fn row_at(&self, p: u64) -> Option<&Row> {
        if self.data.rows.is_empty() { None } else { self.data.rows.get(self.row_number(p)) }
    }

    /// Which of the data set's rows, of which there is at least one, is number `p` of the stream.
    fn row_number(&self, p: u64) -> usize {
        let n = self.data.rows.len() as u64;
        let at = (p % n) as usize;
        if self.shuffle { self.order(p / n)[at] as usize } else { at }
    }

    fn order(&self, epoch: u64) -> Arc<Vec<u32>> {
        let mut orders = self.orders.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, order)) = orders.iter().find(|(e, _)| *e == epoch) {
            return order.clone();
        }
        let mut order: Vec<u32> = (0..self.data.rows.len() as u32).collect();
        Draws::new(self.rng.stream("data.order", epoch)).shuffle(&mut order);
        let order = Arc::new(order);
        if orders.len() == 2 {
            orders.remove(0);
        }
        orders.push((epoch, order.clone()));
        order
    }

    /// The size that no micro-batch of the first `steps` steps exceeds. Memory is planned for it.
    pub fn largest(&self, steps: u64) -> Largest {
        let per_micro = self.rows_per_micro as u64;
        let rows = steps.saturating_mul(self.rows_per_step() as u64);
        if rows > WALKED || self.data.rows.is_empty() {
            let batch = self.data.longest_batch(self.rows_per_micro);
            let segments = batch.segments.iter().map(Range::len).collect();
            return Largest { segments, active: batch.active_tokens(), met: false };
        }
        let active: Vec<usize> =
            self.data.rows.iter().map(|row| Batch::of_rows(&self.data, [row]).active_tokens()).collect();
        let (mut at, mut tokens, mut most_active) = (0, 0, 0);
        for first in (0..rows).step_by(self.rows_per_micro) {
            let numbers = (first..first + per_micro).map(|p| self.row_number(p));
            let (t, a) = numbers.fold((0, 0), |(t, a), n| (t + self.data.rows[n].len(), a + active[n]));
            if t > tokens {
                (at, tokens) = (first, t);
            }
            most_active = most_active.max(a);
        }
        let rows = (at..at + per_micro).map(|p| &self.data.rows[self.row_number(p)]);
        Largest { segments: rows.flat_map(|r| r.segments.clone()).collect(), active: most_active, met: true }
    }
}

/// Rows that are walked to find the largest micro-batch of a run; longer runs get the bound of any run.
const WALKED: u64 = 2_000_000;

/// The size of a micro-batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Largest {
    /// Tokens of each segment.
    pub segments: Vec<usize>,
    /// Positions with a target.
    pub active: usize,
    /// Whether the run meets a micro-batch of so many tokens; else it is a bound.
    pub met: bool,
}
