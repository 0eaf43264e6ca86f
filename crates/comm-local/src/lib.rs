//! Ranks of one process.
//!
//! | kind | ranks are | what goes between them |
//! |---|---|---|
//! | `local` | threads | handles to tensors in shared memory; each rank adds them up in the order of the ranks |

mod hub;
mod local;

pub use local::{Local, LocalSettings};
