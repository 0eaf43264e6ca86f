//! Attention: which of the tokens before it a token sees.

use ramekin_tape::ops::Reach;

/// Decides what a model's tokens see, in the place of its config.
pub trait AttentionRule {
    /// What the tokens of a block see; `own` is what the config says.
    fn reach(&self, block: usize, own: Reach) -> Reach;
}
