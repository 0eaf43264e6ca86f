//! Structured pruning: channels of MLPs that go for good, so that what is left is smaller and dense.
//!
//! | kind | keeps | source |
//! |---|---|---|
//! | `cfsp` | more channels in blocks that turn their input more, the most active ones of each | arXiv:2409.13199 |

mod budget;
mod cfsp;
mod score;

pub use budget::{keep_ratios, ranks};
pub use cfsp::{Cfsp, CfspSettings};
pub use score::{LocalMetric, Normaliser, score};
