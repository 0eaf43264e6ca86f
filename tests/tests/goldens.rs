//! The numbers of transformers and PEFT, on the tiny models of `../shared/goldens`.
//!
//! Logits within 1e-4 of the largest, loss within 1e-4, each gradient within
//! 1e-3 of its norm; greedy tokens equal, with a cache and without.

use std::collections::BTreeSet;
use std::path::Path;

use ramekin_core::Rng;
use ramekin_engine::generation::{Generator, Limits};
use ramekin_engine::parts;
use ramekin_recipe::Part;
use ramekin_tests::compare::{close, relative_norm};
use ramekin_tests::kitchen::{cook, json, losses};
use ramekin_tests::{Kitchen, Tensors, floats, golden, id_rows, integers, lab, tensors, write_ids};
use serde_json::{Value as Json, json};

fn norm(x: &[f32]) -> f64 {
    x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt()
}

/// Logits, loss and gradients of a case against what the `logits` stage writes.
/// `file_name` turns a golden parameter's name into the one its file has.
fn same_numbers(expected: &Tensors, found: &Tensors, file_name: impl Fn(&str) -> String) {
    let mask = integers(&expected["attention_mask"]);
    let v = *expected["logits"].dims().last().expect("a vocabulary");
    let (rows, tokens) = (expected["input_ids"].dims()[0], expected["input_ids"].dims()[1]);
    let real = |t: &Tensors| -> Vec<f32> {
        // PEFT also gives logits of virtual tokens, before the others.
        let all = floats(&t["logits"]);
        let more = t["logits"].dims()[1] - tokens;
        let own = all.chunks(all.len() / rows).flat_map(|row| row[more * v..].to_vec());
        let all: Vec<f32> = own.collect();
        all.chunks(v).zip(&mask).filter(|(_, m)| **m == 1).flat_map(|(row, _)| row.to_vec()).collect()
    };
    assert!(mask.contains(&0), "the case has no padding");
    close("logits", &real(found), &real(expected), 1e-4);
    let (loss, golden_loss) = (floats(&found["loss"])[0], floats(&expected["loss"])[0]);
    assert!((loss - golden_loss).abs() <= 1e-4, "loss {loss}, golden {golden_loss}");

    same_gradients(expected, found, file_name);
}

fn same_gradients(expected: &Tensors, found: &Tensors, file_name: impl Fn(&str) -> String) {
    let gradients: Vec<_> = expected.iter().filter(|(n, _)| n.starts_with("grad.")).collect();
    let made = found.keys().filter(|n| n.starts_with("grad.")).count();
    assert_eq!(made, gradients.len(), "as many gradients as the golden has");
    for (name, golden) in gradients {
        let name = file_name(name);
        let grad = found.get(&name).unwrap_or_else(|| panic!("no `{name}`"));
        assert_eq!(grad.dims(), golden.dims(), "{name}");
        if name.ends_with(".attention.key.bias") {
            // It moves all of a query's scores alike: what there is of a gradient is rounding.
            let query = norm(&floats(&found[&name.replace(".key.", ".query.")]));
            let most = norm(&floats(grad)).max(norm(&floats(golden)));
            assert!(most <= 1e-5 * query, "{name}: {most:.1e} beside {query:.1e}");
            continue;
        }
        let off = relative_norm(&floats(grad), &floats(golden));
        assert!(off <= 1e-3, "{name}: off by {off:.2e} of its norm");
    }
}

fn logits_of(case: &Path, model: &Path, adapter: &str) -> Tensors {
    let kitchen = cook(&format!(
        "model = {{ source = {:?} }}\n[[stage]]\nkind = \"logits\"\ninput = {:?}\ngradients = true\n{adapter}\n",
        model,
        case.join("io.safetensors")
    ));
    tensors(&kitchen.out("logits.safetensors"))
}

fn base(name: &str) {
    let Some(case) = golden(name) else { return };
    let model = case.join("model");
    let expected = tensors(&case.join("io.safetensors"));
    same_numbers(&expected, &logits_of(&case, &model, ""), str::to_owned);

    let greedy = id_rows(&expected["greedy_ids"]);
    let prompt = vec![greedy[0][..8].to_vec()];
    assert_eq!(prompt[0], id_rows(&expected["input_ids"])[0][..8]);

    let kitchen = Kitchen::new(&format!(
        "model = {{ source = {model:?} }}\n[[stage]]\nkind = \"generate\"\ninput = \"prompt.safetensors\"\n\
         max_new_tokens = 24\n"
    ));
    write_ids(&kitchen.folder().join("prompt.safetensors"), &prompt);
    kitchen.run(&[]).expect(0);
    let cached = id_rows(&tensors(&kitchen.out("generated.safetensors"))["ids"]);
    assert_eq!(cached, greedy, "greedy tokens with a cache");

    let assembly = lab::assemble(&lab::folder_model(&model));
    let decoder = parts::decoder(&Part::of("greedy")).expect("greedy");
    let generator =
        Generator { assembly: &assembly, decoder: &*decoder, kv: None, rng: Rng::new(0), adapters: true };
    let limits = Limits { max_new_tokens: 24, eos: &assembly.eos_ids() };
    let plain = generator.run(&prompt, &limits, &mut |_, _| {}).expect("generation").ids;
    assert_eq!(plain, greedy, "greedy tokens without a cache");
}

