//! From a row's keys to a sample: text, prompt and completion, a chat, or what `paired` reads.

use std::collections::BTreeMap;

use anyhow::Result;
use ramekin_core::{BadSetting, UserError, suggest};
use ramekin_slots::Rows;
use serde_json::{Map, Value as Json, json};

use crate::paired::{self, Pair};
use crate::settings::{Format, Preparation};
use crate::source::{Record, kind_of};

/// One row, understood.
#[derive(Clone, Debug, PartialEq)]
pub enum Sample {
    /// Plain text, all of it a target.
    Text(String),
    /// A prompt and what follows it.
    PromptCompletion {
        /// What is given.
        prompt: String,
        /// What is learned; it follows the prompt without anything between.
        completion: String,
    },
    /// A chat.
    Chat {
        /// Objects with `role` and `content`.
        messages: Vec<Json>,
        /// Tools the template may list.
        tools: Option<Json>,
    },
    /// A chat and how it goes on.
    ChatCompletion {
        /// The messages that are given.
        prompt: Vec<Json>,
        /// The messages that are learned.
        completion: Vec<Json>,
        /// Tools the template may list.
        tools: Option<Json>,
    },
    /// Two ways in which a prompt may go on.
    Pair(Pair),
    /// A text with numbers to predict.
    Labelled {
        /// The text.
        text: String,
        /// A class, 0 or 1 for each class, or values.
        label: Vec<f32>,
    },
}

/// Keys that formats know; `columns` maps from them.
const KEYS: [&str; 15] = [
    "messages",
    "tools",
    "conversations",
    "system",
    "instruction",
    "input",
    "output",
    "history",
    "prompt",
    "completion",
    "text",
    "chosen",
    "rejected",
    "margin",
    "label",
];

/// Reads records by one format, which the first record decides where it is open.
pub(crate) struct Reader {
    format: Format,
    columns: BTreeMap<String, String>,
    has_template: bool,
    wanted: Rows,
    label_names: Vec<String>,
    checked: bool,
    notes: Vec<String>,
}

impl Reader {
    /// A reader. With a template, instructions become chats.
    pub fn new(options: &Preparation, has_template: bool, wanted: Rows) -> Self {
        Reader {
            format: options.format,
            columns: options.columns.clone(),
            has_template,
            wanted,
            label_names: options.label_names.clone(),
            checked: false,
            notes: Vec::new(),
        }
    }

    /// The format, once a record is read.
    pub fn format(&self) -> Format {
        self.format
    }

    /// What a person should hear.
    pub fn into_notes(self) -> Vec<String> {
        self.notes
    }

    /// The record's sample.
    pub fn sample(&mut self, record: Record) -> Result<Sample> {
        if !self.checked {
            self.check_columns()?;
        }
        if self.format == Format::Auto {
            self.format = self.detect(&record)?;
            self.notes
                .push(format!("the rows are read as `{}`, by the keys of the first", self.format.name()));
        }
        if !self.checked {
            self.check_rows(&record)?;
            self.checked = true;
        }
        let row = Fields { record: &record, columns: &self.columns };
        match self.format {
            Format::Messages => Ok(Sample::Chat { messages: row.messages("messages")?, tools: row.tools()? }),
            Format::Sharegpt => sharegpt(&row),
            Format::Alpaca => alpaca(&row, self.has_template),
            Format::PromptCompletion => prompt_completion(&row),
            Format::Preference => paired::preference(&row),
            Format::Classification => paired::classification(&row, &self.label_names),
            Format::Text | Format::Auto => Ok(Sample::Text(row.text("text")?)),
        }
    }

    /// Holds what the rows are against what is wanted of them.
    fn check_rows(&self, record: &Record) -> Result<()> {
        let found = match self.format {
            Format::Preference => Rows::Pairs,
            Format::Classification => Rows::Targets,
            _ => Rows::Tokens,
        };
        if found != self.wanted {
            let (wanted, name) = (self.wanted.words(), self.format.name());
            let error = record.origin.error(format!(
                "the objective learns from rows with {wanted}; these are read as `{name}`, with {}",
                keys_of(&record.fields)
            ));
            return Err(error.help("set another `objective`, or `format` and `columns` of the data").into());
        }
        if !self.label_names.is_empty() && found != Rows::Targets {
            let why = format!("is set and rows read as `{}` have no label", self.format.name());
            return Err(BadSetting::new("label_names", why).into());
        }
        Ok(())
    }

