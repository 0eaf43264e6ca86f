//! Forward of the vision transformer.
//!
//! N tokens, d hidden size, H heads, D head size, P patches of p×p pixels and C colours, S images.

use std::rc::Rc;

use anyhow::Result;
use ramekin_core::Category;
use ramekin_slots::{Forward, Loader, Model, ModelFacts};
use ramekin_tape::Value;
use ramekin_tape::ops::{self, AttentionSpec};

use crate::config::VitConfig;
use crate::patches::patches;

/// A loaded model: its sizes and the names of its parts; the tensors live in the sites.
pub struct VitModel {
    config: VitConfig,
    facts: ModelFacts,
    layers: Vec<LayerNames>,
    /// Whether products are in bf16.
    bf16: bool,
}

struct LayerNames {
    before: String,
    attention: String,
    query: String,
    key: String,
    value: String,
    output: String,
    after: String,
    up: String,
    down: String,
}

impl LayerNames {
    fn new(i: usize) -> Self {
        let at = |tail: &str| format!("vit.encoder.layer.{i}.{tail}");
        LayerNames {
            before: at("layernorm_before"),
            attention: at("attention"),
            query: at("attention.attention.query"),
            key: at("attention.attention.key"),
            value: at("attention.attention.value"),
            output: at("attention.output.dense"),
            after: at("layernorm_after"),
            up: at("intermediate.dense"),
            down: at("output.dense"),
        }
    }
}

const EMBEDDINGS: &str = "vit.embeddings";
const CLASS: &str = "vit.embeddings.cls_token";
const POSITIONS: &str = "vit.embeddings.position_embeddings";
const PATCHES: &str = "vit.embeddings.patch_embeddings.projection.weight";
const PATCHES_BIAS: &str = "vit.embeddings.patch_embeddings.projection.bias";
const NORM: &str = "vit.layernorm";
const HEAD: &str = "classifier";

impl VitModel {
    /// Loads every tensor of the config's shape.
    pub fn load(mut config: VitConfig, loader: &mut Loader<'_>) -> Result<Self> {
        loader.reach(&mut config.reach);
        let c = &config;
        let (d, f, p) = (c.hidden_size, c.intermediate_size, c.patch_size);
        loader.tensor(CLASS, &[1, 1, d])?;
        loader.tensor(POSITIONS, &[1, c.patches() + 1, d])?;
        loader.tensor(PATCHES, &[d, c.channels, p, p])?;
        loader.vector(PATCHES_BIAS, d)?;
        loader.module(EMBEDDINGS, d);
        let layers: Vec<LayerNames> = (0..c.layers).map(LayerNames::new).collect();
        for names in &layers {
            loader.module(&names.attention, d);
            loader.norm(&names.before, d, true, &[&names.query, &names.key, &names.value])?;
            for path in [&names.query, &names.key, &names.value] {
                loader.linear(path, d, d, c.qkv_bias, false)?;
            }
            loader.linear(&names.output, d, d, true, false)?;
            loader.norm(&names.after, d, true, &[&names.up])?;
            loader.linear(&names.up, f, d, true, false)?;
            loader.linear(&names.down, d, f, true, false)?;
        }
        loader.norm(NORM, d, true, &[HEAD])?;
        loader.linear(HEAD, c.labels, d, true, true)?;
        Ok(VitModel { facts: config.facts(), layers, config, bf16: loader.is_bf16() })
    }

    fn norm(&self, fx: &Forward, x: &Value, path: &str) -> Result<Value> {
        fx.module(path, x.clone(), |x| {
            let (w, b) = (fx.param(&format!("{path}.weight"))?, fx.param(&format!("{path}.bias"))?);
            ops::layer_norm(&fx.tape, &x, &w, &b, self.config.layer_norm_eps)
        })
    }

    /// What attention adds, and its keys where the block has a use for them.
    fn attention(&self, index: usize, fx: &Forward, n: Value) -> Result<(Value, Option<Value>)> {
        let (c, names) = (&self.config, &self.layers[index]);
        let head_dim = c.hidden_size / c.heads;
        let spec = AttentionSpec {
            heads: c.heads,
            kv_heads: c.heads,
            head_dim,
            scale: (head_dim as f64).powf(-0.5),
            reach: c.reach[index],
            causal: false,
            bf16: self.bf16,
        };
        let q = fx.linear(&names.query, &n)?;
        let k = fx.linear(&names.key, &n)?;
        let v = fx.linear(&names.value, &n)?;
        drop(n);
        let keys = (fx.loses(index) > 0).then(|| k.clone());
        let mixed = fx.attention(index, q, k, v, None, spec)?;
        Ok((fx.linear(&names.output, &mixed)?, keys))
    }

    fn mlp(&self, index: usize, fx: &Forward, n: &Value) -> Result<Value> {
        let names = &self.layers[index];
        let up = fx.linear(&names.up, n)?;
        let mixed = ops::activation(&fx.tape, &up, self.config.activation)?;
        drop(up);
        fx.linear(&names.down, &mixed)
    }
}

impl Model for VitModel {
    fn facts(&self) -> &ModelFacts {
        &self.facts
    }

    fn embed(&self, fx: &Forward) -> Result<Value> {
        let (c, tape) = (&self.config, &fx.tape);
        let d = c.hidden_size;
        fx.module_of_ids(EMBEDDINGS, || {
            let weight = fx.param(PATCHES)?;
            let x = patches(fx, c, weight.array().is_shape_only())?;
            let x = Value::constant(x.to_dtype(weight.array().dtype(), Category::Workspace)?);
            let weight = ops::reshape(tape, &weight, &[d, c.channels * c.patch_size * c.patch_size])?;
            let x = ops::linear(tape, &x, &weight, Some(&fx.param(PATCHES_BIAS)?))?;
            let class = ops::reshape(tape, &fx.param(CLASS)?, &[1, d])?;
            let images = (0..fx.batch.segments.len()).map(|i| (true, i * c.patches()..(i + 1) * c.patches()));
            let x = ops::prepend(tape, &class, &x, &Rc::new(images.collect()))?;
            let places = ops::reshape(tape, &fx.param(POSITIONS)?, &[c.patches() + 1, d])?;
            ops::add(tape, &x, &ops::embedding(tape, &places, &fx.batch.positions)?)
        })
    }

    fn block(&self, index: usize, fx: &Forward, x: &Value) -> Result<Value> {
        let names = &self.layers[index];
        let mut keys = None;
        let h = {
            let n = self.norm(fx, x, &names.before)?;
            let mixed = fx.module(&names.attention, n, |n| {
                let (mixed, compared) = self.attention(index, fx, n)?;
                keys = compared;
                Ok(mixed)
            })?;
            ops::add(&fx.tape, x, &mixed)?
        };
        let (fx, h) = fx.reduce(index, h, keys.as_ref(), self.config.heads)?;
        drop(keys);
        let n = self.norm(&fx, &h, &names.after)?;
        let mixed = self.mlp(index, &fx, &n)?;
        drop(n);
        ops::add(&fx.tape, &h, &mixed)
    }

    fn final_norm(&self, fx: &Forward, x: &Value) -> Result<Value> {
        self.norm(fx, x, NORM)
    }

    fn head(&self, fx: &Forward, x: &Value) -> Result<Value> {
        fx.linear(HEAD, x)
    }
}
