//! Making a tokenizer: byte-level pairs learned from text, or one token a character.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;
use ramekin_core::{BadSetting, UserError};
use serde_json::{Map, Value as Json, json};
use tokenizers::decoders::DecoderWrapper;
use tokenizers::decoders::byte_level::ByteLevel as ByteLevelDecoder;
use tokenizers::models::TrainerWrapper;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::processors::PostProcessorWrapper;
use tokenizers::processors::template::TemplateProcessing;
use tokenizers::{AddedToken, Tokenizer as Inner};

use crate::tokenizer::Tokenizer;

/// How a byte-level BPE tokenizer is learned.
#[derive(Clone, Debug)]
pub struct BpeTraining {
    /// Tokens at most, special ones and the 256 bytes included.
    pub vocab_size: usize,
    /// Special tokens by their Hugging Face names (`bos_token`, `eos_token`, `pad_token`); they get the first ids.
    pub special_tokens: BTreeMap<String, String>,
    /// Further special tokens, such as a template's markers.
    pub more_special_tokens: Vec<String>,
    /// Whether texts begin with `bos_token` when encoded with specials.
    pub add_bos: bool,
    /// Whether every digit is a token of its own, which makes sums learnable.
    pub split_digits: bool,
    /// How often a pair must occur to be merged.
    pub min_frequency: u64,
}

impl Default for BpeTraining {
    fn default() -> Self {
        let named = |key: &str, token: &str| (key.to_owned(), token.to_owned());
        BpeTraining {
            vocab_size: 1024,
            special_tokens: BTreeMap::from([named("bos_token", "<s>"), named("eos_token", "</s>")]),
            more_special_tokens: Vec::new(),
            add_bos: true,
            split_digits: true,
            min_frequency: 2,
        }
    }
}

impl Tokenizer {
    /// Learns byte-level pairs from texts. The same texts give the same tokenizer, for any number of threads.
    ///
    /// # Errors
    /// A vocabulary too small for the bytes and special tokens; `add_bos` without `bos_token`.
    pub fn train_bpe(texts: impl Iterator<Item = String> + Send, how: &BpeTraining) -> Result<Self> {
        let mut specials: Vec<String> = Vec::new();
        for token in how.special_tokens.values().chain(&how.more_special_tokens) {
            if !specials.contains(token) {
                specials.push(token.clone());
            }
        }
        let least = 256 + specials.len();
        if how.vocab_size < least {
            let why = format!(
                "is {}; 256 bytes and {} special tokens need {least}",
                how.vocab_size,
                specials.len()
            );
            return Err(BadSetting::new("vocab_size", why).into());
        }
        let bytes = ByteLevel::new(false, true, true);
        let mut inner = Inner::new(BPE::default());
        inner.with_pre_tokenizer(Some(if how.split_digits {
            let steps =
                vec![PreTokenizerWrapper::Digits(Digits::new(true)), PreTokenizerWrapper::ByteLevel(bytes)];
            PreTokenizerWrapper::Sequence(Sequence::new(steps))
        } else {
            PreTokenizerWrapper::ByteLevel(bytes)
        }));
        inner.with_decoder(Some(DecoderWrapper::ByteLevel(ByteLevelDecoder::default())));
        let trainer = BpeTrainer::builder()
            .vocab_size(how.vocab_size)
            .min_frequency(how.min_frequency)
            .show_progress(false)
            .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
            .special_tokens(specials.iter().map(|t| AddedToken::from(t.clone(), true)).collect())
            .build();
        inner
            .train(&mut TrainerWrapper::BpeTrainer(trainer), texts)
            .map_err(|e| anyhow::anyhow!("the tokenizer cannot be trained: {e}"))?;
        if how.add_bos {
            let bos = how.special_tokens.get("bos_token");
            let bos = bos
                .ok_or_else(|| BadSetting::new("add_bos", "needs a `bos_token` among the special tokens"))?;
            let id = inner.token_to_id(bos).unwrap_or_default();
            let template = TemplateProcessing::builder()
                .try_single(format!("{bos} $A"))
                .and_then(|b| b.try_pair(format!("{bos} $A $B")))
                .map_err(|e| anyhow::anyhow!("`{bos}` cannot be a BOS token: {e}"))?
                .special_tokens(vec![(bos.clone(), id)])
                .build()?;
            inner.with_post_processor(Some(PostProcessorWrapper::Template(template)));
        }
        Tokenizer::new(inner, how.special_tokens.clone())
    }

    /// One token for each character of the text, in order of the characters.
    ///
    /// It is an ordinary `tokenizer.json` (word level, split at each
    /// character), so that other libraries load it. It knows no other
    /// character and no special token.
    ///
    /// # Errors
    /// If the text is empty.
    pub fn characters(text: &str) -> Result<Self> {
        let characters: BTreeSet<char> = text.chars().collect();
        if characters.is_empty() {
            return Err(UserError::new("a character tokenizer needs text, and there is none").into());
        }
        let vocab: Map<String, Json> =
            characters.iter().enumerate().map(|(id, c)| (c.to_string(), Json::from(id))).collect();
        let file = json!({
            "version": "1.0",
            "truncation": null,
            "padding": null,
            "added_tokens": [],
            "normalizer": null,
            "pre_tokenizer": {
                "type": "Split", "pattern": { "Regex": "[\\s\\S]" }, "behavior": "Isolated", "invert": false
            },
            "post_processor": null,
            "decoder": { "type": "Fuse" },
            // A word-level model names an unknown token; as it is no token, unknown characters are refused.
            "model": { "type": "WordLevel", "vocab": vocab, "unk_token": "<unk>" }
        });
        let inner = Inner::from_bytes(serde_json::to_vec(&file)?)
            .map_err(|e| anyhow::anyhow!("the character tokenizer cannot be made: {e}"))?;
        Tokenizer::new(inner, BTreeMap::new())
    }
}
