//! Mistakes of the user's and how they are shown: rustc's layout, or JSON.

use std::fmt;

use annotate_snippets::{AnnotationKind, Group, Level, Renderer, Snippet};
use serde_json::{Value as Json, json};

use crate::source::Span;

/// A place that takes part in a mistake, with what is to say about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Label {
    /// What is underlined.
    pub span: Span,
    /// What stands behind the underline; may be empty.
    pub text: String,
}

/// One mistake: what is wrong, where, and one way out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    /// What is wrong, lower-case, no full stop, the user's words in backticks.
    pub title: String,
    /// Every place that takes part, the culprit first.
    pub labels: Vec<Label>,
    /// One way out, where no label says it.
    pub help: Option<String>,
}

impl Diagnostic {
    /// A mistake without a place yet.
    pub fn new(title: impl Into<String>) -> Diagnostic {
        Diagnostic { title: title.into(), labels: Vec::new(), help: None }
    }

    /// The same with one more place.
    #[must_use]
    pub fn label(mut self, span: Span, text: impl Into<String>) -> Diagnostic {
        self.labels.push(Label { span, text: text.into() });
        self
    }

    /// The same with one way out.
    #[must_use]
    pub fn help(mut self, help: impl Into<String>) -> Diagnostic {
        self.help = Some(help.into());
        self
    }

    /// The mistake as text: file, line, caret and label; with ANSI colours on request.
    pub fn render(&self, colours: bool) -> String {
        let renderer = if colours { Renderer::styled().hyperlink(false) } else { Renderer::plain() };
        let mut group = Group::with_title(Level::ERROR.primary_title(one_line(&self.title)));
        // One snippet a source: a value of the command line may disagree with a line of the file.
        let mut rest: Vec<(usize, &Label)> = self.labels.iter().enumerate().collect();
        while let Some((_, first)) = rest.first().copied() {
            let source = first.span.source();
            let name = source.name().display().to_string();
            let mut snippet = Snippet::source(source.text()).path(name).line_start(1);
            for (index, label) in rest.iter().filter(|(_, l)| l.span.source() == source) {
                let kind = if *index == 0 { AnnotationKind::Primary } else { AnnotationKind::Context };
                let mut mark = kind.span(label.span.first_line().range());
                if !label.text.is_empty() {
                    mark = mark.label(one_line(&label.text));
                }
                snippet = snippet.annotation(mark);
            }
            group = group.element(snippet);
            rest.retain(|(_, l)| l.span.source() != source);
        }
        if let Some(help) = &self.help {
            group = group.element(Level::HELP.message(one_line(help)));
        }
        renderer.render(&[group])
    }

    /// `{file, line, column, message, help, labels}`; `file`, `line`, `column` are null without a place.
    pub fn to_json(&self) -> Json {
        let place = |label: &Label| {
            let (line, column) = label.span.position();
            (label.span.source().name().display().to_string(), line, column)
        };
        let first = self.labels.first().map(place);
        let hints: Vec<&str> =
            self.labels.first().map(|l| l.text.as_str()).into_iter().chain(self.help.as_deref()).collect();
        json!({
            "file": first.as_ref().map(|(file, _, _)| file),
            "line": first.as_ref().map(|(_, line, _)| line),
            "column": first.as_ref().map(|(_, _, column)| column),
            "message": self.title,
            "help": hints.into_iter().filter(|h| !h.is_empty()).collect::<Vec<_>>().join("; "),
            "labels": self.labels.iter().map(|label| {
                let (file, line, column) = place(label);
                json!({ "file": file, "line": line, "column": column, "text": label.text })
            }).collect::<Vec<_>>(),
        })
    }
}

/// Control characters would break the layout, or a terminal.
fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// All mistakes of a recipe. Exit code 2.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Diagnostics {
    list: Vec<Diagnostic>,
}

impl Diagnostics {
    /// No mistakes.
    pub fn new() -> Diagnostics {
        Diagnostics::default()
    }

    /// One more mistake; the same one twice is kept once.
    pub fn push(&mut self, diagnostic: Diagnostic) {
        if !self.list.contains(&diagnostic) {
            self.list.push(diagnostic);
        }
    }

    /// The mistakes, in the order they were found.
    pub fn iter(&self) -> std::slice::Iter<'_, Diagnostic> {
        self.list.iter()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// The value of a result; its mistakes, if it has any, join the list.
    pub fn take<T>(&mut self, result: Result<T, Diagnostics>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(more) => {
                self.extend(more);
                None
            }
        }
    }

    /// In the order of the file, those of the command line last.
    pub(crate) fn sort(&mut self) {
        let place = |span: &Span| match span.source().is_file() {
            true => (false, span.range().start),
            false => (true, 0),
        };
        self.list.sort_by_key(|d| d.labels.first().map(|label| place(&label.span)));
    }

    /// `value` if there is no mistake.
    ///
    /// # Errors
    /// The list itself.
    pub fn into_result<T>(self, value: T) -> Result<T, Diagnostics> {
        if self.is_empty() { Ok(value) } else { Err(self) }
    }

    /// All mistakes as text, an empty line between; with ANSI colours on request.
    pub fn render(&self, colours: bool) -> String {
        self.list.iter().map(|d| d.render(colours)).collect::<Vec<_>>().join("\n\n")
    }

    /// All mistakes as a JSON list, see [`Diagnostic::to_json`].
    pub fn to_json(&self) -> Json {
        self.list.iter().map(Diagnostic::to_json).collect()
    }
}

impl Extend<Diagnostic> for Diagnostics {
    fn extend<I: IntoIterator<Item = Diagnostic>>(&mut self, more: I) {
        more.into_iter().for_each(|d| self.push(d));
    }
}

impl IntoIterator for Diagnostics {
    type Item = Diagnostic;
    type IntoIter = std::vec::IntoIter<Diagnostic>;

    fn into_iter(self) -> Self::IntoIter {
        self.list.into_iter()
    }
}

impl From<Diagnostic> for Diagnostics {
    fn from(diagnostic: Diagnostic) -> Self {
        Diagnostics { list: vec![diagnostic] }
    }
}

impl fmt::Display for Diagnostics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.render(false))
    }
}

impl std::error::Error for Diagnostics {}
