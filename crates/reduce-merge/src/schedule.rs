//! How many tokens go in each block.

use std::cmp::Ordering;

use anyhow::Result;
use ramekin_core::BadSetting;
use ramekin_slots::ModelFacts;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Tokens that go in each block.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(untagged, expecting = "expected `low`, `high` or a list of whole numbers, one a block")]
pub enum Schedule {
    /// One of the published schedules, for 197 tokens in 12 or 24 blocks.
    Published(Published),
    /// One number a block from the first on; blocks beyond the list keep all of theirs.
    List(Vec<usize>),
}

/// The published schedules by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Published {
    /// About 1.7 times as fast: 16 a block in 12 blocks, 8 in 24, a few less in the last.
    Low,
    /// About 3.2 times as fast: most in the first blocks.
    High,
}

impl Default for Schedule {
    fn default() -> Self {
        Schedule::Published(Published::High)
    }
}

/// Tokens of an image that the published schedules are for: 224 pixels in patches of 16.
const TOKENS: usize = 197;

impl Schedule {
    /// Tokens that go in each block of this model.
    ///
    /// # Errors
    /// If the model is none whose tokens can go, or the list asks for more than its blocks have.
    pub fn of(&self, facts: &ModelFacts, protected: usize, kind: &str) -> Result<Vec<usize>, BadSetting> {
        let refuse = |why: String| Err(BadSetting::new("kind", format!("is `{kind}`, which {why}")));
        if facts.causal {
            return refuse(format!(
                "merges tokens of images; `{}` is a causal language model, whose tokens each predict the next",
                facts.model_type
            ));
        }
        if facts.reach.iter().any(|r| r.limit().is_some()) {
            return refuse(format!(
                "needs every token to see all; those of `{}` see some by their places",
                facts.model_type
            ));
        }
        let Some(images) = facts.images else {
            return refuse(format!("merges tokens of images, and `{}` reads none", facts.model_type));
        };
        let list = match self {
            Schedule::List(list) => list.clone(),
            Schedule::Published(p) => p.list(facts.blocks, images.tokens)?,
        };
        check(&list, facts.blocks, images.tokens, protected)?;
        Ok(list)
    }
}

fn bad<T>(why: String) -> Result<T, BadSetting> {
    Err(BadSetting::new("schedule", why))
}

/// Every block must have as many tokens to give.
fn check(list: &[usize], blocks: usize, tokens: usize, protected: usize) -> Result<(), BadSetting> {
    if list.len() > blocks {
        let over = list.len();
        return bad(format!(
            "has {over} numbers, the last for block {}; the model has {blocks} blocks",
            over - 1
        ));
    }
    let mut left = tokens;
    for (block, r) in list.iter().enumerate() {
        let most = left.saturating_sub(protected) / 2;
        if *r > most {
            return bad(format!(
                "takes {r} tokens in block {block} (counted from 0), which has {left} and can lose {most} at most"
            ));
        }
        left -= r;
    }
    Ok(())
}

impl Published {
    fn list(self, blocks: usize, tokens: usize) -> Result<Vec<usize>, BadSetting> {
        let name = if self == Published::Low { "low" } else { "high" };
        if tokens != TOKENS || !matches!(blocks, 12 | 24) {
            return bad(format!(
                "is \"{name}\", which is for {TOKENS} tokens in 12 or 24 blocks; this model has {tokens} in \
                 {blocks}, give it a list of numbers"
            ));
        }
        Ok(match (self, blocks.cmp(&12)) {
            (Published::Low, Ordering::Greater) => [vec![8; 23], vec![6]].concat(),
            (Published::Low, _) => [vec![16; 11], vec![10]].concat(),
            (Published::High, Ordering::Greater) => {
                vec![20, 19, 18, 17, 15, 13, 13, 12, 10, 9, 8, 6, 6, 4, 4, 4, 3, 3, 2, 2, 1, 1, 1, 1]
            }
            (Published::High, _) => vec![40, 34, 30, 24, 18, 14, 10, 8, 4, 4, 3, 3],
        })
    }
}

/// Refuses a number of leading tokens that no model has.
pub(crate) fn check_protected(protected: usize) -> Result<(), BadSetting> {
    let allowed = "1 (the class token) or 2 (a distillation token beside it)";
    BadSetting::unless((1..=2).contains(&protected), "protected", protected, allowed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn published_schedules_fit_their_models() {
        for (published, blocks, left) in [
            (Published::Low, 12, 11),
            (Published::High, 12, 5),
            (Published::Low, 24, 7),
            (Published::High, 24, 5),
        ] {
            let list = published.list(blocks, TOKENS).expect("a published schedule");
            assert_eq!(list.len(), blocks);
            check(&list, blocks, TOKENS, 1).expect("it fits");
            assert_eq!(TOKENS - list.iter().sum::<usize>(), left, "{published:?} {blocks}");
        }
        assert!(Published::High.list(4, 26).expect_err("26 tokens").message.contains("26 in 4"));
    }

    #[test]
    fn a_schedule_that_asks_for_too_much_is_refused_by_its_block() {
        let why = |list: &[usize]| check(list, 4, 17, 1).expect_err("too much").message;
        assert!(check(&[8, 4, 2, 1], 4, 17, 1).is_ok());
        assert!(why(&[9]).contains("9 tokens in block 0 (counted from 0), which has 17 and can lose 8"));
        assert!(why(&[4, 4, 5]).contains("5 tokens in block 2 (counted from 0), which has 9 and can lose 4"));
        assert!(why(&[1; 5]).contains("has 5 numbers, the last for block 4; the model has 4 blocks"));
        assert!(check(&[8], 4, 17, 2).is_err(), "two protected tokens leave 7");
    }
}
