//! Where rows come from: paths in order, one record after the other, each
//! knowing the file and line it stands in.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Result;
use ramekin_core::{UserError, suggest};
use serde_json::{Map, Value as Json};

use crate::settings::DataSettings;

/// The place of a row in a file of the user's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// The file.
    pub file: Arc<Path>,
    /// Its line, from 1, where there is one.
    pub line: Option<usize>,
}

impl Origin {
    /// An error of the user's that is at this place.
    pub fn error(&self, message: impl Into<String>) -> UserError {
        let error = UserError::new(message);
        match self.line {
            Some(line) => error.at_line(&*self.file, line),
            None => error.in_file(&*self.file),
        }
    }

    /// The same error, saying that it is at this place.
    pub fn explain(&self, error: anyhow::Error) -> anyhow::Error {
        match error.downcast::<UserError>() {
            Ok(user) if user.at.is_some() => user.into(),
            Ok(user) => UserError { at: self.error("").at, ..user }.into(),
            Err(other) => self.error(format!("{other:#}")).into(),
        }
    }
}

/// One row as it stands in the file.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// Where it stands.
    pub origin: Origin,
    /// Its keys and values.
    pub fields: Map<String, Json>,
}

/// Records one after the other; an error ends them.
pub(crate) type Records = Box<dyn Iterator<Item = Result<Record>>>;

impl DataSettings {
    /// The rows of all files in order, read as they are asked for.
    pub(crate) fn records(&self, base_dir: &Path) -> Result<Records> {
        let open = |endings: &[&str]| expand(&self.paths(), base_dir, endings);
        Ok(match self {
            DataSettings::Jsonl(_) => chain(open(&["jsonl", "ndjson"])?, |f| jsonl(&f)),
            DataSettings::Json(_) => chain(open(&["json"])?, |f| crate::json_rows::rows(&f)),
            DataSettings::Csv(s) => {
                let s = s.clone();
                chain(open(&["csv", "tsv"])?, move |f| crate::csv_rows::rows(&f, &s))
            }
            DataSettings::Text(s) => crate::text_rows::rows(open(&["txt", "text", "md"])?, s.unit)?,
            DataSettings::Builtin(s) => crate::tiny::records_of(s)?,
            DataSettings::Tokens(_) => {
                return Err(UserError::new("data of kind `tokens` has no rows of text").into());
            }
        })
    }
}

fn chain(files: Vec<PathBuf>, open: impl Fn(PathBuf) -> Result<Records> + 'static) -> Records {
    Box::new(files.into_iter().flat_map(move |file| match open(file) {
        Ok(rows) => rows,
        Err(e) => Box::new(std::iter::once(Err(e))) as Records,
    }))
}

/// The files that paths stand for, all of which exist.
fn expand(paths: &[&Path], base_dir: &Path, endings: &[&str]) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for path in paths {
        let full = base_dir.join(path);
        if full.is_dir() {
            let mut inside: Vec<PathBuf> = fs::read_dir(&full)
                .map_err(|e| UserError::new(format!("cannot list the folder: {e}")).in_file(&full))?
                .filter_map(|entry| entry.ok().map(|e| e.path()))
                .filter(|p| p.extension().is_some_and(|e| endings.iter().any(|x| e.eq_ignore_ascii_case(x))))
                .collect();
            if inside.is_empty() {
                let all = endings.iter().map(|e| format!("`.{e}`")).collect::<Vec<_>>().join(" or ");
                return Err(UserError::new(format!("the folder has no {all} file")).in_file(&full).into());
            }
            inside.sort();
            files.append(&mut inside);
        } else if full.is_file() {
            files.push(full);
        } else {
            return Err(missing(&full).into());
        }
    }
    if files.is_empty() {
        return Err(UserError::new("`path` names no file").into());
    }
    Ok(files)
}

/// The error of a file that is not there, with the nearest name beside it.
pub(crate) fn missing(path: &Path) -> UserError {
    let error = UserError::new("there is no such file").in_file(path);
    let names: Vec<String> = path
        .parent()
        .and_then(|dir| fs::read_dir(dir).ok())
        .map(|entries| {
            entries.filter_map(|e| Some(e.ok()?.file_name().to_string_lossy().into_owned())).collect()
        })
        .unwrap_or_default();
    let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    match suggest(&name, names.iter().map(String::as_str)) {
        Some(near) => error.help(format!("did you mean `{near}`?")),
        None => error.help("paths are relative to the recipe"),
    }
}

/// Opens a file for reading.
pub(crate) fn open(path: &Path) -> Result<BufReader<File>> {
    let file =
        File::open(path).map_err(|e| UserError::new(format!("cannot read the file: {e}")).in_file(path))?;
    Ok(BufReader::new(file))
}

/// Lines of a text file with their numbers, from 1, without line ends and without a byte order mark.
pub(crate) fn lines(path: &Path) -> Result<impl Iterator<Item = Result<(Origin, String)>> + use<>> {
    let file: Arc<Path> = path.into();
    let mut reader = open(path)?;
    let mut number = 0;
    Ok(std::iter::from_fn(move || {
        let mut bytes = Vec::new();
        number += 1;
        let origin = Origin { file: file.clone(), line: Some(number) };
        match reader.read_until(b'\n', &mut bytes) {
            Ok(0) => return None,
            Ok(_) => {}
            Err(e) => return Some(Err(origin.error(format!("cannot read on: {e}")).into())),
        }
        if bytes.last() == Some(&b'\n') {
            bytes.pop();
            if bytes.last() == Some(&b'\r') {
                bytes.pop();
            }
        }
        Some(match String::from_utf8(bytes) {
            Ok(text) if number == 1 => Ok((origin, text.trim_start_matches('\u{feff}').to_owned())),
            Ok(text) => Ok((origin, text)),
            Err(e) => {
                let at = e.utf8_error().valid_up_to() + 1;
                Err(origin.error(format!("the line is not UTF-8 from byte {at} on")).into())
            }
        })
    }))
}

/// One JSON object a line; blank lines are skipped.
fn jsonl(path: &Path) -> Result<Records> {
    Ok(Box::new(lines(path)?.filter_map(|line| {
        let (origin, text) = match line {
            Ok(line) => line,
            Err(e) => return Some(Err(e)),
        };
        if text.trim().is_empty() {
            return None;
        }
        Some(match serde_json::from_str::<Json>(&text) {
            Ok(Json::Object(fields)) => Ok(Record { origin, fields }),
            Ok(other) => {
                let error = origin.error(format!("the line is {}, not a JSON object", kind_of(&other)));
                Err(match other {
                    Json::Array(_) if origin.line == Some(1) => {
                        error.help("an array of rows is `kind = \"json\"`")
                    }
                    _ => error,
                }
                .into())
            }
            Err(e) => {
                let what = e.to_string();
                // serde_json counts lines of its own; ours is the file's.
                let what = what.split(" at line ").next().unwrap_or(&what);
                let error = origin.error(format!("the line is not JSON: {what} at column {}", e.column()));
                Err(if origin.line == Some(1) && text.trim() == "[" {
                    error.help("an array of rows is `kind = \"json\"`").into()
                } else {
                    error.into()
                })
            }
        })
    })))
}

/// A JSON value's kind, for messages.
pub(crate) fn kind_of(value: &Json) -> &'static str {
    match value {
        Json::Null => "null",
        Json::Bool(_) => "true or false",
        Json::Number(_) => "a number",
        Json::String(_) => "text",
        Json::Array(_) => "a list",
        Json::Object(_) => "an object",
    }
}

#[cfg(test)]
#[path = "source_tests.rs"]
pub(crate) mod tests;
