//! Learning-rate schedules: a factor of the optimizer's rate by step.
//!
//! | kind | after warm-up |
//! |---|---|
//! | `constant` | 1 |
//! | `linear` | straight down to `min_ratio` |
//! | `cosine` | half a cosine down to `min_ratio` |
//! | `wsd` | 1, then down to `min_ratio` over the last `decay_ratio` of the steps |
//!
//! Warm-up rises linearly from 0, as in transformers' `get_*_schedule_with_warmup`.

mod curves;

pub use curves::{Constant, Cosine, Linear, Wsd};