    fn check_columns(&self) -> Result<()> {
        for key in self.columns.keys() {
            if !KEYS.contains(&key.as_str()) {
                let near = suggest(key, KEYS).map_or_else(
                    || format!("formats read {}", KEYS.map(|k| format!("`{k}`")).join(", ")),
                    |near| format!("did you mean `{near}`?"),
                );
                return Err(BadSetting::new(
                    format!("columns.{key}"),
                    format!("is a key of no format; {near}"),
                )
                .into());
            }
        }
        Ok(())
    }

    fn detect(&self, record: &Record) -> Result<Format> {
        let has = |key: &str| self.columns.contains_key(key) || record.fields.contains_key(key);
        Ok(if self.wanted == Rows::Targets && has("text") && has("label") {
            Format::Classification
        } else if has("chosen") && has("rejected") {
            Format::Preference
        } else if has("messages") {
            Format::Messages
        } else if has("conversations") {
            Format::Sharegpt
        } else if has("prompt") && has("completion") {
            Format::PromptCompletion
        } else if has("instruction") && has("output") {
            Format::Alpaca
        } else if has("text") {
            Format::Text
        } else {
            return Err(record
                .origin
                .error(format!("cannot tell the format from the keys {}", keys_of(&record.fields)))
                .help("map them, as in `columns = { prompt = \"question\", completion = \"answer\" }`")
                .into());
        })
    }
}

/// A record's fields under the format's names.
pub(crate) struct Fields<'a> {
    record: &'a Record,
    columns: &'a BTreeMap<String, String>,
}

