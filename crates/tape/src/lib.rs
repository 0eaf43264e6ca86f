//! Reverse-mode differentiation over untracked tensors.
//!
//! candle's own backward computes and keeps the dense gradient of both
//! operands of every product, frozen or not. Here a node holds what its own
//! backward needs and nothing else, and no node exists where nothing upstream
//! trains; so a forward without trainable parameters is plain inference.
//!
//! * [`Tape`] records; [`Value`] is an array that may have a node.
//! * [`ops`] holds the operations, one file each, over `ramekin-kernels`.
//! * What forward keeps goes through [`Tape::save`] and may be intercepted by
//!   a [`SavedHook`].
//! * [`Tape::checkpoint`] runs a segment again in backward instead of keeping
//!   what it saved; [`Tape::chunked`] takes a sum over row chunks, value and
//!   gradient in one pass; [`Tape::reversible`] undoes layers on two streams.
//! * [`Tape::backward`] hands every parameter's gradient to a [`GradSink`] the
//!   moment it is complete.
//! * [`Tape::island`] wraps a function that is written with candle's autograd.

mod chunked;
mod island;
pub mod ops;
mod reversible;
mod segment;
mod sink;
mod tape;

pub use chunked::{ChunkLoss, ChunkRows};
pub use reversible::{Coupling, Reversal, Streams, couple};
pub use sink::{Entries, GradSink, GradStore, whole};
pub use tape::{Backward, ParamView, Saved, SavedHook, SavedKind, Tape, Value};

/// Runs a block with `T` bound to the number type of an array (f32 or f64).
#[macro_export]
macro_rules! dispatch {
    ($array:expr, $t:ident => $body:expr) => {
        match $array.dtype() {
            ramekin_core::DType::F32 => {
                type $t = f32;
                $body
            }
            ramekin_core::DType::F64 => {
                type $t = f64;
                $body
            }
            other => Err(anyhow::anyhow!("no computation in {other:?}; convert to f32 first")),
        }
    };
}
