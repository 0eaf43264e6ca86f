//! From a sample to token ids and labels: masks, end tokens, truncation.
//!
//! mask(t) = in_completion(t) ∧ in_assistant(t)      label(t) = id(t) where the mask holds, else −100
//!
//! Prompt and completion are tokenised together and the prompt alone; the first
//! len(prompt) labels are masked. Chat text comes out of the template complete,
//! so it is tokenised without special tokens and gets no further BOS or EOS;
//! other text gets what the tokenizer adds, and EOS at the end, which is a target.
//! Source: TRL's SFTTrainer.

use std::ops::Range;

use anyhow::Result;
use ramekin_core::UserError;
use serde_json::Value as Json;

use crate::formats::Sample;
use crate::paired::Pair;
use crate::settings::{Preparation, Truncation};
use crate::template::ChatTemplate;
use crate::tokenizer::{Encoded, Tokenizer};

/// The label of a token that is not a target.
pub const IGNORED: i64 = -100;

/// What an answer is compared with, for exact match and samples.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reference {
    /// Everything before the answer, as text.
    pub prompt: String,
    /// The expected answer, as text, without the end token.
    pub completion: String,
    /// Whether the prompt is rendered by a chat template and therefore complete.
    pub is_chat: bool,
}

impl Reference {
    /// The prompt's token ids, ready to generate from.
    ///
    /// # Errors
    /// If the tokenizer cannot encode the text.
    pub fn prompt_ids(&self, tokenizer: &Tokenizer) -> Result<Vec<u32>> {
        let encoded = tokenizer.encode_with_offsets(&self.prompt, !self.is_chat)?;
        Ok(encoded.without_closing_specials())
    }
}

/// One example: token ids and, for each, the label.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Example {
    /// Token ids.
    pub ids: Vec<u32>,
    /// The ids again, −100 where the token is no target. Not shifted.
    pub labels: Vec<i64>,
    /// How many of the first tokens are prompt; 0 where there is no such border.
    pub prompt_len: usize,
    /// Prompt and expected answer, where the data has them.
    pub reference: Option<Reference>,
    /// The numbers to predict of the whole: a class, classes, values or a margin; mostly none.
    pub target: Vec<f32>,
}

impl Example {
    /// How many tokens.
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Whether there is no token.
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// How many tokens are targets of a prediction; the first never is.
    pub fn active_tokens(&self) -> usize {
        self.labels.iter().skip(1).filter(|l| **l != IGNORED).count()
    }
}

/// An example with what happened on the way to it.
#[derive(Clone, Debug, PartialEq)]
pub struct Prepared {
    /// The example; it may be without target.
    pub example: Example,
    /// The worse answer, where there are two.
    pub rejected: Option<Example>,
    /// Whether tokens were cut off.
    pub truncated: bool,
    /// Whether prompt and completion together did not start with the prompt's own tokens.
    pub prefix_differs: bool,
}

/// Turns samples into examples by one tokenizer, template and set of options.
pub struct Preparer<'a> {
    tokenizer: &'a Tokenizer,
    template: Option<ChatTemplate>,
    options: &'a Preparation,
    /// Plain text that goes on in the next example gets no end token.
    ends: bool,
}

impl<'a> Preparer<'a> {
    /// A preparer.
    ///
    /// `base_dir` is where a template file of the settings lies. Errors: a
    /// template that does not parse or cannot be read.
    pub fn new(
        tokenizer: &'a Tokenizer,
        options: &'a Preparation,
        base_dir: &std::path::Path,
    ) -> Result<Self> {
        let template = match &options.template {
            Some(given) => Some(ChatTemplate::from_setting(given, base_dir, tokenizer)?),
            None => tokenizer.chat_template()?,
        };
        Ok(Preparer { tokenizer, template, options, ends: true })
    }

    /// The same preparer for text that is one stream: no end token is appended.
    #[must_use]
    pub fn for_stream(mut self) -> Self {
        self.ends = false;
        self
    }

    /// Whether samples can be rendered as chats.
    pub fn has_template(&self) -> bool {
        self.template.is_some()
    }

