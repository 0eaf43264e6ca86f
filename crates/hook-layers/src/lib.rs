//! Hooks that choose which layers' adapters train at each step.
//!
//! | kind | chooses | source |
//! |---|---|---|
//! | `ist` | by an importance that it learns by damping layers (or uniformly: RST) | EMNLP 2024 Findings, sheet `ist` |

mod importance;
mod ist;

pub use importance::{sample, sigmoid, update};
pub use ist::{Ist, IstSettings, Method};
