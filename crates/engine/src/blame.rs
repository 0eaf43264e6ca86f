//! From a mistake to the place that says it: a value of the recipe, or a field of a `config.json`.

use std::path::Path;

use anyhow::Result;
use ramekin_core::{BadRecipe, BadSetting, UserError, suggest};
use ramekin_recipe::{Config, Model};

use crate::inputs::Origin;

/// Refuses a path of the recipe at which nothing lies.
pub fn present(place: &str, written: &Path, base_dir: &Path, what: &str) -> Result<()> {
    let path = base_dir.join(written);
    if path.exists() {
        return Ok(());
    }
    let label = match nearest(&path) {
        Some(near) => format!("did you mean `{}`?", written.with_file_name(near).display()),
        None => "paths are relative to the recipe".to_owned(),
    };
    let message = format!("there is no {what} `{}`", path.display());
    Err(at(place, message, label, None))
}

/// The name beside a path that is most like its own.
fn nearest(path: &Path) -> Option<String> {
    let entries = path.parent()?.read_dir().ok()?.flatten();
    let names: Vec<String> = entries.filter_map(|e| e.file_name().into_string().ok()).collect();
    suggest(path.file_name()?.to_str()?, names.iter().map(String::as_str)).map(str::to_owned)
}

/// A mistake of one place of the recipe; without a place, the same in one line.
pub fn at(place: &str, message: String, label: String, help: Option<String>) -> anyhow::Error {
    if place.is_empty() {
        return UserError { message: format!("{message}: {label}"), at: None, help }.into();
    }
    BadRecipe { help, ..BadRecipe::new(message).at(place, label) }.into()
}

/// Gives a refusal of a setting the place of its part in the recipe, where it knows none.
pub fn part<T>(result: Result<T>, place: impl FnOnce() -> String) -> Result<T> {
    result.map_err(|e| match e.downcast::<BadSetting>() {
        Ok(bad) if bad.part.is_none() => bad.of(place()).into(),
        Ok(bad) => bad.into(),
        Err(e) => e,
    })
}

/// The place of a key of the model's table; empty for a model that no recipe names.
pub fn key(model: &Model, key: &str) -> String {
    if model.path.is_empty() { String::new() } else { format!("{}.{key}", model.path) }
}

/// Why a model's source leads nowhere.
pub fn source(model: &Model, error: anyhow::Error) -> anyhow::Error {
    let Some(user) = error.chain().find_map(|c| c.downcast_ref::<UserError>()).cloned() else {
        return error; // the machine's want, not the recipe's
    };
    let message = format!("cannot get the model `{}`", model.source);
    at(&key(model, "source"), message, user.message, user.help)
}

/// Tells where the field of a config stands that a model refuses.
pub fn field<T>(model: &Model, origin: &Origin, base_dir: &Path, result: Result<T>) -> Result<T> {
    result.map_err(|e| match e.downcast::<BadSetting>() {
        Ok(bad) if bad.part.is_none() => {
            let message = format!("`{}` {}", bad.setting, bad.message);
            match (&model.config, origin.config_file(model, base_dir)) {
                (_, Some(file)) => {
                    let text = std::fs::read_to_string(&file).unwrap_or_default();
                    let error = UserError::new(message);
                    match position(&text, &bad.setting) {
                        Some((line, column)) => error.at(file, line, column),
                        None => error.in_file(file),
                    }
                    .into()
                }
                (Some(Config::Table(_)), None) if !model.path.is_empty() => {
                    BadRecipe::new(message).at(key(model, &format!("config.{}", bad.setting)), "").into()
                }
                _ => UserError::new(format!("config.json of `{}`: {message}", model.source)).into(),
            }
        }
        Ok(bad) => bad.into(),
        Err(other) => other,
    })
}

/// Line and column, from 1, of a key of the outermost object of a JSON text.
fn position(text: &str, key: &str) -> Option<(usize, usize)> {
    let wanted = serde_json::to_string(key).ok()?;
    let (mut depth, mut line, mut column) = (0usize, 1, 1);
    let mut chars = text.char_indices();
    while let Some((i, c)) = chars.next() {
        match c {
            '{' | '[' => depth += 1,
            '}' | ']' => depth = depth.saturating_sub(1),
            '"' => {
                let rest = &text[i..];
                let is_key = rest.strip_prefix(&*wanted).is_some_and(|r| r.trim_start().starts_with(':'));
                if depth == 1 && is_key {
                    return Some((line, column));
                }
                let mut escaped = false;
                for (_, c) in chars.by_ref() {
                    column += 1;
                    match c {
                        '"' if !escaped => break,
                        _ => escaped = c == '\\' && !escaped,
                    }
                }
            }
            _ => {}
        }
        (line, column) = if c == '\n' { (line + 1, 1) } else { (line, column + 1) };
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_found_at_the_top_only() {
        let text = "{\n  \"a\": {\"heads\": 1, \"x\": \"\\\"heads\\\":\"},\n  \"é\": 0, \"heads\" : 3\n}";
        assert_eq!(position(text, "heads"), Some((3, 11)));
        assert_eq!(position(text, "x"), None);
        assert_eq!(position("\"", "x"), None);
    }
}
