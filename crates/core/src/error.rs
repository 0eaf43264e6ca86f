//! The kinds of failure a caller acts on, and the exit code of each.
//!
//! Everything else travels as plain `anyhow` errors and counts as a fault of
//! the run (exit code 1).

use std::fmt;
use std::path::{Path, PathBuf};

/// A place in a file of the user's: `file:line:column`, lines and columns from 1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Location {
    /// The file as the user named it.
    pub file: PathBuf,
    /// Line, from 1, where one is known.
    pub line: Option<usize>,
    /// Column in characters, from 1, where one is known.
    pub column: Option<usize>,
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if let Some(line) = self.line {
            write!(f, ":{line}")?;
            if let Some(column) = self.column {
                write!(f, ":{column}")?;
            }
        }
        Ok(())
    }
}

/// A mistake in what the user gave: recipe, data or model files. Exit code 2.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UserError {
    /// What is wrong, in the user's words.
    pub message: String,
    /// Where, if a place is known.
    pub at: Option<Location>,
    /// One way out.
    pub help: Option<String>,
}

impl UserError {
    /// An error without a place.
    pub fn new(message: impl Into<String>) -> Self {
        UserError { message: message.into(), at: None, help: None }
    }

    /// The same error, in this file.
    #[must_use]
    pub fn in_file(mut self, file: impl AsRef<Path>) -> Self {
        self.at = Some(Location { file: file.as_ref().to_owned(), line: None, column: None });
        self
    }

    /// The same error, at this line of the file (from 1).
    #[must_use]
    pub fn at_line(mut self, file: impl AsRef<Path>, line: usize) -> Self {
        self.at = Some(Location { file: file.as_ref().to_owned(), line: Some(line), column: None });
        self
    }

    /// The same error, at this line and column of the file (both from 1).
    #[must_use]
    pub fn at(mut self, file: impl AsRef<Path>, line: usize, column: usize) -> Self {
        self.at = Some(Location { file: file.as_ref().to_owned(), line: Some(line), column: Some(column) });
        self
    }

    /// The same error with one way out.
    #[must_use]
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }
}

impl fmt::Display for UserError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.message)?;
        if let Some(at) = &self.at {
            write!(f, "\n  --> {at}")?;
        }
        if let Some(help) = &self.help {
            write!(f, "\n  help: {help}")?;
        }
        Ok(())
    }
}

impl std::error::Error for UserError {}

/// Numbers were asked for of a weight, of this shape, whose block is not in memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Elsewhere(pub Vec<usize>);

impl fmt::Display for Elsewhere {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the weight {:?} is not in memory: its block was not asked for", self.0)
    }
}

impl std::error::Error for Elsewhere {}

/// A setting whose value a part refuses. The recipe's reader turns it into a
/// diagnostic that underlines the value. Exit code 2.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadSetting {
    /// Path of the part in the recipe (`stage.0.adapter.0`), filled in by whoever knows it.
    pub part: Option<String>,
    /// The setting's name, dotted where it is nested.
    pub setting: String,
    /// What is wrong with the value and what is allowed.
    pub message: String,
    /// The slot whose part stands in the way, if one does.
    pub against: Option<&'static str>,
}

impl BadSetting {
    /// `setting` has a value that is wrong because of `message`.
    pub fn new(setting: impl Into<String>, message: impl Into<String>) -> Self {
        BadSetting { part: None, setting: setting.into(), message: message.into(), against: None }
    }

    /// Refuses `setting` unless `holds`: "`lr` is -1; it must be a number of at least 0".
    pub fn unless(
        holds: bool,
        setting: &str,
        value: impl fmt::Display,
        allowed: &str,
    ) -> Result<(), BadSetting> {
        if holds {
            Ok(())
        } else {
            Err(BadSetting::new(setting, format!("is {value}; it must be {allowed}")))
        }
    }

    /// The same refusal, which the part of this slot in the same stage is the reason of.
    #[must_use]
    pub fn against(self, slot: &'static str) -> Self {
        BadSetting { against: Some(slot), ..self }
    }

    /// The same refusal, of the part at this path of the recipe.
    #[must_use]
    pub fn of(mut self, part: impl Into<String>) -> Self {
        self.part = Some(part.into());
        self
    }
}

impl fmt::Display for BadSetting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` {}", self.setting, self.message)
    }
}

impl std::error::Error for BadSetting {}

/// A mistake that lies in what the recipe says and shows only beside models,
/// data or another place of the recipe. The recipe's reader turns it into a
/// diagnostic that underlines every place. Exit code 2.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadRecipe {
    /// What is wrong, in the user's words.
    pub message: String,
    /// Paths of the recipe (`model.source`) with what is to say about each, the culprit first.
    pub places: Vec<(String, String)>,
    /// One way out.
    pub help: Option<String>,
}

impl BadRecipe {
    /// A mistake without a place yet.
    pub fn new(message: impl Into<String>) -> Self {
        BadRecipe { message: message.into(), places: Vec::new(), help: None }
    }

    /// The same with one more place; the label may be empty.
    #[must_use]
    pub fn at(mut self, path: impl Into<String>, label: impl Into<String>) -> Self {
        self.places.push((path.into(), label.into()));
        self
    }

    /// The same with one way out.
    #[must_use]
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }
}

impl fmt::Display for BadRecipe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.message)?;
        for (path, label) in &self.places {
            let colon = if label.is_empty() { "" } else { ": " };
            write!(f, "\n  --> `{path}`{colon}{label}")?;
        }
        if let Some(help) = &self.help {
            write!(f, "\n  help: {help}")?;
        }
        Ok(())
    }
}

impl std::error::Error for BadRecipe {}

/// The run is sound but too big for the budget or the machine. Exit code 3.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unfit(
    /// What is needed, what there is, and the nearest fit.
    pub String,
);

impl fmt::Display for Unfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Unfit {}

/// The user stopped the run and its state is saved. Exit code 130.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interrupted(
    /// Where the state lies and how to go on.
    pub String,
);

impl fmt::Display for Interrupted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Interrupted {}

/// The process exit code that an error stands for: 2 for a user's mistake, 3
/// for what does not fit, 130 for an interruption, otherwise 1.
pub fn exit_code(error: &anyhow::Error) -> i32 {
    if error.chain().any(|e| e.is::<UserError>() || e.is::<BadSetting>() || e.is::<BadRecipe>()) {
        2
    } else if error.chain().any(|e| e.is::<Unfit>()) {
        3
    } else if error.chain().any(|e| e.is::<Interrupted>()) {
        130
    } else {
        1
    }
}

/// The candidate nearest to a misspelt name, if one is near enough to offer.
pub fn suggest<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let lowered = name.to_lowercase();
    candidates
        .into_iter()
        .map(|c| (strsim::damerau_levenshtein(&lowered, &c.to_lowercase()), c))
        .filter(|(distance, c)| *distance <= 1 + c.len().max(name.len()) / 3)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, c)| c)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_survive_context() {
        let e = anyhow::Error::new(UserError::new("x")).context("while reading");
        assert_eq!(exit_code(&e), 2);
        assert_eq!(exit_code(&anyhow::Error::new(BadRecipe::new("x").at("model.source", "y"))), 2);
        assert_eq!(exit_code(&anyhow::Error::new(Unfit("x".into()))), 3);
        assert_eq!(exit_code(&anyhow::anyhow!("x")), 1);
    }

    #[test]
    fn nearest_name() {
        assert_eq!(suggest("q_porj", ["q_proj", "k_proj"]), Some("q_proj"));
        assert_eq!(suggest("zebra", ["q_proj", "k_proj"]), None);
    }
}
