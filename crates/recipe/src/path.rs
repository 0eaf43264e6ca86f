//! Dotted paths into a recipe: `stage.0.optimizer.lr`, `stage.0."odd key"`.

use toml_edit::Key;

/// Slots that hold a list; a single table stands for a list of one.
pub const LISTS: [&str; 5] = ["adapter", "gradient", "hook", "reducer", "track"];

/// The keys and list indices of a path; an empty text is the whole recipe.
///
/// # Errors
/// What is wrong with it as a TOML key.
pub fn parse(text: &str) -> Result<Vec<String>, String> {
    if text.is_empty() {
        return Ok(Vec::new());
    }
    match Key::parse(text) {
        Ok(keys) => Ok(keys.iter().map(|key| key.get().to_owned()).collect()),
        Err(e) => Err(e.message().lines().collect::<Vec<_>>().join(", ")),
    }
}

/// As [`parse`], for paths made by this project; what is no TOML key is cut at its dots.
pub fn parse_own(text: &str) -> Vec<String> {
    parse(text).unwrap_or_else(|_| text.split('.').map(str::to_owned).collect())
}

/// The path as users write it.
pub fn show<S: AsRef<str>>(path: &[S]) -> String {
    path.iter()
        .map(|segment| Key::new(segment.as_ref()).display_repr().into_owned())
        .collect::<Vec<_>>()
        .join(".")
}

/// `base` and one step further.
pub fn join(base: &str, step: &str) -> String {
    let step = show(&[step]);
    if base.is_empty() { step } else { format!("{base}.{step}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn quotes_what_needs_it() {
        let path = parse(r#"stage.0."a.b""#).unwrap();
        assert_eq!(path, ["stage", "0", "a.b"]);
        assert_eq!(show(&path), r#"stage.0."a.b""#);
        assert!(parse("a..b").is_err());
        assert!(parse("a b").is_err());
    }

    proptest! {
        #[test]
        fn reads_what_it_shows(path in prop::collection::vec(".*", 1..5)) {
            prop_assert_eq!(parse(&show(&path)), Ok(path));
        }
    }
}
