//! The settings of `lora`, named as in `peft.LoraConfig`.

use std::collections::BTreeMap;

use anyhow::Result;
use ramekin_core::BadSetting;
use ramekin_core::pattern::Modules;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Which bias vectors of the base model train along.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Bias {
    /// None.
    #[default]
    None,
    /// Every bias of the model.
    All,
    /// Those of the targeted linears.
    LoraOnly,
}

/// How A and B begin.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(untagged)]
pub enum InitWeights {
    /// `true`: A Kaiming-uniform (a = √5), B zero. `false`: both random, for tests of loading.
    Default(bool),
    /// `"gaussian"`: A ~ N(0, 1/r²), B zero.
    Named(String),
}

/// Settings of `adapter = [{ kind = "lora", … }]`.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct LoraSettings {
    /// Rank of the update, at least 1.
    pub r: usize,
    /// Scale: the update is multiplied by `lora_alpha / r`.
    pub lora_alpha: f64,
    /// Share of the branch's inputs dropped in training, in [0, 1).
    pub lora_dropout: f64,
    /// Modules to adapt: names or path endings, a regular expression for whole paths, or "all-linear".
    pub target_modules: Modules,
    /// Modules to leave out again.
    pub exclude_modules: Option<Modules>,
    /// Layers to adapt, by number; all if absent.
    pub layers_to_transform: Option<Vec<usize>>,
    /// Name of the list that holds the layers, where it is not the usual one.
    pub layers_pattern: Option<Vec<String>>,
    /// Other ranks: module name or regular expression → r.
    pub rank_pattern: BTreeMap<String, usize>,
    /// Other scales: module name or regular expression → lora_alpha.
    pub alpha_pattern: BTreeMap<String, f64>,
    /// Modules trained whole, as copies that are saved with the adapter.
    pub modules_to_save: Option<Vec<String>>,
    /// Bias vectors of the base that train along: "none", "all" or "lora_only".
    pub bias: Bias,
    /// Divides `lora_alpha` by √r instead of r.
    pub use_rslora: bool,
    /// Gives B a bias of its own.
    pub lora_bias: bool,
    /// How A and B begin: true, false or "gaussian".
    pub init_lora_weights: InitWeights,
    /// LoRA+: factor on the learning rate of B and of trainable biases and norms, at least 1; absent is off.
    pub loraplus_lr_ratio: Option<f64>,
}

impl Default for LoraSettings {
    fn default() -> Self {
        LoraSettings {
            r: 8,
            lora_alpha: 8.0,
            lora_dropout: 0.0,
            target_modules: Modules::List(vec!["q_proj".into(), "v_proj".into()]),
            exclude_modules: None,
            layers_to_transform: None,
            layers_pattern: None,
            rank_pattern: BTreeMap::new(),
            alpha_pattern: BTreeMap::new(),
            modules_to_save: None,
            bias: Bias::None,
            use_rslora: false,
            lora_bias: false,
            init_lora_weights: InitWeights::Default(true),
            loraplus_lr_ratio: None,
        }
    }
}

impl LoraSettings {
    /// Refuses values that make no sense for any model.
    pub(crate) fn check(&self) -> Result<(), BadSetting> {
        if self.r == 0 {
            return Err(BadSetting::new("r", "is 0; a rank must be at least 1"));
        }
        if let Some((key, _)) = self.rank_pattern.iter().find(|(_, r)| **r == 0) {
            return Err(BadSetting::new(
                "rank_pattern",
                format!("gives `{key}` rank 0; a rank must be at least 1"),
            ));
        }
        if !self.lora_alpha.is_finite() {
            return Err(BadSetting::new("lora_alpha", "must be a finite number"));
        }
        if !(0.0..1.0).contains(&self.lora_dropout) {
            return Err(BadSetting::new(
                "lora_dropout",
                format!("is {}; it must be in [0, 1)", self.lora_dropout),
            ));
        }
        if let InitWeights::Named(name) = &self.init_lora_weights
            && name != "gaussian"
        {
            let why = format!("is {name:?}; this adapter knows true, false and \"gaussian\"");
            return Err(BadSetting::new("init_lora_weights", why));
        }
        if let Some(ratio) = self.loraplus_lr_ratio
            && !(ratio >= 1.0 && ratio.is_finite())
        {
            return Err(BadSetting::new("loraplus_lr_ratio", format!("is {ratio}; it must be at least 1")));
        }
        Ok(())
    }

    /// Rank and scale of the update of one module.
    pub(crate) fn rank_and_scale(&self, path: &str) -> (usize, f64) {
        use ramekin_core::pattern::pattern_value;
        let r = *pattern_value(&self.rank_pattern, path).unwrap_or(&self.r);
        let alpha = *pattern_value(&self.alpha_pattern, path).unwrap_or(&self.lora_alpha);
        (r, alpha / if self.use_rslora { (r as f64).sqrt() } else { r as f64 })
    }
}
