//! Decoders that run further models beside the one in work.
//!
//! | kind | with | for |
//! |---|---|---|
//! | `speculative` | a draft model | the same tokens in fewer passes of the large model |
//! | `emulated-tuning` | small models, tuned and not | the large model as if it had been tuned |
//!
//! Every model has a cache of its own; what was drafted in vain is rolled back in all of them.

mod emulated;
mod round;
mod speculative;
mod tracked;

pub use emulated::{EmulatedTuning, EmulatedTuningSettings, Fusion, Prompts};
pub use speculative::{Speculative, SpeculativeSettings};
