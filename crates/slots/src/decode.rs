//! Decoding: from prompts to tokens, with one model or several.
//!
//! A decoder drives a [`Session`]: it feeds tokens to models, sees logits, and says which tokens come. Most
//! pick one token after the other and need [`Session::token_by_token`] alone.

use std::collections::BTreeMap;

use anyhow::Result;
use ramekin_core::{Array, Draws, Rng, View};

use crate::{ModelFacts, ModelRef};

/// What a decoder sees of a sequence at one step.
pub struct Draft<'a> {
    /// Logits of the next token, `[V]`.
    pub logits: &'a [f32],
    /// The ids so far, prompt included.
    pub ids: &'a [u32],
}

/// Makes tokens.
pub trait Decoder {
    /// Holds against each other what the settings say together, before anything is loaded.
    ///
    /// # Errors
    /// [`ramekin_core::BadSetting`], such as a model that is needed and not named.
    fn check(&self) -> Result<()> {
        Ok(())
    }

    /// What another model is given in the place of a prompt.
    ///
    /// # Errors
    /// If text is needed and there is no tokenizer.
    fn wrap(&self, model: &str, prompt: &[u32], words: Option<&dyn Words>) -> Result<Vec<u32>> {
        let _ = (model, words);
        Ok(prompt.to_vec())
    }

    /// Further models that it runs, by the setting that names each.
    fn models(&self) -> Vec<(String, ModelRef)> {
        Vec::new()
    }

    /// Lanes of the model in work for each prompt.
    fn branches(&self) -> usize {
        1
    }

    /// Newest tokens of a lane that it may take back.
    fn rollback(&self) -> usize {
        0
    }

    /// Goes on from every prompt of the session.
    ///
    /// # Errors
    /// Faults of a forward.
    fn decode(&self, session: &mut Session<'_>) -> Result<()>;
}

/// A model with a cache of several sequences, its lanes.
pub trait Stepper {
    /// The model's sizes.
    fn facts(&self) -> &ModelFacts;

    /// Adds tokens to lanes, none to some, and gives the logits of each lane's last `keep` new tokens (of
    /// all where it has fewer).
    fn feed(&mut self, new: &[&[u32]], keep: usize) -> Result<Logits>;

    /// Tokens that a lane has been fed.
    fn seen(&self, lane: usize) -> usize;

    /// Takes back a lane's newest tokens until it has been fed this many.
    ///
    /// # Errors
    /// If the cache cannot.
    fn truncate(&mut self, lane: usize, seen: usize) -> Result<()>;

    /// Makes lane i a copy of what was lane `from[i]`.
    fn reorder(&mut self, from: &[usize]) -> Result<()>;
}

/// Logits of the tokens that a feed kept.
pub struct Logits {
    /// `[rows, V]`, lane after lane.
    pub array: Array,
    /// First row of each lane, and the end.
    pub first: Vec<usize>,
}

impl Logits {
    /// The numbers; `None` where there are only shapes.
    pub fn read(&self) -> Result<Option<LogitRows<'_>>> {
        if self.array.is_shape_only() {
            return Ok(None);
        }
        let vocabulary = self.array.rows().1;
        Ok(Some(LogitRows { numbers: self.array.view::<f32>()?, vocabulary, first: &self.first }))
    }
}

/// A look at logits.
pub struct LogitRows<'a> {
    numbers: View<'a, f32>,
    vocabulary: usize,
    first: &'a [usize],
}

impl LogitRows<'_> {
    /// How many tokens of a lane were kept.
    pub fn count(&self, lane: usize) -> usize {
        self.first[lane + 1] - self.first[lane]
    }

    /// Logits after the i-th kept token of a lane, `[V]`.
    pub fn row(&self, lane: usize, i: usize) -> &[f32] {
        let at = (self.first[lane] + i) * self.vocabulary;
        &self.numbers[at..at + self.vocabulary]
    }
}

/// Text to tokens and back, where the model has a tokenizer.
pub trait Words {
    /// Token ids of a prompt.
    fn encode(&self, text: &str) -> Result<Vec<u32>>;
    /// Text of token ids.
    fn decode(&self, ids: &[u32]) -> Result<String>;
}

/// One sequence in the making.
pub struct Line {
    /// Its ids, prompt included.
    pub ids: Vec<u32>,
    /// Tokens of the prompt.
    pub prompt: usize,
    /// Whether it has come to an end.
    pub done: bool,
}

/// Another model, with what it is given in the place of the prompts.
pub struct Other<'a> {
    /// The model.
    pub model: Box<dyn Stepper + 'a>,
    /// Its prompt of each line.
    pub prompts: Vec<Vec<u32>>,
}

/// Prompts, models and limits of one decoding.
pub struct Session<'a> {
    /// The sequences, prompt by prompt.
    pub lines: Vec<Line>,
    /// Tokens made at most of each.
    pub max_new_tokens: usize,
    /// Ids that end a sequence; they are kept.
    pub eos: &'a [u32],
    /// The run's randomness.
    pub rng: Rng,
    /// The model in work; lane `i · branches` is line i's first.
    pub model: Box<dyn Stepper + 'a>,
    /// The models that [`Decoder::models`] named, a lane a line.
    pub others: BTreeMap<String, Other<'a>>,
    /// Sees every token as it is settled: the line's number and the id.
    pub each: &'a mut dyn FnMut(usize, u32),
    /// What the decoder wants to be known: name and value.
    pub figures: Vec<(&'static str, f64)>,
}

impl Session<'_> {
    /// Adds a token to a line and ends it where that is due.
    pub fn settle(&mut self, line: usize, id: u32) {
        let l = &mut self.lines[line];
        l.ids.push(id);
        l.done = self.eos.contains(&id) || l.ids.len() >= l.prompt + self.max_new_tokens;
        (self.each)(line, id);
    }

    /// Whether every line has come to its end.
    pub fn is_done(&self) -> bool {
        self.lines.iter().all(|l| l.done)
    }

    /// Draws that belong to a line and a token's number alone.
    pub fn draws(&self, line: usize, step: usize) -> Draws {
        Draws::new(self.rng.stream(&format!("decode/{line}"), step as u64))
    }

    /// Feeds the newest tokens of each line and lets `pick` say the next, until all have ended.
    pub fn token_by_token(&mut self, pick: &mut dyn FnMut(&Draft<'_>, &mut Draws) -> u32) -> Result<()> {
        for step in 0..self.max_new_tokens {
            let fresh = |(i, l): (usize, &Line)| match l.done {
                true => l.ids.len()..l.ids.len(),
                false => self.model.seen(i)..l.ids.len(),
            };
            let spans: Vec<_> = self.lines.iter().enumerate().map(fresh).collect();
            let new: Vec<&[u32]> = self.lines.iter().zip(spans).map(|(l, s)| &l.ids[s]).collect();
            let logits = self.model.feed(&new, 1)?;
            // A plan needs no more: the cache is whole and later forwards are smaller.
            let Some(rows) = logits.read()? else { return Ok(()) };
            for i in 0..self.lines.len() {
                if rows.count(i) == 0 {
                    continue;
                }
                let draft = Draft { logits: rows.row(i, 0), ids: &self.lines[i].ids };
                let id = pick(&draft, &mut self.draws(i, step));
                self.settle(i, id);
            }
            if self.is_done() {
                break;
            }
        }
        Ok(())
    }
}