impl Fields<'_> {
    pub(crate) fn error(&self, message: impl Into<String>) -> UserError {
        self.record.origin.error(message)
    }

    /// The value of a key, if the row has it and it is not null.
    pub(crate) fn find(&self, key: &str) -> Result<Option<Json>> {
        let Some(column) = self.columns.get(key) else {
            return Ok(self.record.fields.get(key).filter(|v| !v.is_null()).cloned());
        };
        if let Some(value) = self.record.fields.get(column) {
            return Ok(Some(value.clone()).filter(|v| !v.is_null()));
        }
        if column.contains('{') {
            return Ok(Some(Json::String(self.fill(key, column)?)));
        }
        Err(self.lacks(column, &format!(" that `columns.{key}` names")).into())
    }

    pub(crate) fn need(&self, key: &str) -> Result<Json> {
        match self.find(key)? {
            Some(value) => Ok(value),
            None if self.record.fields.get(key).is_some_and(Json::is_null) => {
                Err(self.error(format!("`{key}` is null")).into())
            }
            None => Err(self.lacks(key, "").into()),
        }
    }

    fn lacks(&self, key: &str, why: &str) -> UserError {
        let fields = &self.record.fields;
        let error = self.error(format!("the row has no `{key}`{why}; it has {}", keys_of(fields)));
        match suggest(key, fields.keys().map(String::as_str)) {
            Some(near) => error.help(format!("did you mean `{near}`?")),
            None => error.help(format!("map it, as in `columns = {{ {key} = \"…\" }}`")),
        }
    }

    /// A pattern with its columns filled in; `{{` and `}}` are braces.
    fn fill(&self, key: &str, pattern: &str) -> Result<String> {
        let mut out = String::new();
        let mut rest = pattern;
        while let Some(at) = rest.find(['{', '}']) {
            out.push_str(&rest[..at]);
            let brace = &rest[at..=at];
            rest = &rest[at + 1..];
            if let Some(after) = rest.strip_prefix(brace) {
                out.push_str(brace);
                rest = after;
                continue;
            }
            let end = (brace == "{").then(|| rest.find('}')).flatten();
            let Some(end) = end else {
                let why = format!(
                    "`{pattern}` has a `{brace}` without its partner; write `{brace}{brace}` for a brace"
                );
                return Err(BadSetting::new(format!("columns.{key}"), why).into());
            };
            let column = &rest[..end];
            let value = self
                .record
                .fields
                .get(column)
                .ok_or_else(|| self.lacks(column, &format!(" that `columns.{key}` names")))?;
            out.push_str(&self.as_text(column, value)?);
            rest = &rest[end + 1..];
        }
        out.push_str(rest);
        Ok(out)
    }

    pub(crate) fn as_text(&self, key: &str, value: &Json) -> Result<String> {
        match value {
            Json::String(s) => Ok(s.clone()),
            Json::Number(n) => Ok(n.to_string()),
            Json::Bool(b) => Ok(b.to_string()),
            other => Err(self.error(format!("`{key}` is {}, not text", kind_of(other))).into()),
        }
    }

    pub(crate) fn text(&self, key: &str) -> Result<String> {
        self.as_text(key, &self.need(key)?)
    }

    fn text_or_empty(&self, key: &str) -> Result<String> {
        self.find(key)?.map_or(Ok(String::new()), |v| self.as_text(key, &v))
    }

    fn list(&self, key: &str) -> Result<Vec<Json>> {
        match self.need(key)? {
            Json::Array(items) if items.is_empty() => Err(self.error(format!("`{key}` is empty")).into()),
            Json::Array(items) => Ok(items),
            other => Err(self.error(format!("`{key}` is {}, not a list", kind_of(&other))).into()),
        }
    }

    fn messages(&self, key: &str) -> Result<Vec<Json>> {
        self.check_messages(key, self.list(key)?)
    }

    pub(crate) fn check_messages(&self, key: &str, messages: Vec<Json>) -> Result<Vec<Json>> {
        messages
            .into_iter()
            .enumerate()
            .map(|(i, message)| {
                let Json::Object(mut fields) = message else {
                    return Err(self
                        .error(format!("`{key}[{i}]` is {}, not an object", kind_of(&message)))
                        .into());
                };
                match fields.get("role") {
                    Some(Json::String(_)) => {}
                    Some(other) => {
                        return Err(self
                            .error(format!("`{key}[{i}].role` is {}, not text", kind_of(other)))
                            .into());
                    }
                    None => {
                        let mut error =
                            self.error(format!("`{key}[{i}]` has no `role`; it has {}", keys_of(&fields)));
                        if fields.contains_key("from") && fields.contains_key("value") {
                            error = error.help("`from` and `value` are `format = \"sharegpt\"`");
                        }
                        return Err(error.into());
                    }
                }
                // Table libraries write null for what a row lacks; templates ask whether it is defined.
                fields.retain(|name, value| name == "content" || !value.is_null());
                if !fields.contains_key("content") && !fields.contains_key("tool_calls") {
                    return Err(self
                        .error(format!("`{key}[{i}]` has no `content`; it has {}", keys_of(&fields)))
                        .into());
                }
                Ok(Json::Object(fields))
            })
            .collect()
    }

    /// Tools, as they are or as JSON in text.
    pub(crate) fn tools(&self) -> Result<Option<Json>> {
        match self.find("tools")? {
            Some(Json::String(text)) if text.trim().is_empty() => Ok(None),
            Some(Json::String(text)) => match serde_json::from_str(&text) {
                Ok(tools) => Ok(Some(tools)),
                Err(e) => Err(self.error(format!("`tools` is text that is not JSON: {e}")).into()),
            },
            Some(Json::Array(list)) if list.is_empty() => Ok(None),
            other => Ok(other),
        }
    }
}

fn keys_of(fields: &Map<String, Json>) -> String {
    if fields.is_empty() {
        return "no key at all".to_owned();
    }
    let mut names: Vec<String> = fields.keys().take(12).map(|k| format!("`{k}`")).collect();
    if fields.len() > names.len() {
        names.push(format!("and {} more", fields.len() - names.len()));
    }
    names.join(", ")
}

fn message(role: &str, content: impl Into<Json>) -> Json {
    json!({ "role": role, "content": content.into() })
}

fn prompt_completion(row: &Fields<'_>) -> Result<Sample> {
    let (prompt, completion) = (row.need("prompt")?, row.need("completion")?);
    match (&prompt, &completion) {
        (Json::Array(p), Json::Array(c)) => Ok(Sample::ChatCompletion {
            prompt: row.check_messages("prompt", p.clone())?,
            completion: row.check_messages("completion", c.clone())?,
            tools: row.tools()?,
        }),
        (Json::Array(_), _) | (_, Json::Array(_)) => Err(row
            .error(format!(
                "`prompt` is {} and `completion` {}; both are text or both are lists of messages",
                kind_of(&prompt),
                kind_of(&completion)
            ))
            .into()),
        _ => Ok(Sample::PromptCompletion {
            prompt: row.as_text("prompt", &prompt)?,
            completion: row.as_text("completion", &completion)?,
        }),
    }
}

