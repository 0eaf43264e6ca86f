//! Searches that look at no result: every combination, or random ones.
//!
//! | kind | tries |
//! |---|---|
//! | `grid` | every combination of listed values, the last key changing first |
//! | `random` | independent draws from each key's values or range |

mod grid;
mod random;

pub use grid::{Grid, GridSettings};
pub use random::{Random, RandomSettings};
