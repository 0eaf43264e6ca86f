//! What both sheets need.

use ramekin_engine::assembly::Assembly;
use ramekin_engine::parts;
use ramekin_slots::KvPolicy;
use ramekin_tests::lab::{self, assemble, part};
use serde_json::{Value as Json, json};

/// A policy by its kind.
pub fn policy(kind: &str, settings: Json) -> Box<dyn KvPolicy> {
    parts::kv(&part(kind, settings)).unwrap_or_else(|e| panic!("{kind}: {e:#}"))
}

/// A part with its own type.
pub fn rule<P: ramekin_registry::Part>(settings: Json) -> P {
    P::new(serde_json::from_value(settings).expect("settings")).unwrap_or_else(|e| panic!("{e:#}"))
}

/// A small llama with this many layers and key heads (of 4 query heads).
pub fn model(layers: usize, kv_heads: usize) -> Assembly {
    let mut config = lab::small_llama();
    config["num_hidden_layers"] = json!(layers);
    config["num_key_value_heads"] = json!(kv_heads);
    assemble(&lab::fresh_model(config))
}
