//! Estimators that see losses alone: no tape, no gradient of the network, the memory of inference.
//!
//! | kind | does | source |
//! |---|---|---|
//! | `mezo` | two forwards along a direction that is drawn again from its seed | arXiv:2305.17333 |

mod direction;
mod mezo;

pub use direction::{Direction, Dist};
pub use mezo::{Metric, Mezo, MezoSettings, NSchedule, PerturbMode, replay};
