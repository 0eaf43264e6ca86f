//! Forward of the family.
//!
//! N tokens, d hidden size, H heads, K key/value heads, D head size.

use std::rc::Rc;

use anyhow::Result;
use ramekin_slots::{Forward, Half, Halves, Loader, MlpSite, Model, ModelFacts};
use ramekin_tape::Value;
use ramekin_tape::ops::{self, AttentionSpec};

use crate::config::LlamaConfig;

/// A loaded model: its sizes and the names of its parts; the tensors live in the sites.
pub struct LlamaModel {
    config: LlamaConfig,
    facts: ModelFacts,
    inv_freq: Rc<Vec<f32>>,
    layers: Vec<LayerNames>,
    /// Whether products are in bf16.
    bf16: bool,
}

struct LayerNames {
    layer: String,
    attention: String,
    mlp: String,
    input_norm: String,
    post_norm: String,
    q: String,
    k: String,
    v: String,
    o: String,
    q_norm: String,
    k_norm: String,
    gate: String,
    up: String,
    down: String,
}

impl LayerNames {
    fn new(i: usize) -> Self {
        let at = |tail: &str| format!("model.layers.{i}.{tail}");
        LayerNames {
            layer: format!("model.layers.{i}"),
            attention: at("self_attn"),
            mlp: at("mlp"),
            input_norm: at("input_layernorm"),
            post_norm: at("post_attention_layernorm"),
            q: at("self_attn.q_proj"),
            k: at("self_attn.k_proj"),
            v: at("self_attn.v_proj"),
            o: at("self_attn.o_proj"),
            q_norm: at("self_attn.q_norm"),
            k_norm: at("self_attn.k_norm"),
            gate: at("mlp.gate_proj"),
            up: at("mlp.up_proj"),
            down: at("mlp.down_proj"),
        }
    }
}

const EMBED: &str = "model.embed_tokens.weight";
const EMBED_MODULE: &str = "model.embed_tokens";
const NORM: &str = "model.norm";
const HEAD: &str = "lm_head";

impl LlamaModel {
    /// Loads every tensor of the config's shape.
    pub fn load(mut config: LlamaConfig, loader: &mut Loader<'_>) -> Result<Self> {
        loader.reach(&mut config.reach);
        let c = &config;
        let d = c.hidden_size;
        let (q, kv) = (c.heads * c.head_dim, c.kv_heads * c.head_dim);
        loader.table(EMBED, c.vocab_size, d)?;
        loader.module(EMBED_MODULE, d);
        let layers: Vec<LayerNames> = (0..c.layers).map(LayerNames::new).collect();
        for (names, f) in layers.iter().zip(&c.intermediate_sizes) {
            let f = *f;
            loader.module(&names.layer, d);
            loader.module(&names.attention, d);
            loader.module(&names.mlp, d);
            loader.norm(&names.input_norm, d, false, &[&names.q, &names.k, &names.v])?;
            loader.linear(&names.q, q, d, c.qkv_bias, false)?;
            loader.linear(&names.k, kv, d, c.qkv_bias, false)?;
            loader.linear(&names.v, kv, d, c.qkv_bias, false)?;
            if c.qk_norm {
                loader.norm(&names.q_norm, c.head_dim, false, &[])?;
                loader.norm(&names.k_norm, c.head_dim, false, &[])?;
            }
            loader.linear(&names.o, d, q, c.o_bias, false)?;
            loader.norm(&names.post_norm, d, false, &[&names.gate, &names.up])?;
            loader.linear(&names.gate, f, d, c.mlp_bias, false)?;
            loader.linear(&names.up, f, d, c.mlp_bias, false)?;
            loader.linear(&names.down, d, f, c.mlp_bias, false)?;
        }
        loader.norm(NORM, d, false, &[HEAD])?;
        if c.tie_word_embeddings {
            loader.tied_head(HEAD, EMBED, c.vocab_size, d)?;
        } else {
            loader.linear(HEAD, c.vocab_size, d, false, true)?;
        }
        let half = |n: &LayerNames| Halves { attention: n.attention.clone(), mlp: n.mlp.clone() };
        Ok(LlamaModel {
            facts: ModelFacts { halves: layers.iter().map(half).collect(), ..config.facts() },
            inv_freq: Rc::new(config.rope.inv_freq(config.head_dim)),
            layers,
            config,
            bf16: loader.is_bf16(),
        })
    }

