//! Placements: where a model's weights live while they are not used.

use std::sync::Arc;

use anyhow::Result;
use ramekin_core::{Param, Rng};

use crate::{PackedWeight, Sites};

/// When a block that changes was visited: where the randomness of keeping it lies.
#[derive(Clone, Copy, Debug)]
pub struct Visit {
    /// The run's randomness.
    pub rng: Rng,
    /// Grows from walk to walk, and is the same in a run that goes on.
    pub number: u64,
}

/// Holds the weights of blocks and brings them in block by block.
///
/// The loader hands over each tensor of a block as it arrives, so that a model larger than memory can
/// be loaded. A block's weights are there between [`Placement::acquire`] and [`Placement::release`];
/// calls nest. Embedding, final norm and head stay in memory, and so does what trains, unless the placement
/// [keeps changes](Placement::keeps_changes).
pub trait Placement {
    /// Whether every weight simply stays in memory.
    fn is_resident(&self) -> bool;
    /// Takes a dense tensor of a block; the parameter is left with its shape alone.
    fn adopt_param(&self, block: usize, param: &Arc<Param>) -> Result<()>;
    /// Takes a packed linear of a block; what is returned stands in its place.
    ///
    /// # Errors
    /// If the quantizer's storage cannot be taken apart.
    fn adopt_packed(
        &self,
        block: usize,
        path: &str,
        weight: Arc<dyn PackedWeight>,
    ) -> Result<Arc<dyn PackedWeight>>;
    /// Brings a block's weights in, and begins to read those that are likely to be next.
    fn acquire(&self, block: usize, sites: &Sites) -> Result<()>;
    /// Lets a block's weights go, unless an outer acquisition still holds them.
    fn release(&self, block: usize, sites: &Sites) -> Result<()>;
    /// Holds the settings against a model of this many blocks, before anything is loaded.
    ///
    /// # Errors
    /// [`ramekin_core::BadSetting`].
    fn check(&self, _blocks: usize) -> Result<()> {
        Ok(())
    }
    /// Whether it keeps what is changed of a block's weights.
    fn keeps_changes(&self) -> bool {
        false
    }
    /// Says of a block in memory that what trains of it has changed, so that letting go keeps it.
    ///
    /// # Errors
    /// If it keeps no changes.
    fn changed(&self, block: usize, _visit: Visit) -> Result<()> {
        anyhow::bail!("the weights of block {block} have changed, and they are only lent")
    }
}

/// The block that a tensor or module belongs to, by its Hugging Face name; `None` outside of blocks.
pub fn block_of(name: &str) -> Option<usize> {
    name.split('.').find_map(|part| part.parse().ok())
}
