//! The `comm` slot: several ranks that train as one.
//!
//! Every rank has a model of its own and takes its share of each step's micro-batches. What they exchange
//! is added up in the order of the ranks, on every rank alike, so that results depend neither on timing nor
//! on who was first, and parameters stay the same bits everywhere.

use anyhow::Result;
use ramekin_core::Array;

/// Ranks, and how they reach each other.
pub trait Comm {
    /// How many there are; at least 1.
    fn ranks(&self) -> usize;

    /// The ends of the ranks that live in this process, each for a thread of its own; the caller's is the
    /// first.
    ///
    /// # Errors
    /// If the ranks do not find each other.
    fn join(&self) -> Result<Vec<Box<dyn Peer + Send>>>;

    /// An end for plans, which run one rank on shapes: the others are taken to give what this one gives.
    fn rehearse(&self) -> Box<dyn Peer>;
}

/// One rank's end.
///
/// Calls are collective: every rank makes the same ones in the same order. A call fails with
/// [`RankFailed`] as soon as any rank has failed or left, so that none waits for ever. What goes over the
/// link is noted with [`ramekin_core::Meter::exchange`].
pub trait Peer {
    /// This rank's number, from 0. Rank 0 writes files and says what there is to say.
    fn rank(&self) -> usize;

    /// How many ranks there are.
    fn ranks(&self) -> usize;

    /// Everybody's bytes, by rank.
    fn gather(&self, own: Vec<u8>) -> Result<Vec<Vec<u8>>>;

    /// Rank 0's bytes; what the others bring is left aside.
    fn broadcast(&self, own: Vec<u8>) -> Result<Vec<u8>>;

    /// Comes back when every rank has called it.
    fn barrier(&self) -> Result<()> {
        self.gather(Vec::new()).map(drop)
    }

    /// Adds everybody's tensor of one name to what `onto` gives for that name, rank by rank:
    /// `((onto + x₀) + x₁) + …`. A rank with nothing more to give brings `None` and gets the sum all the
    /// same; `None` comes back where nobody brought anything.
    ///
    /// # Errors
    /// If ranks bring tensors of different names.
    fn sum(
        &self,
        own: Option<(&str, Array)>,
        onto: &mut dyn FnMut(&str) -> Option<Array>,
    ) -> Result<Option<(String, Array)>>;

    /// Tells the others that this rank cannot go on, and why.
    fn fail(&self, why: &str);
}

/// Another rank has failed or left; its own error says why.
#[derive(Debug)]
pub struct RankFailed(
    /// Who, and what it said.
    pub String,
);

impl std::fmt::Display for RankFailed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for RankFailed {}