    /// One sample's tokens and labels.
    ///
    /// # Errors
    /// Text the tokenizer cannot encode; a template that raises, marks no
    /// assistant turn, or whose turns cannot be told apart; options that do
    /// not fit the sample.
    pub fn prepare(&self, sample: &Sample) -> Result<Prepared> {
        match sample {
            Sample::Text(text) => self.plain(None, text),
            Sample::PromptCompletion { prompt, completion } => self.plain(Some(prompt), completion),
            Sample::Chat { messages, tools } => self.chat(messages, tools.as_ref()),
            Sample::ChatCompletion { prompt, completion, tools } => {
                self.chat_completion(prompt, completion, tools.as_ref())
            }
            Sample::Pair(pair) => self.pair(pair),
            Sample::Labelled { text, label } => self.labelled(text, label),
        }
    }

    /// Both answers; the prompt is masked in both.
    fn pair(&self, pair: &Pair) -> Result<Prepared> {
        if self.options.completion_only_loss == Some(false) {
            let message = "`completion_only_loss = false` cannot go with pairs: answers alone are compared";
            return Err(UserError::new(message).help("leave it out").into());
        }
        let (chosen, rejected) = (self.prepare(&pair.chosen)?, self.prepare(&pair.rejected)?);
        let mut example = chosen.example;
        example.target.extend(pair.margin);
        Ok(Prepared {
            example,
            rejected: Some(rejected.example),
            truncated: chosen.truncated || rejected.truncated,
            prefix_differs: chosen.prefix_differs || rejected.prefix_differs,
        })
    }

    /// A whole text without end token: what is to be predicted lies outside of it.
    fn labelled(&self, text: &str, label: &[f32]) -> Result<Prepared> {
        if self.options.assistant_only_loss || self.options.completion_only_loss.is_some() {
            let message = "rows with a label have no completion and no assistant to tell apart";
            let help = "leave `completion_only_loss` and `assistant_only_loss` out";
            return Err(UserError::new(message).help(help).into());
        }
        let ids = self.tokenizer.encode(text, true)?;
        let mask = vec![false; ids.len()];
        let mut prepared = self.finish(ids, mask, 0, None, false);
        prepared.example.target = label.to_vec();
        Ok(prepared)
    }

    fn plain(&self, prompt: Option<&str>, text: &str) -> Result<Prepared> {
        if self.options.assistant_only_loss {
            return Err(UserError::new("`assistant_only_loss` is set and this row is no chat")
                .help("leave it out, or give rows with `messages`")
                .into());
        }
        if prompt.is_none() && self.options.completion_only_loss == Some(true) {
            return Err(no_completion());
        }
        let joint = format!("{}{text}", prompt.unwrap_or(""));
        let mut ids = self.tokenizer.encode(&joint, true)?;
        if self.ends
            && let Some(eos) = self.tokenizer.eos_id()
            && ids.last() != Some(&eos)
        {
            ids.push(eos);
        }
        let (mut border, mut differs) = (0, false);
        if let Some(prompt) = prompt {
            let alone = self.tokenizer.encode_with_offsets(prompt, true)?.without_closing_specials();
            differs = !ids.starts_with(&alone);
            border = alone.len().min(ids.len());
        }
        let masked = if self.completion_only(prompt.is_some()) { border } else { 0 };
        let mask = (0..ids.len()).map(|t| t >= masked).collect();
        let reference = prompt.map(|prompt| Reference {
            prompt: prompt.to_owned(),
            completion: text.to_owned(),
            is_chat: false,
        });
        Ok(self.finish(ids, mask, border, reference, differs))
    }

    fn chat(&self, messages: &[Json], tools: Option<&Json>) -> Result<Prepared> {
        if self.options.completion_only_loss == Some(true) {
            return Err(no_completion());
        }
        let template = self.template()?;
        let rendered = if self.options.assistant_only_loss {
            template.render_with_assistant(messages, tools)?
        } else {
            crate::template::Rendered {
                text: template.render(messages, tools, false)?,
                assistant: Vec::new(),
            }
        };
        let encoded = self.tokenizer.encode_with_offsets(&rendered.text, false)?;
        let mask = if self.options.assistant_only_loss {
            let mask = tokens_inside(&encoded, &rendered.assistant);
            if !mask.contains(&true) {
                return Err(UserError::new("no token of this chat is the assistant's")
                    .help("give it a turn with the role `assistant`, or leave `assistant_only_loss` out")
                    .into());
            }
            mask
        } else {
            vec![true; encoded.ids.len()]
        };
        let reference = self.last_answer(messages, tools);
        Ok(self.finish(encoded.ids, mask, 0, reference, false))
    }

