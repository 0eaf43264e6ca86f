//! A tokenizer in Hugging Face's layout: ids to text and back, the ids of the
//! special tokens, and the chat template that belongs to it.
//!
//! | file | gives |
//! |---|---|
//! | `tokenizer.json` | the tokens and how text is cut |
//! | `tokenizer_config.json`, `special_tokens_map.json` | which tokens are BOS, EOS, PAD, UNK |
//! | `generation_config.json`, `config.json` | further end ids, ids where no token is named |
//! | `chat_template.jinja`, `chat_template.json`, `chat_template` in `tokenizer_config.json` | templates, by name |
//!
//! Truncation and padding that a `tokenizer.json` carries are switched off:
//! here lengths are the recipe's business.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Result;
use ramekin_core::UserError;
use serde_json::{Map, Value as Json, json};
use tokenizers::Tokenizer as Inner;

use crate::pieces::Cuts;
use crate::template::ChatTemplate;

/// Names of the special tokens a template may ask for.
const SPECIALS: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token"];

/// Token ids with the bytes of the text each stands for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Encoded {
    /// Token ids.
    pub ids: Vec<u32>,
    /// Start and end of each token in bytes of the text; equal for tokens that were added.
    pub offsets: Vec<(usize, usize)>,
    /// Whether the tokenizer added the token.
    pub added: Vec<bool>,
}

impl Encoded {
    /// The ids without what the tokenizer adds behind the text, so that something may follow.
    pub fn without_closing_specials(mut self) -> Vec<u32> {
        // An empty text has openings only; keep them.
        let closing = self.added.iter().rev().take_while(|a| **a).count();
        if closing < self.ids.len() {
            self.ids.truncate(self.ids.len() - closing);
        }
        self.ids
    }
}

/// A tokenizer with its special tokens and chat templates.
#[derive(Clone, Debug)]
pub struct Tokenizer {
    pub(crate) inner: Inner,
    /// Where long texts are cut.
    cuts: Cuts,
    /// What `tokenizer_config.json` said, without the chat template.
    pub(crate) config: Map<String, Json>,
    /// Special tokens by their Hugging Face name.
    pub(crate) specials: BTreeMap<String, String>,
    bos: Option<u32>,
    eos: Vec<u32>,
    pad: Option<u32>,
    /// Chat templates by name; the ordinary one is `default`.
    templates: BTreeMap<String, String>,
    /// Where it came from, for messages.
    name: String,
}

impl Tokenizer {
    /// Loads from a model folder.
    ///
    /// # Errors
    /// A missing or broken `tokenizer.json`, a broken file beside it, a special token that is no token.
    pub fn from_folder(folder: &Path) -> Result<Self> {
        if !folder.join("tokenizer.json").is_file() {
            let error = UserError::new("the folder has no `tokenizer.json`").in_file(folder);
            let slow = ["tokenizer.model", "vocab.json", "spiece.model"]
                .into_iter()
                .find(|f| folder.join(f).is_file());
            return Err(match slow {
                Some(f) => error.help(format!(
                    "`{f}` is an older format; transformers writes `tokenizer.json` with `save_pretrained`"
                )),
                None => error.help("give a folder that has one as the model's `tokenizer`"),
            }
            .into());
        }
        Self::from_files(&folder.display().to_string(), |file| {
            let path = folder.join(file);
            if !path.is_file() {
                return Ok(None);
            }
            std::fs::read(&path)
                .map(Some)
                .map_err(|e| UserError::new(format!("cannot read the file: {e}")).in_file(path).into())
        })
    }

    /// Loads from files by name, wherever they are kept; `read` answers `None` for a file that is not there.
    ///
    /// # Errors
    /// As for [`Tokenizer::from_folder`].
    pub fn from_files(name: &str, read: impl Fn(&str) -> Result<Option<Vec<u8>>>) -> Result<Self> {
        let at = |file: &str| Path::new(name).join(file);
        let bytes = read("tokenizer.json")?
            .ok_or_else(|| UserError::new("there is no `tokenizer.json`").in_file(name))?;
        let inner = Inner::from_bytes(&bytes).map_err(|e| {
            UserError::new(format!("the tokenizer cannot be read: {e}")).in_file(at("tokenizer.json"))
        })?;
        let object = |file: &str| -> Result<Map<String, Json>> {
            let Some(bytes) = read(file)? else {
                return Ok(Map::new());
            };
            match serde_json::from_slice(&bytes) {
                Ok(Json::Object(map)) => Ok(map),
                Ok(_) => Err(UserError::new("the file is not a JSON object").in_file(at(file)).into()),
                Err(e) => Err(UserError::new(format!("the file is not JSON: {e}"))
                    .at_line(at(file), e.line())
                    .into()),
            }
        };
        let mut config = object("tokenizer_config.json")?;
        let map = object("special_tokens_map.json")?;
        let generation = object("generation_config.json")?;
        let model = object("config.json")?;
        let mut templates = templates_of(config.shift_remove("chat_template"));
        templates.extend(templates_of(object("chat_template.json")?.shift_remove("chat_template")));
        if let Some(bytes) = read("chat_template.jinja")? {
            let text = String::from_utf8(bytes).map_err(|_| {
                UserError::new("the template is not UTF-8").in_file(at("chat_template.jinja"))
            })?;
            templates.insert("default".to_owned(), text);
        }
        let specials = SPECIALS
            .iter()
            .filter_map(|key| {
                let token = [&config, &map].into_iter().find_map(|m| token_text(m.get(*key)?))?;
                Some(((*key).to_owned(), token))
            })
            .collect();
        let ids = |key: &str| {
            let mut ids = id_list(generation.get(key));
            // Older folders keep them in the model's own config.
            ids.extend(id_list(model.get(key)));
            ids
        };
        let mut this = Tokenizer { name: name.to_owned(), ..Self::new(inner, specials)? };
        this.eos.extend(ids("eos_token_id"));
        dedup(&mut this.eos);
        this.bos = this.bos.or(ids("bos_token_id").first().copied());
        this.pad = this.pad.or(ids("pad_token_id").first().copied());
        this.config = config;
        this.templates = templates;
        Ok(this)
    }

