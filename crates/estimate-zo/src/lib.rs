//! Estimators that see losses alone: no tape, no gradient of the network, the memory of inference.
//!
//! | kind | does | source |
//! |---|---|---|
//! | `mezo` | two forwards along a direction that is drawn again from its seed | arXiv:2305.17333 |
//! | `zo2` | the same, block by block, so that the weights may be elsewhere | arXiv:2503.12668 |

mod direction;
mod mezo;
mod perturb;
mod zo2;

pub use direction::{Direction, Dist};
pub use mezo::{Metric, Mezo, MezoSettings, NSchedule, replay};
pub use perturb::PerturbMode;
pub use zo2::{Autocast, Zo2, Zo2Settings};
