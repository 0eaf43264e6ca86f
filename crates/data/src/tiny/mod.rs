//! Text and tasks that the project writes itself, so that an example needs no download.
//!
//! [`text`] is what the built-in model is trained on: stories, word problems,
//! lists and questions in a small English of about a thousand words.
//! [`records`] and [`counts`] are tasks on top of it; [`preferences`] and [`colours`] are the same sentences with two
//! answers each, and with a class and a number; [`glyphs`] are images. Every document and every row is a pure
//! function of (seed, number).

mod glyphs;
mod records;
mod scene;
mod small_talk;
mod stories;
mod word_problems;
mod words;

use std::path::Path;

use anyhow::Result;
use ramekin_core::{BadSetting, Draws, Rng, suggest};
use serde_json::{Map, Value as Json};

use crate::settings::BuiltinSettings;
use crate::source::{Origin, Record, Records};

pub use glyphs::glyphs;
pub use records::{Colour, Preference, Task, colours, counts, preferences, records};

/// What `builtin` data may be called.
pub const NAMES: [&str; 6] = ["tiny-text", "records", "counts", "preferences", "colours", GLYPHS];

/// The name of the images among them.
pub const GLYPHS: &str = "glyphs";

/// Document number `index` of the text with this seed.
pub fn document(seed: u64, index: u64) -> String {
    let mut draws = Draws::new(Rng::new(seed).stream("tiny.text", index));
    match draws.below(20) {
        0..=5 => stories::story(&mut draws),
        6..=16 => word_problems::problem(&mut draws),
        17..=18 => small_talk::list(&mut draws),
        _ => small_talk::questions(&mut draws),
    }
}

/// Documents of at least `bytes` bytes together, ending with the one that reaches them.
pub fn text(seed: u64, bytes: usize) -> impl Iterator<Item = String> + Send {
    let mut written = 0;
    (0u64..).map(move |i| document(seed, i)).take_while(move |document| {
        let more = written < bytes;
        written += document.len();
        more
    })
}

/// Checks the settings that need no file.
pub(crate) fn check(settings: &BuiltinSettings) -> Result<(), BadSetting> {
    if !NAMES.contains(&settings.name.as_str()) {
        let known = NAMES.map(|n| format!("`{n}`")).join(", ");
        let way = suggest(&settings.name, NAMES)
            .map_or_else(|| format!("there are {known}"), |near| format!("did you mean `{near}`?"));
        return Err(BadSetting::new(
            "name",
            format!("is `{}`, which is no built-in data; {way}", settings.name),
        ));
    }
    for (name, value) in [("rows", settings.rows), ("bytes", settings.bytes)] {
        if value == 0 {
            return Err(BadSetting::new(name, "is 0; it must be at least 1"));
        }
    }
    Ok(())
}

