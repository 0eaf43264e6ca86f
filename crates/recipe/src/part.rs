//! A part as a recipe names it: its kind, and its settings as they were written.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{DeserializeOwned, Error};
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value as Json};

use crate::wording::found;

/// `{ kind = "…", settings … }`: a part by name. Whoever knows the parts decodes the settings.
#[derive(Clone, Debug, PartialEq)]
pub struct Part {
    /// The registered name.
    pub kind: String,
    /// Everything else in the table. The caller replaces it by the full settings before [`crate::resolved`].
    pub settings: Map<String, Json>,
    /// Where it stands in the recipe (`stage.0.adapter.0`); parts by default have the path they would have.
    pub path: String,
}

impl Part {
    /// A part of this kind with no setting written; its path is filled in by [`crate::Recipe::read`].
    pub fn of(kind: &str) -> Part {
        Part { kind: kind.to_owned(), settings: Map::new(), path: String::new() }
    }

    /// A path where a part might stand: `data = "FILE"` of an evaluation, before its kind is known.
    pub(crate) fn at_path(path: String) -> Part {
        let settings = Map::from_iter([("path".to_owned(), Json::String(path))]);
        Part { settings, ..Part::of("") }
    }

    /// Whether this is a path where a part might stand.
    pub(crate) fn is_path(&self) -> bool {
        self.kind.is_empty() && self.settings.keys().eq(["path"])
    }
}

/// What a slot of a stage holds where nothing was written.
pub const DEFAULTS: [(&str, &str); 9] = [
    ("placement", "resident"),
    ("estimator", "backprop"),
    ("optimizer", "adamw"),
    ("schedule", "constant"),
    ("objective", "sft"),
    ("activation", "keep"),
    ("decode", "greedy"),
    ("kv", "full"),
    ("merge", "lora"),
];

impl Serialize for Part {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(1 + self.settings.len()))?;
        map.serialize_entry("kind", &self.kind)?;
        for (key, value) in self.settings.iter().filter(|(key, _)| *key != "kind") {
            map.serialize_entry(key, value)?;
        }
        map.end()
    }
}

impl<'de> Deserialize<'de> for Part {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut settings = table(Json::deserialize(deserializer)?)?;
        match settings.shift_remove("kind") {
            Some(Json::String(kind)) if kind.is_empty() => {
                Err(D::Error::custom("a part's `kind` is its name"))
            }
            Some(Json::String(kind)) => Ok(Part { kind, settings, path: String::new() }),
            Some(_) => Err(D::Error::custom("`kind` must be a part's name in quotes")),
            None => Err(D::Error::missing_field("kind")),
        }
    }
}

/// An entry of `adapter = […]`.
#[derive(Clone, Debug, PartialEq)]
pub enum Adapter {
    /// A fresh one: `{ kind = "lora", … }`.
    New(Part),
    /// A saved one: `{ load = "FOLDER" }`; its kind comes from `adapter_config.json`.
    Saved {
        /// The folder as written; see [`crate::Doc::resolve_path`].
        folder: String,
        /// Where it stands in the recipe (`stage.0.adapter.0`).
        path: String,
    },
}

impl Serialize for Adapter {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Adapter::New(part) => part.serialize(serializer),
            Adapter::Saved { folder, .. } => {
                let mut map = serializer.serialize_map(Some(1))?;
                map.serialize_entry("load", folder)?;
                map.end()
            }
        }
    }
}

/// `{ load = "FOLDER" }`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Load {
    load: String,
}

impl<'de> Deserialize<'de> for Adapter {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let table = table(Json::deserialize(deserializer)?)?;
        if table.contains_key("load") {
            let Load { load } = Load::deserialize(Json::Object(table)).map_err(D::Error::custom)?;
            return Ok(Adapter::Saved { folder: load, path: String::new() });
        }
        if !table.contains_key("kind") {
            return Err(D::Error::custom("needs `kind` of a fresh adapter, or `load` of a saved one"));
        }
        Part::deserialize(Json::Object(table)).map(Adapter::New).map_err(D::Error::custom)
    }
}

