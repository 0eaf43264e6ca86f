//! `adapter_config.json` and tensor names, as PEFT 0.21 writes and reads them.

use anyhow::{Result, ensure};
use ramekin_core::pattern::Modules;
use ramekin_core::{Category, DType, UserError};
use ramekin_registry::{AnyPart, Part};
use ramekin_slots::WeightSource;
use serde_json::{Map, Value as Json, json};

use crate::lora::Lora;
use crate::settings::{InitWeights, LoraSettings};

/// The config of a saved adapter, with every field that PEFT 0.21 writes.
pub(crate) fn config(lora: &Lora, base: &str) -> Json {
    let s = &lora.settings;
    let mut config = json!({
        "alora_invocation_tokens": null, "alpha_pattern": numbers(&s.alpha_pattern), "arrow_config": null,
        "auto_mapping": null, "base_model_name_or_path": base, "bias": s.bias, "corda_config": null,
        "ensure_weight_tying": false, "eva_config": null, "exclude_modules": s.exclude_modules,
        "fan_in_fan_out": false, "inference_mode": true, "init_lora_weights": s.init_lora_weights,
        "kasa_config": null, "layer_replication": null, "layers_pattern": s.layers_pattern,
        "layers_to_transform": s.layers_to_transform, "loftq_config": {}, "lora_alpha": number(s.lora_alpha),
        "lora_bias": s.lora_bias, "lora_dropout": s.lora_dropout, "lora_ga_config": null,
        "megatron_config": null, "megatron_core": "megatron.core", "modules_to_save": s.modules_to_save,
        "monteclora_config": null, "peft_type": "LORA", "peft_version": "0.21.2", "qalora_group_size": 16,
        "r": s.r, "rank_pattern": s.rank_pattern, "revision": null, "target_modules": targets(lora),
        "target_parameters": null, "task_type": "CAUSAL_LM", "trainable_token_indices": null,
        "use_bdlora": null, "use_dora": false, "use_qalora": false, "use_rslora": s.use_rslora,
        "velora_config": null,
    });
    if let Some(map) = config.as_object_mut() {
        map.sort_keys();
    }
    config
}

/// PEFT writes `all-linear` out as the names it stood for.
fn targets(lora: &Lora) -> Json {
    match &lora.settings.target_modules {
        Modules::Pattern(p) if p.eq_ignore_ascii_case(Modules::ALL_LINEAR) => {
            let mut names: Vec<&str> =
                lora.targets.iter().map(|t| t.rsplit('.').next().unwrap_or(t)).collect();
            names.sort_unstable();
            names.dedup();
            json!(names)
        }
        other => json!(other),
    }
}

/// Whole numbers are written as integers, as PEFT's `int` fields are.
fn number(x: f64) -> Json {
    if x.fract() == 0.0 && x.abs() < 1e15 { json!(x as i64) } else { json!(x) }
}

fn numbers(map: &std::collections::BTreeMap<String, f64>) -> Json {
    Json::Object(map.iter().map(|(k, v)| (k.clone(), number(*v))).collect::<Map<_, _>>())
}

/// What a config may hold besides the settings of this part, with the values that mean "off".
const FOREIGN: [(&str, &[&str]); 24] = [
    ("use_dora", &["false"]),
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
    ("runtime_config", &[]),
    ("auto_mapping", &[]),
    ("inference_mode", &[]),
    ("peft_version", &[]),
];

const IDENTITY: [&str; 4] = ["peft_type", "task_type", "base_model_name_or_path", "revision"];

/// The part that a PEFT config describes, if it is a LoRA's.
pub(crate) fn from_peft(config: &Json) -> Option<Result<AnyPart>> {
    (config["peft_type"].as_str() == Some("LORA"))
        .then(|| Ok(AnyPart::Adapter(Box::new(Lora::new(settings(config)?)?))))
}

fn settings(config: &Json) -> Result<LoraSettings> {
    let mut kept = Map::new();
    for (key, value) in config.as_object().into_iter().flatten() {
        if IDENTITY.contains(&key.as_str()) {
            continue;
        }
        if let Some((_, off)) = FOREIGN.iter().find(|(k, _)| k == key) {
            let text = value.to_string();
            if !off.is_empty() && !off.contains(&text.as_str()) {
                return Err(UserError::new(format!(
                    "the adapter sets `{key}` to {text}, which `lora` does not do"
                ))
                .help("it needs another adapter part")
                .into());
            }
            continue;
        }
        let layers = matches!(key.as_str(), "layers_to_transform" | "layers_pattern") && !value.is_array();
        let value = if layers && !value.is_null() { json!([value]) } else { value.clone() };
        kept.insert(key.clone(), value);
    }
    let settings: LoraSettings = serde_json::from_value(Json::Object(kept))
        .map_err(|e| UserError::new(format!("adapter_config.json: {e}")))?;
    if settings.check().is_err_and(|bad| bad.setting == "init_lora_weights") {
        // The values come from the file; how they began no longer matters.
        return Ok(LoraSettings { init_lora_weights: InitWeights::Default(true), ..settings });
    }
    Ok(settings)
}

/// Replaces every parameter by the file's tensor of its name.
pub(crate) fn load(lora: &mut Lora, source: &mut dyn WeightSource) -> Result<()> {
    let label = source.label();
    let mut left = source.names();
    for named in &lora.params {
        let dims = named.param.value().dims().to_vec();
        let Some(info) = source.info(&named.key) else {
            return Err(UserError::new(format!("the adapter has no tensor `{}`", named.key))
                .in_file(label)
                .into());
        };
        if info.dims != dims {
            let message = format!(
                "the tensor `{}` is {:?} in the file; this model needs {dims:?}",
                named.key, info.dims
            );
            return Err(UserError::new(message).in_file(label).into());
        }
        let value = source.read(&named.key, &dims)?.to_dtype(DType::F32, Category::Trainable)?;
        ensure!(value.dims() == dims, "`{}` was read as {:?}", named.key, value.dims());
        named.param.set(value);
        left.retain(|n| n != &named.key);
    }
    if let Some(first) = left.first() {
        let message =
            format!("{} tensors of the adapter fit nothing in this model, first `{first}`", left.len());
        return Err(UserError::new(message).in_file(label).into());
    }
    Ok(())
}
