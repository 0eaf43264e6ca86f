//! Adam-type optimizers.
//!
//! | kind | state a number | source |
//! |---|---|---|
//! | `adamw` | two f32 | arXiv:1711.05101 |

mod adamw;

pub use adamw::{AdamW, AdamWSettings};
