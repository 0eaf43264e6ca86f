//! Looking parts up and describing them.

use anyhow::Result;
use ramekin_core::{UserError, suggest};
use ramekin_slots::{AnyPart, PartEntry, Slot, Trait};
use serde::Serialize;
use serde_json::{Value as Json, json};

use crate::Registered;

/// Every registered part, by slot, then name.
pub fn parts() -> Vec<&'static PartEntry> {
    let mut all: Vec<&PartEntry> = inventory::iter::<Registered>.into_iter().map(|r| &r.entry).collect();
    all.sort_by_key(|p| (p.slot, p.name));
    all
}

/// The names of a slot's parts.
pub fn names(slot: Slot) -> Vec<&'static str> {
    parts().into_iter().filter(|p| p.slot == slot).map(|p| p.name).collect()
}

/// The part of this name.
///
/// # Errors
/// If there is none, with the nearest name and the whole list.
pub fn find(slot: Slot, name: &str) -> Result<&'static PartEntry, UserError> {
    parts().into_iter().find(|p| p.slot == slot && p.name == name).ok_or_else(|| {
        let names = names(slot);
        let error = UserError::new(format!("there is no {} called `{name}`", slot.name()));
        match suggest(name, names.iter().copied()) {
            Some(near) => error.help(format!("did you mean `{near}`?")),
            None => error.help(format!("there are: {}", names.join(", "))),
        }
    })
}

/// Makes a part from its settings (without `kind`).
pub fn build(slot: Slot, name: &str, settings: Json) -> Result<AnyPart> {
    (find(slot, name)?.build)(settings)
}

/// The settings with every default filled in.
pub fn complete(slot: Slot, name: &str, settings: Json) -> Result<Json> {
    Ok((find(slot, name)?.complete)(settings)?)
}

/// The adapter part that a PEFT `adapter_config.json` asks for, with its name.
///
/// # Errors
/// If no part reads this `peft_type`, or the one that does refuses the config.
pub fn load_adapter(config: &Json) -> Result<(&'static str, AnyPart)> {
    inventory::iter::<Registered>
        .into_iter()
        .find_map(|r| Some((r.entry.name, r.from_peft?(config)?)))
        .map(|(name, part)| Ok((name, part?)))
        .unwrap_or_else(|| {
            let kind = config.get("peft_type").and_then(Json::as_str).unwrap_or("nothing");
            Err(UserError::new(format!("no adapter here reads `peft_type` {kind}"))
                .help("`cargo xtask parts adapter` lists the adapters that there are")
                .into())
        })
}

/// A part as the reference shows it.
#[derive(Serialize)]
pub struct PartInfo {
    /// Slot's key in a recipe.
    pub slot: &'static str,
    /// The part's name.
    pub name: &'static str,
    /// What it is for.
    pub summary: &'static str,
    /// Settings with type, default and meaning.
    pub settings: Vec<Json>,
    /// Declared traits.
    pub traits: Vec<Trait>,
    /// Paper or sheet.
    pub source: &'static str,
}

/// Describes a part from its schema.
pub fn describe(part: &PartEntry) -> PartInfo {
    let schema = (part.schema)().to_value();
    let defaults = (part.complete)(json!({})).ok();
    let required: Vec<&str> = schema["required"]
        .as_array()
        .map(|r| r.iter().filter_map(Json::as_str).collect())
        .unwrap_or_default();
    let settings = schema["properties"]
        .as_object()
        .map(|properties| {
            properties
                .iter()
                .map(|(name, p)| {
                    json!({
                        "name": name,
                        "type": type_of(p, &schema),
                        "default": defaults.as_ref().and_then(|d| d.get(name)).or(p.get("default")),
                        "required": required.contains(&name.as_str()),
                        "description": p["description"].as_str().unwrap_or_default(),
                    })
                })
                .collect()
        })
        .unwrap_or_default();
    PartInfo {
        slot: part.slot.name(),
        name: part.name,
        summary: part.summary,
        settings,
        traits: part.traits.to_vec(),
        source: part.source,
    }
}

/// A schema's type in a few words.
fn type_of(p: &Json, root: &Json) -> String {
    if let Some(reference) = p["$ref"].as_str() {
        let name = reference.rsplit('/').next().unwrap_or_default();
        return type_of(&root["$defs"][name], root);
    }
    for key in ["anyOf", "oneOf"] {
        if let Some(options) = p[key].as_array() {
            let mut kinds: Vec<String> =
                options.iter().filter(|o| o["type"] != "null").map(|o| type_of(o, root)).collect();
            kinds.dedup();
            return kinds.join(" | ");
        }
    }
    if let Some(value) = p.get("const") {
        return value.to_string();
    }
    if let Some(values) = p["enum"].as_array() {
        return values.iter().map(ToString::to_string).collect::<Vec<_>>().join(" | ");
    }
    match &p["type"] {
        Json::String(t) if t == "array" => format!("list of {}", type_of(&p["items"], root)),
        Json::Array(ts) if ts.contains(&json!("array")) => format!("list of {}", type_of(&p["items"], root)),
        Json::String(t) => t.clone(),
        // That a setting may be left out shows in its default.
        Json::Array(ts) => {
            ts.iter().filter_map(Json::as_str).filter(|t| *t != "null").collect::<Vec<_>>().join(" | ")
        }
        _ => "any".to_owned(),
    }
}
