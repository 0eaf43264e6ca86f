//! Prompts to tokens, with a cache.

use anyhow::{Result, ensure};
use ramekin_core::{Array, Category, Draws, Rng, UserError};
use ramekin_data::Tokenizer;
use ramekin_slots::{Decoder, Draft, FlatBatch, Forward, KvPolicy, KvShape, Mode};
use ramekin_tape::{Tape, Value};
use serde_json::json;

use crate::assembly::Assembly;
use crate::step::hidden;

/// When generation ends besides the length.
pub struct Limits<'a> {
    /// Tokens made at most.
    pub max_new_tokens: usize,
    /// Ids that end a sequence; they are kept.
    pub eos: &'a [u32],
}

/// How tokens are made.
pub struct Generator<'a> {
    /// The model.
    pub assembly: &'a Assembly,
    /// Logits to token.
    pub decoder: &'a dyn Decoder,
    /// What the cache keeps; without one every step runs the whole sequence again.
    pub kv: Option<&'a dyn KvPolicy>,
    /// The run's randomness.
    pub rng: Rng,
    /// Adapters take part.
    pub adapters: bool,
}

struct Sequence {
    ids: Vec<u32>,
    done: bool,
}

impl Generator<'_> {
    /// Goes on from each prompt; results contain the prompts. `each` sees every
    /// new token as it comes: the sequence's number and the id.
    ///
    /// # Errors
    /// If a prompt is empty.
    pub fn run(
        &self,
        prompts: &[Vec<u32>],
        limits: &Limits<'_>,
        each: &mut dyn FnMut(usize, u32),
    ) -> Result<Vec<Vec<u32>>> {
        ensure!(prompts.iter().all(|p| !p.is_empty()), "a prompt is empty");
        let facts = self.assembly.model.facts();
        let longest = prompts.iter().map(Vec::len).max().unwrap_or(0);
        let cache = self
            .kv
            .map(|kv| {
                let shape = KvShape::new(facts, prompts.len(), longest, longest + limits.max_new_tokens);
                kv.check(facts, shape)?;
                kv.cache(shape)
            })
            .transpose()?;
        let mut all: Vec<Sequence> =
            prompts.iter().map(|p| Sequence { ids: p.clone(), done: false }).collect();
        for step in 0..limits.max_new_tokens {
            let batch = next_batch(&all, cache.is_some() && step > 0);
            let ends: Vec<Option<usize>> =
                batch.segments.iter().map(|s| (!s.is_empty()).then(|| s.end - 1)).collect();
            let mode = Mode { adapters: self.adapters, ..Mode::inference() };
            let mut fx = Forward::new(Tape::off(), self.assembly.sites.clone(), batch, mode);
            if let Some(cache) = &cache {
                fx = fx.with_cache(cache.clone());
            }
            let h = hidden(&self.assembly.model, &fx, None)?;
            let logits = self.assembly.model.head(&fx, &last_rows(&h, &ends)?)?;
            if logits.array().is_shape_only() {
                break; // a plan needs no more: the cache is whole and later forwards are smaller
            }
            let v = facts.vocab_size;
            let logits = logits.array().view::<f32>()?;
            let mut row = 0;
            for (i, sequence) in all.iter_mut().enumerate() {
                if ends[i].is_none() {
                    continue;
                }
                let draft = Draft { logits: &logits[row * v..(row + 1) * v], ids: &sequence.ids };
                row += 1;
                let stream = self.rng.stream(&format!("decode/{i}"), step as u64);
                let id = self.decoder.next(&draft, &mut Draws::new(stream));
                sequence.ids.push(id);
                sequence.done = limits.eos.contains(&id);
                each(i, id);
            }
            if all.iter().all(|s| s.done) {
                break;
            }
        }
        Ok(all.into_iter().map(|s| s.ids).collect())
    }
}

/// What runs next: with a filled cache the newest token of each unfinished
/// sequence, else the whole of it.
fn next_batch(all: &[Sequence], newest_only: bool) -> FlatBatch {
    let (mut ids, mut positions, mut segments) = (Vec::new(), Vec::new(), Vec::new());
    for s in all {
        let from = if newest_only { s.ids.len() - 1 } else { 0 };
        let first = ids.len();
        if !s.done {
            ids.extend_from_slice(&s.ids[from..]);
            positions.extend(from as u32..s.ids.len() as u32);
        }
        segments.push(first..ids.len());
    }
    FlatBatch { ids: ids.into(), positions: positions.into(), segments: segments.into() }
}

fn last_rows(h: &Value, ends: &[Option<usize>]) -> Result<Value> {
    let (_, d) = h.array().rows();
    let count = ends.iter().flatten().count();
    let shape_only = h.array().is_shape_only();
    let rows = Array::build::<f32>(&[count, d], shape_only, Category::Workspace, |out| {
        let numbers = h.array().view::<f32>()?;
        for (row, end) in out.chunks_mut(d).zip(ends.iter().flatten()) {
            row.copy_from_slice(&numbers[end * d..(end + 1) * d]);
        }
        Ok(())
    })?;
    Ok(Value::constant(rows))
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
