//! Plain text as rows with the one key `text`.

use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::Result;
use ramekin_core::UserError;
use serde_json::{Map, Value as Json};

use crate::settings::TextUnit;
use crate::source::{Origin, Record, Records, lines, open};

/// A row of plain text.
pub(crate) fn text_record(origin: Origin, text: String) -> Record {
    Record { origin, fields: Map::from_iter([("text".to_owned(), Json::String(text))]) }
}

/// The rows of the files: their lines, or each file (a stream is made of whole files later).
pub(crate) fn rows(files: Vec<PathBuf>, unit: TextUnit) -> Result<Records> {
    Ok(match unit {
        TextUnit::Line => Box::new(files.into_iter().flat_map(|file| -> Records {
            match lines(&file) {
                Ok(lines) => Box::new(lines.filter_map(|line| match line {
                    Ok((_, text)) if text.trim().is_empty() => None,
                    Ok((origin, text)) => Some(Ok(text_record(origin, text))),
                    Err(e) => Some(Err(e)),
                })),
                Err(e) => Box::new(std::iter::once(Err(e))),
            }
        })),
        TextUnit::File | TextUnit::Whole => Box::new(files.into_iter().map(|file| whole(&file))),
    })
}

fn whole(file: &Path) -> Result<Record> {
    let mut bytes = Vec::new();
    open(file)?
        .read_to_end(&mut bytes)
        .map_err(|e| UserError::new(format!("cannot read the file: {e}")).in_file(file))?;
    let text = String::from_utf8(bytes).map_err(|e| {
        let line = e.as_bytes()[..e.utf8_error().valid_up_to()].iter().filter(|b| **b == b'\n').count() + 1;
        UserError::new("the text is not UTF-8 from this line on").at_line(file, line)
    })?;
    Ok(text_record(Origin { file: file.into(), line: None }, text))
}
