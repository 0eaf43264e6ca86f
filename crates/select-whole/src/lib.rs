//! Selections of whole tensors by what they are.
//!
//! | kind | trains | source |
//! |---|---|---|
//! | `full` | everything, or the modules named | plain fine-tuning |
//! | `bias` | biases alone, norm weights by setting | arXiv:2106.10199 (BitFit) |

mod bias;
mod full;

pub use bias::{BiasOnly, BiasSettings};
pub use full::{Full, FullSettings};

/// The module that a tensor belongs to.
fn module(tensor: &str) -> &str {
    tensor.rsplit_once('.').map_or("", |(module, _)| module)
}
