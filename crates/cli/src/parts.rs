//! `ramekin parts`: the reference.

use std::fmt::Write as _;

use anyhow::Result;
use ramekin_core::{UserError, suggest};
use ramekin_registry::{PartInfo, Slot, describe, find, parts};
use serde_json::{Value as Json, json};

use crate::standard::print;

/// Columns of the reference on a terminal.
const WIDTH: usize = 100;

/// How the reference is written.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// For a terminal: every part with all it has to be told.
    Full,
    /// For a terminal: a line a part.
    Brief,
    /// Markdown.
    Markdown,
    /// JSON.
    Json,
}

/// Prints all parts, a slot's, one of them, or the language's schema.
///
/// # Errors
/// If there is no such slot or part.
pub fn show(which: Option<&str>, schema: bool, form: Form) -> Result<()> {
    if schema {
        let all: Vec<_> = parts().into_iter().map(|p| (p.slot.name(), p.name, (p.schema)())).collect();
        return print(&(serde_json::to_string_pretty(&ramekin_recipe::schema(&all))? + "\n"));
    }
    let chosen: Vec<PartInfo> = match which {
        None => parts().into_iter().map(describe).collect(),
        Some(path) => {
            let (slot, name) = path.split_once('/').map_or((path, None), |(s, n)| (s, Some(n)));
            let slot = slot_of(slot)?;
            match name {
                Some(name) => vec![describe(find(slot, name)?)],
                None => parts().into_iter().filter(|p| p.slot == slot).map(describe).collect(),
            }
        }
    };
    print(&match form {
        Form::Json => serde_json::to_string_pretty(&chosen)? + "\n",
        Form::Markdown => markdown(&chosen),
        Form::Full => terminal(&chosen, true),
        Form::Brief => terminal(&chosen, false),
    })
}

fn slot_of(name: &str) -> Result<Slot> {
    Ok(Slot::ALL.into_iter().find(|s| s.name() == name).ok_or_else(|| {
        let names: Vec<&str> = Slot::ALL.iter().map(|s| s.name()).collect();
        let error = UserError::new(format!("there is no slot `{name}`"));
        match suggest(name, names.iter().copied()) {
            Some(near) => error.help(format!("did you mean `{near}`?")),
            None => error.help(format!("there are: {}", names.join(", "))),
        }
    })?)
}

fn purpose(slot: &str) -> &'static str {
    Slot::ALL.into_iter().find(|s| s.name() == slot).map_or("", Slot::purpose)
}

fn terminal(chosen: &[PartInfo], full: bool) -> String {
    let mut out = String::new();
    let longest = chosen.iter().map(|p| p.name.len()).max().unwrap_or(0);
    for (i, part) in chosen.iter().enumerate() {
        if i == 0 || chosen[i - 1].slot != part.slot {
            let gap = if i == 0 { "" } else { "\n" };
            let _ = writeln!(out, "{gap}{}: {}", part.slot, purpose(part.slot));
        }
        if !full {
            let _ = writeln!(out, "  {:<longest$}  {}", part.name, part.summary);
            continue;
        }
        let _ = writeln!(out, "\n  {}", part.name);
        wrapped(&mut out, 4, part.summary);
        wrapped(&mut out, 4, &format!("source: {}", part.source));
        if !part.traits.is_empty() {
            wrapped(&mut out, 4, &format!("traits: {}", traits(part)));
        }
        for s in &part.settings {
            let _ = writeln!(out, "    {} = {}   ({})", text(s, "name"), default(s), text(s, "type"));
            wrapped(&mut out, 8, text(s, "description"));
        }
    }
    out
}

fn markdown(chosen: &[PartInfo]) -> String {
    let mut out = String::from(
        "# Parts\n\nEvery part that a recipe can name. Written by `cargo xtask parts --markdown`; a test keeps it current.\n",
    );
    for (i, part) in chosen.iter().enumerate() {
        if i == 0 || chosen[i - 1].slot != part.slot {
            let _ = writeln!(out, "\n## {}\n\n{}.", part.slot, capital(purpose(part.slot)));
        }
        let _ = writeln!(out, "\n### {}\n\n{}.", part.name, capital(part.summary));
        let _ = writeln!(out, "Source: {}.", part.source);
        if !part.traits.is_empty() {
            let _ = writeln!(out, "Traits: {}.", traits(part));
        }
        if part.settings.is_empty() {
            continue;
        }
        out.push_str("\n| setting | type | default | |\n| --- | --- | --- | --- |\n");
        for s in &part.settings {
            let cell = |text: &str| text.replace('|', "\\|").replace('\n', " ");
            let _ = writeln!(
                out,
                "| `{}` | {} | {} | {} |",
                text(s, "name"),
                cell(text(s, "type")),
                cell(&default(s)),
                cell(text(s, "description"))
            );
        }
    }
    out
}

fn capital(text: &str) -> String {
    let mut rest = text.chars();
    rest.next().map_or_else(String::new, |first| first.to_uppercase().chain(rest).collect())
}

fn traits(part: &PartInfo) -> String {
    let names = part.traits.iter().map(|t| json!(t).as_str().unwrap_or_default().to_owned());
    names.collect::<Vec<_>>().join(", ")
}

fn text<'a>(setting: &'a Json, key: &str) -> &'a str {
    setting[key].as_str().unwrap_or_default()
}

/// As a recipe would write it.
fn default(setting: &Json) -> String {
    match &setting["default"] {
        _ if setting["required"] == true => "required".to_owned(),
        Json::Null => "none".to_owned(),
        d => d.to_string(),
    }
}

/// The text between `indent` and the right edge.
fn wrapped(out: &mut String, indent: usize, text: &str) {
    let mut column = WIDTH;
    for word in text.split_whitespace() {
        let length = word.chars().count();
        if column + 1 + length > WIDTH {
            if column < WIDTH || !out.ends_with('\n') {
                out.push('\n');
            }
            let _ = write!(out, "{:indent$}{word}", "");
            column = indent + length;
        } else {
            let _ = write!(out, " {word}");
            column += 1 + length;
        }
    }
    out.push('\n');
}
