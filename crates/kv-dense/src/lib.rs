//! Key/value caches that keep every entry: `full`.

use std::cell::RefCell;
use std::rc::Rc;

use anyhow::Result;
use ramekin_lanes::{Dense, Everything, bytes, open};
use ramekin_registry::{Part, part};
use ramekin_slots::{KvCache, KvPolicy, KvShape};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

part! { kv / "full" => Full, "keeps every key and value in f32", source = "plain decoding", traits = [] }

/// `kv = { kind = "full" }` has no settings.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct FullSettings {}

/// The policy.
pub struct Full;

impl Part for Full {
    type Settings = FullSettings;

    fn new(_: FullSettings) -> Result<Self> {
        Ok(Full)
    }
}

impl KvPolicy for Full {
    fn cache(&self, shape: KvShape) -> Result<Rc<RefCell<dyn KvCache>>> {
        open(Everything, Dense, shape)
    }

    fn bytes(&self, shape: KvShape) -> u64 {
        bytes(&Everything, &Dense, shape)
    }
}
