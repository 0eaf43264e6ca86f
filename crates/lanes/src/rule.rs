//! What stays in a cache: score × budget × trigger × position rule.

use std::cmp::Ordering;

use anyhow::Result;
use ramekin_core::BadSetting;
use ramekin_slots::ModelFacts;
use ramekin_tape::ops::Reach;

/// When entries are dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trigger {
    /// Once, when the prompt is stored; later entries all stay.
    Prompt,
    /// Before a token's entry is added, when the lane is at its limit. A prompt above the limit is taken
    /// token by token as well.
    Before,
    /// When the prompt is stored, and after each later token, when the lane is above its limit.
    After,
}

/// A prompt of one sequence in one layer, about to be stored.
pub struct Prompt<'a> {
    /// The layer, 0 nearest the embedding.
    pub layer: usize,
    /// Layers in all.
    pub layers: usize,
    /// Tokens.
    pub len: usize,
    /// Query heads.
    pub heads: usize,
    /// Key/value heads.
    pub kv_heads: usize,
    /// How much the last [`Rule::looks_back`] queries looked at each entry, summed over them,
    /// `[heads, len]`; empty where the rule does not look.
    pub votes: &'a [f32],
}

impl Prompt<'_> {
    /// Votes of the query heads that share a lane, brought together; `lanes` rows of `len`.
    pub fn votes_by_lane(&self, lanes: usize, together: impl Fn(f32, f32) -> f32) -> Vec<Vec<f32>> {
        let group = self.heads / lanes;
        self.votes
            .chunks_exact(group * self.len)
            .map(|heads| {
                let mut rows = heads.chunks_exact(self.len);
                let mut sum = rows.next().map(<[f32]>::to_vec).unwrap_or_default();
                for row in rows {
                    sum.iter_mut().zip(row).for_each(|(s, x)| *s = together(*s, *x));
                }
                sum
            })
            .collect()
    }
}

/// A layer's lanes of one sequence after a token.
pub struct Look<'a> {
    /// Tokens of the sequence's prompt.
    pub prompt: usize,
    /// Query heads.
    pub heads: usize,
    /// What the token looked at, summed over the query heads of each lane.
    pub weights: &'a [Vec<f32>],
    /// The same summed over all tokens so far, where the rule [accumulates](Rule::accumulates).
    pub scores: &'a [&'a [f32]],
}

/// Which entries stay. The defaults keep everything.
pub trait Rule: Clone + 'static {
    /// When entries are dropped.
    fn trigger(&self) -> Trigger {
        Trigger::Prompt
    }

    /// How many of a prompt's last queries vote on what stays of it.
    fn looks_back(&self, prompt: usize) -> usize {
        let _ = prompt;
        0
    }

    /// Whether entries are ever dropped when a prompt is stored.
    fn selects(&self) -> bool {
        false
    }

    /// The entries of a prompt that each lane keeps, ascending; `None` keeps all.
    fn keep(&self, prompt: &Prompt<'_>) -> Option<Vec<Vec<usize>>> {
        let _ = prompt;
        None
    }

    /// How many entries all lanes of a layer together keep of a prompt, for a plan.
    fn kept(&self, layer: usize, layers: usize, lanes: usize, prompt: usize) -> usize {
        let _ = (layer, layers);
        lanes * prompt
    }

    /// Entries that a lane holds at most once the prompt is stored; `None` where it grows.
    fn limit(&self, prompt: usize) -> Option<usize> {
        let _ = prompt;
        None
    }

    /// The entry to drop before a token comes to a lane at its limit ([`Trigger::Before`]).
    fn oldest(&self) -> usize {
        0
    }

    /// The entry that each lane drops after a token ([`Trigger::After`]).
    fn victims(&self, look: &Look<'_>) -> Vec<usize> {
        look.weights.iter().map(|_| 0).collect()
    }

    /// Whether each entry's weights add up over all queries.
    fn accumulates(&self) -> bool {
        false
    }

    /// Whether keys are held unrotated and turned by their place in the lane.
    fn by_slot(&self) -> bool {
        false
    }

    /// Whether there is a lane for each query head instead of one for each key head.
    fn by_query_head(&self) -> bool {
        false
    }
}

/// Keeps everything.
#[derive(Clone, Copy, Debug)]
pub struct Everything;

impl Rule for Everything {}

/// The indices of the `count` largest scores, ascending; of equal ones the lower index.
pub fn top(scores: &[f32], count: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    if count < order.len() {
        order.select_nth_unstable_by(count, |a, b| larger_first(scores, *a, *b));
        order.truncate(count);
    }
    order.sort_unstable();
    order
}

fn larger_first(scores: &[f32], a: usize, b: usize) -> Ordering {
    scores[b].total_cmp(&scores[a]).then(a.cmp(&b))
}

/// Refuses a policy that drops entries where some blocks forget by themselves.
///
/// # Errors
/// If a block's sliding window is narrower than `reach` tokens.
pub fn refuse_narrow_windows(facts: &ModelFacts, kind: &str, reach: usize) -> Result<()> {
    let narrow = |r: &Reach| r.limit().is_some_and(|w| w < reach);
    let blocks: Vec<String> =
        facts.reach.iter().enumerate().filter(|(_, w)| narrow(w)).map(|(i, _)| i.to_string()).collect();
    let Some(window) = facts.reach.iter().filter_map(Reach::limit).min().filter(|_| !blocks.is_empty())
    else {
        return Ok(());
    };
    let which = if blocks.len() == facts.reach.len() {
        "every block".to_owned()
    } else {
        format!("the blocks {}", blocks.join(", "))
    };
    Err(BadSetting::new(
        "kind",
        format!(
            "is \"{kind}\", which drops entries by itself; {which} of this model (`{}`) see no more than \
             {window} tokens and the text may reach {reach}: take \"full\"",
            facts.model_type
        ),
    )
    .against("attention")
    .into())
}
