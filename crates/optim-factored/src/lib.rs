//! Optimizers whose second moment is factored into rows and columns.
//!
//! | kind | state of an O × I matrix | source |
//! |---|---|---|
//! | `adafactor` | O + I f32 (and O·I with `beta1`) | arXiv:1804.04235 |

mod adafactor;

pub use adafactor::{Adafactor, AdafactorSettings};
