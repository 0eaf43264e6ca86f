//! The stage loop: a recipe's stages, one after the other, into a run folder.
//!
//! | module | does |
//! |---|---|
//! | [`mod@run`] | the stages in order, what one leaves to the next, resuming |
//! | [`blueprint`] | what a stage's model is put together from, and the putting together |
//! | [`assembly`] | a model with its quantizer, adapters and tokenizer, real or shape-only |
//! | [`mod@hidden`] | from ids to the states that the head reads, with what is attached around the blocks |
//! | [`step`] | forward, loss, backward, update |
//! | [`pass`] | micro-batches forward and back, as estimators ask for them |
//! | [`objective`] | an objective in its place, and the models beside the one in work |
//! | [`cache`](mod@cache) | a cache with room for what adapters put before the sequences |
//! | [`masks`] | what an optimizer sees of a parameter that trains in part |
//! | [`update`] | from a finished gradient to a changed parameter |
//! | [`bill`] | the same step on shapes: the plan |
//! | `fit` | what may change so that a stage fits the budget |
//! | `compat` | what cannot go together |
//! | [`audit`] | what is checked before step 1 |
//! | [`read`] | a recipe with the registry's parts, its mistakes underlined |
//! | `preflight` | what can be seen before the first stage: files that are not there |
//! | `folder` | what is in a run folder, and what of it may go |
//! | `blame` | mistakes that show only with models and data, back to their place in the recipe |
//! | `saved` | adapters that were saved, without the heads of objectives |
//! | [`team`] | one step over several ranks |
//! | [`shared`] | frozen weights that ranks read from the same memory |
//! | [`generation`] | prompts to tokens with a cache |
//! | [`stages`] | train, generate, merge, eval, logits, compress, search, bench |
//! | `digest` | what is noted beside a model: its bases, what its tokens saw |
//! | [`machine`] | what this machine multiplies, for guesses of time |
//!
//! Nothing below this crate knows a recipe.

pub mod around;
pub mod assembly;
pub mod audit;
pub mod bill;
mod blame;
pub mod blueprint;
pub mod builtin;
pub mod cache;
pub mod calibration;
pub mod checkpoint;
mod compat;
mod digest;
mod fit;
mod folder;
pub mod generation;
pub mod hidden;
mod inputs;
pub mod journal;
pub mod machine;
pub mod masks;
pub mod objective;
pub mod parts;
pub mod pass;
mod preflight;
pub mod read;
mod reader;
pub mod run;
mod saved;
pub mod shared;
pub mod source;
mod sparse;
pub mod stages;
pub mod step;
pub mod surgery;
pub mod team;
pub mod update;
mod vectors;
mod walk;

pub use run::{Options, RunOutcome, run};
