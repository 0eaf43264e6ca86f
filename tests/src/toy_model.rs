//! A small transformer made by hand, for sheets whose toy is none of the families.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;

use anyhow::Result;
use ramekin_core::{Array, Category, DType, Rng};
use ramekin_engine::assembly::{Assembly, Seat};
use ramekin_slots::{
    AttachContext, Forward, LoadOptions, Loader, Model, ModelFacts, Selection, WeightInfo, WeightSource,
};
use ramekin_tape::Value;
use ramekin_tape::ops::{self, AttentionSpec, KeyValue};
use serde_json::{Value as Json, json};

/// What a toy is made of. Norms are RMS norms, positions are rotated.
#[derive(Clone)]
pub struct Toy {
    /// Tokens.
    pub vocabulary: usize,
    /// Outputs of the head.
    pub outputs: usize,
    /// Outputs of a second head, `tag_head`; 0 for none.
    pub tags: usize,
    /// Width.
    pub width: usize,
    /// Layers.
    pub layers: usize,
    /// Heads.
    pub heads: usize,
    /// Width of the feed-forward.
    pub inner: usize,
    /// Whether that has a gate; else it is down(silu(up x)).
    pub gated: bool,
    /// Whether a token sees only what came before it.
    pub causal: bool,
    /// Factor of what attention and feed-forward add.
    pub residual: f64,
    /// Standard deviation of matrices.
    pub std: f64,
    /// That of embeddings.
    pub embed_std: f64,
    /// That of the up matrices.
    pub up_std: f64,
}

/// Which head a forward ends in.
pub type TagHead = Rc<Cell<bool>>;

struct ToyModel {
    toy: Toy,
    facts: ModelFacts,
    inv_freq: Rc<Vec<f32>>,
    tag_head: TagHead,
}

struct Start<'a>(&'a Toy, Rng, Option<&'a HashMap<String, Vec<f32>>>);

impl WeightSource for Start<'_> {
    fn info(&self, _: &str) -> Option<WeightInfo> {
        None
    }

    fn read(&mut self, name: &str, dims: &[usize]) -> Result<Array> {
        Array::build::<f32>(dims, false, Category::Workspace, |out| {
            if let Some(known) = self.2.and_then(|k| k.get(name)) {
                out.copy_from_slice(known);
            } else if dims.len() == 1 {
                out.fill(1.0);
            } else {
                let std = match name {
                    _ if name.contains("up_proj") => self.0.up_std,
                    _ if name.contains("embed") => self.0.embed_std,
                    _ => self.0.std,
                };
                self.1.named("toy", name).fill_normal(0, std, out);
            }
            Ok(())
        })
    }

    fn names(&self) -> Vec<String> {
        Vec::new()
    }

    fn is_open(&self) -> bool {
        true
    }

    fn label(&self) -> String {
        "a toy".to_owned()
    }
}

