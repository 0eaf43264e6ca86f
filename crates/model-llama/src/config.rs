//! `config.json` of the family, in the old and the new style.

use anyhow::Result;
use ramekin_slots::ModelFacts;
use ramekin_slots::config::{eps, flag, size, size_or, wrong};
use ramekin_tape::ops::{Activation, Reach};
use serde_json::Value as Json;

use crate::rope::RopeConfig;

/// The fields that the forward needs.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub struct LlamaConfig {
    pub model_type: String,
    pub vocab_size: usize,
    pub hidden_size: usize,
    pub intermediate_size: usize,
    /// The MLP's width of each layer, where a pruned model has different ones.
    pub intermediate_sizes: Vec<usize>,
    pub layers: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub rms_norm_eps: f64,
    pub rope: RopeConfig,
    pub max_position_embeddings: usize,
    pub tie_word_embeddings: bool,
    /// Biases of q, k and v.
    pub qkv_bias: bool,
    /// Bias of o.
    pub o_bias: bool,
    pub mlp_bias: bool,
    /// RMSNorm of q and k over each head (Qwen3).
    pub qk_norm: bool,
    /// What each layer's tokens see.
    pub reach: Vec<Reach>,
}

impl LlamaConfig {
    /// Reads a config.
    ///
    /// # Errors
    /// What is missing, contradictory or not supported, by the field's name.
    pub fn parse(config: &Json) -> Result<Self> {
        let model_type = config["model_type"].as_str().unwrap_or("llama").to_owned();
        let hidden_size = size(config, "hidden_size")?;
        let heads = size(config, "num_attention_heads")?;
        let kv_heads = size_or(config, "num_key_value_heads", heads)?;
        let layers = size(config, "num_hidden_layers")?;
        if !heads.is_multiple_of(kv_heads) {
            return Err(wrong(
                "num_key_value_heads",
                format!("is {kv_heads}, which does not divide the {heads} heads of `num_attention_heads`"),
            ));
        }
        let given = config.get("head_dim").is_some_and(|v| !v.is_null());
        if !given && !hidden_size.is_multiple_of(heads) {
            return Err(wrong(
                "num_attention_heads",
                format!(
                    "is {heads}, which does not divide the `hidden_size` {hidden_size}; set `head_dim` if that is meant"
                ),
            ));
        }
        // Qwen3's default does not follow from the width.
        let usual = if model_type == "qwen3" { 128 } else { (hidden_size / heads).max(1) };
        let head_dim = size_or(config, "head_dim", usual)?;
        if !head_dim.is_multiple_of(2) {
            return Err(wrong("head_dim", format!("is {head_dim}; rotary embedding needs an even one")));
        }
        let act = config["hidden_act"].as_str().unwrap_or("silu");
        if act != "silu" {
            return Err(wrong("hidden_act", format!("is \"{act}\"; this family has \"silu\"")));
        }
        let rms_norm_eps = eps(config, "rms_norm_eps", 1e-6)?;
        let attention_bias = flag(config, "attention_bias", false)?;
        let qwen2 = model_type == "qwen2";
        Ok(LlamaConfig {
            vocab_size: size(config, "vocab_size")?,
            intermediate_size: size(config, "intermediate_size")?,
            intermediate_sizes: mlp_widths(config, layers)?,
            rope: RopeConfig::parse(config)?,
            max_position_embeddings: size_or(config, "max_position_embeddings", 2048)?,
            tie_word_embeddings: flag(config, "tie_word_embeddings", false)?,
            qkv_bias: attention_bias || qwen2,
            o_bias: attention_bias && !qwen2,
            mlp_bias: flag(config, "mlp_bias", false)?,
            qk_norm: model_type == "qwen3",
            reach: windows(config, &model_type, layers)?
                .into_iter()
                .map(|window| Reach { window, chunk: None })
                .collect(),
            model_type,
            hidden_size,
            layers,
            heads,
            kv_heads,
            head_dim,
            rms_norm_eps,
        })
    }

