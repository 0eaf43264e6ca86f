//! Selections of a random half of the matrices.
//!
//! | kind | trains | source |
//! |---|---|---|
//! | `hft` | half of each layer's matrices, drawn anew each round | ACL 2025, sheet `hft` |

mod choice;
mod hft;

pub use choice::{Choice, NormPolicy, Strategy};
pub use hft::{Hft, HftSettings, Mode, Resample, reset};
