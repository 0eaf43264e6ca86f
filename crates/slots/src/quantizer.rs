//! Quantizers: how a frozen weight is stored.

use std::sync::Arc;

use anyhow::Result;

use crate::PackedWeight;

/// Packs linear weights.
pub trait Quantizer {
    /// Its name in the ledger.
    fn name(&self) -> &'static str;
    /// Whether it takes this linear.
    fn converts(&self, path: &str) -> bool;
    /// What packs the head, and the setting that asks for it; the head stays as it is unless a part says otherwise.
    fn for_head(&self) -> Option<(&dyn Quantizer, &'static str)> {
        None
    }
    /// Whether forwards round activations to 8 bits before they meet its weights.
    fn rounds_activations(&self) -> bool {
        false
    }
    /// Packs a dense weight `[O, I]`.
    ///
    /// # Errors
    /// Sizes that do not divide, or numbers that are not finite, naming the weight.
    fn pack(&self, name: &str, weight: &[f32], shape: (usize, usize)) -> Result<Arc<dyn PackedWeight>>;
    /// The same weight without numbers, for plans; same errors about sizes.
    fn pack_shape(&self, name: &str, shape: (usize, usize)) -> Result<Arc<dyn PackedWeight>>;
    /// Files' tensors of a packed weight in the public layout, where there is one.
    fn module_names_left_out(&self) -> &[String];
}