    /// What other parts may know.
    pub fn facts(&self) -> ModelFacts {
        ModelFacts {
            model_type: self.model_type.clone(),
            vocab_size: self.vocab_size,
            hidden_size: self.hidden_size,
            intermediate_size: self.intermediate_size,
            blocks: self.layers,
            heads: self.heads,
            kv_heads: self.kv_heads,
            head_dim: self.head_dim,
            max_position_embeddings: self.max_position_embeddings,
            tie_word_embeddings: self.tie_word_embeddings,
            causal: true,
            reach: self.reach.clone(),
            activation: Activation::Silu,
            halves: Vec::new(), // known once the layers have names
            images: None,
        }
    }
}

/// Llama's own switches for biases; the other models of the family have none.
pub(crate) fn add_biases(config: &mut Json, linears: &[String]) -> Result<Vec<String>> {
    const GROUPS: [(&str, &str, &[&str]); 2] = [
        ("attention_bias", "self_attn", &["q_proj", "k_proj", "v_proj", "o_proj"]),
        ("mlp_bias", "mlp", &["gate_proj", "up_proj", "down_proj"]),
    ];
    let of = |path: &str| GROUPS.iter().find(|(_, module, _)| path.contains(&format!(".{module}.")));
    for path in linears {
        let group = of(path).filter(|_| config["model_type"].as_str().is_none_or(|t| t == "llama"));
        let (key, _, _) = group.ok_or_else(|| ramekin_slots::no_bias(path))?;
        config[*key] = true.into();
    }
    let layers = LlamaConfig::parse(config)?.layers;
    let mut all = Vec::new();
    for (_, module, names) in GROUPS.iter().filter(|(key, _, _)| config[*key] == true) {
        let paths =
            (0..layers).flat_map(|i| names.iter().map(move |n| format!("model.layers.{i}.{module}.{n}")));
        all.extend(paths);
    }
    Ok(all)
}

/// The MLP's width of each layer: a pruned model's list, which lies beside its `config.json`, else all alike.
fn mlp_widths(config: &Json, layers: usize) -> Result<Vec<usize>> {
    let Some(list) = config.get("intermediate_sizes") else {
        return Ok(vec![size(config, "intermediate_size")?; layers]);
    };
    let widths: Option<Vec<usize>> = list.as_array().and_then(|l| {
        l.iter().map(|n| n.as_u64().filter(|n| (1..=1 << 40).contains(n)).map(|n| n as usize)).collect()
    });
    match widths {
        Some(widths) if widths.len() == layers => Ok(widths),
        Some(widths) => {
            Err(wrong("intermediate_sizes", format!("has {} widths for {layers} layers", widths.len())))
        }
        None => {
            Err(wrong("intermediate_sizes", format!("is {list}; it must be a list of widths, one a layer")))
        }
    }
}

/// The sliding window of each layer: `layer_types` where given, else the
/// family's own rule.
fn windows(config: &Json, model_type: &str, layers: usize) -> Result<Vec<Option<usize>>> {
    if config.get("sliding_window").is_none_or(Json::is_null) {
        return Ok(vec![None; layers]);
    }
    let window = size(config, "sliding_window")?;
    if let Some(types) = config["layer_types"].as_array() {
        if types.len() != layers {
            return Err(wrong("layer_types", format!("has {} entries for {layers} layers", types.len())));
        }
        return types
            .iter()
            .map(|t| match t.as_str() {
                Some("sliding_attention") => Ok(Some(window)),
                Some("full_attention") => Ok(None),
                _ => Err(wrong(
                    "layer_types",
                    format!("holds {t}; known are full_attention and sliding_attention"),
                )),
            })
            .collect();
    }
    match model_type {
        "qwen2" | "qwen3" => {
            let on = flag(config, "use_sliding_window", false)?;
            let first = first_window(config)?;
            Ok((0..layers).map(|i| (on && i >= first).then_some(window)).collect())
        }
        "mistral" => Ok(vec![Some(window); layers]),
        _ => Ok(vec![None; layers]),
    }
}

/// The first layer with a window in Qwen's own rule; transformers' default is 28.
fn first_window(config: &Json) -> Result<usize> {
    match config.get("max_window_layers") {
        None | Some(Json::Null) => Ok(28),
        Some(v) => v.as_u64().map(|n| n as usize).ok_or_else(|| {
            wrong("max_window_layers", format!("is {v}; it must be a whole number of at least 0"))
        }),
    }
}
