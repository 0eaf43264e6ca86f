//! StreamingLLM: attention sinks plus a sliding window.
//!
//! keep(m) = [0, s) ∪ [m − w, m)          m entries, s = start_size, w = recent_size
//!
//! The oldest entry behind the first s goes before a token comes to a full cache. Keys are held
//! unrotated and turned at every step by their slot, the newest query by the last one, so that no
//! distance exceeds the cache. A prompt above the limit is taken token by token, in constant memory.
//!
//! Source: Xiao et al. 2023, arXiv:2309.17453; slots as in the authors' code.

use anyhow::Result;
use ramekin_core::BadSetting;
use ramekin_lanes::{Rule, Trigger, refuse_narrow_windows};
use ramekin_registry::{Part, part};
use ramekin_slots::{KvShape, ModelFacts};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Positions, policy};

part! {
    kv / "streaming" => Streaming, "keeps the first few entries and a sliding window: text of any length",
    source = "arXiv:2309.17453", traits = []
}

/// Settings of `kv = { kind = "streaming", … }`.
#[derive(Clone, Debug, Deserialize, JsonSchema, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct StreamingSettings {
    /// Entries kept from the start, in tokens. The paper finds 4 enough.
    pub start_size: usize,
    /// Entries kept from the end, in tokens; at least 1.
    pub recent_size: usize,
    /// Whether keys are turned by their slot in the cache or by their true position.
    pub positions: Positions,
}

impl Default for StreamingSettings {
    fn default() -> Self {
        StreamingSettings { start_size: 4, recent_size: 512, positions: Positions::Slot }
    }
}

/// The rule.
#[derive(Clone)]
pub struct Streaming(StreamingSettings);

impl Part for Streaming {
    type Settings = StreamingSettings;

    fn new(settings: StreamingSettings) -> Result<Self> {
        if settings.recent_size == 0 {
            return Err(BadSetting::new("recent_size", "is 0; at least 1: a token attends to itself").into());
        }
        Ok(Streaming(settings))
    }
}

impl Streaming {
    fn slots(&self) -> usize {
        self.0.start_size.saturating_add(self.0.recent_size)
    }

    fn fits(&self, facts: &ModelFacts, shape: KvShape) -> Result<()> {
        let (slots, known) = (self.slots(), facts.max_position_embeddings);
        if !self.by_slot() {
            return refuse_narrow_windows(facts, "streaming", shape.capacity);
        }
        if slots > known {
            let start = self.0.start_size;
            return Err(BadSetting::new(
                "recent_size",
                format!(
                    "is {}, which with a `start_size` of {start} makes {slots} slots; the model knows {known} \
                     positions: take at most {}",
                    self.0.recent_size,
                    known.saturating_sub(start)
                ),
            )
            .into());
        }
        refuse_narrow_windows(facts, "streaming", slots.min(shape.capacity))
    }
}

impl Rule for Streaming {
    fn trigger(&self) -> Trigger {
        Trigger::Before
    }

    fn kept(&self, _: usize, _: usize, lanes: usize, prompt: usize) -> usize {
        lanes * prompt.min(self.slots())
    }

    fn limit(&self, _: usize) -> Option<usize> {
        Some(self.slots())
    }

    fn oldest(&self) -> usize {
        self.0.start_size
    }

    fn by_slot(&self) -> bool {
        self.0.positions == Positions::Slot
    }
}

policy!(Streaming);
