//! The recipe with every default written out, as TOML that reads back to the same recipe.

use serde_json::Value as Json;
use toml_edit::{Array, ArrayOfTables, DocumentMut, InlineTable, Item, Table, Value};

use crate::recipe::Recipe;

/// The recipe as TOML with every default of the language written out.
///
/// Settings of parts are written as they stand in [`crate::Part::settings`]:
/// replace them by the full settings first. `null` in them is left out.
pub fn resolved(recipe: &Recipe) -> String {
    let mut document = DocumentMut::new();
    // Plain structs, string keys, numbers: serde_json takes them all.
    let Ok(Json::Object(top)) = serde_json::to_value(recipe) else {
        return String::new();
    };
    for (key, value) in top {
        let item = match value {
            Json::Object(entries) => Item::Table(table(entries)),
            Json::Array(stages) => {
                let mut tables = ArrayOfTables::new();
                for stage in stages {
                    if let Json::Object(entries) = stage {
                        tables.push(table(entries));
                    }
                }
                Item::ArrayOfTables(tables)
            }
            other => value_of(&other).map_or(Item::None, Item::Value),
        };
        document.insert(&key, item);
    }
    document.to_string()
}

/// A key and its value as `--set` takes them: `optimizer={ kind = "sgd" }`.
pub fn setting(key: &str, value: &Json) -> String {
    format!("{key}={}", value_of(value).map(|v| v.to_string()).unwrap_or_default())
}

fn table(entries: serde_json::Map<String, Json>) -> Table {
    let mut table = Table::new();
    for (key, value) in entries {
        if let Some(value) = value_of(&value) {
            table.insert(&key, Item::Value(value));
        }
    }
    table
}

fn value_of(json: &Json) -> Option<Value> {
    Some(match json {
        Json::Null => return None,
        Json::Bool(b) => (*b).into(),
        Json::Number(n) => match n.as_i64() {
            Some(whole) => whole.into(),
            None => n.as_f64()?.into(),
        },
        Json::String(text) => text.into(),
        Json::Array(entries) => Value::Array(entries.iter().filter_map(value_of).collect::<Array>()),
        Json::Object(entries) => {
            let entries = entries.iter().filter_map(|(key, value)| Some((key, value_of(value)?)));
            Value::InlineTable(entries.collect::<InlineTable>())
        }
    })
}
