//! Typed decoding of a subtree that finds every mistake in it, not only the first.

use std::cell::Cell;
use std::fmt::Display;

use serde::de::DeserializeOwned;
use serde_json::{Map, Value as Json};

use crate::diagnostic::{Diagnostic, Diagnostics};
use crate::doc::Doc;
use crate::locate::{Tree, locate};
use crate::part::Part;
use crate::path;
use crate::stage::ALIASES;
use crate::wording::{Fault, found, list, suggest};

/// More mistakes in one table than anybody repairs in one go.
const MAX_ERRORS: usize = 20;

/// Values looked at before the search for further mistakes ends: a second, on a hostile recipe.
const MAX_WORK: usize = 5_000_000;

impl Doc {
    /// Decodes the table at `path`; a table that was not written counts as an empty one.
    ///
    /// `what` names it in messages: `optimizer/adamw`, `model`.
    ///
    /// # Errors
    /// Every unknown key, wrong type and wrong value below `path`, and a missing key.
    pub fn decode<T: DeserializeOwned>(&self, path: &str, what: &str) -> Result<T, Diagnostics> {
        let empty = Json::Object(Map::new());
        let value = self.value(path).unwrap_or(&empty);
        Subtree::new(self, path, format!("`{what}`")).run(value, &serde_json::from_value::<T>)
    }

    /// Decodes the settings of a part; `slot` is its place in the stage, `optimizer`.
    ///
    /// # Errors
    /// As [`Doc::decode`].
    pub fn settings<T: DeserializeOwned>(&self, slot: &str, part: &Part) -> Result<T, Diagnostics> {
        self.complete(slot, part, serde_json::from_value::<T>)
    }

    /// As [`Doc::settings`], with the decoding behind a function that sees the settings as a table.
    ///
    /// `decode` may be called many times; its errors must read as serde's do.
    ///
    /// # Errors
    /// As [`Doc::decode`].
    pub fn complete<T, E: Display>(
        &self,
        slot: &str,
        part: &Part,
        decode: impl Fn(Json) -> Result<T, E>,
    ) -> Result<T, Diagnostics> {
        let name = format!("{slot}/{}", part.kind);
        let mut subtree = Subtree::new(self, &part.path, format!("`{name}`"));
        subtree.reference = Some(format!("`cargo xtask parts {name}`"));
        subtree.run(&Json::Object(part.settings.clone()), &decode)
    }

    /// The mistake that no part of the slot is called so; `known` are the names of those that there are.
    pub fn unknown_part(&self, slot: &str, part: &Part, known: &[&str]) -> Diagnostic {
        let near = suggest(&part.kind, known.iter().copied());
        let label = match near {
            Some(name) => format!("did you mean `{name}`?   all: `cargo xtask parts {slot}`"),
            None => format!("there is: {}", list(known.iter().copied())),
        };
        self.error_at(&path::join(&part.path, "kind"), format!("no {slot} is called `{}`", part.kind), label)
    }

    /// The mistake that a part refuses the value of a setting: `message` says what is wrong and what is allowed.
    ///
    /// `part` is the path of the part, `setting` the name of the setting, dotted where it is nested.
    pub fn bad_setting(&self, part: &str, setting: &str, message: &str) -> Diagnostic {
        let steps = path::parse_own(part);
        let slot =
            steps.iter().rev().find(|step| step.parse::<usize>().is_err()).map_or("recipe", String::as_str);
        let subject = match self.value(&path::join(part, "kind")).and_then(Json::as_str) {
            Some(kind) => format!("`{slot}/{kind}`"),
            None => format!("`{slot}`"),
        };
        let at = if part.is_empty() { setting.to_owned() } else { format!("{part}.{setting}") };
        let which = if self.value(&at).is_some() { "this" } else { "the default" };
        self.error_at(&at, format!("{subject} cannot take {which} `{setting}`"), message)
    }
}

/// Says where else a key that a table does not have would be read.
pub(crate) type Elsewhere<'a> = &'a dyn Fn(&str) -> Option<String>;

/// A table that is being decoded, and how messages speak of it.
pub(crate) struct Subtree<'a> {
    doc: &'a Doc,
    base: Vec<String>,
    /// The table in messages, backticks included.
    subject: String,
    /// The command that shows all settings.
    reference: Option<String>,
    /// Says where else an unknown key is read.
    pub elsewhere: Option<Elsewhere<'a>>,
}

/// What decoding has already been told to do without.
#[derive(Default)]
struct Gone {
    /// Table and key; also the key that an unknown one was probably meant to be.
    entries: Vec<(Vec<String>, String)>,
}

impl Gone {
    fn has(&self, table: &[String], key: &str) -> bool {
        self.entries.iter().any(|(t, k)| t == table && k == key)
    }

    fn any_in(&self, table: &[String]) -> bool {
        self.entries.iter().any(|(t, _)| t == table)
    }
}

impl<'a> Subtree<'a> {
    pub fn new(doc: &'a Doc, path: &str, subject: String) -> Self {
        Subtree { doc, base: path::parse_own(path), subject, reference: None, elsewhere: None }
    }

    /// Decodes the value whole.
    pub fn run<T, E: Display>(
        &self,
        value: &Json,
        decode: &dyn Fn(Json) -> Result<T, E>,
    ) -> Result<T, Diagnostics> {
        match self.salvage(value, decode) {
            (Some(value), errors) => errors.into_result(value),
            (None, errors) => Err(errors),
        }
    }

