//! Optimizers with one momentum a number, or none.
//!
//! | kind | state a number | source |
//! |---|---|---|
//! | `sgd` | none; one f32 with momentum | torch.optim.SGD |
//! | `lion` | one f32 | arXiv:2302.06675 |

mod lion;
mod sgd;

pub use lion::{Lion, LionSettings};
pub use sgd::{Sgd, SgdSettings};
