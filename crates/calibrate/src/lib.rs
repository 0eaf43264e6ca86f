//! Calibration: a forward over a few sequences, block by block, with an eye on what comes in and goes out.
//!
//! The hidden states of all sequences stand before one block; the block runs on each of them while
//! [`Observer`]s look at its linears' inputs; then whoever asked may change the block, and the states move
//! on through the block as it is then. So every block sees what its changed predecessors leave, or, where
//! nothing is changed, what the model itself computes. Observers hang on linears only while their block
//! runs, and change nothing of what it computes.

mod moved;
mod observe;

use std::rc::Rc;

use anyhow::{Result, ensure};
use ramekin_core::{Array, Draws, Rng};
use ramekin_slots::{FlatBatch, Forward, Mode, Model, Sites};
use ramekin_tape::{Tape, Value};

pub use moved::Moved;
pub use observe::{InputSquares, Observer, Watch};

/// A model and the sequences that it is run on.
pub struct Calibration<'a> {
    /// The model.
    pub model: &'a Rc<dyn Model>,
    /// Its linears and parameters.
    pub sites: &'a Rc<Sites>,
    /// Sequences in groups that run together.
    pub batches: &'a [FlatBatch],
}

/// What was seen of one block.
pub struct Seen {
    /// Its number.
    pub block: usize,
    /// How far it moves its input.
    pub moved: Moved,
}

impl Calibration<'_> {
    fn forward(&self, batch: &FlatBatch) -> Forward {
        Forward::new(Tape::off(), self.sites.clone(), batch.clone(), Mode::inference())
    }

    /// Walks through the blocks. `watch` names the observers of a block before it runs; `each` is told
    /// what was seen, may change the block, and says whether it did.
    ///
    /// # Errors
    /// What the model, an observer or `each` says.
    pub fn walk(
        &self,
        watch: &mut dyn FnMut(usize) -> Result<Vec<Watch>>,
        each: &mut dyn FnMut(Seen) -> Result<bool>,
    ) -> Result<()> {
        let mut states = Vec::with_capacity(self.batches.len());
        for batch in self.batches {
            states.push(self.model.embed(&self.forward(batch))?.into_array());
        }
        for block in 0..self.model.facts().blocks {
            let watched = watch(block)?;
            let hung = observe::hang(self.sites, &watched)?;
            let mut moved = Moved::default();
            let mut after = Vec::with_capacity(states.len());
            for (batch, state) in self.batches.iter().zip(&states) {
                let next = self.run(block, batch, state)?;
                moved.add(state, &next)?;
                after.push(next);
            }
            drop(hung);
            if each(Seen { block, moved })? {
                drop(after);
                for (batch, state) in self.batches.iter().zip(states.iter_mut()) {
                    *state = self.run(block, batch, state)?;
                }
            } else {
                states = after;
            }
        }
        Ok(())
    }

    fn run(&self, block: usize, batch: &FlatBatch, state: &Array) -> Result<Array> {
        let fx = self.forward(batch);
        Ok(self.model.block(block, &fx, &Value::constant(state.clone()))?.into_array())
    }
}

/// Ids of one sample: rows, or the beginnings of rows, that do not see each other.
pub type Sample = Vec<Vec<u32>>;

/// `count` samples of `length` ids each, drawn without repetition from what the rows give.
///
/// A sample begins where a row begins and is filled with rows; the last one is cut. A row that is longer
/// than a sample goes on in the next one, what is left of others is dropped.
///
/// # Errors
/// If the rows do not give as many; the message says how many there are.
pub fn samples(rows: &[Vec<u32>], count: usize, length: usize, rng: Rng) -> Result<Vec<Sample>> {
    let mut all: Vec<Sample> = Vec::new();
    let mut open: Sample = Vec::new();
    let mut room = length;
    for row in rows {
        let mut rest = row.as_slice();
        while !rest.is_empty() && room > 0 {
            let (piece, more) = rest.split_at(rest.len().min(room));
            open.push(piece.to_vec());
            room -= piece.len();
            rest = if more.len() >= length { more } else { &[] };
            if room == 0 {
                all.push(std::mem::take(&mut open));
                room = length;
            }
        }
    }
    ensure!(
        all.len() >= count,
        "the rows hold {} tokens, which give {} samples of {length}; {count} are wanted",
        rows.iter().map(Vec::len).sum::<usize>(),
        all.len()
    );
    let mut order: Vec<usize> = (0..all.len()).collect();
    Draws::new(rng.stream("calibration", 0)).shuffle(&mut order);
    order.truncate(count);
    Ok(order.into_iter().map(|i| std::mem::take(&mut all[i])).collect())
}

/// Samples in groups of about this many tokens.
pub fn batches(samples: &[Sample], tokens: usize) -> Vec<FlatBatch> {
    let length = samples.first().map_or(1, |s| s.iter().map(Vec::len).sum::<usize>()).max(1);
    samples.chunks((tokens / length).max(1)).map(|group| FlatBatch::new(&group.concat())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_begin_with_rows_and_long_rows_go_on() {
        let row = |n: u32, len: u32| (0..len).map(|i| 100 * n + i).collect::<Vec<u32>>();
        let rows = [row(1, 3), row(2, 4), row(3, 13), row(4, 2)];
        let mut found = samples(&rows, 3, 5, Rng::new(1)).unwrap();
        found.sort();
        assert_eq!(found[0], [row(1, 3), row(2, 4)[..2].to_vec()]);
        assert_eq!(found[1], [row(3, 13)[..5].to_vec()]);
        assert_eq!(found[2], [row(3, 13)[5..10].to_vec()]);
        let error = samples(&rows, 5, 5, Rng::new(1)).unwrap_err().to_string();
        assert_eq!(error, "the rows hold 22 tokens, which give 3 samples of 5; 5 are wanted");
    }
}
