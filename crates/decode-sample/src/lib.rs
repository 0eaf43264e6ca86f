//! Decoders that pick one token at a time.
//!
//! | kind | picks |
//! |---|---|
//! | `greedy` | the largest logit, the lowest id among equals |
//! | `sample` | by probability after temperature, top-k, top-p and min-p |
//!
//! The order of the filters is transformers': repetition penalty, temperature,
//! top-k, top-p, min-p.

mod greedy;
mod penalty;
mod sample;

pub use greedy::Greedy;
pub use sample::{Sample, SampleSettings};
