//! What a written answer answers, by the rules of LLM-Adapters' evaluations.
//!
//! | metric | prediction | right |
//! |---|---|---|
//! | `number` | the last `-?\d+\.?\d*` once commas are gone; none is +∞ | within 0.001 |
//! | `letter` | the first of A to E | equal |
//! | `choice` | the first of true, false, solution1-2, answer1-5, ending1-4, option1-2 | equal |
//!
//! Source: Hu et al. 2023, arXiv:2304.01933; sheet `llm-adapters`, algorithm 7.

/// The last number of a text; +∞ where there is none.
pub fn last_number(text: &str) -> f64 {
    let text: Vec<u8> = text.bytes().filter(|b| *b != b',').collect();
    let digit = |i: usize| text.get(i).is_some_and(u8::is_ascii_digit);
    let (mut at, mut found) = (0, f64::INFINITY);
    while at < text.len() {
        if !digit(at) {
            at += 1;
            continue;
        }
        let start = if at > 0 && text[at - 1] == b'-' { at - 1 } else { at };
        while digit(at) {
            at += 1;
        }
        if text.get(at) == Some(&b'.') {
            at += 1;
            while digit(at) {
                at += 1;
            }
        }
        let number = String::from_utf8_lossy(&text[start..at]);
        found = number.trim_end_matches('.').parse().unwrap_or(found);
    }
    found
}

/// Whether two numbers are the same answer; no number equals none.
pub fn same_number(a: f64, b: f64) -> bool {
    (a - b).abs() <= 0.001
}

/// The first of A to E.
pub fn letter(text: &str) -> Option<char> {
    text.chars().find(|c| ('A'..='E').contains(c))
}

/// Labels with the digits that may follow.
const CHOICES: [(&str, &str); 6] = [
    ("true", ""),
    ("false", ""),
    ("solution", "12"),
    ("answer", "12345"),
    ("ending", "1234"),
    ("option", "12"),
];

/// The first of the fixed labels.
pub fn choice(text: &str) -> Option<&str> {
    (0..text.len()).filter(|i| text.is_char_boundary(*i)).find_map(|i| {
        CHOICES.iter().find_map(|(word, digits)| {
            let rest = text[i..].strip_prefix(word)?;
            let more = match digits.is_empty() {
                true => 0,
                false => rest.chars().next().filter(|c| digits.contains(*c)).map(char::len_utf8)?,
            };
            Some(&text[i..i + word.len() + more])
        })
    })
}
