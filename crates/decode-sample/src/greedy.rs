//! The largest logit.

use anyhow::Result;
use ramekin_core::Draws;
use ramekin_registry::{Part, part};
use ramekin_slots::{Decoder, Draft};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::penalty;

part! { decode / "greedy" => Greedy, "the most probable token, always", source = "transformers greedy search",
traits = [] }

/// Settings of `decode = { kind = "greedy", … }`.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct GreedySettings {
    /// Above 1 makes tokens that were seen less likely; 1 is off.
    pub repetition_penalty: f64,
}

impl Default for GreedySettings {
    fn default() -> Self {
        GreedySettings { repetition_penalty: 1.0 }
    }
}

/// The decoder.
pub struct Greedy(GreedySettings);

impl Part for Greedy {
    type Settings = GreedySettings;

    fn new(s: GreedySettings) -> Result<Self> {
        penalty::check(s.repetition_penalty)?;
        Ok(Greedy(s))
    }
}

impl Decoder for Greedy {
    fn next(&self, draft: &Draft<'_>, _: &mut Draws) -> u32 {
        if self.0.repetition_penalty == 1.0 {
            return largest(draft.logits);
        }
        let mut logits = draft.logits.to_vec();
        penalty::apply(&mut logits, draft.ids, self.0.repetition_penalty);
        largest(&logits)
    }
}

/// Index of the largest number, the first among equals.
fn largest(logits: &[f32]) -> u32 {
    let mut best = 0;
    for (i, z) in logits.iter().enumerate() {
        if *z > logits[best] {
            best = i;
        }
    }
    best as u32
}

#[cfg(test)]
mod tests {
    use ramekin_core::Rng;

    use super::*;

    #[test]
    fn first_among_equals_and_penalty() {
        let mut draws = Draws::new(Rng::new(0).stream("t", 0));
        let logits = [1.0, 3.0, 3.0, -1.0];
        let plain = Greedy::new(GreedySettings::default()).unwrap();
        assert_eq!(plain.next(&Draft { logits: &logits, ids: &[1] }, &mut draws), 1);
        let penalised = Greedy::new(GreedySettings { repetition_penalty: 1.3 }).unwrap();
        assert_eq!(penalised.next(&Draft { logits: &logits, ids: &[1] }, &mut draws), 2);
    }
}
