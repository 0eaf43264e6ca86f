//! Adapters of virtual tokens.
//!
//! | kind | what trains | source |
//! |---|---|---|
//! | `prefix` | P keys and values a layer, before those of every sequence | arXiv:2101.00190 |
//! | `prompt` | P rows before the embedding of every sequence | arXiv:2104.08691 |
//!
//! Virtual tokens take the first P positions and have no targets. Files are PEFT's own, both ways.

mod file;
mod prefix;
mod prompt;

pub use prefix::{Prefix, PrefixSettings};
pub use prompt::{Init, Prompt, PromptSettings};
