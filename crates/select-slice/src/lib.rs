//! Selections of slices: rows and columns of matrices that belong to heads and channels.
//!
//! | kind | trains | source |
//! |---|---|---|
//! | `s2ft` | the columns (or rows) of a few heads and feed-forward channels | NeurIPS 2024, sheet `s2ft` |
//!
//! * [`ops`] multiplies with a slice and keeps for backward what the slice needs.
//! * [`order`] puts heads and channels of a model in another order without changing what it computes.
//! * [`units`] says what is coupled to what, and which units are chosen.
//! * [`serve`] adds, exchanges and mixes trained slices on one base.

pub mod ops;
pub mod order;
mod s2ft;
mod scores;
pub mod serve;
mod settings;
mod site;
pub mod units;

pub use s2ft::S2ft;
pub use settings::{S2ftSettings, Scope, Score, Storage};
pub use site::Side;
