//! Prefix tuning: P trained keys and values a layer, before those of every sequence.
//!
//! `Attn(q, [P_K; k], [P_V; v])` in layer l, with P_K and P_V the columns 2l and 2l + 1 of a table
//! `[P, 2·L·K·D]`. Nobody rotates P_K; the first real token has position P.
//!
//! With `prefix_projection` the table is `MLP(E)`, E `[P, K·D]`, MLP = Linear(K·D, e), tanh,
//! Linear(e, 2·L·K·D), while training; files hold the table alone, as PEFT's do.
//!
//! Source: Li & Liang 2021, arXiv:2101.00190; PEFT's `PrefixTuningConfig`; sheet `llm-adapters`.

use std::rc::Rc;
use std::sync::Arc;

use anyhow::{Context, Result};
use ramekin_core::{Array, BadSetting, Category, Param};
use ramekin_peft::{own_fields, settings, whole_config};
use ramekin_registry::{AnyPart, Part, part};
use ramekin_slots::{
    Adapter, AdapterFile, AttachContext, AttentionAdapter, Forward, WeightSource, check_virtual_tokens,
};
use ramekin_tape::ops::{self, Activation};
use ramekin_tape::{Tape, Value};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value as Json, json};

use crate::file::{self, FOREIGN, NAME, TENSOR};

part! { adapter / "prefix" => Prefix, "trained keys and values before every sequence, in PEFT's files",
source = "arXiv:2101.00190; sheet llm-adapters", traits = [NeedsBackboneBackward],
from_peft = Prefix::from_peft }

/// Settings of `adapter = [{ kind = "prefix", … }]`, named as in `peft.PrefixTuningConfig`.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct PrefixSettings {
    /// Virtual tokens, at least 1.
    pub num_virtual_tokens: usize,
    /// Trains an embedding and a small network that make the table, instead of the table itself.
    pub prefix_projection: bool,
    /// Width of that network; absent is the width of all keys of a token.
    pub encoder_hidden_size: Option<usize>,
}

impl Default for PrefixSettings {
    fn default() -> Self {
        PrefixSettings { num_virtual_tokens: 30, prefix_projection: false, encoder_hidden_size: None }
    }
}

/// The adapter; empty until attached.
pub struct Prefix {
    settings: PrefixSettings,
    /// The table is all there is: it came from a file.
    saved: bool,
    sizes: Json,
    source: Option<Source>,
}

impl Part for Prefix {
    type Settings = PrefixSettings;

    fn new(settings: PrefixSettings) -> Result<Self> {
        check_virtual_tokens(settings.num_virtual_tokens, usize::MAX)?;
        if settings.encoder_hidden_size == Some(0) {
            return Err(BadSetting::new("encoder_hidden_size", "is 0; it must be at least 1").into());
        }
        Ok(Prefix { settings, saved: false, sizes: Json::Null, source: None })
    }
}

impl Prefix {
    /// The part that a PEFT config describes, if it is this one's.
    pub fn from_peft(config: &Json) -> Option<Result<AnyPart>> {
        (config["peft_type"].as_str() == Some("PREFIX_TUNING")).then(|| {
            let mut foreign = FOREIGN.to_vec();
            foreign.extend([("modules_to_save", &["null"] as &[&str]), ("init_weights", &[])]);
            let own = own_fields(config, "prefix", &foreign)?;
            Ok(AnyPart::Adapter(Box::new(Prefix { saved: true, ..Prefix::new(settings(&own)?)? })))
        })
    }

    fn source(&self) -> Result<&Source> {
        self.source.as_ref().context("not attached")
    }
}

/// Makes parameters of a fixed layout.
struct Maker<'a, 'b> {
    cx: &'a mut AttachContext<'b>,
}

impl Maker<'_, '_> {
    /// A trainable parameter: N(0, 1), or uniform within `bound`.
    fn make(&mut self, name: &str, dims: &[usize], bound: Option<f64>) -> Result<Arc<Param>> {
        let cx = &mut *self.cx;
        let stream = cx.rng.named(&format!("{}/init", cx.owner), name);
        let value = Array::build::<f32>(dims, cx.shape_only, Category::Workspace, |out| {
            match bound {
                Some(bound) => stream.fill_uniform(0, -bound, bound, out),
                None => stream.fill_normal(0, 1.0, out),
            }
            Ok(())
        })?;
        let name = if cx.index == 0 { name.to_owned() } else { format!("adapter{}.{name}", cx.index) };
        let param = Param::new(name, value);
        param.set_trainable(true);
        cx.ledger.add(&param, &cx.owner)?;
        Ok(param)
    }
}

