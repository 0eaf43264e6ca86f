//! From logits to the next token.

use ramekin_core::Draws;

/// What a decoder sees of a sequence at one step.
pub struct Draft<'a> {
    /// Logits of the next token, `[V]`.
    pub logits: &'a [f32],
    /// The ids so far, prompt included.
    pub ids: &'a [u32],
}

/// Picks one token at a time.
pub trait Decoder {
    /// The next id. `draws` belongs to the sequence and this step alone.
    fn next(&self, draft: &Draft<'_>, draws: &mut Draws) -> u32;
}
