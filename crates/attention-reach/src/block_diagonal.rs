//! `block-diagonal`: a document is cut into blocks, and a token sees its own alone.
//!
//! Query i sees the keys j with ⌊i/b⌋ = ⌊j/b⌋ and j ≤ i. Positions count on through the document.
//!
//! Source: Child et al. 2019, arXiv:1904.10509; `attention_chunk_size` of Llama 4 in transformers.

use anyhow::Result;
use ramekin_registry::{Part, part};
use ramekin_slots::AttentionRule;
use ramekin_tape::ops::Reach;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::tokens;

part! { attention / "block-diagonal" => BlockDiagonal, "a token sees its own block of the document alone",
source = "arXiv:1904.10509; Llama 4's attention_chunk_size", traits = [] }

/// Settings of `attention = { kind = "block-diagonal", … }`.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct BlockDiagonalSettings {
    /// Tokens of a block, counted from the document's first. Must be set.
    #[schemars(range(min = 1))]
    pub block_size: Option<usize>,
    /// Every how many blocks of the network one sees what the config says, as Llama 4's every fourth; 0: none does.
    pub full_every: usize,
}

/// The rule.
pub struct BlockDiagonal {
    block_size: usize,
    full_every: usize,
}

impl Part for BlockDiagonal {
    type Settings = BlockDiagonalSettings;

    fn new(s: BlockDiagonalSettings) -> Result<Self> {
        Ok(BlockDiagonal { block_size: tokens("block_size", s.block_size)?, full_every: s.full_every })
    }
}

impl AttentionRule for BlockDiagonal {
    fn reach(&self, block: usize, own: Reach) -> Reach {
        if self.full_every > 0 && (block + 1).is_multiple_of(self.full_every) {
            own
        } else {
            Reach::chunk(self.block_size)
        }
    }
}
