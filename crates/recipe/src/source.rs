//! Text that a user wrote, and places in it.

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A text with the name that users know it by.
#[derive(PartialEq, Eq)]
pub struct Source {
    name: PathBuf,
    text: String,
    in_file: bool,
}

impl Source {
    /// A file's text; `name` is the path as the user gave it.
    pub fn file(name: &Path, text: &str) -> Arc<Source> {
        Arc::new(Source { name: name.to_owned(), text: text.to_owned(), in_file: true })
    }

    /// An argument of the command line.
    pub fn argument(text: String) -> Arc<Source> {
        Arc::new(Source { name: PathBuf::from("command line"), text, in_file: false })
    }

    /// The name shown in front of line and column.
    pub fn name(&self) -> &Path {
        &self.name
    }

    /// The text as it was read.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Whether this is a file, not the command line.
    pub fn is_file(&self) -> bool {
        self.in_file
    }
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Source({})", self.name.display())
    }
}

/// A run of characters in a source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    source: Arc<Source>,
    range: Range<usize>,
}

impl Span {
    /// The bytes `range` of the source, moved outwards to whole characters and into the text.
    pub fn new(source: &Arc<Source>, range: Range<usize>) -> Span {
        let text = source.text();
        let mut start = range.start.min(text.len());
        let mut end = range.end.clamp(start, text.len());
        while !text.is_char_boundary(start) {
            start -= 1;
        }
        while !text.is_char_boundary(end) {
            end += 1;
        }
        Span { source: Arc::clone(source), range: start..end }
    }

    /// Where the text comes from.
    pub fn source(&self) -> &Arc<Source> {
        &self.source
    }

    /// The bytes of the source's text.
    pub fn range(&self) -> Range<usize> {
        self.range.clone()
    }

    /// The characters themselves.
    pub fn text(&self) -> &str {
        &self.source.text()[self.range.clone()]
    }

    /// Line and column of the first character, both from 1, the column in characters.
    pub fn position(&self) -> (usize, usize) {
        let before = &self.source.text()[..self.range.start];
        let line_start = before.rfind('\n').map_or(0, |i| i + 1);
        (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
    }

    /// The same span cut at the end of its first line.
    pub fn first_line(&self) -> Span {
        let line = self.text().split(['\r', '\n']).next().unwrap_or_default();
        Span {
            source: Arc::clone(&self.source),
            range: self.range.start..self.range.start + line.trim_end().len(),
        }
    }
}
