//! `config.json` of a vision transformer.

use anyhow::Result;
use ramekin_slots::config::{eps, flag, size, size_or, wrong};
use ramekin_slots::{ImageFacts, ModelFacts};
use ramekin_tape::ops::{Activation, Reach};
use serde_json::Value as Json;

/// The fields that the forward needs.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub struct VitConfig {
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub layers: usize,
    pub heads: usize,
    pub layer_norm_eps: f64,
    pub activation: Activation,
    pub qkv_bias: bool,
    pub channels: usize,
    /// Pixels along a side of an image, and of a patch.
    pub image_size: usize,
    pub patch_size: usize,
    /// Classes of the head.
    pub labels: usize,
    /// What each block's tokens see.
    pub reach: Vec<Reach>,
}

/// A side in pixels: a number, or two that are equal.
fn side(config: &Json, key: &str, default: usize) -> Result<usize> {
    match config[key].as_array().map(Vec::as_slice) {
        None => size_or(config, key, default),
        Some([a, b]) if a == b => size(&serde_json::json!({ key: a }), key),
        Some(_) => Err(wrong(key, format!("is {}; images and patches are square here", config[key]))),
    }
}

impl VitConfig {
    /// Reads a config.
    ///
    /// # Errors
    /// What is missing, contradictory or not supported, by the field's name.
    pub fn parse(config: &Json) -> Result<Self> {
        let hidden_size = size_or(config, "hidden_size", 768)?;
        let heads = size_or(config, "num_attention_heads", 12)?;
        if !hidden_size.is_multiple_of(heads) {
            let why = format!("is {heads}, which does not divide the `hidden_size` {hidden_size}");
            return Err(wrong("num_attention_heads", why));
        }
        let (image_size, patch_size) = (side(config, "image_size", 224)?, side(config, "patch_size", 16)?);
        if !image_size.is_multiple_of(patch_size) {
            let why = format!("is {patch_size}, which does not divide the `image_size` {image_size}");
            return Err(wrong("patch_size", why));
        }
        let activation = match config["hidden_act"].as_str().unwrap_or("gelu") {
            "gelu" => Activation::Gelu,
            "relu" => Activation::Relu,
            "silu" | "swish" => Activation::Silu,
            other => {
                let why = format!("is \"{other}\"; known are \"gelu\", \"relu\" and \"silu\"");
                return Err(wrong("hidden_act", why));
            }
        };
        for key in ["hidden_dropout_prob", "attention_probs_dropout_prob"] {
            if config[key].as_f64().is_some_and(|p| p != 0.0) {
                return Err(wrong(
                    key,
                    format!("is {}; the blocks have no dropout here, set it to 0", config[key]),
                ));
            }
        }
        let named = config["id2label"].as_object().map(|names| names.len()).filter(|n| *n > 0);
        let layers = size_or(config, "num_hidden_layers", 12)?;
        Ok(VitConfig {
            reach: vec![Reach::ALL; layers],
            layers,
            hidden_size,
            heads,
            image_size,
            patch_size,
            activation,
            intermediate_size: size_or(config, "intermediate_size", 3072)?,
            layer_norm_eps: eps(config, "layer_norm_eps", 1e-12)?,
            qkv_bias: flag(config, "qkv_bias", true)?,
            channels: size_or(config, "num_channels", 3)?,
            labels: match named {
                Some(n) => n,
                None => size_or(config, "num_labels", 2)?,
            },
        })
    }

    /// Patches of an image.
    pub fn patches(&self) -> usize {
        (self.image_size / self.patch_size).pow(2)
    }

    /// What other parts may know.
    pub fn facts(&self) -> ModelFacts {
        let tokens = self.patches() + 1;
        ModelFacts {
            model_type: "vit".to_owned(),
            vocab_size: self.labels,
            hidden_size: self.hidden_size,
            intermediate_size: self.intermediate_size,
            blocks: self.layers,
            heads: self.heads,
            kv_heads: self.heads,
            head_dim: self.hidden_size / self.heads,
            max_position_embeddings: tokens,
            tie_word_embeddings: false,
            causal: false,
            reach: self.reach.clone(),
            images: Some(ImageFacts { channels: self.channels, size: self.image_size, tokens }),
            activation: self.activation,
            halves: Vec::new(), // tokens may go between its two
        }
    }
}
