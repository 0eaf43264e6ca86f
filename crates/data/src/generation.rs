//! `{% generation %} … {% endgeneration %}`, which marks what the assistant wrote.
//!
//! The engine has no such tag (minijinja#815), so templates are rewritten: the
//! tag becomes a scope that prints a marker, placed so that trimming around
//! block tags works as for the tag itself. The markers are taken out of the
//! rendered text again, leaving the spans between them.

use std::ops::Range;

/// The variable that holds the opening marker, and the one that holds the closing marker.
pub(crate) const OPEN: &str = "__ramekin_generation_open";
pub(crate) const CLOSE: &str = "__ramekin_generation_close";

/// The template with its generation tags rewritten, and how many there were.
///
/// Tags in comments and `{% raw %}` blocks are text and stay.
pub(crate) fn rewrite(source: &str) -> (String, usize) {
    let mut out = String::with_capacity(source.len());
    let (mut rest, mut tags) = (source, 0);
    while let Some(at) = rest.find('{') {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        let end = if rest.starts_with("{#") {
            rest.find("#}").map(|e| e + 2)
        } else if rest.starts_with("{{") {
            end_of_code(rest, "}}")
        } else if rest.starts_with("{%") {
            end_of_code(rest, "%}")
        } else {
            Some(1)
        };
        let Some(end) = end else { break };
        let tag = &rest[..end];
        rest = &rest[end..];
        let Some((left, word, right)) = block_word(tag) else {
            out.push_str(tag);
            continue;
        };
        match word {
            "generation" => {
                tags += 1;
                out.push_str(&format!(
                    "{{%{left} with %}}{{{{ {OPEN} }}}}{{% if true %}}{{% endif {right}%}}"
                ));
            }
            "endgeneration" => {
                out.push_str(&format!(
                    "{{%{left} if true %}}{{% endif %}}{{{{ {CLOSE} }}}}{{% endwith {right}%}}"
                ));
            }
            "raw" => {
                out.push_str(tag);
                // Up to the end tag everything is text.
                let stop = end_of_raw(rest).unwrap_or(rest.len());
                out.push_str(&rest[..stop]);
                rest = &rest[stop..];
            }
            _ => out.push_str(tag),
        }
    }
    out.push_str(rest);
    (out, tags)
}

/// Where code that began at the start of `text` ends: the closer outside of quoted strings.
fn end_of_code(text: &str, closer: &str) -> Option<usize> {
    let mut quote = None;
    let mut escaped = false;
    for (i, c) in text.char_indices().skip(2) {
        match quote {
            Some(_) if escaped => escaped = false,
            Some(_) if c == '\\' => escaped = true,
            Some(q) if c == q => quote = None,
            Some(_) => {}
            None if c == '"' || c == '\'' => quote = Some(c),
            None if text[i..].starts_with(closer) => return Some(i + closer.len()),
            None => {}
        }
    }
    None
}

/// A block tag that is one word: its trim sign on the left, the word, its trim sign on the right.
fn block_word(tag: &str) -> Option<(&str, &str, &str)> {
    let inner = tag.strip_prefix("{%")?.strip_suffix("%}")?;
    let sign = |s: &str| usize::from(s.starts_with(['-', '+']));
    let (left, inner) = inner.split_at(sign(inner));
    let tail = usize::from(inner.ends_with(['-', '+']));
    let (inner, right) = inner.split_at(inner.len() - tail);
    let word = inner.trim();
    (!word.is_empty() && word.chars().all(|c| c.is_ascii_lowercase())).then_some((left, word, right))
}

fn end_of_raw(text: &str) -> Option<usize> {
    let mut from = 0;
    while let Some(at) = text[from..].find("{%") {
        let start = from + at;
        let end = start + text[start..].find("%}")? + 2;
        if block_word(&text[start..end]).is_some_and(|(_, word, _)| word == "endraw") {
            return Some(start);
        }
        from = start + 2;
    }
    None
}

/// A pair of markers that occur in none of the texts.
pub(crate) fn markers(texts: &[&str]) -> (String, String) {
    let mut n = 0u64;
    loop {
        let (open, close) = (format!("\u{fdd0}{n}\u{fdd1}"), format!("\u{fdd2}{n}\u{fdd3}"));
        if !texts.iter().any(|t| t.contains(&open) || t.contains(&close)) {
            return (open, close);
        }
        n += 1;
    }
}

/// Takes the markers out of a rendered text; returns it with the spans of bytes that lay between.
pub(crate) fn take_out(text: &str, open: &str, close: &str) -> (String, Vec<Range<usize>>) {
    let mut out = String::with_capacity(text.len());
    let mut spans: Vec<Range<usize>> = Vec::new();
    let mut begun: Vec<usize> = Vec::new();
    let mut rest = text;
    loop {
        let next_open = rest.find(open);
        let next_close = rest.find(close);
        let (at, opens) = match (next_open, next_close) {
            (Some(o), Some(c)) => (o.min(c), o < c),
            (Some(o), None) => (o, true),
            (None, Some(c)) => (c, false),
            (None, None) => break,
        };
        out.push_str(&rest[..at]);
        rest = &rest[at + if opens { open.len() } else { close.len() }..];
        if opens {
            begun.push(out.len());
        } else if let Some(start) = begun.pop()
            && begun.is_empty()
            && start < out.len()
        {
            spans.push(start..out.len());
        }
    }
    out.push_str(rest);
    (out, spans)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn only_real_tags_are_rewritten() {
        let (out, tags) =
            rewrite("{# {% generation %} #}{% raw %}{% generation %}{% endraw %}{{ '{% generation %}' }}");
        assert_eq!(tags, 0);
        assert_eq!(
            out,
            "{# {% generation %} #}{% raw %}{% generation %}{% endraw %}{{ '{% generation %}' }}"
        );
        let (out, tags) = rewrite("a{%- generation -%}b{%- endgeneration %}c");
        assert_eq!(tags, 1);
        assert!(out.starts_with("a{%- with %}") && out.contains("{% endif -%}b{%- if true %}"), "{out}");
    }

    #[test]
    fn spans_after_markers_are_gone() {
        let (text, spans) = take_out("ab<cd>e<>f<gh>", "<", ">");
        assert_eq!((text.as_str(), spans), ("abcdefgh", vec![2..4, 6..8]));
    }

    proptest! {
        #[test]
        fn any_text_survives(text in "([{}%#'\"a-c\\- ]|raw|endraw|generation|é){0,40}") {
            let (out, tags) = rewrite(&text);
            if tags == 0 && !text.contains("endgeneration") {
                prop_assert_eq!(out, text);
            }
        }
    }
}
