//! serde's error texts in a user's words, and nearest names.

use serde_json::Value as Json;

/// The candidate nearest to a misspelt name, if one is near enough to offer.
pub fn suggest<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let lowered = name.to_lowercase();
    candidates
        .into_iter()
        .map(|c| (strsim::damerau_levenshtein(&lowered, &c.to_lowercase()), c))
        .filter(|(distance, c)| *distance <= 1 + c.chars().count().max(name.chars().count()) / 3)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, c)| c)
}

/// `` `a`, `b`, `c` ``, or `nothing`.
pub fn list<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    let quoted: Vec<String> = names.into_iter().map(|name| format!("`{name}`")).collect();
    if quoted.is_empty() { "nothing".into() } else { quoted.join(", ") }
}

/// What serde complains about, as far as its text tells.
#[derive(Debug, PartialEq, Eq)]
pub enum Fault {
    /// A key that the table does not have; the names it has.
    UnknownKey(Vec<String>),
    /// A key that the table lacks.
    Missing(String),
    /// A key under two spellings.
    Twice(String),
    /// A word that is none of these.
    UnknownWord(Vec<String>),
    /// Another kind of value, or one out of range; what is expected.
    Value(String),
    /// A list of another length; what is expected.
    Length(String),
    /// A sentence of the settings' own.
    Said(String),
}

impl Fault {
    /// Sorts a message of serde's.
    pub fn of(message: &str) -> Fault {
        let names = |rest: &str| rest.split('`').skip(1).step_by(2).map(str::to_owned).collect::<Vec<_>>();
        // The user's own word may hold anything; what the program expects comes last.
        let expected = || message.rsplit_once(", expected ").map_or("", |(_, expected)| expected);
        let named = |prefix: &str| {
            message.strip_prefix(prefix).and_then(|rest| rest.strip_suffix('`')).map(str::to_owned)
        };
        if message.starts_with("unknown field `") {
            Fault::UnknownKey(names(expected()))
        } else if message.starts_with("unknown variant `") {
            Fault::UnknownWord(names(expected()))
        } else if let Some(name) = named("missing field `") {
            Fault::Missing(name)
        } else if let Some(name) = named("duplicate field `") {
            Fault::Twice(name)
        } else if message.starts_with("invalid length ") {
            Fault::Length(plain(expected()))
        } else if message.starts_with("invalid type: ") || message.starts_with("invalid value: ") {
            Fault::Value(plain(expected()))
        } else {
            Fault::Said(message.to_owned())
        }
    }
}

/// What Rust calls a type, in plain words.
fn plain(expected: &str) -> String {
    let sized = |prefix: &str| {
        expected.strip_prefix(prefix).and_then(|rest| rest.split(' ').next()).map(str::to_owned)
    };
    if let Some(n) = sized("a tuple of size ").or_else(|| sized("an array of length ")) {
        return format!("a list of {n}");
    }
    match expected {
        "f32" | "f64" => "a number".into(),
        "u8" => "a whole number from 0 to 255".into(),
        "u16" => "a whole number from 0 to 65535".into(),
        "u32" | "u64" | "u128" | "usize" => "a whole number, 0 or more".into(),
        "i8" | "i16" | "i32" | "i64" | "i128" | "isize" => "a whole number".into(),
        "a boolean" => "`true` or `false`".into(),
        "a borrowed string" | "str" | "string" => "a string".into(),
        "a sequence" => "a list".into(),
        "a map" => "a table".into(),
        "fewer elements in array" => "a shorter list".into(),
        _ if expected.starts_with("struct ") => "a table".into(),
        _ if expected.starts_with("enum ") || expected == "string or map" => {
            "one of its names, in quotes".into()
        }
        _ if expected.is_empty() => "another value".into(),
        _ => expected.into(),
    }
}

/// A value as an error names it, with its type.
pub fn found(value: &Json) -> String {
    match value {
        Json::Null => "nothing".into(),
        Json::Bool(b) => format!("`{b}`"),
        Json::Number(n) => format!("the number `{n}`"),
        Json::String(s) => format!("the string `{}`", shortened(s)),
        Json::Array(entries) if entries.is_empty() => "an empty list".into(),
        Json::Array(_) => "a list".into(),
        Json::Object(_) => "a table".into(),
    }
}

/// Long texts by their beginning: the place in the file shows the rest.
pub fn shortened(text: &str) -> String {
    match text.char_indices().nth(40) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sorts_what_serde_says() {
        let names = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
        assert_eq!(
            Fault::of("unknown field `a, expected `x``, expected `b` or `c`"),
            Fault::UnknownKey(names(&["b", "c"]))
        );
        assert_eq!(Fault::of("unknown field `a`, there are no fields"), Fault::UnknownKey(names(&[])));
        assert_eq!(Fault::of("missing field `path`"), Fault::Missing("path".into()));
        assert_eq!(
            Fault::of("invalid type: string \"a, expected b\", expected f64"),
            Fault::Value("a number".into())
        );
        assert_eq!(
            Fault::of("invalid length 3, expected a tuple of size 2"),
            Fault::Length("a list of 2".into())
        );
        assert_eq!(Fault::of("must be 1 or more"), Fault::Said("must be 1 or more".into()));
    }

    #[test]
    fn offers_only_what_is_near() {
        assert_eq!(suggest("lrr", ["betas", "lr"]), Some("lr"));
        assert_eq!(suggest("Adamw", ["sgd", "adamw"]), Some("adamw"));
        assert_eq!(suggest("zebra", ["lr", "betas"]), None);
    }
}
