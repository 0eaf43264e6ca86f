//! The `reducer` slot: fewer tokens between a block's attention and its MLP.
//!
//! A model calls [`Forward::reduce`] there and goes on with what that returns; whoever walks the blocks goes
//! on with [`Forward::after`], and [`Forward::spread`] gives every token of the batch a state in the end. How
//! many tokens go is known beforehand, which ones depends on the numbers; a block that runs twice decides alike.

use std::cell::RefCell;
use std::ops::Range;
use std::rc::Rc;

use anyhow::{Result, ensure};
use ramekin_core::Array;
use ramekin_tape::{Value, ops};

use crate::{FlatBatch, Forward};

/// Leaves fewer tokens to the rest of a forward. The part of the slot is an [`crate::Adapter`] that attaches
/// one with [`crate::Around::attach_reducer`] and may have parameters of its own.
pub trait Reducer {
    /// Tokens that every segment loses in each block; blocks beyond the list lose none.
    fn schedule(&self) -> &[usize];
    /// Whether attention counts a token as often as tokens have been merged into it.
    fn counts(&self) -> bool;
    /// The tokens `h` `[N, d]` of `fx.batch` after block `block`'s attention, which compared `keys`.
    ///
    /// # Errors
    /// Faults of its operations.
    fn reduce(&self, fx: &Forward, block: usize, h: &Value, keys: &Keys<'_>) -> Result<Reduced>;
}

/// What a block's attention compared queries with.
pub struct Keys<'a> {
    /// `[N, heads·D]`.
    pub array: &'a Array,
    /// Key heads.
    pub heads: usize,
}

/// What is left of a block's tokens.
pub struct Reduced {
    /// `[N − S·r, d]`, segment by segment; a segment's first token stays its first.
    pub h: Value,
    /// For each token that was there its row now.
    pub rows: Vec<u32>,
}

/// A reducer at work in one forward, with what it has left after each block that has run.
pub(crate) struct Reducing {
    reducer: Rc<dyn Reducer>,
    after: RefCell<Vec<(usize, Left)>>,
}

/// What is left of the tokens.
#[derive(Clone)]
struct Left {
    batch: FlatBatch,
    merged: Merged,
}

/// What the tokens of a forward stand for.
#[derive(Clone)]
pub(crate) struct Merged {
    /// How many tokens of the batch each stands for.
    counts: Rc<Vec<u32>>,
    /// For each token of the batch as it began its row now.
    rows: Rc<Vec<u32>>,
}

impl Reducing {
    pub(crate) fn new(reducer: Rc<dyn Reducer>) -> Rc<Self> {
        Rc::new(Reducing { reducer, after: RefCell::default() })
    }
}

impl Forward {
    /// Tokens that every segment loses in a block.
    pub fn loses(&self, block: usize) -> usize {
        self.reducing.as_ref().and_then(|r| r.reducer.schedule().get(block).copied()).unwrap_or(0)
    }

    /// How many tokens of the batch each token stands for.
    pub fn counts(&self) -> Rc<Vec<u32>> {
        match &self.merged {
            Some(merged) => merged.counts.clone(),
            None => Rc::new(vec![1; self.batch.len()]),
        }
    }

    /// The same where attention is to count by them.
    pub(crate) fn counts_in_attention(&self) -> Option<Rc<Vec<u32>>> {
        let counting = self.reducing.as_ref().is_some_and(|r| r.reducer.counts());
        self.merged.as_ref().filter(|_| counting).map(|m| m.counts.clone())
    }

    /// What is left of the tokens `h` `[N, d]` between a block's attention and its MLP, and the forward over
    /// them. `keys` `[N, heads·D]` are what attention compared; where nothing goes they may be absent.
    ///
    /// # Errors
    /// Faults of the reducer.
    pub fn reduce(
        &self,
        block: usize,
        h: Value,
        keys: Option<&Value>,
        heads: usize,
    ) -> Result<(Forward, Value)> {
        let r = self.loses(block);
        let (Some(reducing), Some(keys)) = (&self.reducing, keys.filter(|_| r > 0)) else {
            return Ok((self.clone(), h));
        };
        let keys = Keys { array: keys.array(), heads };
        let Reduced { h, rows } = reducing.reducer.reduce(self, block, &h, &keys)?;
        let left = self.left(&rows, r)?;
        ensure!(h.array().rows().0 == left.batch.len(), "{:?} for {} tokens", h.dims(), left.batch.len());
        let mut after = reducing.after.borrow_mut();
        after.retain(|(b, _)| *b != block);
        after.push((block, left.clone()));
        Ok((self.with(left), h))
    }

    /// The batch once its tokens have gone to these rows, `r` fewer a segment.
    fn left(&self, rows: &[u32], r: usize) -> Result<Left> {
        ensure!(rows.len() == self.batch.len(), "rows of {} of {} tokens", rows.len(), self.batch.len());
        let mut segments: Vec<Range<usize>> = Vec::with_capacity(self.batch.segments.len());
        for s in self.batch.segments.iter() {
            ensure!(s.len() > r, "{r} of {} tokens cannot go", s.len());
            let from = segments.last().map_or(0, |s| s.end);
            segments.push(from..from + s.len() - r);
        }
        let n = segments.last().map_or(0, |s| s.end);
        let (mut ids, mut positions, mut counts) = (vec![0; n], vec![u32::MAX; n], vec![0; n]);
        for (i, (row, count)) in rows.iter().zip(self.counts().iter()).enumerate() {
            let row = *row as usize;
            ensure!(row < n, "a token goes to row {row} of {n}");
            ids[row] = self.batch.ids[i];
            positions[row] = positions[row].min(self.batch.positions[i]);
            counts[row] += count;
        }
        ensure!(counts.iter().all(|c| *c > 0), "a row that no token went to");
        let of_all = match &self.merged {
            Some(merged) => merged.rows.iter().map(|row| rows[*row as usize]).collect(),
            None => rows.to_vec(),
        };
        let batch = FlatBatch {
            ids: Rc::new(ids),
            positions: Rc::new(positions),
            segments: Rc::new(segments),
            images: self.batch.images.clone(),
        };
        Ok(Left { batch, merged: Merged { counts: Rc::new(counts), rows: Rc::new(of_all) } })
    }

    fn with(&self, left: Left) -> Forward {
        let mut fx = self.over(left.batch);
        fx.merged = Some(left.merged);
        fx
    }

    /// The forward as the block behind this one is to see it; `None` where it is the same.
    pub fn after(&self, block: usize) -> Option<Forward> {
        let after = self.reducing.as_ref()?.after.borrow();
        after.iter().find(|(b, _)| *b == block).map(|(_, left)| self.with(left.clone()))
    }

    /// From the states of the tokens that are left to one for every token of the batch as it began.
    pub fn spread(&self, y: Value) -> Result<Value> {
        match &self.merged {
            None => Ok(y),
            Some(merged) => ops::select_rows(&self.tape, &y, &merged.rows),
        }
    }
}
