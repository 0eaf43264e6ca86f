//! Chat templates: a model's own Jinja, rendered as Hugging Face renders it.
//!
//! Block tags are trimmed (`trim_blocks`, `lstrip_blocks`), values print as in
//! Python, and there are `raise_exception`, `strftime_now`, `tojson` without
//! HTML escapes, Python's string methods, `break` and `continue`, and
//! `{% generation %}`. A render has a bound on its work, so that a hostile
//! template ends.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Result;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Value, ValueKind};
use minijinja::{AutoEscape, Environment, Error, ErrorKind};
use minijinja_contrib::pycompat;
use ramekin_core::UserError;
use serde_json::Value as Json;

use crate::generation::{self, CLOSE, OPEN};
use crate::python;
use crate::tokenizer::Tokenizer;

/// The template called `chatml` in recipes: every turn between `<|im_start|>` and `<|im_end|>`.
const CHATML: &str = "{% for message in messages %}{{ '<|im_start|>' + message.role + '\\n' }}\
{% if message.role == 'assistant' %}{% generation %}{{ message.content + '<|im_end|>' }}{% endgeneration %}\
{% else %}{{ message.content + '<|im_end|>' }}{% endif %}{{ '\\n' }}{% endfor %}\
{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

/// Work of one render, in the engine's units: ordinary chats take a few thousand.
const FUEL: u64 = 20_000_000;

/// A rendered chat and which bytes of it the assistant wrote.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rendered {
    /// The text.
    pub text: String,
    /// Spans of bytes, in order, apart from each other.
    pub assistant: Vec<Range<usize>>,
}

/// A parsed chat template.
#[derive(Clone, Debug)]
pub struct ChatTemplate {
    name: String,
    source: Arc<str>,
    env: Arc<Environment<'static>>,
    specials: BTreeMap<String, String>,
    marks: bool,
    with_tools: Option<Arc<ChatTemplate>>,
}

impl ChatTemplate {
    /// Parses a template. `specials` are the tokens it may name, such as `bos_token`.
    ///
    /// # Errors
    /// A template that does not parse, naming it and the line.
    pub fn new(name: &str, source: &str, specials: &BTreeMap<String, String>) -> Result<Self> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
        Self::at(name, source, specials, now as i64)
    }

    /// The same with the moment, in seconds since 1970 (UTC), that `strftime_now` tells.
    ///
    /// # Errors
    /// As for [`ChatTemplate::new`].
    pub fn at(name: &str, source: &str, specials: &BTreeMap<String, String>, now: i64) -> Result<Self> {
        let (rewritten, tags) = generation::rewrite(source);
        let mut env = environment(now).map_err(|e| anyhow::anyhow!("cannot set templates up: {e}"))?;
        env.add_template_owned("chat", rewritten).map_err(|e| {
            let error = UserError::new(format!("the chat template does not parse: {}", what(&e)));
            match e.line() {
                Some(line) => error.at_line(name, line),
                None => error.in_file(name),
            }
        })?;
        Ok(ChatTemplate {
            name: name.to_owned(),
            source: source.into(),
            env: Arc::new(env),
            specials: specials.clone(),
            marks: tags > 0,
            with_tools: None,
        })
    }

    /// The template that a setting gives: `chatml`, the template itself, or a file.
    ///
    /// # Errors
    /// A file that is not there; a template that does not parse.
    pub fn from_setting(given: &str, base_dir: &Path, tokenizer: &Tokenizer) -> Result<Self> {
        let specials = tokenizer.special_tokens();
        if given == "chatml" {
            return Self::new("chatml", CHATML, specials);
        }
        if given.contains("{%") || given.contains("{{") {
            return Self::new("template", given, specials);
        }
        let path = base_dir.join(given);
        if !path.is_file() {
            let error = crate::source::missing(&path);
            let ours = if error.help.as_deref().is_some_and(|h| h.starts_with("did")) {
                error
            } else {
                error.help("`template` is `chatml`, a `.jinja` file, or the template itself")
            };
            return Err(ours.into());
        }
        let source = std::fs::read_to_string(&path)
            .map_err(|e| UserError::new(format!("cannot read the template: {e}")).in_file(&path))?;
        Self::new(&path.display().to_string(), &source, specials)
    }

    /// Uses another template where a chat has tools.
    #[must_use]
    pub fn with_tools(mut self, template: ChatTemplate) -> Self {
        self.with_tools = Some(Arc::new(template));
        self
    }

    /// What the template is called in messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The template as it was given.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Whether it says itself which text is the assistant's.
    pub fn marks_generation(&self) -> bool {
        self.marks
    }

    /// The text of a chat, ending where the assistant begins to answer if `add_generation_prompt`.
    ///
    /// # Errors
    /// What the template raises, with its message; a template that asks for what is not there.
    pub fn render(
        &self,
        messages: &[Json],
        tools: Option<&Json>,
        add_generation_prompt: bool,
    ) -> Result<String> {
        Ok(self.for_tools(tools).marked(messages, tools, add_generation_prompt)?.text)
    }

    /// The text of a chat and which of it the assistant wrote.
    ///
    /// A template without `{% generation %}` is rendered up to every turn of
    /// the assistant and through it; what the turn added is the assistant's.
    ///
    /// # Errors
    /// As for [`ChatTemplate::render`]; and if a longer chat does not begin
    /// with the text of a shorter one, so that turns cannot be told apart.
    pub fn render_with_assistant(&self, messages: &[Json], tools: Option<&Json>) -> Result<Rendered> {
        let this = self.for_tools(tools);
        if this.marks {
            return this.marked(messages, tools, false);
        }
        let text = this.marked(messages, tools, false)?.text;
        let mut assistant: Vec<Range<usize>> = Vec::new();
        for (i, message) in messages.iter().enumerate() {
            if message.get("role").and_then(Json::as_str) != Some("assistant") {
                continue;
            }
            let apart = |e: anyhow::Error| {
                this.error(format!(
                    "the chat template cannot render the first {} messages alone: {e:#}",
                    i + 1
                ))
            };
            let before = this.marked(&messages[..i], tools, true).map_err(apart)?.text;
            let through = this.marked(&messages[..=i], tools, false).map_err(apart)?.text;
            if !through.starts_with(&before) || !text.starts_with(&through) {
                return Err(this
                    .error(format!(
                        "the chat template changes earlier text when message {} comes, so the assistant's turns \
                         cannot be told apart",
                        i + 1
                    ))
                    .into());
            }
            match assistant.last_mut() {
                Some(last) if last.end >= before.len() => last.end = through.len(),
                _ => assistant.push(before.len()..through.len()),
            }
        }
        assistant.retain(|span| !span.is_empty());
        Ok(Rendered { text, assistant })
    }

    fn error(&self, message: String) -> UserError {
        UserError::new(message).in_file(&self.name).help(
            "put `{% generation %}` and `{% endgeneration %}` around the assistant's text in the template",
        )
    }

    fn for_tools(&self, tools: Option<&Json>) -> &ChatTemplate {
        match (&self.with_tools, tools) {
            (Some(other), Some(_)) => other,
            _ => self,
        }
    }

    fn marked(
        &self,
        messages: &[Json],
        tools: Option<&Json>,
        add_generation_prompt: bool,
    ) -> Result<Rendered> {
        let (open, close) = if self.marks {
            let content = Json::Array(messages.to_vec()).to_string();
            generation::markers(&[&content, &self.source])
        } else {
            Default::default()
        };
        let mut context: Vec<(&str, Value)> =
            self.specials.iter().map(|(name, token)| (name.as_str(), Value::from(token.as_str()))).collect();
        context.extend([
            ("messages", messages.iter().map(python::value_of).collect()),
            ("tools", tools.map_or_else(|| Value::from(()), python::value_of)),
            ("documents", Value::from(())),
            ("add_generation_prompt", Value::from(add_generation_prompt)),
            (OPEN, Value::from(open.as_str())),
            (CLOSE, Value::from(close.as_str())),
        ]);
        let text = self
            .env
            .get_template("chat")
            .and_then(|t| t.render(Value::from_pairs(context)))
            .map_err(|e| self.failed(&e))?;
        if !self.marks {
            return Ok(Rendered { text, assistant: Vec::new() });
        }
        let (text, assistant) = generation::take_out(&text, &open, &close);
        Ok(Rendered { text, assistant })
    }

    fn failed(&self, error: &Error) -> anyhow::Error {
        let message = match error.detail().and_then(|d| d.strip_prefix(RAISED)) {
            Some(raised) => format!("the chat template `{}` refuses the chat: {raised}", self.name),
            None => {
                let line = error.line().map(|l| format!(" in line {l}")).unwrap_or_default();
                format!("the chat template `{}` fails{line}: {}", self.name, what(error))
            }
        };
        UserError::new(message).into()
    }
}

