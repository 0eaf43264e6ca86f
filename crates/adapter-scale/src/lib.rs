//! Adapters that scale and shift features, or train the norms.
//!
//! | kind | what trains | source |
//! |---|---|---|
//! | `ssf` | a scale and a shift for each channel behind every linear and norm | arXiv:2210.08823 |
//! | `ln` | copies of the norms' own weights | arXiv:2312.11420 |
//!
//! Both fold into the weights of what they sit at and cost nothing then.

mod ln;
mod ssf;

pub use ln::{LnTuning, LnTuningSettings};
pub use ssf::{All, Places, Ssf, SsfSettings, Where};
