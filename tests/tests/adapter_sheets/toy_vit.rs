//! A toy ViT on sites of its own: 8 tokens of 8 inputs, d = 32, 2 pre-norm blocks, 4 heads, MLP 4d with
//! GELU, no class token, a head of 16 outputs a token.

use std::rc::Rc;

use anyhow::Result;
use ramekin_core::{Array, Category, Ledger, Rng};
use ramekin_engine::parts;
use ramekin_slots::{
    Adapter, AttachContext, FlatBatch, Forward, LoadOptions, Loader, Mode, ModelFacts, Sites, WeightInfo,
    WeightSource,
};
use ramekin_tape::ops::{self, Activation, AttentionSpec};
use ramekin_tape::{Tape, Value};
use ramekin_tests::lab::part;
use serde_json::Value as Json;

use crate::{ok, value};

pub const D: usize = 32;
pub const TOKENS: usize = 8;
const OUTPUTS: usize = 16;

/// A steep random backbone: weights N(0, (1.5/√inputs)²), positions N(0, 0.5²), biases N(0, `bias`²).
struct Steep {
    seed: u64,
    bias: f64,
}

impl WeightSource for Steep {
    fn info(&self, _: &str) -> Option<WeightInfo> {
        None
    }

    fn read(&mut self, name: &str, dims: &[usize]) -> Result<Array> {
        let stream = Rng::new(self.seed).named("toy-vit", name);
        Array::build::<f32>(dims, false, Category::Workspace, |out| {
            match (dims.len(), name) {
                (_, "positions") => stream.fill_normal(0, 0.5, out),
                (2, _) => stream.fill_normal(0, 1.5 / (dims[1] as f64).sqrt(), out),
                (_, name) if name.contains("norm") && name.ends_with("weight") => out.fill(1.0),
                _ => stream.fill_normal(0, self.bias, out),
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

/// What parts may know of a model of this width.
pub fn facts(width: usize, blocks: usize) -> ModelFacts {
    ModelFacts {
        images: None,
        model_type: "toy".to_owned(),
        vocab_size: 1,
        hidden_size: width,
        intermediate_size: 4 * width,
        blocks,
        heads: 4,
        kv_heads: 4,
        head_dim: width / 4,
        max_position_embeddings: 64,
        tie_word_embeddings: false,
        causal: false,
        reach: vec![ramekin_tape::ops::Reach::ALL; blocks],
        activation: ramekin_tape::ops::Activation::Gelu,
        halves: Vec::new(),
    }
}

/// The model, perhaps with an adapter.
pub struct Vit {
    pub sites: Rc<Sites>,
    pub ledger: Ledger,
    pub adapter: Option<Box<dyn Adapter>>,
}

impl Vit {
    /// The backbone of this seed; an adapter by its part's name and settings.
    pub fn new(seed: u64, bias: f64, adapter: Option<(&str, Json)>) -> Self {
        ramekin_catalog::link();
        let mut source = Steep { seed, bias };
        let mut loader = Loader::new(&mut source, LoadOptions::default());
        ok(loader.table("positions", TOKENS, D));
        ok(loader.linear("patch_embed.proj", D, 8, true, false));
        for b in 0..2 {
            let at = |name: &str| format!("blocks.{b}.{name}");
            ok(loader.norm(&at("norm1"), D, true, &[]));
            for name in ["q", "k", "v", "proj"] {
                ok(loader.linear(&at(&format!("attn.{name}")), D, D, true, false));
            }
            ok(loader.norm(&at("norm2"), D, true, &[]));
            ok(loader.linear(&at("mlp.fc1"), 4 * D, D, true, false));
            ok(loader.linear(&at("mlp.fc2"), D, 4 * D, true, false));
        }
        ok(loader.norm("norm", D, true, &["head"]));
        ok(loader.linear("head", OUTPUTS, D, true, true));
        let (ledger, sites, _) = ok(loader.finish());
        let mut vit = Vit { sites: Rc::new(sites), ledger, adapter: None };
        if let Some((kind, settings)) = adapter {
            let mut adapter = parts::adapter(&part(kind, settings)).expect("an adapter");
            ok(adapter.attach(&mut AttachContext {
                stage: 0,
                sites: vit.sites.clone(),
                ledger: &mut vit.ledger,
                facts: &facts(D, 2),
                rng: Rng::new(seed),
                owner: "adapter.0".to_owned(),
                index: 0,
                shape_only: false,
            }));
            vit.adapter = Some(adapter);
        }
        vit
    }

    fn norm(fx: &Forward, path: &str, x: &Value) -> Result<Value> {
        fx.module(path, x.clone(), |x| {
            let (w, b) = (fx.param(&format!("{path}.weight"))?, fx.param(&format!("{path}.bias"))?);
            ops::layer_norm(&fx.tape, &x, &w, &b, 1e-5)
        })
    }

    /// `[n·8, 8]` inputs to `[n·8, 16]` outputs.
    pub fn forward(&self, tape: &Tape, x: &[f32]) -> Value {
        let n = x.len() / 64;
        let batch = FlatBatch::new(&vec![vec![0; TOKENS]; n]);
        let fx = Forward::new(tape.clone(), self.sites.clone(), batch, Mode::inference());
        ok(Self::run(&fx, x))
    }

    fn run(fx: &Forward, x: &[f32]) -> Result<Value> {
        let tape = &fx.tape;
        let positions = ops::embedding(tape, &fx.param("positions")?, &fx.batch.positions)?;
        let h = fx.linear("patch_embed.proj", &value(x.to_vec(), &[fx.batch.len(), 8]))?;
        let mut h = ops::add(tape, &h, &positions)?;
        let spec = AttentionSpec {
            heads: 4,
            kv_heads: 4,
            head_dim: 8,
            scale: 8f64.powf(-0.5),
            reach: ramekin_tape::ops::Reach::ALL,
            causal: false,
            bf16: false,
        };
        for b in 0..2 {
            let at = |name: &str| format!("blocks.{b}.{name}");
            let n = Self::norm(fx, &at("norm1"), &h)?;
            let one = |name: &str| fx.linear(&at(name), &n);
            let mixed = fx.attention(b, one("attn.q")?, one("attn.k")?, one("attn.v")?, None, spec)?;
            h = ops::add(tape, &h, &fx.linear(&at("attn.proj"), &mixed)?)?;
            let n = Self::norm(fx, &at("norm2"), &h)?;
            let wide = ops::activation(tape, &fx.linear(&at("mlp.fc1"), &n)?, Activation::Gelu)?;
            h = ops::add(tape, &h, &fx.linear(&at("mlp.fc2"), &wide)?)?;
        }
        fx.linear("head", &Self::norm(fx, "norm", &h)?)
    }

    /// The outputs as numbers.
    pub fn outputs(&self, x: &[f32]) -> Vec<f32> {
        ok(self.forward(&Tape::off(), x).array().to_f32())
    }
}
