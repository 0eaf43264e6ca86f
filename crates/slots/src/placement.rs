//! Placements: where a model's weights live while they are not used.

use std::sync::Arc;

use anyhow::Result;
use ramekin_core::Param;

use crate::{PackedWeight, Sites};

/// Holds the weights of blocks and brings them in block by block.
///
/// The loader hands over each tensor of a block as it arrives, so that a model larger than memory can
/// be loaded. A block's weights are there between [`Placement::acquire`] and [`Placement::release`];
/// calls nest. Embedding, final norm, head and whatever trains stay in memory.
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
}

/// The block that a tensor or module belongs to, by its Hugging Face name; `None` outside of blocks.
pub fn block_of(name: &str) -> Option<usize> {
    name.split('.').find_map(|part| part.parse().ok())
}
