//! Prompts to tokens: a decoder over models with caches.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use ramekin_core::{Array, Category, Rng, UserError};
use ramekin_data::Tokenizer;
use ramekin_slots::{
    Decoder, FlatBatch, Forward, KvCache, KvPolicy, Line, Logits, Mode, ModelFacts, Other, Session, Stepper,
    Words,
};
use ramekin_tape::{Tape, Value};
use serde_json::json;

use crate::assembly::Assembly;
use crate::cache::{Room, cache};
use crate::hidden::hidden;

/// When generation ends besides the length.
pub struct Limits<'a> {
    /// Tokens made at most.
    pub max_new_tokens: usize,
    /// Ids that end a sequence; they are kept.
    pub eos: &'a [u32],
}

/// How tokens are made.
pub struct Generator<'a> {
    /// The model, with the others that the decoder runs beside it.
    pub assembly: &'a Assembly,
    /// Logits to tokens.
    pub decoder: &'a dyn Decoder,
    /// What the caches keep; without one every step runs the whole sequence again.
    pub kv: Option<&'a dyn KvPolicy>,
    /// The run's randomness.
    pub rng: Rng,
    /// Adapters take part.
    pub adapters: bool,
}

/// What was made.
#[derive(Clone, Debug, Default)]
pub struct Generated {
    /// Each prompt's ids with what follows.
    pub ids: Vec<Vec<u32>>,
    /// What the decoder wants to be known.
    pub figures: Vec<(&'static str, f64)>,
    /// Time of the forwards over prompts, of all models.
    pub prefill: Duration,
}

impl Generator<'_> {
    /// Goes on from each prompt; results contain the prompts. `each` sees every
    /// new token as it is settled: the sequence's number and the id.
    ///
    /// # Errors
    /// If a prompt is empty.
    pub fn run(
        &self,
        prompts: &[Vec<u32>],
        limits: &Limits<'_>,
        each: &mut dyn FnMut(usize, u32),
    ) -> Result<Generated> {
        ensure!(prompts.iter().all(|p| !p.is_empty()), "a prompt is empty");
        let words = self.assembly.tokenizer.as_deref().map(Text);
        let words = words.as_ref().map(|w| w as &dyn Words);
        let mut others = BTreeMap::new();
        let prefill = Rc::new(Cell::new(Duration::ZERO));
        for (name, _) in self.decoder.models() {
            let Some(assembly) = self.assembly.companions.get(&name) else { continue };
            let wrap = |p: &Vec<u32>| self.decoder.wrap(&name, p, words);
            let prompts = prompts.iter().map(wrap).collect::<Result<Vec<_>>>()?;
            ensure!(prompts.iter().all(|p| !p.is_empty()), "a prompt of `{name}` is empty");
            let model = self.stepper(assembly, true, &prompts, 1, limits, &prefill)?;
            others.insert(name, Other { model, prompts });
        }
        let line = |p: &Vec<u32>| Line { ids: p.clone(), prompt: p.len(), done: false };
        let mut session = Session {
            lines: prompts.iter().map(line).collect(),
            max_new_tokens: limits.max_new_tokens,
            eos: limits.eos,
            rng: self.rng,
            model: self.stepper(
                self.assembly,
                self.adapters,
                prompts,
                self.decoder.branches(),
                limits,
                &prefill,
            )?,
            others,
            each,
            figures: Vec::new(),
        };
        self.decoder.decode(&mut session)?;
        let Session { lines, figures, .. } = session;
        Ok(Generated { ids: lines.into_iter().map(|l| l.ids).collect(), figures, prefill: prefill.get() })
    }

    fn stepper<'a>(
        &self,
        assembly: &'a Assembly,
        adapters: bool,
        prompts: &[Vec<u32>],
        branches: usize,
        limits: &Limits<'_>,
        prefill: &Rc<Cell<Duration>>,
    ) -> Result<Box<dyn Stepper + 'a>> {
        let longest = prompts.iter().map(Vec::len).max().unwrap_or(0);
        let lanes = prompts.len() * branches;
        let room = Room {
            sequences: lanes,
            prompt: longest,
            capacity: longest + limits.max_new_tokens,
            rollback: self.decoder.rollback(),
        };
        let cache = self.kv.map(|kv| cache(assembly, kv, adapters, room)).transpose()?.flatten();
        // Without a cache the last step is the largest.
        let stretch = match cache.is_none() && assembly.is_shape_only() {
            true => limits.max_new_tokens.saturating_sub(1),
            false => 0,
        };
        let (fed, prefill) = (vec![Vec::new(); lanes], prefill.clone());
        Ok(Box::new(Lanes { assembly, adapters, cache, fed, stretch, prefill }))
    }
}

