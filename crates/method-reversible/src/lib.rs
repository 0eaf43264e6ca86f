//! Methods that train through layers which can be undone, so that nothing of them is kept.
//!
//! | kind | brings | source |
//! |---|---|---|
//! | `meft` | two streams with adapters, and the policy that undoes the layers in backward | arXiv:2306.00477 |
//!
//! The adapter is the function and runs the same in training, evaluation and generation; the policy is what
//! backward keeps of it. So an adapter that was saved also trains under any other policy.

mod meft;
mod net;
mod policy;
mod settings;
mod streams;

pub use meft::{Meft, MeftAdapter};
pub use policy::Reversible;
pub use settings::{Every, MeftSettings, Variant};
