//! Decoders that search: several continuations of a prompt side by side.
//!
//! | kind | keeps |
//! |---|---|
//! | `beam` | the `num_beams` most probable continuations, as transformers does |

mod beam;
mod hypotheses;

pub use beam::{Beam, BeamSettings, EarlyStopping};
