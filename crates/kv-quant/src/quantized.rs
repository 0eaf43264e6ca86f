//! Quantised keys and values: all but the newest are packed, and read packed.
//!
//! x ≈ zero + scale · code      scale = (max − min)/(2ᵇ − 1), zero = min of a group, both in f16
//!
//! Groups run along the head of one token, so an entry is packed once and never again. The prompt attends
//! to itself before it is packed. Settings are those of transformers' `QuantizedCache`; unlike there, the
//! oldest of the newest is packed whenever one more comes, rather than all of them when they are too many.
//!
//! Source: Liu et al. 2024 (KIVI), arXiv:2402.02750, for keeping the newest as they are.

use std::cell::RefCell;
use std::rc::Rc;

use anyhow::Result;
use ramekin_core::BadSetting;
use ramekin_lanes::{Everything, bytes, open};
use ramekin_registry::{Part, part};
use ramekin_slots::{KvCache, KvPolicy, KvShape};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::Packed;

part! {
    kv / "quantized" => Quantized, "keeps every key and value, all but the newest in few bits",
    source = "transformers' QuantizedCache", traits = []
}

/// Settings of `kv = { kind = "quantized", … }`.
#[derive(Clone, Debug, Deserialize, JsonSchema, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct QuantizedSettings {
    /// Bits a number: 2, 4 or 8.
    pub nbits: u32,
    /// Numbers of a head that share a scale; the last group of a head may be shorter. At least 1.
    pub q_group_size: usize,
    /// Newest entries that stay in f32, in tokens.
    pub residual_length: usize,
}

impl Default for QuantizedSettings {
    fn default() -> Self {
        QuantizedSettings { nbits: 4, q_group_size: 64, residual_length: 128 }
    }
}

/// The policy.
pub struct Quantized(Packed);

impl Part for Quantized {
    type Settings = QuantizedSettings;

    fn new(s: QuantizedSettings) -> Result<Self> {
        if ![2, 4, 8].contains(&s.nbits) {
            return Err(BadSetting::new("nbits", format!("is {}; it must be 2, 4 or 8", s.nbits)).into());
        }
        if s.q_group_size == 0 {
            return Err(BadSetting::new("q_group_size", "is 0; it must be at least 1").into());
        }
        Ok(Quantized(Packed { bits: s.nbits, group: s.q_group_size, newest: s.residual_length }))
    }
}

impl KvPolicy for Quantized {
    fn cache(&self, shape: KvShape) -> Result<Rc<RefCell<dyn KvCache>>> {
        open(Everything, self.0, shape)
    }

    fn bytes(&self, shape: KvShape) -> u64 {
        bytes(&Everything, &self.0, shape)
    }
}