    fn chat_completion(
        &self,
        prompt: &[Json],
        completion: &[Json],
        tools: Option<&Json>,
    ) -> Result<Prepared> {
        let template = self.template()?;
        let all: Vec<Json> = prompt.iter().chain(completion).cloned().collect();
        let prompt_text = template.render(prompt, tools, true)?;
        let rendered = if self.options.assistant_only_loss {
            template.render_with_assistant(&all, tools)?
        } else {
            crate::template::Rendered { text: template.render(&all, tools, false)?, assistant: Vec::new() }
        };
        let encoded = self.tokenizer.encode_with_offsets(&rendered.text, false)?;
        let alone = self.tokenizer.encode(&prompt_text, false)?;
        let differs = !encoded.ids.starts_with(&alone);
        let border = alone.len().min(encoded.ids.len());
        let mut mask = if self.options.assistant_only_loss {
            tokens_inside(&encoded, &rendered.assistant)
        } else {
            vec![true; encoded.ids.len()]
        };
        if self.completion_only(true) {
            mask[..border].fill(false);
        }
        let completion = completion.iter().filter_map(content).collect::<Vec<_>>().join("\n");
        let reference = Some(Reference { prompt: prompt_text, completion, is_chat: true });
        Ok(self.finish(encoded.ids, mask, border, reference, differs))
    }

    fn completion_only(&self, has_prompt: bool) -> bool {
        self.options.completion_only_loss.unwrap_or(has_prompt)
    }

    fn template(&self) -> Result<&ChatTemplate> {
        Ok(self.template.as_ref().ok_or_else(|| {
            UserError::new("the data holds chats and the tokenizer has no chat template")
                .help("set `template = \"chatml\"`, or a `.jinja` file")
        })?)
    }

    /// The last turn and what comes before it, if the assistant has it.
    fn last_answer(&self, messages: &[Json], tools: Option<&Json>) -> Option<Reference> {
        let (last, before) = messages.split_last()?;
        if last.get("role")?.as_str()? != "assistant" {
            return None;
        }
        // A template may refuse a chat without its answer; then there is nothing to compare.
        let prompt = self.template.as_ref()?.render(before, tools, true).ok()?;
        Some(Reference { prompt, completion: content(last)?, is_chat: true })
    }

    fn finish(
        &self,
        mut ids: Vec<u32>,
        mask: Vec<bool>,
        mut prompt_len: usize,
        reference: Option<Reference>,
        prefix_differs: bool,
    ) -> Prepared {
        let mut labels: Vec<i64> =
            ids.iter().zip(&mask).map(|(id, on)| if *on { i64::from(*id) } else { IGNORED }).collect();
        let limit = self.options.max_length;
        // Split and wrapped packing keep every token; they cut rows, not examples.
        let keeps_all =
            self.options.packing && self.options.packing_strategy != crate::settings::Packing::Bfd;
        let truncated = limit > 0 && ids.len() > limit && !keeps_all;
        if truncated {
            match self.options.truncation_mode {
                Truncation::KeepStart => {
                    ids.truncate(limit);
                    labels.truncate(limit);
                }
                Truncation::KeepEnd => {
                    let cut = ids.len() - limit;
                    ids.drain(..cut);
                    labels.drain(..cut);
                    prompt_len = prompt_len.saturating_sub(cut);
                }
            }
            prompt_len = prompt_len.min(limit);
        }
        ids.shrink_to_fit();
        labels.shrink_to_fit();
        let example = Example { ids, labels, prompt_len, reference, target: Vec::new() };
        Prepared { example, rejected: None, truncated, prefix_differs }
    }
}

fn content(message: &Json) -> Option<String> {
    message.get("content")?.as_str().map(str::to_owned)
}

fn no_completion() -> anyhow::Error {
    UserError::new("`completion_only_loss` is set and this row has no prompt and completion")
        .help("leave it out; for chats there is `assistant_only_loss`")
        .into()
}

/// Which tokens overlap one of the spans of bytes; spans are in order.
fn tokens_inside(encoded: &Encoded, spans: &[Range<usize>]) -> Vec<bool> {
    let mut next = 0;
    encoded
        .offsets
        .iter()
        .map(|&(start, end)| {
            while next < spans.len() && spans[next].end <= start {
                next += 1;
            }
            next < spans.len() && start < end && end > spans[next].start
        })
        .collect()
}

#[cfg(test)]
#[path = "example_tests.rs"]
mod tests;