    /// A tokenizer of these parts.
    pub(crate) fn new(mut inner: Inner, specials: BTreeMap<String, String>) -> Result<Self> {
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|e| anyhow::anyhow!("{e}"))?;
        let id = |key: &str| specials.get(key).and_then(|t| inner.token_to_id(t));
        let cuts = Cuts::of(&inner);
        let (bos, eos, pad) = (id("bos_token"), id("eos_token"), id("pad_token"));
        Ok(Tokenizer {
            inner,
            cuts,
            config: Map::new(),
            specials,
            bos,
            eos: eos.into_iter().collect(),
            pad,
            templates: BTreeMap::new(),
            name: "tokenizer".to_owned(),
        })
    }

    /// The ids of a text. `specials` adds what the tokenizer puts around a text, such as BOS.
    ///
    /// # Errors
    /// Text the tokenizer has no token for, naming the first such character.
    pub fn encode(&self, text: &str, specials: bool) -> Result<Vec<u32>> {
        let pieces = self.cuts.cut(text);
        let [one] = pieces[..] else { return self.encode_pieces(&pieces, specials) };
        match self.inner.encode_fast(one, specials) {
            Ok(encoding) => Ok(encoding.get_ids().to_vec()),
            Err(e) => Err(self.cannot(one, e)),
        }
    }

    /// The pieces one after the other, within what specials stand around any text.
    fn encode_pieces(&self, pieces: &[&str], specials: bool) -> Result<Vec<u32>> {
        let first = pieces.iter().find_map(|p| p.chars().next()).unwrap_or('a').to_string();
        let (bare, around) = (self.encode(&first, false)?, self.encode(&first, specials)?);
        let start = around.windows(bare.len().max(1)).position(|w| w == bare).unwrap_or(0);
        let mut ids = around[..start].to_vec();
        for piece in pieces {
            ids.extend(self.encode(piece, false)?);
        }
        ids.extend_from_slice(&around[start + bare.len()..]);
        Ok(ids)
    }

    /// The same with the place of each token in the text.
    ///
    /// # Errors
    /// As for [`Tokenizer::encode`].
    pub fn encode_with_offsets(&self, text: &str, specials: bool) -> Result<Encoded> {
        let encoding = self.inner.encode(text, specials).map_err(|e| self.cannot(text, e))?;
        Ok(Encoded {
            ids: encoding.get_ids().to_vec(),
            offsets: encoding.get_offsets().to_vec(),
            added: encoding.get_special_tokens_mask().iter().map(|m| *m == 1).collect(),
        })
    }

    fn cannot(&self, text: &str, error: tokenizers::Error) -> anyhow::Error {
        let unknown = text.chars().find(|c| self.inner.encode_fast(c.to_string(), false).is_err());
        match unknown {
            Some(c) => UserError::new(format!("the tokenizer has no token for the character {c:?}"))
                .in_file(&self.name)
                .help("train a tokenizer on text that has it, or take it out of the text")
                .into(),
            None => {
                UserError::new(format!("the text cannot be tokenised: {error}")).in_file(&self.name).into()
            }
        }
    }

    /// The text of ids, without special tokens if `skip_specials`. Ids that are no token are left out.
    ///
    /// # Errors
    /// If the tokenizer's decoder fails.
    pub fn decode(&self, ids: &[u32], skip_specials: bool) -> Result<String> {
        self.inner.decode(ids, skip_specials).map_err(|e| anyhow::anyhow!("cannot turn ids into text: {e}"))
    }

    /// The id of a token.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// The token of an id, as the vocabulary writes it.
    pub fn token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// One more than the largest id: the rows an embedding needs at least.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab(true).values().max().map_or(0, |id| *id as usize + 1)
    }

    /// The token that begins a text, if there is one.
    pub fn bos_id(&self) -> Option<u32> {
        self.bos
    }

    /// The token that ends a text: what training appends.
    pub fn eos_id(&self) -> Option<u32> {
        self.eos.first().copied()
    }

    /// All tokens at which generation stops; [`Tokenizer::eos_id`] is the first.
    pub fn eos_ids(&self) -> &[u32] {
        &self.eos
    }

    /// The token for padding, if there is one.
    pub fn pad_id(&self) -> Option<u32> {
        self.pad
    }

    /// Where the tokenizer came from.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The chat template, ready to render; `None` if there is none.
    ///
    /// # Errors
    /// If it does not parse.
    pub fn chat_template(&self) -> Result<Option<ChatTemplate>> {
        let Some(source) = self.templates.get("default").or_else(|| self.templates.values().next()) else {
            return Ok(None);
        };
        let mut template =
            ChatTemplate::new(&format!("{}/chat_template", self.name), source, &self.specials)?;
        if let Some(tools) = self.templates.get("tool_use") {
            let tools =
                ChatTemplate::new(&format!("{}/chat_template.tool_use", self.name), tools, &self.specials)?;
            template = template.with_tools(tools);
        }
        Ok(Some(template))
    }

    /// Sets the ordinary chat template; it is saved with the tokenizer.
    pub fn set_chat_template(&mut self, source: impl Into<String>) {
        self.templates.insert("default".to_owned(), source.into());
    }

    /// Special tokens by their Hugging Face names (`bos_token` …).
    pub fn special_tokens(&self) -> &BTreeMap<String, String> {
        &self.specials
    }

    /// Writes the folder's tokenizer files; others in it are left alone.
    ///
    /// # Errors
    /// If the folder cannot be made or written.
    pub fn save(&self, folder: &Path) -> Result<()> {
        std::fs::create_dir_all(folder)?;
        for (file, bytes) in self.to_files()? {
            std::fs::write(folder.join(file), bytes)?;
        }
        Ok(())
    }

    /// The files that [`Tokenizer::save`] writes, by name.
    ///
    /// # Errors
    /// If the tokenizer cannot be written as JSON.
    pub fn to_files(&self) -> Result<Vec<(&'static str, Vec<u8>)>> {
        let json =
            self.inner.to_string(true).map_err(|e| anyhow::anyhow!("cannot write the tokenizer: {e}"))?;
        let mut config = self.config.clone();
        config.entry("tokenizer_class").or_insert_with(|| json!("PreTrainedTokenizerFast"));
        config.entry("clean_up_tokenization_spaces").or_insert(json!(false));
        for (key, token) in &self.specials {
            config.entry(key.as_str()).or_insert_with(|| json!(token));
        }
        let named: Vec<Json> = self
            .templates
            .iter()
            .filter(|(name, _)| *name != "default")
            .map(|(name, template)| json!({ "name": name, "template": template }))
            .collect();
        let default = self.templates.get("default");
        if !named.is_empty() {
            let first = default.map(|template| json!({ "name": "default", "template": template }));
            config.insert("chat_template".to_owned(), first.into_iter().chain(named).collect());
        }
        let mut files = vec![
            ("tokenizer.json", json.into_bytes()),
            ("tokenizer_config.json", serde_json::to_vec_pretty(&config)?),
            ("special_tokens_map.json", serde_json::to_vec_pretty(&self.specials)?),
        ];
        if let Some(template) = default {
            files.push(("chat_template.jinja", template.clone().into_bytes()));
        }
        Ok(files)
    }
}

