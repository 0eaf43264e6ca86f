//! Updates of linears that are products of small matrices without being of low rank.
//!
//! | kind | ΔW `[O, I]` | source |
//! |---|---|---|
//! | `loha` | (alpha/r)·(A₁B₁) ⊙ (A₂B₂) | arXiv:2108.06098, 2309.14859 |
//! | `lokr` | (alpha/r)·W₁ ⊗ W₂ | arXiv:2309.14859 |
//!
//! Neither forms ΔW: `loha` multiplies by thin matrices of rank r², `lokr` by W₂, then W₁.

mod drops;
mod loha;
mod lokr;
mod settings;

pub use loha::Loha;
pub use lokr::Lokr;
pub use settings::{LohaSettings, LokrInit, LokrSettings};
