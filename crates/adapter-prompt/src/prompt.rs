//! Prompt tuning: P trained rows before the embedded tokens of every sequence.
//!
//! `h = [P; E[ids]]`; the first real token has position P, virtual tokens have no logits and no targets.
//!
//! Source: Lester et al. 2021, arXiv:2104.08691; PEFT's `PromptTuningConfig`.

use std::rc::Rc;
use std::sync::Arc;

use anyhow::{Context, Result};
use ramekin_core::{Array, Category, DType, Draws, Param};
use ramekin_peft::{own_fields, settings, whole_config};
use ramekin_registry::{AnyPart, Part, part};
use ramekin_slots::{
    Adapter, AdapterFile, AttachContext, Forward, RowAdapter, WeightSource, check_virtual_tokens,
};
use ramekin_tape::Value;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value as Json, json};

use crate::file::{self, FOREIGN, NAME, TENSOR};

part! { adapter / "prompt" => Prompt, "trained rows before the embedding, in PEFT's files",
source = "arXiv:2104.08691; PEFT PromptTuningConfig", traits = [NeedsBackboneBackward],
from_peft = Prompt::from_peft }

/// How the rows begin.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Init {
    /// N(0, 1), as an embedding of its own.
    #[default]
    Random,
    /// Rows of the model's embedding, of ids drawn by the run's seed.
    SampleVocab,
}

/// Settings of `adapter = [{ kind = "prompt", … }]`, named as in `peft.PromptTuningConfig`.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct PromptSettings {
    /// Virtual tokens, at least 1.
    pub num_virtual_tokens: usize,
    /// `RANDOM` or `SAMPLE_VOCAB`.
    pub prompt_tuning_init: Init,
}

impl Default for PromptSettings {
    fn default() -> Self {
        PromptSettings { num_virtual_tokens: 30, prompt_tuning_init: Init::Random }
    }
}

/// The adapter; empty until attached.
pub struct Prompt {
    settings: PromptSettings,
    sizes: Json,
    param: Option<Arc<Param>>,
}

impl Part for Prompt {
    type Settings = PromptSettings;

    fn new(settings: PromptSettings) -> Result<Self> {
        check_virtual_tokens(settings.num_virtual_tokens, usize::MAX)?;
        Ok(Prompt { settings, sizes: Json::Null, param: None })
    }
}

impl Prompt {
    /// The part that a PEFT config describes, if it is this one's.
    pub fn from_peft(config: &Json) -> Option<Result<AnyPart>> {
        (config["peft_type"].as_str() == Some("PROMPT_TUNING")).then(|| {
            let mut foreign = FOREIGN.to_vec();
            foreign.extend([
                ("modules_to_save", &["null"] as &[&str]),
                ("prompt_tuning_init_text", &[]),
                ("tokenizer_kwargs", &[]),
                ("tokenizer_name_or_path", &[]),
            ]);
            let mut own = own_fields(config, "prompt", &foreign)?;
            if own.get("prompt_tuning_init").is_some_and(|i| i == "TEXT") {
                own.remove("prompt_tuning_init"); // the rows come from the file
            }
            Ok(AnyPart::Adapter(Box::new(Prompt::new(settings(&own)?)?)))
        })
    }

    fn initial(&self, cx: &AttachContext<'_>, width: usize) -> Result<Array> {
        let p = self.settings.num_virtual_tokens;
        if self.settings.prompt_tuning_init == Init::SampleVocab && !cx.shape_only {
            let name = cx.sites.param_names().iter().find(|n| n.contains("embed")).context("no embedding")?;
            let table = cx.sites.param(name)?.base().value();
            let mut draws = Draws::new(cx.rng.named(&format!("{}/init", cx.owner), TENSOR));
            let rows: Vec<Array> = (0..p)
                .map(|_| table.narrow_rows(draws.below(table.rows().0), 1, Category::Workspace))
                .collect::<Result<_>>()?;
            let mut all = Vec::with_capacity(p * width);
            for row in rows {
                all.extend(row.to_dtype(DType::F32, Category::Workspace)?.to_f32()?);
            }
            return Array::from_vec(all, &[p, width], Category::Workspace);
        }
        let stream = cx.rng.named(&format!("{}/init", cx.owner), TENSOR);
        Array::build::<f32>(&[p, width], cx.shape_only, Category::Workspace, |out| {
            stream.fill_normal(0, 1.0, out);
            Ok(())
        })
    }
}

impl Adapter for Prompt {
    fn attach(&mut self, cx: &mut AttachContext<'_>) -> Result<Vec<String>> {
        check_virtual_tokens(self.settings.num_virtual_tokens, cx.facts.max_position_embeddings)?;
        let facts = cx.facts;
        self.sizes = file::sizes(facts.blocks, facts.heads, facts.hidden_size);
        let value = self.initial(cx, facts.hidden_size)?;
        let name = if cx.index == 0 { NAME.to_owned() } else { format!("adapter{}.{NAME}", cx.index) };
        let param = Param::new(name, value);
        param.set_trainable(true);
        cx.ledger.add(&param, &cx.owner)?;
        cx.sites.around().attach_rows(Rc::new(Rows(param.clone())))?;
        self.param = Some(param);
        Ok(vec!["the embedding".to_owned()])
    }

    fn load(&mut self, source: &mut dyn WeightSource) -> Result<()> {
        file::load(self.param.as_ref().context("not attached")?, source)
    }

    fn file(&self, base: &str) -> Result<AdapterFile> {
        let mut own = self.sizes.clone();
        own["num_virtual_tokens"] = json!(self.settings.num_virtual_tokens);
        own["prompt_tuning_init"] = json!(self.settings.prompt_tuning_init);
        for absent in ["prompt_tuning_init_text", "tokenizer_kwargs", "tokenizer_name_or_path"] {
            own[absent] = Json::Null;
        }
        Ok(AdapterFile {
            config: whole_config(own, "PROMPT_TUNING", base),
            tensors: self.param.iter().map(|p| (TENSOR.to_owned(), p.value())).collect(),
            extra: Json::Null,
        })
    }

    fn params(&self) -> Vec<(String, Arc<Param>)> {
        self.param.iter().map(|p| (NAME.to_owned(), p.clone())).collect()
    }

    fn unmergeable(&self) -> Option<String> {
        Some("virtual tokens have no place in a weight; serve the adapter unmerged".to_owned())
    }
}

/// The rows before every sequence.
struct Rows(Arc<Param>);

impl RowAdapter for Rows {
    fn tokens(&self) -> usize {
        self.0.value().rows().0
    }

    fn rows(&self, fx: &Forward) -> Result<Value> {
        fx.tape.param(&self.0)
    }
}