/// Templates of the `chat_template` field: text, or a list of `name` and `template`.
fn templates_of(field: Option<Json>) -> BTreeMap<String, String> {
    match field {
        Some(Json::String(text)) => BTreeMap::from([("default".to_owned(), text)]),
        Some(Json::Array(list)) => list
            .iter()
            .filter_map(|t| {
                Some((t.get("name")?.as_str()?.to_owned(), t.get("template")?.as_str()?.to_owned()))
            })
            .collect(),
        Some(Json::Object(map)) => {
            map.into_iter().filter_map(|(name, t)| Some((name, t.as_str()?.to_owned()))).collect()
        }
        _ => BTreeMap::new(),
    }
}

/// A special token: text, or an object with `content`.
fn token_text(value: &Json) -> Option<String> {
    value.as_str().or_else(|| value.get("content")?.as_str()).map(str::to_owned)
}

/// An id or a list of ids.
fn id_list(value: Option<&Json>) -> Vec<u32> {
    let id = |v: &Json| v.as_u64().and_then(|id| u32::try_from(id).ok());
    match value {
        Some(Json::Array(list)) => list.iter().filter_map(id).collect(),
        Some(one) => id(one).into_iter().collect(),
        None => Vec::new(),
    }
}

fn dedup(ids: &mut Vec<u32>) {
    let mut seen = std::collections::HashSet::new();
    ids.retain(|id| seen.insert(*id));
}

#[cfg(test)]
#[path = "tokenizer_tests.rs"]
pub(crate) mod tests;
