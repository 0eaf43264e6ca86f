//! Language-model objectives.
//!
//! | kind | predicts |
//! |---|---|
//! | `sft` | labelled tokens, among the whole vocabulary |
//! | `label-words` | labelled tokens, among a few that name the classes of a prompted task |
//!
//! The head runs on labelled rows, one chunk at a time, so logits never exist all at once.

mod label_words;
mod sft;

pub use label_words::{LabelWord, LabelWords, LabelWordsSettings};
pub use sft::{LossType, NoiseLength, Sft, SftSettings};