    fn norm(&self, fx: &Forward, x: &Value, path: &str) -> Result<Value> {
        fx.module(path, x.clone(), |x| {
            ops::rms_norm(&fx.tape, &x, &fx.param(&format!("{path}.weight"))?, self.config.rms_norm_eps)
        })
    }

    fn attention(&self, index: usize, fx: &Forward, n: Value) -> Result<Value> {
        let (c, names) = (&self.config, &self.layers[index]);
        let spec = AttentionSpec {
            heads: c.heads,
            kv_heads: c.kv_heads,
            head_dim: c.head_dim,
            scale: (c.head_dim as f64).powf(-0.5),
            reach: c.reach[index],
            causal: true,
            bf16: self.bf16,
        };
        let [q, k, v] = fx.linears([&names.q, &names.k, &names.v], &n)?;
        drop(n);
        let q = self.head_norm(fx, q, &names.q_norm)?;
        let k = self.head_norm(fx, k, &names.k_norm)?;
        let mixed = fx.attention(index, q, k, v, Some(&self.inv_freq), spec)?;
        fx.linear(&names.o, &mixed)
    }

    fn mlp(&self, index: usize, fx: &Forward, n: Value) -> Result<Value> {
        let names = &self.layers[index];
        let [gate, up] = fx.linears([&names.gate, &names.up], &n)?;
        drop(n);
        let mixed = ops::swiglu(&fx.tape, &gate, &up)?;
        drop((gate, up));
        fx.linear(&names.down, &mixed)
    }

    /// `[N, heads·D]` with the norm a head of Qwen3.
    fn head_norm(&self, fx: &Forward, x: Value, norm: &str) -> Result<Value> {
        if self.config.qk_norm { self.norm(fx, &x, norm) } else { Ok(x) }
    }
}

impl Model for LlamaModel {
    fn facts(&self) -> &ModelFacts {
        &self.facts
    }

    fn embed(&self, fx: &Forward) -> Result<Value> {
        fx.module_of_ids(EMBED_MODULE, || ops::embedding(&fx.tape, &fx.param(EMBED)?, &fx.batch.ids))
    }

    fn block(&self, index: usize, fx: &Forward, x: &Value) -> Result<Value> {
        let names = &self.layers[index];
        fx.module(&names.layer, x.clone(), |x| {
            let h = self.half(index, Half::Attention, fx, &x)?;
            drop(x);
            self.half(index, Half::Mlp, fx, &h)
        })
    }

    fn half(&self, index: usize, half: Half, fx: &Forward, x: &Value) -> Result<Value> {
        let names = &self.layers[index];
        let mixed = match half {
            Half::Attention => {
                let n = self.norm(fx, x, &names.input_norm)?;
                fx.module(&names.attention, n, |n| self.attention(index, fx, n))?
            }
            Half::Mlp => {
                let n = self.norm(fx, x, &names.post_norm)?;
                fx.module(&names.mlp, n, |n| self.mlp(index, fx, n))?
            }
        };
        ops::add(&fx.tape, x, &mixed)
    }

    fn mlp(&self, block: usize) -> Option<MlpSite> {
        let names = self.layers.get(block)?;
        Some(MlpSite { up: names.up.clone(), gate: Some(names.gate.clone()), down: names.down.clone() })
    }

    fn final_norm(&self, fx: &Forward, x: &Value) -> Result<Value> {
        self.norm(fx, x, NORM)
    }

    fn head(&self, fx: &Forward, x: &Value) -> Result<Value> {
        fx.linear(HEAD, x)
    }
}