impl Toy {
    /// Fresh weights, or these by name; a selection or nothing chooses what trains, everything then.
    pub fn assemble(
        &self,
        seed: u64,
        weights: Option<&HashMap<String, Vec<f32>>>,
        selection: Option<Box<dyn Selection>>,
    ) -> (Assembly, TagHead) {
        let (d, f) = (self.width, self.inner);
        let mut source = Start(self, Rng::new(seed), weights);
        let mut loader = Loader::new(&mut source, LoadOptions::default());
        let mut load = || -> Result<()> {
            loader.table("embed_tokens.weight", self.vocabulary, d)?;
            for i in 0..self.layers {
                let at = |tail: &str| format!("layers.{i}.{tail}");
                loader.vector(&at("attn_norm.weight"), d)?;
                for name in ["q_proj", "k_proj", "v_proj", "o_proj"] {
                    loader.linear(&at(name), d, d, false, false)?;
                }
                loader.vector(&at("mlp_norm.weight"), d)?;
                if self.gated {
                    loader.linear(&at("gate_proj"), f, d, false, false)?;
                }
                loader.linear(&at("up_proj"), f, d, false, false)?;
                loader.linear(&at("down_proj"), d, f, false, false)?;
            }
            loader.vector("norm.weight", d)?;
            loader.linear("lm_head", self.outputs, d, false, true)?;
            if self.tags > 0 {
                loader.linear("tag_head", self.tags, d, false, false)?;
            }
            Ok(())
        };
        load().expect("a toy loads");
        let (ledger, sites, _) = loader.finish().expect("a toy loads");
        let facts = ModelFacts {
            images: None,
            model_type: "toy".to_owned(),
            vocab_size: self.vocabulary,
            hidden_size: d,
            intermediate_size: f,
            blocks: self.layers,
            heads: self.heads,
            kv_heads: self.heads,
            head_dim: d / self.heads,
            max_position_embeddings: 64,
            reach: vec![ramekin_tape::ops::Reach::ALL; self.layers],
            activation: ramekin_tape::ops::Activation::Silu,
            halves: Vec::new(),
            causal: self.causal,
            tie_word_embeddings: false,
        };
        let half = facts.head_dim / 2;
        let inv_freq = (0..half).map(|i| 1e4f32.powf(-(i as f32) / half as f32)).collect();
        let tag_head = TagHead::default();
        let model =
            ToyModel { toy: self.clone(), facts, inv_freq: Rc::new(inv_freq), tag_head: tag_head.clone() };
        let assembly = Assembly {
            model: Rc::new(model),
            sites: Rc::new(sites),
            ledger: RefCell::new(ledger),
            adapters: Vec::new(),
            selection: RefCell::new(None),
            seat: Seat { owner: "selection".to_owned(), stage: 0, rng: Rng::new(seed) },
            tokenizer: None,
            config: json!({}),
            dtype: DType::F32,
            label: "toy".to_owned(),
            read: 0,
            unused: Vec::new(),
            attention: None,
            companions: BTreeMap::new(),
            heads: BTreeMap::new(),
            origin: crate::lab::fresh_model(crate::lab::small_llama()).config().expect("a config").0,
        };
        match selection {
            Some(mut selection) => {
                let attached = assembly.seated(false, |cx: &mut AttachContext<'_>| selection.attach(cx));
                attached.unwrap_or_else(|e| panic!("{e:#}"));
                *assembly.selection.borrow_mut() = Some(selection);
            }
            None => assembly
                .ledger
                .borrow()
                .entries()
                .iter()
                .filter_map(|e| e.param.as_ref())
                .for_each(|p| p.set_trainable(true)),
        }
        (assembly, tag_head)
    }
}

/// Every dense tensor of an assembly, by name.
pub fn values(assembly: &Assembly) -> HashMap<String, Vec<f32>> {
    let ledger = assembly.ledger.borrow();
    let params = ledger.entries().iter().filter_map(|e| e.param.as_ref());
    params.map(|p| (p.name().to_owned(), p.value().to_f32().expect("f32"))).collect()
}

/// A selection of the registry.
pub fn selection(kind: &str, settings: Json) -> Box<dyn Selection> {
    ramekin_catalog::link();
    let part = crate::lab::part(kind, settings);
    ramekin_engine::parts::selection(&part).unwrap_or_else(|e| panic!("{e:#}"))
}

impl Model for ToyModel {
    fn facts(&self) -> &ModelFacts {
        &self.facts
    }

    fn embed(&self, fx: &Forward) -> Result<Value> {
        ops::embedding(&fx.tape, &fx.param("embed_tokens.weight")?, &fx.batch.ids)
    }

    fn block(&self, index: usize, fx: &Forward, x: &Value) -> Result<Value> {
        let (tape, toy, at) = (&fx.tape, &self.toy, |tail: &str| format!("layers.{index}.{tail}"));
        let n = ops::rms_norm(tape, x, &fx.param(&at("attn_norm.weight"))?, 1e-5)?;
        let [q, k, v] = ["q_proj", "k_proj", "v_proj"].map(|name| fx.linear(&at(name), &n));
        let turn = |x: Value| ops::rotary(tape, &x, toy.heads, &fx.batch.positions, &self.inv_freq);
        let (q, k, v) = (turn(q?)?, turn(k?)?, v?);
        let spec = AttentionSpec {
            heads: toy.heads,
            kv_heads: toy.heads,
            head_dim: self.facts.head_dim,
            scale: (self.facts.head_dim as f64).powf(-0.5),
            reach: ramekin_tape::ops::Reach::ALL,
            causal: toy.causal,
            bf16: false,
        };
        let segments = fx.batch.attention_segments(0);
        let mixed = ops::attention(tape, &q, &KeyValue { k: &k, v: &v }, &segments, spec)?;
        let add = |x: &Value, y: &Value| ops::add(tape, x, &ops::scale(tape, y, toy.residual)?);
        let h = add(x, &fx.linear(&at("o_proj"), &mixed)?)?;
        let n = ops::rms_norm(tape, &h, &fx.param(&at("mlp_norm.weight"))?, 1e-5)?;
        let up = fx.linear(&at("up_proj"), &n)?;
        let inner = if toy.gated {
            ops::swiglu(tape, &fx.linear(&at("gate_proj"), &n)?, &up)?
        } else {
            let ones = Value::constant(ops::ones_like(up.array())?);
            ops::swiglu(tape, &up, &ones)?
        };
        add(&h, &fx.linear(&at("down_proj"), &inner)?)
    }

    fn final_norm(&self, fx: &Forward, x: &Value) -> Result<Value> {
        ops::rms_norm(&fx.tape, x, &fx.param("norm.weight")?, 1e-5)
    }

    fn head(&self, fx: &Forward, x: &Value) -> Result<Value> {
        fx.linear(if self.tag_head.get() { "tag_head" } else { "lm_head" }, x)
    }
}
