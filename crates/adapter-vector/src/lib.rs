//! Adapters whose trainable numbers are vectors.
//!
//! | kind | y | source |
//! |---|---|---|
//! | `ia3` | l ⊙ (Wx + b), or W(l ⊙ x) + b for feed-forward modules | arXiv:2205.05638 |
//! | `vera` | Wx + b + λ_b ⊙ B(λ_d ⊙ A drop(x)), A and B random, frozen and shared | arXiv:2310.11454 |

mod ia3;
mod projection;
mod vera;

pub use ia3::{Ia3, Ia3Settings};
pub use vera::{Vera, VeraBias, VeraSettings};
