//! A recipe's text as a tree that remembers where each key and value was written.

use std::collections::HashMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Map, Number, Value as Json};
use toml_edit::{Document, InlineTable, Item, Key, Table, Value};

use crate::diagnostic::{Diagnostic, Diagnostics};
use crate::overrides;
use crate::path::{self, LISTS};
use crate::source::{Source, Span};
use crate::wording::suggest;

/// Longest recipe that is read; larger ones are data files by mistake.
const MAX_BYTES: usize = 1 << 20;

/// A recipe's text as a tree that remembers where each key and value was written.
///
/// Paths are dotted, with list indices: `stage.0.optimizer.lr`. Where a slot
/// takes a list and one table was written, index 0 means that table.
#[derive(Clone, Debug)]
pub struct Doc {
    pub(crate) file: Arc<Source>,
    pub(crate) root: Json,
    pub(crate) places: HashMap<Vec<String>, Place>,
}

/// Where an entry was written.
#[derive(Clone, Debug, Default)]
pub(crate) struct Place {
    pub key: Option<Span>,
    pub value: Option<Span>,
}

impl Doc {
    /// Parses the text of the recipe `path_for_display`, then applies each `K=V` of `overrides`.
    ///
    /// # Errors
    /// Syntax errors of the text; dates, `inf` and `nan`; overrides that lead nowhere.
    pub fn parse(path_for_display: &Path, text: &str, overrides: &[String]) -> Result<Doc, Diagnostics> {
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        if text.len() > MAX_BYTES {
            let title = format!("`{}` is no recipe: it has more than 1 MiB", path_for_display.display());
            return Err(Diagnostic::new(title).into());
        }
        let file = Source::file(path_for_display, text);
        let parsed = Document::parse(text).map_err(|e| syntax(&file, 0, &e))?;
        let mut errors = Diagnostics::new();
        let mut reader = Reader { source: &file, shift: 0, places: HashMap::new(), errors: &mut errors };
        let root = reader.table(&mut Vec::new(), parsed.as_table());
        let mut doc = Doc { places: reader.places, root, file };
        for argument in overrides {
            if let Err(more) = overrides::apply(&mut doc, argument) {
                errors.extend(more);
            }
        }
        errors.sort();
        errors.into_result(doc)
    }

    /// Reads and parses a recipe file.
    ///
    /// # Errors
    /// As [`Doc::parse`]; also a file that is not there or is no text.
    pub fn open(file: &Path, overrides: &[String]) -> Result<Doc, Diagnostics> {
        let name = file.display();
        let bytes = std::fs::read(file).map_err(|e| {
            let why = match e.kind() {
                std::io::ErrorKind::NotFound => match neighbour(file) {
                    Some(near) => format!("there is no such file; did you mean `{near}`?"),
                    None => "there is no such file".to_owned(),
                },
                std::io::ErrorKind::IsADirectory => "it is a folder".to_owned(),
                _ => e.to_string(),
            };
            Diagnostics::from(Diagnostic::new(format!("cannot read the recipe `{name}`: {why}")))
        })?;
        let text = String::from_utf8(bytes).map_err(|e| {
            let at = e.utf8_error().valid_up_to();
            let line = e.as_bytes()[..at].iter().filter(|b| **b == b'\n').count() + 1;
            Diagnostics::from(Diagnostic::new(format!(
                "`{name}` is no recipe: line {line} is not UTF-8 text"
            )))
        })?;
        Doc::parse(file, &text, overrides)
    }

    /// The recipe's file.
    pub fn file(&self) -> &Arc<Source> {
        &self.file
    }

    /// The value at a path; the empty path is the whole recipe.
    pub fn value(&self, path: &str) -> Option<&Json> {
        self.get(&path::parse_own(path))
    }

    pub(crate) fn get(&self, path: &[String]) -> Option<&Json> {
        self.real(path).iter().try_fold(&self.root, |value, step| match value {
            Json::Object(table) => table.get(step),
            Json::Array(list) => list.get(step.parse::<usize>().ok()?),
            _ => None,
        })
    }

