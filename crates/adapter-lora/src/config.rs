//! The fields of PEFT's `LoraConfig` (0.21), both ways.

use ramekin_peft::{Biases, Targeting, pattern_numbers, whole};
use serde_json::{Value as Json, json};

use crate::settings::{Bias, LoraSettings};

/// What a config may hold besides the settings, with the values that mean "off". `use_dora` tells the
/// parts apart and is read before.
pub(crate) const FOREIGN: &[(&str, &[&str])] = &[
    ("use_dora", &[]),
    ("use_qalora", &["false"]),
    ("use_bdlora", &["null"]),
    ("trainable_token_indices", &["null"]),
    ("target_parameters", &["null", "[]"]),
    ("layer_replication", &["null"]),
    ("alora_invocation_tokens", &["null"]),
    ("arrow_config", &["null"]),
    ("corda_config", &["null"]),
    ("eva_config", &["null"]),
    ("kasa_config", &["null"]),
    ("lora_ga_config", &["null"]),
    ("monteclora_config", &["null"]),
    ("velora_config", &["null"]),
    ("megatron_config", &["null"]),
    ("fan_in_fan_out", &["false"]),
    ("ensure_weight_tying", &["false"]),
    ("loftq_config", &["{}", "null"]),
    ("megatron_core", &[]),
    ("qalora_group_size", &[]),
];

/// Whether the config asks for DoRA.
pub(crate) fn is_dora(config: &Json) -> bool {
    config["use_dora"].as_bool() == Some(true)
}

/// The config's own fields.
pub(crate) fn write(s: &LoraSettings, use_dora: bool) -> Json {
    json!({
        "alora_invocation_tokens": null, "alpha_pattern": pattern_numbers(&s.alpha_pattern),
        "arrow_config": null, "bias": s.bias, "corda_config": null, "ensure_weight_tying": false,
        "eva_config": null, "exclude_modules": s.exclude_modules, "fan_in_fan_out": false,
        "init_lora_weights": s.init_lora_weights, "kasa_config": null, "layer_replication": null,
        "layers_pattern": s.layers_pattern, "layers_to_transform": s.layers_to_transform,
        "loftq_config": {}, "lora_alpha": whole(s.lora_alpha), "lora_bias": s.lora_bias,
        "lora_dropout": s.lora_dropout, "lora_ga_config": null, "megatron_config": null,
        "megatron_core": "megatron.core", "modules_to_save": s.modules_to_save, "monteclora_config": null,
        "qalora_group_size": 16, "r": s.r, "rank_pattern": s.rank_pattern, "target_parameters": null,
        "trainable_token_indices": null, "use_bdlora": null, "use_dora": use_dora, "use_qalora": false,
        "use_rslora": s.use_rslora, "velora_config": null,
    })
}

/// Where the adapter goes.
pub(crate) fn targeting(s: &LoraSettings) -> Targeting<'_> {
    Targeting {
        target_modules: &s.target_modules,
        exclude_modules: s.exclude_modules.as_ref(),
        layers_to_transform: s.layers_to_transform.as_deref(),
        layers_pattern: s.layers_pattern.as_deref().unwrap_or_default(),
        modules_to_save: s.modules_to_save.as_deref().unwrap_or_default(),
        biases: match s.bias {
            Bias::None => Biases::None,
            Bias::All => Biases::All,
            Bias::LoraOnly => Biases::Targets,
        },
    }
}
