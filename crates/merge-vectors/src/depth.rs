//! Where a tensor stands in the depth of a model, and the factor that follows.
//!
//! λ_l = α + β·l/(B−1) in block l of B, α outside the blocks
//!
//! The block is the one number among the dotted steps of the tensor's path, `model.layers.11.mlp.…`;
//! where paths hold several, the stack has to be named.

use anyhow::Result;
use ramekin_core::BadSetting;
use ramekin_slots::TaskVectors;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The factor of tensors outside the blocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OutsideScale {
    /// α, as in the authors' code.
    #[default]
    Alpha,
    /// That of the first block.
    First,
    /// Behind the last block, such as the final norm and the head, that of the last block; before the first, that of the first.
    Last,
}

/// Where each tensor stands.
#[derive(Clone, Debug, Default)]
pub struct Depth {
    /// The block of each tensor, `None` outside, with whether it comes before the blocks.
    places: Vec<(Option<usize>, bool)>,
    blocks: usize,
}

/// The block that a path names: its one number, or the number behind `stack`.
///
/// # Errors
/// If there are several numbers and no stack is named.
pub fn block_of(name: &str, stack: Option<&str>) -> Result<Option<usize>, BadSetting> {
    if let Some(stack) = stack {
        let rest = name.strip_prefix(stack).and_then(|r| r.strip_prefix('.'));
        return Ok(rest.and_then(|r| r.split('.').next()).and_then(|s| s.parse().ok()));
    }
    let mut numbers = name.split('.').filter_map(|s| s.parse::<usize>().ok());
    match (numbers.next(), numbers.next()) {
        (n, None) => Ok(n),
        (_, Some(_)) => {
            let why = format!(
                "is needed: `{name}` holds two numbers; name the stack of blocks, such as \"model.layers\""
            );
            Err(BadSetting::new("block_path", why))
        }
    }
}

impl Depth {
    /// Reads the places from the tensors' names.
    ///
    /// # Errors
    /// If nothing is in a block, there is one block only, or the number of blocks is not `expected`.
    pub fn read(vectors: &dyn TaskVectors, stack: Option<&str>, expected: Option<usize>) -> Result<Self> {
        let mut places = Vec::new();
        for tensor in vectors.tensors() {
            places.push((block_of(&tensor.name, stack)?, tensor.early));
        }
        let found = places.iter().filter_map(|(block, _)| *block).max().map_or(0, |last| last + 1);
        if found == 0 {
            let why = match stack {
                Some(stack) => format!("is \"{stack}\", in which no tensor lies"),
                None => "is needed: no tensor's path holds a number".to_owned(),
            };
            return Err(BadSetting::new("block_path", why).into());
        }
        if let Some(blocks) = expected.filter(|n| *n != found) {
            let why = format!("is {blocks}; the tensors' paths name {found} blocks");
            return Err(BadSetting::new("num_blocks", why).into());
        }
        if found < 2 {
            return Err(
                BadSetting::new("num_blocks", "is 1; a factor by depth needs at least 2 blocks").into()
            );
        }
        Ok(Depth { places, blocks: found })
    }

    /// Blocks.
    pub fn blocks(&self) -> usize {
        self.blocks
    }

    /// The factor of a tensor.
    pub fn factor(&self, tensor: usize, alpha: f64, beta: f64, outside: OutsideScale) -> f64 {
        let at = |block: usize| alpha + beta * block as f64 / (self.blocks - 1) as f64;
        match (self.places[tensor], outside) {
            ((Some(block), _), _) => at(block),
            ((None, _), OutsideScale::Alpha) => alpha,
            ((None, _), OutsideScale::First) | ((None, true), OutsideScale::Last) => at(0),
            ((None, false), OutsideScale::Last) => at(self.blocks - 1),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_parsed_not_searched() {
        assert_eq!(block_of("model.layers.11.mlp.up_proj.weight", None).unwrap(), Some(11));
        assert_eq!(block_of("model.layers.1.self_attn.q_proj.weight", None).unwrap(), Some(1));
        assert_eq!(block_of("model.norm1.weight", None).unwrap(), None);
        let moe = "model.layers.3.mlp.experts.7.w1.weight";
        assert!(block_of(moe, None).is_err());
        assert_eq!(block_of(moe, Some("model.layers")).unwrap(), Some(3));
        assert_eq!(block_of("model.layers2.3.w", Some("model.layers")).unwrap(), None);
    }
}