/// Tells an exception that a template raises from a fault of the engine.
const RAISED: &str = "\u{fdd4}";

/// An error's text without the engine's place, which names a template the user never wrote.
fn what(error: &Error) -> String {
    let kind = error.kind();
    let text = match error.detail() {
        Some(detail) => format!("{kind}: {detail}"),
        None => kind.to_string(),
    };
    match std::error::Error::source(error) {
        Some(source) => format!("{text} ({source})"),
        None => text,
    }
}

fn environment(now: i64) -> Result<Environment<'static>, Error> {
    let mut env = Environment::new();
    env.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
    env.set_auto_escape_callback(|_| AutoEscape::None);
    env.set_fuel(Some(FUEL));
    env.set_debug(false);
    env.set_unknown_method_callback(pycompat::unknown_method_callback);
    env.set_formatter(|out, _, value| {
        let text = python::to_text(value)?;
        out.write_str(&text).map_err(Error::from)
    });
    // None is no list, while text and tables are; the engine sees both otherwise.
    env.add_test("iterable", |value: &Value| !value.is_none() && value.try_iter().is_ok());
    env.add_test("sequence", |value: &Value| {
        matches!(value.kind(), ValueKind::Seq | ValueKind::Map | ValueKind::String | ValueKind::Undefined)
    });
    env.add_filter("string", |value: &Value| python::to_text(value));
    env.add_filter("tojson", |value: &Value, indent: Option<Value>, options: Kwargs| {
        let indent = match indent {
            Some(indent) => Some(indent),
            None => options.get::<Option<Value>>("indent")?,
        };
        // Python's further options change nothing that a template of a model uses.
        for name in ["ensure_ascii", "separators", "sort_keys"] {
            let _: Option<Value> = options.get(name)?;
        }
        options.assert_all_used()?;
        let indent = match indent.filter(|i| !i.is_none() && !i.is_undefined()) {
            Some(i) => Some(i.as_usize().filter(|i| *i <= 64).ok_or_else(|| {
                Error::new(ErrorKind::InvalidOperation, "`indent` must be a number from 0 to 64")
            })?),
            None => None,
        };
        python::to_json(value, indent)
    });
    env.add_function("raise_exception", |message: String| -> Result<Value, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, format!("{RAISED}{message}")))
    });
    env.add_function("strftime_now", move |format: String| crate::python::strftime(&format, now));
    Ok(env)
}

#[cfg(test)]
#[path = "template_tests.rs"]
mod tests;
