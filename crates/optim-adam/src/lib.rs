//! Adam-type optimizers.
//!
//! | kind | state a number | source |
//! |---|---|---|
//! | `adamw` | two f32 | arXiv:1711.05101 |
//! | `adamw8bit` | two bytes, and two f32 a block | arXiv:2110.02861 |

mod adamw;
mod adamw8bit;

pub use adamw::{AdamW, AdamWSettings};
pub use adamw8bit::{AdamW8bit, AdamW8bitSettings};
