//! A JSON array of objects, one after the other, each with its line.

use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use anyhow::Result;
use ramekin_core::UserError;
use serde_json::{Deserializer, Value as Json};

use crate::source::{Origin, Record, Records, kind_of, open};

/// The rows of one file. The text is held whole, the rows are parsed as they are asked for.
pub(crate) fn rows(path: &Path) -> Result<Records> {
    let mut text = String::new();
    open(path)?
        .read_to_string(&mut text)
        .map_err(|e| UserError::new(format!("cannot read the file as text: {e}")).in_file(path))?;
    let mut scan = Scan { file: path.into(), text, at: 0, line: 1, state: State::Start };
    Ok(Box::new(std::iter::from_fn(move || scan.next())))
}

#[derive(Clone, Copy)]
enum State {
    Start,
    /// After the bracket: an element or the end.
    First,
    /// After an element: a comma or the end.
    After,
    Done,
}

struct Scan {
    file: Arc<Path>,
    text: String,
    at: usize,
    line: usize,
    state: State,
}

impl Scan {
    fn next(&mut self) -> Option<Result<Record>> {
        let item = self.step();
        if !matches!(item, Some(Ok(_))) {
            self.state = State::Done;
        }
        item
    }

    fn step(&mut self) -> Option<Result<Record>> {
        if matches!(self.state, State::Start) {
            if self.text.starts_with('\u{feff}') {
                self.at = '\u{feff}'.len_utf8();
            }
            if self.peek() != Some(b'[') {
                let error = self.error("the file is not a JSON array");
                return Some(Err(error.help("one object a line is `kind = \"jsonl\"`").into()));
            }
            self.at += 1;
            self.state = State::First;
        }
        match (self.state, self.peek()) {
            (State::Done, _) => return None,
            (_, Some(b']')) => {
                self.at += 1;
                return self.peek().map(|_| Err(self.error("there is more after the array's end").into()));
            }
            (State::After, Some(b',')) => {
                self.at += 1;
                self.peek();
            }
            (State::After, Some(_)) => {
                return Some(Err(self.error("a `,` or `]` is missing here").into()));
            }
            (_, None) => return Some(Err(self.error("the file ends inside the array").into())),
            _ => {}
        }
        let origin = self.origin();
        let mut values = Deserializer::from_str(&self.text[self.at..]).into_iter::<Json>();
        let value = values.next();
        let end = self.at + values.byte_offset();
        Some(match value {
            Some(Ok(Json::Object(fields))) => {
                self.advance(end);
                self.state = State::After;
                Ok(Record { origin, fields })
            }
            Some(Ok(other)) => Err(origin
                .error(format!("an element of the array is {}, not an object", kind_of(&other)))
                .into()),
            Some(Err(e)) => {
                let line = origin.line.unwrap_or(1) + e.line().saturating_sub(1);
                let what = e.to_string();
                let what = what.split(" at line ").next().unwrap_or(&what);
                let at = Origin { line: Some(line), ..origin };
                Err(at.error(format!("the file is not JSON: {what} at column {}", e.column())).into())
            }
            None => Err(self.error("the file ends inside the array").into()),
        })
    }

    /// The next byte that is not white space, which becomes the place.
    fn peek(&mut self) -> Option<u8> {
        let rest = &self.text.as_bytes()[self.at..];
        let skip = rest.iter().take_while(|b| b.is_ascii_whitespace()).count();
        self.advance(self.at + skip);
        self.text.as_bytes().get(self.at).copied()
    }

    fn advance(&mut self, to: usize) {
        self.line += self.text.as_bytes()[self.at..to].iter().filter(|b| **b == b'\n').count();
        self.at = to;
    }

    fn origin(&self) -> Origin {
        Origin { file: self.file.clone(), line: Some(self.line) }
    }

    fn error(&self, message: &str) -> UserError {
        self.origin().error(message)
    }
}