    /// The path without index 0 where a single table stands for a list.
    fn real(&self, path: &[String]) -> Vec<String> {
        let mut real: Vec<String> = Vec::with_capacity(path.len());
        let mut value = Some(&self.root);
        for step in path {
            let single = real.last().is_some_and(|last| LISTS.contains(&last.as_str()));
            if single && step == "0" && value.is_some_and(Json::is_object) {
                continue;
            }
            value = value.and_then(|v| match v {
                Json::Object(table) => table.get(step),
                Json::Array(list) => step.parse::<usize>().ok().and_then(|i| list.get(i)),
                _ => None,
            });
            real.push(step.clone());
        }
        real
    }

    /// Where the key at a path was written.
    pub fn key_span(&self, path: &str) -> Option<Span> {
        self.place(&path::parse_own(path))?.key.clone()
    }

    /// Where the value at a path was written; a `[table]` gives its header.
    pub fn value_span(&self, path: &str) -> Option<Span> {
        self.place(&path::parse_own(path))?.value.clone()
    }

    fn place(&self, path: &[String]) -> Option<&Place> {
        let real = self.real(path);
        // `eval.data = "FILE"` is read as the stage's own data with another path.
        if let [stage @ .., eval, data, setting] = real.as_slice()
            && eval == "eval"
            && data == "data"
            && self.places.contains_key(&real[..real.len() - 1])
            && matches!(self.get(&real[..real.len() - 1]), Some(Json::String(_)))
        {
            let mut other = stage.to_vec();
            other.extend(if setting == "path" {
                [eval, data].map(Clone::clone)
            } else {
                [data, setting].map(Clone::clone)
            });
            return self.places.get(&other);
        }
        self.places.get(&real)
    }

    /// What to underline for a path: its value, else its key, else the nearest table around it.
    pub(crate) fn spot(&self, path: &[String]) -> Span {
        (0..=path.len())
            .rev()
            .find_map(|n| {
                let place = self.place(&path[..n])?;
                place.value.clone().or_else(|| place.key.clone())
            })
            .unwrap_or_else(|| Span::new(&self.file, 0..0))
    }

    pub(crate) fn key_spot(&self, path: &[String]) -> Span {
        self.place(path).and_then(|p| p.key.clone()).unwrap_or_else(|| self.spot(path))
    }

    /// A mistake that underlines the value at a path, or the nearest table around it.
    pub fn error_at(&self, path: &str, title: impl Into<String>, label: impl Into<String>) -> Diagnostic {
        Diagnostic::new(title).label(self.spot(&path::parse_own(path)), label)
    }

    /// Where a path of the recipe stands.
    pub fn span(&self, path: &str) -> Span {
        self.spot(&path::parse_own(path))
    }

    /// A mistake with any number of places, each a path and what to say about it, the culprit first.
    pub fn mistake(&self, title: impl Into<String>, places: &[(String, String)]) -> Diagnostic {
        places.iter().fold(Diagnostic::new(title), |diagnostic, (path, label)| {
            diagnostic.label(self.spot(&path::parse_own(path)), label.as_str())
        })
    }

    /// A mistake that underlines the key at a path.
    pub fn error_at_key(&self, path: &str, title: impl Into<String>, label: impl Into<String>) -> Diagnostic {
        Diagnostic::new(title).label(self.key_spot(&path::parse_own(path)), label)
    }

    /// Two places of the recipe that disagree; each is a path and what to say about it, the culprit first.
    pub fn conflict(&self, title: impl Into<String>, one: (&str, &str), other: (&str, &str)) -> Diagnostic {
        self.error_at(one.0, title, one.1).label(self.spot(&path::parse_own(other.0)), other.1)
    }

    /// A relative path of the recipe, seen from the recipe's folder; absolute ones stay.
    pub fn resolve_path(&self, written: &str) -> PathBuf {
        self.file.name().parent().unwrap_or(Path::new("")).join(written)
    }
}

/// The file with the nearest name in the same folder.
fn neighbour(file: &Path) -> Option<String> {
    let folder = file.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let entries = std::fs::read_dir(folder).ok()?.flatten().filter(|e| e.path().is_file());
    let names: Vec<String> = entries.filter_map(|e| e.file_name().into_string().ok()).collect();
    let near = suggest(file.file_name()?.to_str()?, names.iter().map(String::as_str))?;
    Some(file.with_file_name(near).display().to_string())
}

