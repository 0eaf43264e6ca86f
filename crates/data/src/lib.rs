//! Sources, chat templates, masking, truncation, packing and batch order.
//!
//! A file's rows become [`Sample`]s (by format), samples become [`Example`]s
//! (token ids and labels), examples become rows (one example each, or packed),
//! and a [`Sampler`] hands rows out as padding-free [`Batch`]es. The whole way
//! is [`DataSettings::load`]; what came of it is for a person to look at in an
//! [`audit::Audit`].
//!
//! | kind | reads | settings |
//! |---|---|---|
//! | `jsonl` | one JSON object a line | [`JsonlSettings`] |
//! | `json` | a JSON array of objects | [`JsonSettings`] |
//! | `csv` | comma or tab separated values | [`CsvSettings`] |
//! | `text` | plain text by file, by line or as one stream | [`TextSettings`] |
//! | `tokens` | ids that are tokenised already, read by the engine | [`TokensSettings`] |
//! | `builtin` | tasks and text that [`tiny`] writes | [`BuiltinSettings`] |
//!
//! A batch is a pure function of (seed, step), so a resumed run needs no state
//! from here. Nothing here knows a model.

pub mod audit;
mod batch;
mod csv_rows;
mod dataset;
mod example;
mod formats;
mod generation;
mod json_rows;
mod mask_view;
mod pack;
mod paired;
mod parts;
mod pieces;
mod python;
mod settings;
mod source;
mod template;
mod text_rows;
pub mod tiny;
mod tokenizer;
mod tokenizer_train;

pub use batch::{Batch, Largest, Sampler};
pub use dataset::{Dataset, LoadReport};
pub use example::{Example, IGNORED, Preparer, Reference};
pub use formats::Sample;
pub use mask_view::mask_view;
pub use pack::{Piece, Row, pack};
pub use paired::Pair;
pub use ramekin_slots::Rows;
pub use settings::{
    BuiltinSettings, CsvSettings, DataSettings, Format, JsonSettings, JsonlSettings, Packing, PathList,
    Preparation, Split, TextSettings, TextUnit, TokensSettings, Truncation,
};
pub use source::Record;
pub use template::{ChatTemplate, Rendered};
pub use tokenizer::{Encoded, Tokenizer};
pub use tokenizer_train::BpeTraining;