/// A model with what its lanes have been fed.
struct Lanes<'a> {
    assembly: &'a Assembly,
    adapters: bool,
    cache: Option<Rc<RefCell<dyn KvCache>>>,
    fed: Vec<Vec<u32>>,
    /// Tokens that a plan adds to what it is fed.
    stretch: usize,
    /// Where the time over prompts is summed.
    prefill: Rc<Cell<Duration>>,
}

impl Stepper for Lanes<'_> {
    fn facts(&self) -> &ModelFacts {
        self.assembly.model.facts()
    }

    fn feed(&mut self, new: &[&[u32]], keep: usize) -> Result<Logits> {
        ensure!(new.len() == self.fed.len(), "tokens for {} of {} lanes", new.len(), self.fed.len());
        let begun = Instant::now();
        let is_prompt = self.fed.iter().zip(new).any(|(lane, new)| lane.is_empty() && !new.is_empty());
        let (mut ids, mut positions, mut segments) = (Vec::new(), Vec::new(), Vec::new());
        let (mut kept, mut first) = (Vec::new(), vec![0]);
        for (lane, new) in self.fed.iter_mut().zip(new) {
            let before = if self.cache.is_some() { lane.len() } else { 0 };
            lane.extend_from_slice(new);
            if !new.is_empty() {
                lane.resize(lane.len() + self.stretch, 0);
            }
            let begin = ids.len();
            if !new.is_empty() {
                ids.extend_from_slice(&lane[before..]);
                positions.extend(before as u32..lane.len() as u32);
                kept.extend(ids.len() - keep.min(new.len())..ids.len());
            }
            segments.push(begin..ids.len());
            first.push(kept.len());
        }
        let batch = FlatBatch {
            ids: ids.into(),
            positions: positions.into(),
            segments: segments.into(),
            images: None,
        };
        let mode = Mode { adapters: self.adapters, ..Mode::inference() };
        let mut fx = Forward::new(Tape::off(), self.assembly.sites.clone(), batch, mode);
        if let Some(cache) = &self.cache {
            fx = fx.with_cache(cache.clone());
        }
        let h = hidden(&self.assembly.model, &fx, None)?;
        let logits = self.assembly.model.head(&fx, &rows(&h, &kept)?)?;
        if is_prompt {
            self.prefill.set(self.prefill.get() + begun.elapsed());
        }
        Ok(Logits { array: logits.into_array(), first })
    }

    fn seen(&self, lane: usize) -> usize {
        self.fed[lane].len()
    }

    fn truncate(&mut self, lane: usize, seen: usize) -> Result<()> {
        if let Some(cache) = &self.cache {
            let around = self.assembly.sites.around();
            let rows = if self.adapters { around.tokens() - around.prefix_tokens() } else { 0 };
            // A cache has also seen the virtual tokens before the real ones.
            cache.borrow_mut().truncate(lane, if seen == 0 { 0 } else { rows + seen })?;
        }
        self.fed[lane].truncate(seen);
        Ok(())
    }

    fn reorder(&mut self, from: &[usize]) -> Result<()> {
        if let Some(cache) = &self.cache {
            cache.borrow_mut().reorder(from)?;
        }
        self.fed = from.iter().map(|i| self.fed[*i].clone()).collect();
        Ok(())
    }
}

/// These rows of hidden states.
fn rows(h: &Value, kept: &[usize]) -> Result<Value> {
    let (_, d) = h.array().rows();
    let shape_only = h.array().is_shape_only();
    let rows = Array::build::<f32>(&[kept.len(), d], shape_only, Category::Workspace, |out| {
        let numbers = h.array().view::<f32>()?;
        for (row, at) in out.chunks_mut(d).zip(kept) {
            row.copy_from_slice(&numbers[at * d..(at + 1) * d]);
        }
        Ok(())
    })?;
    Ok(Value::constant(rows))
}

/// A tokenizer as decoders see it.
pub(crate) struct Text<'a>(pub &'a Tokenizer);

impl Words for Text<'_> {
    fn encode(&self, text: &str) -> Result<Vec<u32>> {
        prompt_ids(self.0, text, false)
    }

    fn decode(&self, ids: &[u32]) -> Result<String> {
        self.0.decode(ids, true)
    }
}

/// The ids that a text begins with: as it stands, or as the user's turn of a chat.
///
/// # Errors
/// If a chat is wanted and the tokenizer has no template.
pub fn prompt_ids(tokenizer: &Tokenizer, text: &str, chat: bool) -> Result<Vec<u32>> {
    if !chat {
        return Ok(tokenizer.encode_with_offsets(text, true)?.without_closing_specials());
    }
    let template = tokenizer.chat_template()?.ok_or_else(|| {
        UserError::new("`chat` is set and the tokenizer has no chat template").help("leave `chat` out")
    })?;
    let rendered = template.render(&[json!({ "role": "user", "content": text })], None, true)?;
    tokenizer.encode(&rendered, false)
}
