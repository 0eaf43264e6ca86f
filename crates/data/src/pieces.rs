//! Long texts a piece at a time: a tokenizer needs hundreds of bytes for each character that it looks at.
//!
//! A text is cut only where its tokens cannot depend on both sides: anywhere, for a tokenizer of characters;
//! before a newline between two letters, for byte-level tokenizers whose words end there.

use serde_json::Value as Json;
use tokenizers::Tokenizer as Inner;

/// Bytes of a piece, about.
const PIECE: usize = 1 << 16;

/// Where a tokenizer's texts may be cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cuts {
    /// Nowhere that we know of.
    Nowhere,
    /// Between any two characters.
    Anywhere,
    /// Before a newline that stands between two letters.
    Lines,
}

impl Cuts {
    /// What is known of this tokenizer.
    pub fn of(inner: &Inner) -> Self {
        let added = inner.get_added_vocabulary().get_vocab();
        let splits = serde_json::to_value(inner.get_pre_tokenizer()).unwrap_or_default();
        let normal = serde_json::to_value(inner.get_normalizer()).unwrap_or_default();
        // Composing characters never reaches over a newline.
        if !(normal.is_null() || normal["type"] == "NFC") || added.keys().any(|token| token.contains('\n')) {
            return Cuts::Nowhere;
        }
        if added.is_empty()
            && normal.is_null()
            && splits["type"] == "Split"
            && splits["pattern"]["Regex"] == "[\\s\\S]"
        {
            return Cuts::Anywhere;
        }
        if is_byte_level(&splits) { Cuts::Lines } else { Cuts::Nowhere }
    }

    /// The text in pieces.
    pub fn cut(self, text: &str) -> Vec<&str> {
        let mut pieces = Vec::new();
        let mut rest = text;
        while rest.len() > 2 * PIECE && self != Cuts::Nowhere {
            let Some(at) = self.next(rest) else { break };
            let (piece, more) = rest.split_at(at);
            pieces.push(piece);
            rest = more;
        }
        pieces.push(rest);
        pieces
    }

    fn next(self, text: &str) -> Option<usize> {
        let from = text.ceil_char_boundary(PIECE);
        match self {
            Cuts::Nowhere => None,
            Cuts::Anywhere => Some(from),
            Cuts::Lines => text[from..].match_indices('\n').map(|(i, _)| from + i).find(|i| {
                let letter = |c: Option<char>| c.is_some_and(char::is_alphabetic);
                letter(text[..*i].chars().next_back()) && letter(text[i + 1..].chars().next())
            }),
        }
    }
}

/// Whether words are cut by the byte-level pattern, or by a pattern in front of it, as in GPT-2 and llama 3.
fn is_byte_level(splits: &Json) -> bool {
    let one = |s: &Json| ["ByteLevel", "Digits", "Split"].iter().any(|kind| s["type"] == *kind);
    match splits["pretokenizers"].as_array() {
        Some(all) => all.iter().all(one) && all.iter().any(|s| s["type"] == "ByteLevel"),
        None => splits["type"] == "ByteLevel",
    }
}
