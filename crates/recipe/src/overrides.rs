//! `--set K=V`: values of the command line laid over those of the file.

use std::collections::HashMap;

use serde_json::{Map, Value as Json};
use toml_edit::Document;

use crate::diagnostic::{Diagnostic, Diagnostics};
use crate::doc::{Doc, Place, Reader, syntax};
use crate::part::DEFAULTS;
use crate::path::{self, LISTS};
use crate::source::{Source, Span};
use crate::wording::{found, list};

/// More steps than any recipe nests, few enough to walk without care.
const MAX_DEPTH: usize = 32;

/// What stands in front of the argument where it is shown.
const OPTION: &str = "--set ";

/// What stands in front of a value to make it a TOML document.
const HEAD: &str = "v = ";

/// Applies one `K=V`.
///
/// # Errors
/// No `=`, a key that is no path or leads nowhere, a value with an opened quote or bracket that never closes.
pub fn apply(doc: &mut Doc, argument: &str) -> Result<(), Diagnostics> {
    let source = Source::argument(format!("{OPTION}{argument}"));
    let span = |from: usize, to: usize| Span::new(&source, OPTION.len() + from..OPTION.len() + to);
    let Some(equals) = equals(argument) else {
        let title = format!("`{argument}` sets nothing");
        return Err(Diagnostic::new(title).label(span(0, argument.len()), "expected `KEY=VALUE`").into());
    };
    let key = span(0, equals);
    let steps = path::parse(argument[..equals].trim()).unwrap_or_default();
    if steps.is_empty() || steps.len() > MAX_DEPTH {
        let title = format!("`{}` is no path of a recipe", &argument[..equals]);
        return Err(Diagnostic::new(title)
            .label(key, "expected a path such as `stage.0.optimizer.lr`")
            .into());
    }

    let mut errors = Diagnostics::new();
    let shift = OPTION.len() + equals + 1 - HEAD.len();
    let mut reader = Reader { source: &source, shift, places: HashMap::new(), errors: &mut errors };
    let mut at = steps.clone();
    let value = value(&mut reader, &mut at, &argument[equals + 1..])?;
    let mut places = reader.places;
    let written = &argument[equals + 1..];
    let start = argument.len() - written.trim_start().len();
    let value_span = span(start, start.max(argument.trim_end().len()));
    places.insert(steps.clone(), Place { key: Some(key.clone()), value: Some(value_span) });

    let target = walk(&mut doc.root, &steps)
        .map_err(|(title, label)| Diagnostic::new(title).label(key.clone(), label))?;
    *target.value = value;
    let real = target.path;
    doc.places.retain(|path, _| !path.starts_with(&real));
    for path in target.made {
        doc.places.insert(path, Place { key: Some(key.clone()), value: None });
    }
    for (path, place) in places {
        let mut moved = real.clone();
        moved.extend_from_slice(&path[steps.len()..]);
        doc.places.insert(moved, place);
    }
    Ok(())
}

/// The `=` between key and value: the first one outside quotes.
fn equals(argument: &str) -> Option<usize> {
    let mut quote = None;
    argument.char_indices().find_map(|(i, c)| {
        match (quote, c) {
            (None, '=') => return Some(i),
            (None, '"' | '\'') => quote = Some(c),
            (Some(q), c) if q == c => quote = None,
            _ => {}
        }
        None
    })
}

/// The text as a TOML value, or as a bare string.
fn value(reader: &mut Reader<'_>, path: &mut Vec<String>, text: &str) -> Result<Json, Diagnostics> {
    let bare = Ok(Json::String(text.to_owned()));
    if text.contains(['\n', '\r']) {
        return bare;
    }
    let document = format!("{HEAD}{text}");
    match Document::parse(document.as_str()) {
        Ok(parsed) => {
            let Some(value) = parsed.as_table().get("v").and_then(|item| item.as_value()) else {
                return bare;
            };
            let whole = value.span().is_some_and(|s| s.end == document.trim_end().len());
            // A date or a comment's `#` was hardly meant as one.
            if !whole || value.is_datetime() || value.as_float().is_some_and(|x| !x.is_finite()) {
                return bare;
            }
            let value = reader.value(path, value);
            match value {
                Some(value) if reader.errors.is_empty() => Ok(value),
                _ => Err(std::mem::take(reader.errors)),
            }
        }
        Err(e) if text.trim_start().starts_with(['[', '{', '"', '\'']) => {
            Err(syntax(reader.source, reader.shift, &e))
        }
        Err(_) => bare,
    }
}

/// The end of a walk.
struct Target<'a> {
    value: &'a mut Json,
    /// Its path as the recipe has it: without index 0 of a single table.
    path: Vec<String>,
    /// Paths of the tables that were made on the way.
    made: Vec<Vec<String>>,
}

/// Goes down to the value at `steps`, making tables on the way; where there is no way, title and label say so.
fn walk<'a>(root: &'a mut Json, steps: &[String]) -> Result<Target<'a>, (String, String)> {
    let mut value = root;
    let mut real: Vec<String> = Vec::new();
    let mut made = Vec::new();
    for (i, step) in steps.iter().enumerate() {
        let (here, to) = (path::show(&steps[..i]), path::show(&steps[..=i]));
        let in_list_slot = i > 0 && LISTS.contains(&steps[i - 1].as_str());
        match value {
            Json::Object(_) if in_list_slot && step == "0" => continue,
            Json::Array(entries) => {
                let len = entries.len();
                let exists = match len {
                    0 => format!("`{here}` is an empty list"),
                    1 => format!("`{here}` has one entry: `{here}.0`"),
                    _ => format!("`{here}` has {len} entries: `{here}.0` to `{here}.{}`", len - 1),
                };
                value = step
                    .parse::<usize>()
                    .ok()
                    .and_then(|index| entries.get_mut(index))
                    .ok_or_else(|| (format!("there is no `{to}`"), exists))?;
                real.push(step.clone());
            }
            Json::Object(table) => {
                real.push(step.clone());
                let last = i + 1 == steps.len();
                if !table.contains_key(step) {
                    let index = steps.get(i + 1).is_some_and(|next| next.parse::<usize>().is_ok());
                    if index && !LISTS.contains(&step.as_str()) {
                        let keys = list(table.keys().map(String::as_str));
                        let place =
                            if here.is_empty() { "the recipe".to_owned() } else { format!("`{here}`") };
                        return Err((format!("there is no `{to}`"), format!("{place} has {keys}")));
                    }
                    if !last {
                        made.push(real.clone());
                    }
                }
                value = table.entry(step.clone()).or_insert_with(|| Json::Object(fresh(steps, step)));
            }
            other => {
                let what = found(other);
                return Err((format!("there is no `{to}`"), format!("`{here}` is {what}, not a table")));
            }
        }
    }
    Ok(Target { value, path: real, made })
}

/// A table made on the way: a slot's says which part it holds where nothing was written.
fn fresh(steps: &[String], name: &str) -> Map<String, Json> {
    let kind = DEFAULTS.iter().find(|(slot, _)| *slot == name && steps[0] == "stage");
    kind.map(|(_, kind)| ("kind".to_owned(), Json::from(*kind))).into_iter().collect()
}
