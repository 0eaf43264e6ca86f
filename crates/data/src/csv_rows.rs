//! Comma or tab separated values; every value is text.

use std::path::Path;
use std::sync::Arc;

use anyhow::Result;
use serde_json::{Map, Value as Json};

use crate::settings::CsvSettings;
use crate::source::{Origin, Record, Records, open};

/// The rows of one file.
pub(crate) fn rows(path: &Path, settings: &CsvSettings) -> Result<Records> {
    let file: Arc<Path> = path.into();
    let tabs = path.extension().is_some_and(|e| e.eq_ignore_ascii_case("tsv"));
    let delimiter = settings.delimiter.map_or(if tabs { b'\t' } else { b',' }, |d| d as u8);
    let mut reader = csv::ReaderBuilder::new()
        .delimiter(delimiter)
        .quoting(settings.quotes.unwrap_or(!tabs))
        .has_headers(settings.header)
        .flexible(true)
        .from_reader(open(path)?);
    let header: Option<Vec<String>> = if settings.header {
        let names = reader.headers().map_err(|e| fault(&file, &e))?;
        let names: Vec<String> =
            names.iter().map(|n| n.trim_start_matches('\u{feff}').trim().to_owned()).collect();
        let first = Origin { file: file.clone(), line: Some(1) };
        if let Some(twice) = names.iter().enumerate().find(|(i, n)| names[..*i].contains(n)) {
            return Err(first.error(format!("two columns are called `{}`", twice.1)).into());
        }
        Some(names)
    } else {
        None
    };
    let mut rows = reader.into_records();
    Ok(Box::new(std::iter::from_fn(move || {
        let row = match rows.next()? {
            Ok(row) => row,
            Err(e) => return Some(Err(fault(&file, &e))),
        };
        let line = row.position().map(|p| p.line() as usize);
        let origin = Origin { file: file.clone(), line };
        if let Some(names) = &header
            && names.len() != row.len()
        {
            let error = origin.error(format!("the row has {} fields, the header {}", row.len(), names.len()));
            return Some(Err(error.help("quote fields that hold the delimiter, or set `delimiter`").into()));
        }
        let fields: Map<String, Json> = row
            .iter()
            .enumerate()
            .map(|(i, value)| {
                let name = header.as_ref().map_or_else(|| i.to_string(), |names| names[i].clone());
                (name, Json::String(value.to_owned()))
            })
            .collect();
        Some(Ok(Record { origin, fields }))
    })))
}

fn fault(file: &Arc<Path>, error: &csv::Error) -> anyhow::Error {
    let origin = Origin { file: file.clone(), line: error.position().map(|p| p.line() as usize) };
    match error.kind() {
        csv::ErrorKind::Utf8 { err, .. } => {
            origin.error(format!("field {} of the row is not UTF-8", err.field() + 1)).into()
        }
        _ => origin.error(format!("the row cannot be read: {error}")).into(),
    }
}