/// The rows that the settings ask for.
pub(crate) fn records_of(settings: &BuiltinSettings) -> Result<Records> {
    check(settings)?;
    if settings.name == GLYPHS {
        return Err(BadSetting::new("name", "is `glyphs`, which are images; this model reads text").into());
    }
    let file: std::sync::Arc<Path> = Path::new(&format!("builtin:{}", settings.name)).into();
    let record = move |(i, fields): (usize, Vec<(&str, String)>)| {
        let fields: Map<String, Json> =
            fields.into_iter().map(|(name, text)| (name.to_owned(), Json::String(text))).collect();
        Ok(Record { origin: Origin { file: file.clone(), line: Some(i + 1) }, fields })
    };
    let (seed, rows, held_out) = (settings.seed, settings.rows, settings.held_out);
    Ok(match settings.name.as_str() {
        "records" => {
            let rows = records(seed, rows, held_out);
            let rows = rows.map(|t| vec![("prompt", t.prompt), ("completion", t.completion)]);
            Box::new(rows.enumerate().map(record))
        }
        "counts" => {
            let rows = counts(seed, rows, held_out);
            let rows = rows.map(|t| vec![("prompt", t.prompt), ("completion", t.completion)]);
            Box::new(rows.enumerate().map(record))
        }
        "preferences" => {
            let rows = preferences(seed, rows, held_out);
            let rows =
                rows.map(|p| vec![("prompt", p.prompt), ("chosen", p.chosen), ("rejected", p.rejected)]);
            Box::new(rows.enumerate().map(record))
        }
        "colours" => {
            let rows = colours(seed, rows, held_out);
            let rows = rows.map(|c| {
                vec![("text", c.text), ("label", c.colour.to_string()), ("left", c.left.to_string())]
            });
            Box::new(rows.enumerate().map(record))
        }
        _ => {
            // Held-out text is text of another seed.
            let seed = seed ^ if held_out { 1 << 63 } else { 0 };
            Box::new(text(seed, settings.bytes).map(|t| vec![("text", t)]).enumerate().map(record))
        }
    })
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, HashSet};

    use super::*;

    #[test]
    fn text_is_seeded_and_varied() {
        let docs: Vec<String> = text(7, 400_000).collect();
        assert_eq!(docs, text(7, 400_000).collect::<Vec<_>>());
        assert_ne!(docs[..10], text(8, 10_000).collect::<Vec<_>>()[..10]);
        let bytes: usize = docs.iter().map(String::len).sum();
        assert!((400_000..402_000).contains(&bytes), "{bytes}");
        // No slot stays unfilled, and hardly a document comes twice.
        assert!(docs.iter().all(|d| !d.contains(['{', '}'])));
        let long: Vec<&String> = docs.iter().filter(|d| d.len() > 60).collect();
        let different: HashSet<&&String> = long.iter().collect();
        assert!(different.len() * 100 > long.len() * 95, "{} of {}", different.len(), long.len());
        let words: BTreeMap<String, usize> = docs
            .iter()
            .flat_map(|d| d.split(|c: char| !c.is_alphabetic()))
            .filter(|w| !w.is_empty())
            .fold(BTreeMap::new(), |mut words, w| {
                *words.entry(w.to_lowercase()).or_default() += 1;
                words
            });
        assert!((600..1600).contains(&words.len()), "{} words", words.len());
    }

    #[test]
    fn sums_in_the_text_are_right() {
        let sum = regex::Regex::new(r"(\d+) ([-+x/]) (\d+) = (\d+)").unwrap();
        let mut seen = 0;
        for doc in text(3, 300_000) {
            for c in sum.captures_iter(&doc) {
                let n = |i: usize| c[i].parse::<i64>().unwrap();
                let expected = match &c[2] {
                    "+" => n(1) + n(3),
                    "-" => n(1) - n(3),
                    "x" => n(1) * n(3),
                    _ => n(1) / n(3),
                };
                assert_eq!(expected, n(4), "{doc}");
                seen += 1;
            }
        }
        assert!(seen > 300, "{seen}");
    }

    #[test]
    fn held_out_records_are_new() {
        let train: Vec<Task> = records(7, 4000, false).collect();
        let held: Vec<Task> = records(7, 500, true).collect();
        assert_eq!(train, records(7, 4000, false).collect::<Vec<_>>());
        let shape = regex::Regex::new(
            r"^ giver: [A-Z][a-z]+; taker: [A-Z][a-z]+; item: [a-z]+; colour: [a-z]+; left: \d+$",
        )
        .unwrap();
        let seen: HashSet<(&str, &str)> = train.iter().map(|t| (&*t.prompt, &*t.completion)).collect();
        for t in &held {
            assert!(shape.is_match(&t.completion), "{t:?}");
            assert!(!seen.contains(&(&*t.prompt, &*t.completion)));
        }
        // The form of the records is nowhere in the text.
        assert!(text(0, 300_000).all(|d| !d.contains("giver:") && !d.contains("Record")));
    }
}
