//! The recipe language: TOML with spans in, typed recipe out, every mistake underlined.
//!
//! A [`Doc`] is a recipe's text as a tree in which each key and value knows
//! where it was written, be it in the file or on the command line (`--set`).
//! [`Recipe::read_with`] turns it into the language's own structs; the settings
//! of parts are a table ([`Part`]), checked and completed by whoever knows the
//! parts, through [`Doc::complete`].
//!
//! Nothing here knows a part, a model or a device. A wrong recipe gives
//! [`Diagnostics`]: all mistakes at once, each with its line and a way out.
//! That is paid for by decoding a subtree again without the wrong entry after
//! each mistake, which costs nothing on recipes that are right.

mod bench;
mod bytes;
mod check;
mod decode;
mod diagnostic;
mod doc;
mod locate;
mod overrides;
mod part;
mod path;
mod placed;
mod read;
mod recipe;
mod resolved;
mod schema;
mod search;
mod source;
mod stage;
mod train;
mod wording;

pub use bench::{BenchStage, Variant};
pub use bytes::Bytes;
pub use diagnostic::{Diagnostic, Diagnostics, Label};
pub use doc::Doc;
pub use part::{Adapter, Part};
pub use placed::Placed;
pub use recipe::{Allow, Config, Dtype, Memory, Model, Recipe, Tokenizer, TokenizerKind};
pub use resolved::{resolved, setting};
pub use schema::schema;
pub use search::{Goal, Range, SearchStage, Values};
pub use source::{Source, Span};
pub use stage::{
    Batch, Checkpoint, CompressStage, EvalStage, GenerateStage, LogitsStage, MergeFormat, MergeInput,
    MergeStage, Metric, Samples, Stage, TrainEval, TrainStage, TrainableDtype,
};
pub use wording::suggest;
