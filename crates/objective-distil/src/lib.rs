//! Distillation: a student learns the distribution of a teacher that runs beside it.
//!
//! | kind | loss |
//! |---|---|
//! | `distil` | α·CE + (1 − α)·T²·KL, Hinton's |
//! | `gkd` | generalised Jensen–Shannon divergence, on given answers |
//!
//! The teacher is a second model, or the base with adapters off. It runs without gradient over the same
//! tokens; both heads run on labelled rows, one chunk at a time, so logits never exist all at once.
//! Left out: answers sampled from the student (`lmbda`), hidden states, and top-k logits from a file.

mod distil;
mod gkd;
mod teacher;

pub use distil::{Distil, DistilSettings, Kl};
pub use gkd::{Gkd, GkdSettings};
