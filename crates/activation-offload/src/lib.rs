//! Activation policies that move what backward needs out of the device's memory.
//!
//! | kind | keeps of a block | costs |
//! |---|---|---|
//! | `offload` | its saved tensors, or with `recompute` its input alone, on host or disk | the traffic, and with `recompute` one more forward |
//!
//! [`offload`](mod@offload) decides what leaves; [`depot`] holds it and brings it back ahead of time.

pub mod depot;
pub mod offload;

pub use offload::{Offload, OffloadSettings, To};
