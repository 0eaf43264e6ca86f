//! Decompositions of dense matrices, on slices.
//!
//! The arithmetic is faer's, in f64 and on one thread, so that results have the same bits for any
//! number of threads; this crate fixes what a decomposition leaves open, and keeps faer's types out
//! of every other crate.

mod svd;

pub use svd::{Svd, svd, svd_workspace};
