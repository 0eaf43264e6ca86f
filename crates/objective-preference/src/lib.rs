//! Objectives on pairs of a chosen and a rejected answer.
//!
//! | kind | compares with | loss |
//! |---|---|---|
//! | `dpo` | the base with adapters off, or a second model | one of TRL's, or a weighted sum of several |
//!
//! The answers' log-probabilities are made a chunk of rows at a time, forward and again in backward; the
//! loss of a pair is worked out in f64 with its slopes (`dual`).

mod dpo;
mod dual;
mod losses;

pub use dpo::{Dpo, DpoSettings, FDivergence, LossTypes};
pub use losses::LossType;
