//! `adapter_config.json`: what all of PEFT's configs share, both ways.

use std::collections::BTreeMap;

use anyhow::Result;
use ramekin_core::pattern::Modules;
use ramekin_core::{BadSetting, UserError};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value as Json, json};

use crate::method::Method;

/// Fields that every config has and no method reads.
const SHARED: [&str; 8] = [
    "peft_type",
    "task_type",
    "base_model_name_or_path",
    "revision",
    "auto_mapping",
    "inference_mode",
    "peft_version",
    "runtime_config",
];

/// The whole config of a saved adapter: its own fields and those that all have.
pub fn whole_config(mut own: Json, peft_type: &str, base: &str) -> Json {
    let shared = json!({
        "auto_mapping": null, "base_model_name_or_path": base, "inference_mode": true,
        "peft_type": peft_type, "peft_version": "0.21.2", "revision": null, "task_type": "CAUSAL_LM",
    });
    if let (Json::Object(own), Json::Object(shared)) = (&mut own, shared) {
        own.extend(shared);
        own.sort_keys();
    }
    own
}

/// The whole config of a method's adapter.
pub(crate) fn write<M: Method>(method: &M, targets: &[String], base: &str) -> Json {
    let mut own = method.config();
    own["target_modules"] = names(method.targeting().target_modules, targets);
    whole_config(own, M::PEFT_TYPE, base)
}

/// PEFT writes `all-linear` out as the names it stood for.
fn names(modules: &Modules, targets: &[String]) -> Json {
    match modules {
        Modules::Pattern(p) if p.eq_ignore_ascii_case(Modules::ALL_LINEAR) => {
            let mut names: Vec<&str> = targets.iter().map(|t| t.rsplit('.').next().unwrap_or(t)).collect();
            names.sort_unstable();
            names.dedup();
            json!(names)
        }
        other => json!(other),
    }
}

/// Whole numbers as integers, as PEFT's `int` fields are.
pub fn whole(x: f64) -> Json {
    if x.fract() == 0.0 && x.abs() < 1e15 { json!(x as i64) } else { json!(x) }
}

/// An `alpha_pattern` with [`whole`] numbers.
pub fn pattern_numbers(map: &BTreeMap<String, f64>) -> Json {
    Json::Object(map.iter().map(|(k, v)| (k.clone(), whole(*v))).collect::<Map<_, _>>())
}

/// The fields of a config that are its adapter's own settings. `foreign` are fields that the part has no
/// setting for, with the values that mean "off"; no values means that any will do.
///
/// # Errors
/// If a foreign field is on.
pub fn own_fields(config: &Json, part: &str, foreign: &[(&str, &[&str])]) -> Result<Map<String, Json>> {
    let mut kept = Map::new();
    for (key, value) in config.as_object().into_iter().flatten() {
        if SHARED.contains(&key.as_str()) {
            continue;
        }
        if let Some((_, off)) = foreign.iter().find(|(k, _)| k == key) {
            let text = value.to_string();
            if !off.is_empty() && !off.contains(&text.as_str()) {
                return Err(UserError::new(format!(
                    "the adapter sets `{key}` to {text}, which `{part}` does not do"
                ))
                .help("it needs another adapter part")
                .into());
            }
            continue;
        }
        let layers = matches!(key.as_str(), "layers_to_transform" | "layers_pattern") && !value.is_array();
        let value = if layers && !value.is_null() { json!([value]) } else { value.clone() };
        kept.insert(key.clone(), value);
    }
    Ok(kept)
}

/// The settings in a config's own fields.
///
/// # Errors
/// If they are none of this part's.
pub fn settings<S: DeserializeOwned>(own: &Map<String, Json>) -> Result<S> {
    serde_json::from_value(Json::Object(own.clone()))
        .map_err(|e| UserError::new(format!("adapter_config.json: {e}")).into())
}

/// The method that a config describes.
pub(crate) fn read<M: Method>(config: &Json) -> Result<M> {
    let mut kept = own_fields(config, M::NAME, M::FOREIGN)?;
    match make::<M>(&kept) {
        // The values come from the file; how they began no longer matters.
        Err(e) if kept.contains_key(M::INIT) && concerns(&e, M::INIT) => {
            kept.insert(M::INIT.to_owned(), json!(true));
            make(&kept)
        }
        made => made,
    }
}

fn make<M: Method>(config: &Map<String, Json>) -> Result<M> {
    M::new(settings(config)?)
}

/// Whether a refusal may be about this setting: a type error names no setting.
fn concerns(e: &anyhow::Error, setting: &str) -> bool {
    e.downcast_ref::<BadSetting>().is_none_or(|bad| bad.setting == setting)
}