#[test]
fn llama() {
    base("llama");
}

#[test]
fn llama_tied_rope3() {
    base("llama-tied-rope3");
}

#[test]
fn mistral_window() {
    base("mistral-window");
}

#[test]
fn qwen2() {
    base("qwen2");
}

#[test]
fn qwen3() {
    base("qwen3");
}

/// A transformer's name of a parameter of a vision transformer, as its files have it.
fn vit_in_file(name: &str) -> String {
    let mut name = name.replace("vit.layers.", "vit.encoder.layer.");
    for (ours, theirs) in [
        (".attention.q_proj.", ".attention.attention.query."),
        (".attention.k_proj.", ".attention.attention.key."),
        (".attention.v_proj.", ".attention.attention.value."),
        (".attention.o_proj.", ".attention.output.dense."),
        (".mlp.fc1.", ".intermediate.dense."),
        (".mlp.fc2.", ".output.dense."),
    ] {
        name = name.replace(ours, theirs);
    }
    name
}

#[test]
fn vit() {
    let Some(case) = golden("vit") else { return };
    let expected = tensors(&case.join("io.safetensors"));
    let found = logits_of(&case, &case.join("model"), "");
    assert_eq!(found["logits"].dims(), expected["logits"].dims());
    close("logits", &floats(&found["logits"]), &floats(&expected["logits"]), 1e-4);
    let (loss, golden_loss) = (floats(&found["loss"])[0], floats(&expected["loss"])[0]);
    assert!((loss - golden_loss).abs() <= 1e-4, "loss {loss}, golden {golden_loss}");
    same_gradients(&expected, &found, vit_in_file);
}

/// A train stage on the case's own batch with the settings of its `case.json`.
fn train_recipe(case: &Path, model: &Path, adapter: &str, steps: usize) -> String {
    let adamw = &json(&case.join("case.json"))["adamw"];
    format!(
        r#"
model = {{ source = {model:?} }}
[[stage]]
kind = "train"
adapter = [{adapter}]
optimizer = {{ kind = "adamw", lr = {}, betas = {}, eps = {}, weight_decay = {} }}
schedule = {{ kind = "constant" }}
max_grad_norm = 0
data = {{ kind = "tokens", path = {:?} }}
steps = {steps}
"#,
        adamw["lr"],
        adamw["betas"],
        adamw["eps"],
        adamw["weight_decay"],
        case.join("io.safetensors"),
    )
}

/// From PEFT's name of a parameter to the one in its files.
fn name_in_file(name: &str) -> String {
    name.replace(".lora_magnitude_vector.default.weight", ".lora_magnitude_vector")
        .replace(".modules_to_save.default", "")
        .replace(".default", "")
}

fn adapter(name: &str) {
    let (Some(case), Some(base)) = (golden(name), golden("llama")) else { return };
    let model = base.join("model");
    let saved = case.join("adapter");
    let expected = tensors(&case.join("io.safetensors"));
    let load = format!("{{ load = {saved:?} }}");
    let found = logits_of(&case, &model, &format!("adapter = [{load}]"));
    same_numbers(&expected, &found, name_in_file);

    let kitchen = cook(&train_recipe(&case, &model, &load, 5));
    let golden_losses = floats(&expected["adamw_losses"]);
    let made = losses(&kitchen.out(""));
    assert_eq!(made.len(), golden_losses.len());
    for ((step, loss), golden) in made.iter().zip(&golden_losses) {
        let off = (loss - f64::from(*golden)).abs();
        assert!(off <= 2e-4, "loss before update {step}: {loss}, golden {golden}");
    }
    assert!(golden_losses[4] < golden_losses[0] - 0.01, "the golden's loss falls");
    same_files(&kitchen.out("adapter"), &saved);

    // A new adapter with the same settings makes the same files.
    let config = json(&saved.join("adapter_config.json"));
    let fresh = cook(&train_recipe(&case, &model, &settings(&config), 1));
    same_files(&fresh.out("adapter"), &saved);
}

