//! Gradients projected to a subspace in which the optimizer works.
//!
//! | kind | keeps of a gradient | source |
//! |---|---|---|
//! | `galore` | its part along the leading singular vectors; with `residual` (Fira) the rest too, rescaled | arXiv:2403.03507, arXiv:2410.01623 |

mod galore;
mod residual;

pub use galore::{Galore, GaloreSettings, ProjType};
