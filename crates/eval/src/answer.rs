//! Whether a written answer is the expected one.

use std::borrow::Cow;

use anyhow::{Result, bail};

use crate::extract;

/// What of two texts has to be equal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compare {
    /// All of it, after trimming and collapsing white space.
    Text,
    /// The final number: what follows the last `####`, else the last number there is.
    FinalNumber,
    /// The last number, within 0.001 ([`extract::last_number`]).
    Number,
    /// The first letter from A to E ([`extract::letter`]).
    Letter,
    /// The first of the fixed labels of multiple choice ([`extract::choice`]).
    Choice,
}

/// The share of answers that equal the expected text.
#[derive(Clone, Copy, Debug)]
pub struct ExactMatch {
    compare: Compare,
    right: u64,
    seen: u64,
}

impl ExactMatch {
    /// Nothing seen yet.
    pub fn new(compare: Compare) -> Self {
        ExactMatch { compare, right: 0, seen: 0 }
    }

    /// Counts one answer; tells whether it is right.
    ///
    /// # Errors
    /// If the expected text has nothing to compare with, such as a number.
    pub fn update(&mut self, answer: &str, expected: &str) -> Result<bool> {
        let right = match self.compare {
            Compare::Text => normalise(answer) == normalise(expected),
            Compare::FinalNumber => {
                let Some(want) = final_number(expected) else {
                    bail!("the expected answer `{}` has no number", shorten(expected));
                };
                final_number(answer) == Some(want)
            }
            Compare::Number => {
                let want = extract::last_number(expected);
                if want.is_infinite() {
                    bail!("the expected answer `{}` has no number", shorten(expected));
                }
                extract::same_number(extract::last_number(answer), want)
            }
            Compare::Letter => {
                let Some(want) = extract::letter(expected) else {
                    bail!("the expected answer `{}` has no letter from A to E", shorten(expected));
                };
                extract::letter(answer) == Some(want)
            }
            Compare::Choice => {
                let Some(want) = extract::choice(expected) else {
                    bail!("the expected answer `{}` has no known label", shorten(expected));
                };
                extract::choice(answer) == Some(want)
            }
        };
        self.seen += 1;
        self.right += u64::from(right);
        Ok(right)
    }

    /// The share from 0 to 1; `None` if nothing was seen.
    pub fn finish(&self) -> Option<f64> {
        (self.seen > 0).then(|| self.right as f64 / self.seen as f64)
    }
}

/// A text without white space at its ends and with one space elsewhere.
pub fn normalise(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The final number of a text in one spelling: no thousands' commas, no plus,
/// no zeros that change nothing. `#### 1,234.50` → `1234.5`.
pub fn final_number(text: &str) -> Option<String> {
    let tail = match text.rfind("####") {
        Some(at) => Cow::Borrowed(&text[at + 4..]),
        None => Cow::Borrowed(text),
    };
    let marked = tail.len() < text.len();
    let mut found = numbers(&tail);
    // Behind the mark stands the answer itself, perhaps followed by more prose.
    if marked { found.next() } else { found.last() }
}

/// The numbers of a text, each in one spelling.
fn numbers(text: &str) -> impl Iterator<Item = String> {
    let bytes = text.as_bytes();
    let digit = |i: usize| bytes.get(i).is_some_and(u8::is_ascii_digit);
    let mut at = 0;
    std::iter::from_fn(move || {
        while at < bytes.len() && !(digit(at) || (bytes[at] == b'.' && digit(at + 1))) {
            at += 1;
        }
        if at == bytes.len() {
            return None;
        }
        // A minus counts if no word or number stands right before it: `5-3` ends in 3.
        let mut sign = at;
        while sign > 0 && bytes[sign - 1] == b'$' {
            sign -= 1;
        }
        let minus =
            sign > 0 && bytes[sign - 1] == b'-' && (sign == 1 || !bytes[sign - 2].is_ascii_alphanumeric());
        let (mut whole, mut part) = (String::new(), String::new());
        while at < bytes.len() {
            let thousands =
                bytes[at] == b',' && (1..=3).all(|k| digit(at + k)) && !digit(at + 4) && !whole.is_empty();
            if digit(at) {
                whole.push(char::from(bytes[at]));
            } else if !thousands {
                break;
            }
            at += 1;
        }
        if bytes.get(at) == Some(&b'.') && digit(at + 1) {
            at += 1;
            while digit(at) {
                part.push(char::from(bytes[at]));
                at += 1;
            }
        }
        Some(spell(minus, &whole, &part))
    })
}

fn spell(minus: bool, whole: &str, part: &str) -> String {
    let whole = whole.trim_start_matches('0');
    let part = part.trim_end_matches('0');
    let mut out = String::new();
    if minus && !(whole.is_empty() && part.is_empty()) {
        out.push('-');
    }
    out.push_str(if whole.is_empty() { "0" } else { whole });
    if !part.is_empty() {
        out.push('.');
        out.push_str(part);
    }
    out
}

fn shorten(text: &str) -> String {
    let short: String = text.chars().take(60).collect();
    if short.len() < text.len() { format!("{short}…") } else { short }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn final_numbers() {
        let cases = [
            ("She pays 3 + 4 = 7.\n#### 7", Some("7")),
            ("#### 1,234", Some("1234")),
            ("#### $1,234.50 in 2024", Some("1234.5")),
            ("#### 5\n#### 6", Some("6")),
            ("so it is 12, then 42.", Some("42")),
            ("x = -3", Some("-3")),
            ("-$8.00", Some("-8")),
            ("5-3", Some("3")),
            ("from 1,2,3", Some("3")),
            ("12,345,678", Some("12345678")),
            ("1,2345", Some("2345")),
            ("007", Some("7")),
            (".5", Some("0.5")),
            ("-0.0", Some("0")),
            ("no number", None),
            ("#### none", None),
            ("", None),
        ];
        for (text, want) in cases {
            assert_eq!(final_number(text).as_deref(), want, "{text}");
        }
    }

    #[test]
    fn shares() {
        let mut text = ExactMatch::new(Compare::Text);
        assert_eq!(text.finish(), None);
        assert!(text.update("  a  b\n", "a b").unwrap());
        assert!(!text.update("A b", "a b").unwrap());
        assert_eq!(text.finish(), Some(0.5));

        let mut number = ExactMatch::new(Compare::FinalNumber);
        assert!(number.update("That makes 1,000 dollars.", "#### 1000").unwrap());
        assert!(!number.update("I do not know", "#### 1000").unwrap());
        let error = number.update("1", "none here").unwrap_err().to_string();
        assert_eq!(error, "the expected answer `none here` has no number");
        assert_eq!(number.finish(), Some(0.5), "a row that cannot be judged is not counted");
    }

    proptest! {
        #[test]
        fn any_text_is_answered(text in "[0-9.,$#\\- aé]{0,40}") {
            let number = final_number(&text);
            // The one spelling is a fixed point.
            if let Some(n) = number {
                prop_assert_eq!(final_number(&n), Some(n.clone()));
            }
            prop_assert_eq!(normalise(&normalise(&text)), normalise(&text));
        }
    }
}