/// The first syntax error of a text, which is `shift` bytes into its source.
pub(crate) fn syntax(source: &Arc<Source>, shift: usize, e: &toml_edit::TomlError) -> Diagnostics {
    let at = e.span().unwrap_or_default();
    let span = Span::new(source, at.start + shift..at.end + shift);
    let what = if source.is_file() { "the recipe is not valid TOML" } else { "the value is not valid TOML" };
    let message = e.message().lines().map(str::trim).collect::<Vec<_>>().join(", ");
    Diagnostic::new(what).label(span, message).into()
}

/// Turns TOML into JSON and notes where everything stands.
pub(crate) struct Reader<'a> {
    pub source: &'a Arc<Source>,
    /// How far into its source the TOML text begins, in bytes.
    pub shift: usize,
    pub places: HashMap<Vec<String>, Place>,
    pub errors: &'a mut Diagnostics,
}

impl Reader<'_> {
    fn span(&self, range: Range<usize>) -> Span {
        Span::new(self.source, range.start + self.shift..range.end + self.shift)
    }

    pub fn table(&mut self, path: &mut Vec<String>, table: &Table) -> Json {
        let entries = table.iter().filter_map(|(name, item)| Some((table.key(name)?, item)));
        Json::Object(self.entries(path, entries))
    }

    fn inline(&mut self, path: &mut Vec<String>, table: &InlineTable) -> Json {
        let entries = table.iter().filter_map(|(name, _)| table.get_key_value(name));
        Json::Object(self.entries(path, entries))
    }

    fn entries<'t>(
        &mut self,
        path: &mut Vec<String>,
        entries: impl Iterator<Item = (&'t Key, &'t Item)>,
    ) -> Map<String, Json> {
        let mut map = Map::new();
        for (key, item) in entries {
            path.push(key.get().to_owned());
            if let Some(value) = self.item(path, key.span(), item) {
                map.insert(key.get().to_owned(), value);
            }
            path.pop();
        }
        map
    }

    fn item(&mut self, path: &mut Vec<String>, key: Option<Range<usize>>, item: &Item) -> Option<Json> {
        let key = key.map(|range| self.span(range));
        // A table made by dotted keys stands nowhere as a whole; its key does.
        let dotted = match item {
            Item::Table(table) => table.is_dotted() || table.is_implicit(),
            Item::Value(Value::InlineTable(table)) => table.is_dotted(),
            _ => false,
        };
        let value = item.span().filter(|_| !dotted).map(|range| self.span(range));
        self.places.insert(path.clone(), Place { key, value });
        match item {
            Item::None => None,
            Item::Value(value) => self.value(path, value),
            Item::Table(table) => Some(self.table(path, table)),
            Item::ArrayOfTables(tables) => {
                let list = tables.iter().enumerate().map(|(i, table)| {
                    path.push(i.to_string());
                    let value = table.span().map(|range| self.span(range));
                    self.places.insert(path.clone(), Place { key: None, value });
                    let json = self.table(path, table);
                    path.pop();
                    json
                });
                Some(list.collect())
            }
        }
    }

    /// The value as JSON; noted as a mistake where JSON has none.
    pub fn value(&mut self, path: &mut Vec<String>, value: &Value) -> Option<Json> {
        match value {
            Value::String(text) => Some(Json::String(text.value().clone())),
            Value::Integer(n) => Some(Json::from(*n.value())),
            Value::Float(n) => match Number::from_f64(*n.value()) {
                Some(n) => Some(Json::Number(n)),
                None => self.refuse(path, value, "no setting is infinite or not a number"),
            },
            Value::Boolean(b) => Some(Json::Bool(*b.value())),
            Value::Datetime(_) => self.refuse(path, value, "no setting is a date: put it in quotes"),
            Value::Array(array) => {
                let mut list = Vec::with_capacity(array.len());
                for (i, entry) in array.iter().enumerate() {
                    path.push(i.to_string());
                    let span = entry.span().map(|range| self.span(range));
                    self.places.insert(path.clone(), Place { key: None, value: span });
                    list.extend(self.value(path, entry));
                    path.pop();
                }
                Some(Json::Array(list))
            }
            Value::InlineTable(table) => Some(self.inline(path, table)),
        }
    }

    fn refuse(&mut self, path: &[String], value: &Value, why: &str) -> Option<Json> {
        let span = self.span(value.span().unwrap_or_default());
        let title = format!("`{}` cannot be `{}`", path::show(path), value.clone().decorated("", ""));
        self.errors.push(Diagnostic::new(title).label(span, why));
        None
    }
}
