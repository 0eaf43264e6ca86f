//! Fields of a `config.json`. The caller knows which file or table they stand in.

use anyhow::Result;
use ramekin_core::BadSetting;
use serde_json::Value as Json;

/// The refusal of a field.
pub fn wrong(key: &str, message: impl Into<String>) -> anyhow::Error {
    BadSetting::new(key, message).into()
}

/// A size: a whole number of at least 1.
///
/// # Errors
/// [`BadSetting`] of the field; so do the others.
pub fn size(config: &Json, key: &str) -> Result<usize> {
    match config.get(key) {
        None | Some(Json::Null) => Err(wrong(key, "is missing")),
        Some(v) => v
            .as_u64()
            .filter(|n| (1..=1 << 40).contains(n))
            .map(|n| n as usize)
            .ok_or_else(|| wrong(key, format!("is {v}; it must be a whole number of at least 1"))),
    }
}

/// A size that may be missing.
pub fn size_or(config: &Json, key: &str, default: usize) -> Result<usize> {
    if config.get(key).is_none_or(Json::is_null) { Ok(default) } else { size(config, key) }
}

/// True or false, or missing.
pub fn flag(config: &Json, key: &str, default: bool) -> Result<bool> {
    match config.get(key) {
        None | Some(Json::Null) => Ok(default),
        Some(v) => v.as_bool().ok_or_else(|| wrong(key, format!("is {v}; it must be true or false"))),
    }
}

/// A small number that a norm adds, above 0, or missing.
pub fn eps(config: &Json, key: &str, default: f64) -> Result<f64> {
    match config.get(key) {
        None | Some(Json::Null) => Ok(default),
        Some(v) => {
            v.as_f64().filter(|x| *x > 0.0).ok_or_else(|| wrong(key, format!("is {v}; it must be above 0")))
        }
    }
}
