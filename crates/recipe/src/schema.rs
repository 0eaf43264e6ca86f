//! JSON Schema (2020-12) of the whole language, so that editors complete and check recipes.

use std::borrow::Cow;

use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde_json::{Map, Value as Json, json};

use crate::bench::BenchStage;
use crate::part::{SLOTS, slot_definition};
use crate::recipe::Top;
use crate::search::SearchStage;
use crate::stage::{
    ALIASES, CompressStage, EvalStage, GenerateStage, LogitsStage, MergeStage, Stage, TrainStage,
};

/// JSON Schema of the language with these parts, each a slot, a name and the schema of its settings.
///
/// Every slot becomes one of its parts, told apart by `kind`. Slots that are no key of a stage are left out.
pub fn schema(parts: &[(&str, &str, Schema)]) -> Json {
    let generator = SchemaSettings::draft2020_12().into_generator();
    let mut root = generator.into_root_schema_for::<Top>().to_value();
    let mut definitions = match root["$defs"].take() {
        Json::Object(definitions) => definitions,
        _ => Map::new(),
    };
    for (table, name, alias) in ALIASES {
        if let Some(schema) = definitions.get_mut(table) {
            add_alias(schema, name, alias);
        }
    }
    for slot in SLOTS {
        let mut choices = Vec::new();
        if slot == "adapter" {
            choices.push(json!({
                "title": "adapter/…",
                "description": "A saved adapter: a folder with `adapter_config.json`.",
                "type": "object",
                "properties": { "load": { "type": "string" } },
                "required": ["load"],
                "additionalProperties": false,
            }));
        }
        for (_, name, settings) in parts.iter().filter(|(s, _, _)| *s == slot) {
            choices.push(part(slot, name, settings.as_value(), &mut definitions));
        }
        let any =
            json!({ "type": "object", "properties": { "kind": { "type": "string" } }, "required": ["kind"] });
        let schema = if choices.is_empty() { any } else { json!({ "oneOf": choices }) };
        definitions.insert(slot_definition(slot), schema);
    }
    root["$defs"] = Json::Object(definitions);
    root["required"] = json!(["stage"]);
    root["properties"]["stage"]["minItems"] = json!(1);
    drop_null_defaults(&mut root);
    root
}

/// `"default": null` says in JSON what TOML cannot: leave the key out.
fn drop_null_defaults(schema: &mut Json) {
    match schema {
        Json::Object(entries) => {
            entries.retain(|key, value| key != "default" || !value.is_null());
            entries.values_mut().for_each(drop_null_defaults);
        }
        Json::Array(entries) => entries.iter_mut().for_each(drop_null_defaults),
        _ => {}
    }
}

/// A part's settings with its `kind`; its own definitions move to `definitions` under names of their own.
fn part(slot: &str, name: &str, settings: &Json, definitions: &mut Map<String, Json>) -> Json {
    let mut schema = settings.as_object().cloned().unwrap_or_default();
    schema.shift_remove("$schema");
    if let Some(Json::Object(own)) = schema.shift_remove("$defs") {
        for (key, mut definition) in own {
            rename_references(&mut definition, slot, name);
            definitions.insert(format!("{slot}-{name}-{key}"), definition);
        }
    }
    let mut schema = Json::Object(schema);
    rename_references(&mut schema, slot, name);
    schema["title"] = json!(format!("{slot}/{name}"));
    tag(&mut schema, name);
    schema
}

/// Makes the object schema that of a table with this `kind`, and closed.
fn tag(schema: &mut Json, kind: &str) {
    let mut properties = Map::from_iter([("kind".to_owned(), json!({ "const": kind }))]);
    if let Json::Object(own) = schema["properties"].take() {
        properties.extend(own);
    }
    let mut required = vec![json!("kind")];
    if let Json::Array(own) = schema["required"].take() {
        required.extend(own);
    }
    schema["type"] = json!("object");
    schema["properties"] = Json::Object(properties);
    schema["required"] = Json::Array(required);
    schema["additionalProperties"] = json!(false);
}

fn rename_references(schema: &mut Json, slot: &str, name: &str) {
    match schema {
        Json::Object(entries) => {
            for (key, value) in entries {
                match value {
                    Json::String(target) if key == "$ref" => {
                        if let Some(own) = target.strip_prefix("#/$defs/") {
                            *target = format!("#/$defs/{slot}-{name}-{own}");
                        }
                    }
                    other => rename_references(other, slot, name),
                }
            }
        }
        Json::Array(entries) => entries.iter_mut().for_each(|entry| rename_references(entry, slot, name)),
        _ => {}
    }
}

/// The other spelling beside the canonical one; editors show it struck through.
fn add_alias(schema: &mut Json, name: &str, alias: &str) {
    if let Some(Json::Object(properties)) = schema.get_mut("properties")
        && let Some(mut property) = properties.get(name).cloned()
    {
        property["deprecated"] = json!(true);
        property["description"] = json!(format!("Another name of `{name}`."));
        properties.insert(alias.to_owned(), property);
    }
}

impl JsonSchema for Stage {
    fn schema_name() -> Cow<'static, str> {
        "Stage".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let stages = stage_schemas(generator).map(|(kind, table, schema)| {
            let mut schema = schema.to_value();
            for (_, name, alias) in ALIASES.iter().filter(|(of, _, _)| *of == table) {
                add_alias(&mut schema, name, alias);
            }
            schema["title"] = json!(kind);
            tag(&mut schema, kind);
            schema
        });
        json_schema!({ "oneOf": stages })
    }
}

/// Kind, struct and schema of every stage.
fn stage_schemas(generator: &mut SchemaGenerator) -> [(&'static str, &'static str, Schema); 8] {
    [
        ("train", "TrainStage", TrainStage::json_schema(generator)),
        ("generate", "GenerateStage", GenerateStage::json_schema(generator)),
        ("merge", "MergeStage", MergeStage::json_schema(generator)),
        ("eval", "EvalStage", EvalStage::json_schema(generator)),
        ("logits", "LogitsStage", LogitsStage::json_schema(generator)),
        ("search", "SearchStage", SearchStage::json_schema(generator)),
        ("compress", "CompressStage", CompressStage::json_schema(generator)),
        ("bench", "BenchStage", BenchStage::json_schema(generator)),
    ]
}

/// The kinds of stage that read a key.
pub(crate) fn stages_with(key: &str) -> Vec<&'static str> {
    let mut generator = SchemaGenerator::default();
    let aliased = |table: &str| ALIASES.iter().any(|(of, _, alias)| *of == table && *alias == key);
    stage_schemas(&mut generator)
        .into_iter()
        .filter(|(_, table, schema)| {
            aliased(table) || schema.get("properties").is_some_and(|p| p.get(key).is_some())
        })
        .map(|(kind, _, _)| kind)
        .collect()
}
