//! The common ground of key/value caches.
//!
//! A *lane* holds the keys and values that one head of one layer keeps of one sequence. Lanes differ in
//! length, so every policy is the same cache with two choices:
//!
//! * a [`Rule`] says which entries stay: after the prompt, from what its queries looked at; before or
//!   after each further token; and whether keys are turned by true position or by slot,
//! * a [`Storage`] says how an entry is held: [`Dense`] f32, [`DenseBf16`], or packed.
//!
//! A prompt attends to itself in full, by the ordinary kernel, and is thinned when it is stored. Later
//! tokens are taken one by one even when they come together, so that a chunk gives what single tokens
//! give. What a token drops is noted while [`KvShape::rollback`](ramekin_slots::KvShape) asks for it,
//! and comes back when the token is taken back. Room is reserved once, when a prompt is stored, and is
//! what the meter and the plan see.
//!
//! No method is here; those are in `kv-dense`, `kv-evict` and `kv-quant`.

mod attend;
mod cache;
mod cell;
mod dense;
mod lane;
mod rows;
mod rule;
#[cfg(test)]
mod tests;
mod tokens;

pub use cache::{Cache, bytes, open};
pub use dense::{Dense, DenseBf16};
pub use lane::{Entries, Storage};
pub use rule::{Everything, Look, Prompt, Rule, Trigger, refuse_narrow_windows, top};
