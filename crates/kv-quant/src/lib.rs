//! Key/value caches that pack entries.
//!
//! | kind | entry | source |
//! |---|---|---|
//! | `quantized` | 2, 4 or 8 bits a number in groups along the head, the newest in f32 | transformers' `QuantizedCache` |

mod lane;
mod quantized;

pub use lane::{Packed, PackedLane};
pub use quantized::{Quantized, QuantizedSettings};