/// The table that a part is.
fn table<E: Error>(value: Json) -> Result<Map<String, Json>, E> {
    match value {
        Json::Object(table) => Ok(table),
        // What people try first.
        Json::String(kind) => Err(E::custom(format!("write `{{ kind = {} }}`", Json::String(kind)))),
        other => Err(E::custom(format!("expected a table with a `kind`, found {}", found(&other)))),
    }
}

/// Reads a list, or one entry that stands for a list of one.
///
/// # Errors
/// Those of the entries.
pub fn one_or_many<'de, T: DeserializeOwned, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Vec<T>, D::Error> {
    match Json::deserialize(deserializer)? {
        Json::Array(entries) => entries.into_iter().map(T::deserialize).collect::<Result<_, _>>(),
        one => T::deserialize(one).map(|entry| vec![entry]),
    }
    .map_err(D::Error::custom)
}

/// The name under which [`crate::schema`] later puts the parts of a slot.
pub fn slot_definition(slot: &str) -> String {
    format!("slot-{slot}")
}

/// Schema of a slot that takes one part.
pub fn one<const SLOT: usize>(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "$ref": format!("#/$defs/{}", slot_definition(SLOTS[SLOT])) })
}

/// Schema of a slot that takes a list of parts, or one.
pub fn many<const SLOT: usize>(_: &mut SchemaGenerator) -> Schema {
    let part = json_schema!({ "$ref": format!("#/$defs/{}", slot_definition(SLOTS[SLOT])) });
    json_schema!({ "anyOf": [{ "type": "array", "items": part }, part] })
}

/// Schema of a key that takes a list of parts.
pub fn list<const SLOT: usize>(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "array", "items": { "$ref": format!("#/$defs/{}", slot_definition(SLOTS[SLOT])) } })
}

/// The part of a slot where nothing was written.
pub fn by_default<const SLOT: usize>() -> Part {
    Part::of(DEFAULTS.iter().find(|(slot, _)| *slot == SLOTS[SLOT]).map_or("", |(_, kind)| kind))
}

/// The slots of a stage, in the order of the reference.
pub const SLOTS: [&str; 22] = [
    "quantizer",
    "adapter",
    "selection",
    "method",
    "estimator",
    "gradient",
    "optimizer",
    "schedule",
    "objective",
    "data",
    "activation",
    "placement",
    "attention",
    "kv",
    "reducer",
    "decode",
    "prune",
    "merge",
    "search",
    "comm",
    "hook",
    "track",
];

/// Places of [`SLOTS`], for `schema_with`.
pub mod slot {
    #![allow(missing_docs, dead_code)] // a slot is named here before a stage has a key for it
    pub const QUANTIZER: usize = 0;
    pub const ADAPTER: usize = 1;
    pub const SELECTION: usize = 2;
    pub const METHOD: usize = 3;
    pub const ESTIMATOR: usize = 4;
    pub const GRADIENT: usize = 5;
    pub const OPTIMIZER: usize = 6;
    pub const SCHEDULE: usize = 7;
    pub const OBJECTIVE: usize = 8;
    pub const DATA: usize = 9;
    pub const ACTIVATION: usize = 10;
    pub const PLACEMENT: usize = 11;
    pub const ATTENTION: usize = 12;
    pub const KV: usize = 13;
    pub const REDUCER: usize = 14;
    pub const DECODE: usize = 15;
    pub const PRUNE: usize = 16;
    pub const MERGE: usize = 17;
    pub const SEARCH: usize = 18;
    pub const COMM: usize = 19;
    pub const HOOK: usize = 20;
    pub const TRACK: usize = 21;
}

impl JsonSchema for Part {
    fn schema_name() -> Cow<'static, str> {
        "Part".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "object", "required": ["kind"], "properties": { "kind": { "type": "string" } } })
    }
}