/// Settings of each part that a PEFT config can set.
const SETTINGS: [(&str, &[&str]); 9] = [
    ("ln", &["target_modules", "exclude_modules", "modules_to_save"]),
    ("prompt", &["num_virtual_tokens", "prompt_tuning_init"]),
    ("prefix", &["num_virtual_tokens", "prefix_projection", "encoder_hidden_size"]),
    (
        "lora",
        &[
            "r",
            "lora_alpha",
            "lora_dropout",
            "target_modules",
            "use_rslora",
            "layers_to_transform",
            "rank_pattern",
            "alpha_pattern",
            "modules_to_save",
            "bias",
        ],
    ),
    ("dora", &["r", "lora_alpha", "lora_dropout", "target_modules", "use_rslora", "bias"]),
    ("ia3", &["target_modules", "feedforward_modules", "init_ia3_weights"]),
    ("loha", &["r", "alpha", "target_modules", "rank_dropout", "module_dropout", "init_weights"]),
    ("lokr", &["r", "alpha", "target_modules", "decompose_both", "decompose_factor", "rank_dropout_scale"]),
    ("vera", &["r", "d_initial", "target_modules", "projection_prng_key", "save_projection", "vera_dropout"]),
];

/// `{ kind = "…", … }` with what a PEFT config sets.
fn settings(config: &Json) -> String {
    let kind = match config["peft_type"].as_str() {
        Some("LORA") if config["use_dora"] == true => "dora".to_owned(),
        other => other.expect("a `peft_type`").to_lowercase().replace("_tuning", ""),
    };
    let (_, keys) = SETTINGS.iter().find(|(k, _)| *k == kind).expect("a known kind");
    let entries = keys.iter().filter(|k| !config[**k].is_null()).map(|k| match &config[*k] {
        // JSON writes all of these as TOML does, but for tables.
        Json::Object(map) => {
            let inner: Vec<String> = map.iter().map(|(k, v)| format!("{k:?} = {v}")).collect();
            format!("{k} = {{ {} }}", inner.join(", "))
        }
        value => format!("{k} = {value}"),
    });
    format!("{{ kind = {kind:?}, {} }}", entries.collect::<Vec<_>>().join(", "))
}

/// Both folders have the same tensors by name, shape and type, and the same
/// config but for the base's name and the order of targets.
fn same_files(made: &Path, golden: &Path) {
    let shapes = |folder: &Path| -> BTreeSet<(String, Vec<usize>, String)> {
        let all = tensors(&folder.join("adapter_model.safetensors"));
        all.iter().map(|(n, t)| (n.clone(), t.dims().to_vec(), format!("{:?}", t.dtype()))).collect()
    };
    assert_eq!(shapes(made), shapes(golden));
    let config = |folder: &Path| -> Json {
        let mut config = json(&folder.join("adapter_config.json"));
        assert!(config["base_model_name_or_path"].is_string());
        config["base_model_name_or_path"] = json!("base");
        if let Some(targets) = config.get("target_modules") {
            let mut targets: Vec<String> = serde_json::from_value(targets.clone()).expect("a list of names");
            targets.sort();
            config["target_modules"] = json!(targets);
        }
        config
    };
    let (made, golden) = (config(made), config(golden));
    for (key, value) in golden.as_object().expect("an object") {
        assert_eq!(made.get(key), Some(value), "adapter_config.json: `{key}`");
    }
    let names = |c: &Json| c.as_object().expect("an object").keys().cloned().collect::<BTreeSet<_>>();
    assert_eq!(names(&made), names(&golden), "fields that PEFT does not know break its older releases");
}

#[test]
fn peft_lora() {
    adapter("peft-lora");
}

#[test]
fn peft_rslora_attn() {
    adapter("peft-rslora-attn");
}

#[test]
fn peft_lora_patterns() {
    adapter("peft-lora-patterns");
}

#[test]
fn peft_dora() {
    adapter("peft-dora");
}

#[test]
fn peft_ia3() {
    adapter("peft-ia3");
}

#[test]
fn peft_loha() {
    adapter("peft-loha");
}

#[test]
fn peft_lokr() {
    adapter("peft-lokr");
}

#[test]
fn peft_vera() {
    adapter("peft-vera");
}

#[test]
fn peft_ln() {
    adapter("peft-ln");
}

#[test]
fn peft_prompt() {
    adapter("peft-prompt");
}

#[test]
fn peft_prefix() {
    adapter("peft-prefix");
}