impl Adapter for Prefix {
    fn attach(&mut self, cx: &mut AttachContext<'_>) -> Result<Vec<String>> {
        let (p, facts) = (self.settings.num_virtual_tokens, cx.facts);
        check_virtual_tokens(p, facts.max_position_embeddings)?;
        if facts.reach.iter().any(|r| r.limit().is_some()) {
            let why = format!(
                "is {p}; the windows of this model (`{}`) would lose them, take `prompt` or another model",
                facts.model_type
            );
            return Err(BadSetting::new("num_virtual_tokens", why).against("attention").into());
        }
        let (layers, width) = (facts.blocks, facts.kv_heads * facts.head_dim);
        self.sizes = file::sizes(layers, facts.kv_heads, width);
        let e = *self.settings.encoder_hidden_size.get_or_insert(width);
        let mut maker = Maker { cx };
        let of = |fan: usize| Some(1.0 / (fan as f64).sqrt());
        let source = if self.settings.prefix_projection && !self.saved {
            Source {
                layers,
                embedding: maker.make(NAME, &[p, width], None)?,
                network: Some([
                    maker.make(NETWORK[0], &[e, width], of(width))?,
                    maker.make(NETWORK[1], &[e], of(width))?,
                    maker.make(NETWORK[2], &[2 * layers * width, e], of(e))?,
                    maker.make(NETWORK[3], &[2 * layers * width], of(e))?,
                ]),
            }
        } else {
            Source { layers, embedding: maker.make(NAME, &[p, 2 * layers * width], None)?, network: None }
        };
        cx.sites.around().attach_prefix(Rc::new(source.clone()))?;
        self.source = Some(source);
        Ok((0..layers).map(|i| format!("attention of layer {i}")).collect())
    }

    fn load(&mut self, source: &mut dyn WeightSource) -> Result<()> {
        file::load(&self.source()?.embedding, source)
    }

    fn file(&self, base: &str) -> Result<AdapterFile> {
        let mut own = self.sizes.clone();
        own["num_virtual_tokens"] = json!(self.settings.num_virtual_tokens);
        own["prefix_projection"] = json!(self.settings.prefix_projection);
        own["encoder_hidden_size"] = json!(self.settings.encoder_hidden_size);
        own["init_weights"] = Json::Null;
        Ok(AdapterFile {
            config: whole_config(own, "PREFIX_TUNING", base),
            tensors: vec![(TENSOR.to_owned(), self.source()?.table(&Tape::off())?.into_array())],
            extra: Json::Null,
        })
    }

    fn params(&self) -> Vec<(String, Arc<Param>)> {
        let Some(source) = &self.source else { return Vec::new() };
        let network = source.network.iter().flatten();
        std::iter::once(NAME)
            .chain(NETWORK)
            .zip(std::iter::once(&source.embedding).chain(network))
            .map(|(name, p)| (name.to_owned(), p.clone()))
            .collect()
    }

    fn unmergeable(&self) -> Option<String> {
        Some(
            "keys and values before a sequence have no place in a weight; serve the adapter unmerged"
                .to_owned(),
        )
    }
}

/// Names of the network's tensors, as in PEFT's `named_parameters`.
const NETWORK: [&str; 4] = [
    "prompt_encoder.transform.0.weight",
    "prompt_encoder.transform.0.bias",
    "prompt_encoder.transform.2.weight",
    "prompt_encoder.transform.2.bias",
];

/// What the keys and values come from.
#[derive(Clone)]
struct Source {
    layers: usize,
    /// The table itself, `[P, 2·L·K·D]`, or the network's input, `[P, K·D]`.
    embedding: Arc<Param>,
    network: Option<[Arc<Param>; 4]>,
}

impl Source {
    /// `[P, 2·L·K·D]`
    fn table(&self, tape: &Tape) -> Result<Value> {
        let embedding = tape.param(&self.embedding)?;
        let Some([w1, b1, w2, b2]) = &self.network else { return Ok(embedding) };
        let h = ops::linear(tape, &embedding, &tape.param(w1)?, Some(&tape.param(b1)?))?;
        let h = ops::activation(tape, &h, Activation::Tanh)?;
        ops::linear(tape, &h, &tape.param(w2)?, Some(&tape.param(b2)?))
    }
}

impl AttentionAdapter for Source {
    fn tokens(&self) -> usize {
        self.embedding.value().rows().0
    }

    fn prefix(&self, fx: &Forward, layer: usize) -> Result<(Value, Value)> {
        let table = self.table(&fx.tape)?;
        let (p, columns) = table.array().rows();
        let parts = 2 * self.layers;
        let rows = ops::reshape(&fx.tape, &table, &[p * parts, columns / parts])?;
        let part = |which: usize| {
            let at: Vec<u32> = (0..p).map(|t| (t * parts + which) as u32).collect();
            ops::select_rows(&fx.tape, &rows, &Rc::new(at))
        };
        Ok((part(2 * layer)?, part(2 * layer + 1)?))
    }
}