    /// Decodes, and after each mistake decodes again without the entry at fault; what is left, and the mistakes.
    ///
    /// Without a value there is at least one mistake.
    pub fn salvage<T, E: Display>(
        &self,
        value: &Json,
        decode: &dyn Fn(Json) -> Result<T, E>,
    ) -> (Option<T>, Diagnostics) {
        let mut tree = Tree::of(value);
        let mut errors = Diagnostics::new();
        let mut gone = Gone::default();
        let work = Cell::new(0);
        loop {
            let message = match decode(tree.to_json()) {
                Ok(value) => return (Some(value), errors),
                Err(e) => e.to_string(),
            };
            let fault = Fault::of(&message);
            let missing = matches!(fault, Fault::Missing(_));
            let fails = |json| decode(json).err().map(|e| e.to_string());
            let mut at = locate(&tree, &message, missing, &work, &fails);
            if let (Fault::Length(_), Some((_, list))) = (&fault, at.split_last())
                && matches!(tree.get(list), Some(Tree::List(_)))
            {
                at.pop();
            }

            // What follows from an entry already reported and left out is no mistake of the user's.
            let consequence = match &fault {
                Fault::Missing(name) => gone.has(&at, name),
                Fault::Said(_) | Fault::Length(_) => gone.any_in(&at),
                _ => false,
            };
            if !consequence {
                errors.push(self.diagnose(&tree, &at, &fault));
            }
            let Some((key, table)) = at.split_last() else {
                return (None, errors);
            };
            if let Fault::UnknownKey(names) = &fault
                && let Some(near) = suggest(key, names.iter().map(String::as_str))
            {
                gone.entries.push((table.to_vec(), near.to_owned()));
            }
            gone.entries.push((table.to_vec(), key.clone()));
            if !tree.remove(&at) || errors.len() >= MAX_ERRORS || work.get() > MAX_WORK {
                return (None, errors);
            }
        }
    }

    fn diagnose(&self, tree: &Tree, at: &[String], fault: &Fault) -> Diagnostic {
        let doc = self.doc;
        let subject = &self.subject;
        let full = [&self.base, at].concat();
        let name = path::show(at);
        let value = tree.get(at).map_or(Json::Null, Tree::to_json);
        let wrong = |label: String| {
            let title = match at {
                [] => format!("{subject} cannot be {}", found(&value)),
                _ => format!("{subject} cannot take this `{name}`"),
            };
            Diagnostic::new(title).label(doc.spot(&full), label)
        };
        match fault {
            Fault::UnknownKey(names) => {
                let key = at.last().map_or("", String::as_str);
                let title = format!("{subject} has no setting `{name}`");
                Diagnostic::new(title).label(doc.key_spot(&full), self.unknown_key(key, names))
            }
            Fault::Missing(key) => {
                let lacking = path::join(&name, key);
                // The table's `kind` says better than its braces what is incomplete.
                let kind = [&full[..], &["kind".to_owned()]].concat();
                let spot = if doc.get(&kind).is_some() { doc.spot(&kind) } else { doc.spot(&full) };
                Diagnostic::new(format!("{subject} needs `{lacking}`"))
                    .label(spot, format!("add `{key} = …`"))
            }
            Fault::Twice(key) => {
                let written = at.last().map_or("", String::as_str);
                let table = &full[..full.len().saturating_sub(1)];
                let other = ALIASES
                    .iter()
                    .filter(|(_, canonical, _)| canonical == key)
                    .flat_map(|(_, canonical, alias)| [*canonical, *alias])
                    .filter(|spelling| *spelling != written)
                    .map(|spelling| [table, &[spelling.to_owned()]].concat())
                    .find(|path| doc.get(path).is_some());
                let label = if written == key {
                    "the same setting again".into()
                } else {
                    format!("another name of `{key}`")
                };
                let twice =
                    Diagnostic::new(format!("{subject} has `{key}` twice")).label(doc.key_spot(&full), label);
                match other {
                    Some(path) => twice.label(doc.key_spot(&path), "set here"),
                    None => twice,
                }
            }
            Fault::UnknownWord(words) => {
                let word = value.as_str().unwrap_or_default();
                let allowed = list(words.iter().map(String::as_str));
                match suggest(word, words.iter().map(String::as_str)) {
                    Some(near) => wrong(format!("did you mean `{near}`?   allowed: {allowed}")),
                    None => wrong(format!("expected one of {allowed}")),
                }
            }
            Fault::Value(expected) | Fault::Length(expected) => {
                let found = match &value {
                    Json::Array(entries) if matches!(fault, Fault::Length(_)) => {
                        format!("one of {}", entries.len())
                    }
                    other => found(other),
                };
                let quoted =
                    expected.contains("number") && value.as_str().is_some_and(|s| s.parse::<f64>().is_ok());
                let way_out = if quoted { ": write it without quotes" } else { "" };
                wrong(format!("expected {expected}, found {found}{way_out}"))
            }
            Fault::Said(text) => wrong(text.clone()),
        }
    }

    /// What to say of a key that is not among `names`.
    fn unknown_key(&self, key: &str, names: &[String]) -> String {
        let all = self.reference.as_ref().map(|command| format!("   all: {command}")).unwrap_or_default();
        if let Some(place) = self.elsewhere.and_then(|elsewhere| elsewhere(key)) {
            return place;
        }
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        if let Some(near) = suggest(key, names.iter().copied()) {
            return format!("did you mean `{near}`?{all}");
        }
        if names.is_empty() {
            return "it has no settings".into();
        }
        let canonical =
            names.iter().copied().filter(|name| ALIASES.iter().all(|(_, _, alias)| alias != name));
        format!("it has: {}{all}", list(canonical))
    }
}
