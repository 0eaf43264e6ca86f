//! Selections of single entries, trained in rounds.
//!
//! | kind | trains | source |
//! |---|---|---|
//! | `lt-sft` | everything, then again from the start the entries that had moved most | ACL 2022, sheet `lt-sft` |

mod frozen;
mod lt_sft;
mod ranking;
mod settings;
mod vector;

pub use lt_sft::LtSft;
pub use ranking::{random, top};
pub use settings::{LtSftSettings, Ranking};
pub use vector::{apply, differences};
