//! The largest logit.

use anyhow::Result;
use ramekin_kernels::sampling::largest;
use ramekin_registry::{Part, part};
use ramekin_slots::{Decoder, Draft, Session};
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

impl Greedy {
    fn next(&self, draft: &Draft<'_>) -> u32 {
        if self.0.repetition_penalty == 1.0 {
            return largest(draft.logits) as u32;
        }
        let mut logits = draft.logits.to_vec();
        penalty::apply(&mut logits, draft.ids, self.0.repetition_penalty);
        largest(&logits) as u32
    }
}

impl Decoder for Greedy {
    fn decode(&self, session: &mut Session<'_>) -> Result<()> {
        session.token_by_token(&mut |draft, _| self.next(draft))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_among_equals_and_penalty() {
        let logits = [1.0, 3.0, 3.0, -1.0];
        let plain = Greedy::new(GreedySettings::default()).unwrap();
        assert_eq!(plain.next(&Draft { logits: &logits, ids: &[1] }), 1);
        let penalised = Greedy::new(GreedySettings { repetition_penalty: 1.3 }).unwrap();
        assert_eq!(penalised.next(&Draft { logits: &logits, ids: &[1] }), 2);
    }
}
