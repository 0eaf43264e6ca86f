//! Networks beside a frozen backbone that runs without tape.
//!
//! | kind | what the head is given | source |
//! |---|---|---|
//! | `unipt` | the last state plus a mixture of what it finds in each earlier state | arXiv:2308.14316 |
//!
//! Backward never enters the backbone, so nothing of it is kept but its hidden states.

mod settings;
mod side;
mod unipt;

pub use settings::{Layers, Output, Phi, Pool, UniptSettings};
pub use side::Side;
pub use unipt::Unipt;
