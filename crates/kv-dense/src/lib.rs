//! Key/value caches that keep every entry: `full`.

use std::cell::RefCell;
use std::rc::Rc;

use anyhow::Result;
use ramekin_lanes::{Dense, DenseBf16, Everything, bytes, open};
use ramekin_registry::{Part, part};
use ramekin_slots::{KvCache, KvPolicy, KvShape};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

part! { kv / "full" => Full, "keeps every key and value, in f32 or bf16", source = "plain decoding", traits = [] }

/// The type that entries are kept in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum KvDtype {
    /// As they are computed: a step with a cache gives what one without gives.
    #[default]
    F32,
    /// Rounded: half the memory, and half of what each token reads of it.
    Bf16,
}

/// Settings of `kv = { kind = "full", … }`.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct FullSettings {
    /// `f32`, or `bf16` for half the memory.
    pub dtype: KvDtype,
}

/// The policy.
pub struct Full(KvDtype);

impl Part for Full {
    type Settings = FullSettings;

    fn new(s: FullSettings) -> Result<Self> {
        Ok(Full(s.dtype))
    }
}

impl KvPolicy for Full {
    fn cache(&self, shape: KvShape) -> Result<Rc<RefCell<dyn KvCache>>> {
        match self.0 {
            KvDtype::F32 => open(Everything, Dense, shape),
            KvDtype::Bf16 => open(Everything, DenseBf16, shape),
        }
    }

    fn bytes(&self, shape: KvShape) -> u64 {
        match self.0 {
            KvDtype::F32 => bytes(&Everything, &Dense, shape),
            KvDtype::Bf16 => bytes(&Everything, &DenseBf16, shape),
        }
    }
}
