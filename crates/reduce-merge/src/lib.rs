//! Tokens of an encoder that are alike become one between a block's attention and its MLP.
//!
//! | kind | what a token becomes that takes others in | source |
//! |---|---|---|
//! | `tome` | the mean of the patches it stands for | arXiv:2210.09461 |
//! | `pyra` | the same, with those that go re-weighted by two small generators a block | arXiv:2403.09192 |

mod matched;
mod pyra;
mod schedule;
mod tome;

pub use matched::{Matched, Rule};
pub use pyra::{Pyra, PyraSettings};
pub use schedule::Schedule;
pub use tome::{Tome, TomeSettings};
