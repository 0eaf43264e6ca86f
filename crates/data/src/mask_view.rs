//! A row for a person's eyes: what is trained and what is masked.

use crate::example::{Example, IGNORED};
use crate::tokenizer::Tokenizer;

/// The text of an example with its masked stretches in brackets (plain) or dim (coloured; trained text is green).
///
/// Line ends show as `↵`, at most `limit` characters of the text are shown.
pub fn mask_view(tokenizer: &Tokenizer, example: &Example, limit: usize, coloured: bool) -> String {
    let mut out = String::new();
    let (mut at, mut shown) = (0, 0);
    while at < example.len() && shown < limit {
        let masked = example.labels[at] == IGNORED;
        let same = example.labels[at..].iter().take_while(|l| (**l == IGNORED) == masked).count();
        let text = tokenizer.decode(&example.ids[at..at + same], false).unwrap_or_else(|_| "?".to_owned());
        let mut text: String = text.replace('\n', "↵").chars().take(limit - shown).collect();
        let count = text.chars().count();
        if shown + count >= limit && count > 0 {
            text.push('…');
        }
        shown += count;
        at += same;
        out.push_str(&match (coloured, masked) {
            (true, true) => format!("\u{1b}[2m{text}\u{1b}[0m"),
            (true, false) => format!("\u{1b}[32m{text}\u{1b}[0m"),
            (false, true) => format!("[{text}]"),
            (false, false) => text,
        });
    }
    out
}