fn sharegpt(row: &Fields<'_>) -> Result<Sample> {
    let mut messages = Vec::new();
    let system = row.text_or_empty("system")?;
    if !system.is_empty() {
        messages.push(message("system", system));
    }
    for (i, turn) in row.list("conversations")?.iter().enumerate() {
        let field = |key: &str| match turn.get(key) {
            Some(Json::String(s)) => Ok(s.as_str()),
            Some(other) => {
                Err(row.error(format!("`conversations[{i}].{key}` is {}, not text", kind_of(other))))
            }
            None => {
                let error = row.error(format!("`conversations[{i}]` has no `{key}`"));
                Err(match turn.get("role") {
                    Some(_) => error.help("`role` and `content` are `format = \"messages\"`, with `columns = { messages = \"conversations\" }`"),
                    None => error,
                })
            }
        };
        let (from, value) = (field("from")?, field("value")?);
        messages.push(match from {
            "human" | "user" => message("user", value),
            "gpt" | "assistant" | "model" | "chatgpt" | "bot" => message("assistant", value),
            "system" => message("system", value),
            "observation" | "tool" | "function_response" => message("tool", value),
            "function_call" => {
                let call: Json = serde_json::from_str(value).map_err(|e| {
                    row.error(format!("`conversations[{i}].value` is a function call that is not JSON: {e}"))
                })?;
                let calls = if let Json::Array(calls) = call { calls } else { vec![call] };
                let calls: Vec<Json> =
                    calls.into_iter().map(|call| json!({ "type": "function", "function": call })).collect();
                json!({ "role": "assistant", "content": "", "tool_calls": calls })
            }
            other => {
                let known = ["human", "gpt", "system", "observation", "function_call"];
                let error = row.error(format!("`conversations[{i}].from` is `{other}`"));
                return Err(match suggest(other, known) {
                    Some(near) => error.help(format!("did you mean `{near}`?")),
                    None => error.help(format!("known are {}", known.map(|k| format!("`{k}`")).join(", "))),
                }
                .into());
            }
        });
    }
    Ok(Sample::Chat { messages, tools: row.tools()? })
}

/// Instructions become a chat where there is a template, else text with the
/// headings that instruction-tuned models without one were trained on.
fn alpaca(row: &Fields<'_>, has_template: bool) -> Result<Sample> {
    let (instruction, output) = (row.text("instruction")?, row.text("output")?);
    let (input, system) = (row.text_or_empty("input")?, row.text_or_empty("system")?);
    let mut turns = Vec::new();
    match row.find("history")? {
        None => {}
        Some(Json::Array(pairs)) => {
            for (i, pair) in pairs.iter().enumerate() {
                match pair.as_array().map(Vec::as_slice) {
                    Some([Json::String(user), Json::String(answer)]) => {
                        turns.push((user.clone(), answer.clone()))
                    }
                    _ => {
                        return Err(row.error(format!("`history[{i}]` is not a pair of texts")).into());
                    }
                }
            }
        }
        Some(other) => {
            return Err(row.error(format!("`history` is {}, not a list", kind_of(&other))).into());
        }
    }
    if has_template {
        let mut prompt = Vec::new();
        if !system.is_empty() {
            prompt.push(message("system", system));
        }
        for (user, answer) in turns {
            prompt.extend([message("user", user), message("assistant", answer)]);
        }
        let ask = if input.is_empty() { instruction } else { format!("{instruction}\n{input}") };
        prompt.push(message("user", ask));
        return Ok(Sample::ChatCompletion {
            prompt,
            completion: vec![message("assistant", output)],
            tools: None,
        });
    }
    let mut prompt = String::new();
    if !system.is_empty() {
        prompt += &format!("{system}\n\n");
    }
    for (user, answer) in turns {
        prompt += &format!("### Instruction:\n{user}\n\n### Response:\n{answer}\n\n");
    }
    prompt += &format!("### Instruction:\n{instruction}\n\n");
    if !input.is_empty() {
        prompt += &format!("### Input:\n{input}\n\n");
    }
    prompt += "### Response:\n";
    Ok(Sample::PromptCompletion { prompt, completion: output })
}

#[cfg(test)]
#[path = "format_tests.rs"]
mod tests;
