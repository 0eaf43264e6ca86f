//! The adapters that the checks run over, and what undoes each of them.

use ramekin_core::{Array, Category};
use ramekin_slots::AdapterFile;
use serde_json::{Value as Json, json};

/// A part under a name of the sheet, with settings for the small llama.
pub struct Kind {
    /// What messages call it.
    pub name: &'static str,
    /// The part.
    pub part: &'static str,
    /// Its settings.
    pub settings: Json,
}

fn kind(name: &'static str, part: &'static str, settings: Json) -> Kind {
    Kind { name, part, settings }
}

/// Settings of `lora` or `dora` on every linear.
pub fn lora(extra: Json) -> Json {
    with(json!({ "r": 4, "lora_alpha": 8, "target_modules": "all-linear" }), extra)
}

/// Settings of `loha` or `lokr` on every linear.
fn lycoris(extra: Json) -> Json {
    with(json!({ "r": 4, "alpha": 8, "target_modules": "all-linear" }), extra)
}

fn with(mut settings: Json, extra: Json) -> Json {
    for (key, value) in extra.as_object().expect("an object") {
        settings[key] = value.clone();
    }
    settings
}

/// LoRA, rsLoRA, LoRA+ and the settings that change the branch.
pub fn loras() -> Vec<Kind> {
    vec![
        kind("LoRA", "lora", lora(json!({}))),
        kind("rsLoRA", "lora", lora(json!({ "use_rslora": true }))),
        kind("LoRA+", "lora", lora(json!({ "loraplus_lr_ratio": 4 }))),
        kind("gaussian", "lora", lora(json!({ "init_lora_weights": "gaussian" }))),
        kind(
            "patterns",
            "lora",
            lora(json!({ "rank_pattern": { "down_proj": 7 }, "alpha_pattern": { "q_proj": 3 } })),
        ),
    ]
}

/// Every kind.
pub fn kinds() -> Vec<Kind> {
    let both = json!({ "decompose_both": true, "decompose_factor": 4, "r": 1, "init_weights": "lycoris" });
    let mut all = loras();
    all.extend([
        kind("DoRA", "dora", lora(json!({}))),
        kind("DoRA and rsLoRA", "dora", lora(json!({ "use_rslora": true, "loraplus_lr_ratio": 4 }))),
        kind("VeRA", "vera", json!({ "r": 64, "target_modules": "all-linear" })),
        kind("LoHa", "loha", lycoris(json!({}))),
        kind("LoKr", "lokr", lycoris(json!({ "r": 2 }))),
        kind("LoKr, both thin", "lokr", lycoris(both)),
        kind("(IA)³", "ia3", json!({})),
        kind("(IA)³ everywhere", "ia3", json!({ "target_modules": "all-linear" })),
    ]);
    all
}

/// Turns the adapter in a file into one whose merge takes the first one's out again. For DoRA it takes
/// out ΔW alone: [`rows_back`] comes before.
pub fn undo(part: &str, file: &mut AdapterFile) {
    match part {
        "ia3" => map(file, |_| true, |l| 1.0 / l),
        "vera" => map(file, |key| key.ends_with("vera_lambda_b"), |l| -l),
        _ => {
            let alpha = if part == "lora" || part == "dora" { "lora_alpha" } else { "alpha" };
            let negative = |x: &mut Json| *x = json!(-x.as_f64().expect("a number"));
            negative(&mut file.config[alpha]);
            file.config["alpha_pattern"]
                .as_object_mut()
                .into_iter()
                .flat_map(|m| m.values_mut())
                .for_each(negative);
        }
    }
    if part == "dora" {
        file.config["use_dora"] = json!(false);
        file.tensors.retain(|(key, _)| !key.ends_with("lora_magnitude_vector"));
    }
}

fn map(file: &mut AdapterFile, wanted: impl Fn(&str) -> bool, f: impl Fn(f32) -> f32) {
    for (_, array) in file.tensors.iter_mut().filter(|(key, _)| wanted(key)) {
        let numbers = array.to_f32().expect("f32").into_iter().map(&f).collect();
        *array = Array::from_vec(numbers, array.dims(), Category::Workspace).expect("the same shape");
    }
}

/// Undoes DoRA's lengths: the rows of a merged weight times n/m, with n = ‖W + s·BA‖ of the original W.
pub fn rows_back(file: &AdapterFile, name: &str, original: &[f32], merged: &mut [f32]) {
    let path = name.strip_suffix(".weight").expect("a weight");
    let tensor = |tail: &str| {
        let key = format!("base_model.model.{path}.{tail}");
        file.tensors
            .iter()
            .find(|(k, _)| *k == key)
            .map(|(_, a)| (a.dims().to_vec(), a.to_f32().expect("f32")))
    };
    let (Some((_, m)), Some((dims, a)), Some((_, b))) =
        (tensor("lora_magnitude_vector"), tensor("lora_A.weight"), tensor("lora_B.weight"))
    else {
        return;
    };
    let (r, i) = (dims[0], dims[1]);
    let root = |r: usize| if file.config["use_rslora"] == true { (r as f64).sqrt() } else { r as f64 };
    let s = file.config["lora_alpha"].as_f64().expect("a number").abs() / root(r);
    for (o, row) in merged.chunks_exact_mut(i).enumerate() {
        let turned = |j: usize| {
            let low: f64 = (0..r).map(|k| f64::from(b[o * r + k]) * f64::from(a[k * i + j])).sum();
            f64::from(original[o * i + j]) + s * low
        };
        let n = (0..i).map(|j| turned(j).powi(2)).sum::<f64>().sqrt();
        row.iter_mut().for_each(|w| *w = (f64::from(*w) * n / f64::from(m[o])) as f32);
    }
}
