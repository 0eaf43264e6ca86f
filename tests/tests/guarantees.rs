//! What is always true of a run: frozen is frozen, fresh is identical, merged
//! is equal, saved is the same, and the bits depend on the seed alone.

use std::path::Path;

use ramekin_engine::assembly::Assembly;
use ramekin_engine::blueprint::Blueprint;
use ramekin_recipe::{Adapter, Dtype};
use ramekin_slots::FlatBatch;
use ramekin_store::{Data, write_safetensors};
use ramekin_tests::compare::{close, difference, same_bits};
use ramekin_tests::kitchen::{cook, finish, json, losses};
use ramekin_tests::lab::{self, assemble, new_adapter, part, saved_adapter, sequences};
use ramekin_tests::{Kitchen, floats, sha256, tensors, write_ids};
use serde_json::{Value as Json, json};

fn small() -> Blueprint {
    lab::fresh_model(lab::small_llama())
}

fn qwen2_like() -> Json {
    let mut config = lab::small_llama();
    config["model_type"] = json!("qwen2");
    config["architectures"] = json!(["Qwen2ForCausalLM"]);
    config
}

fn with(mut blueprint: Blueprint, adapters: &[Adapter]) -> Blueprint {
    blueprint.adapters = adapters.to_vec();
    blueprint
}

/// Every kind of adapter setting that leaves the model's answers alone at the start.
fn fresh_adapters() -> Vec<(&'static str, Json)> {
    let with = |extra: Json| {
        let mut settings = json!({ "r": 4, "lora_alpha": 32, "target_modules": "all-linear" });
        for (k, v) in extra.as_object().expect("an object") {
            settings[k] = v.clone();
        }
        settings
    };
    vec![
        ("lora", with(json!({}))),
        ("rslora", with(json!({ "use_rslora": true }))),
        ("gaussian", with(json!({ "init_lora_weights": "gaussian" }))),
        ("bias of B", with(json!({ "lora_bias": true }))),
        ("dropout", with(json!({ "lora_dropout": 0.5 }))),
        ("whole modules", with(json!({ "modules_to_save": ["lm_head", "embed_tokens"] }))),
        ("patterns", with(json!({ "rank_pattern": { "down_proj": 7 }, "alpha_pattern": { "q_proj": 3 } }))),
    ]
}

fn bases() -> Vec<(&'static str, Blueprint)> {
    let packed = |kind: &str, settings: Json| Blueprint { quantizer: Some(part(kind, settings)), ..small() };
    let mut bf16 = small();
    bf16.model.dtype = Some(Dtype::Bf16);
    vec![
        ("f32", small()),
        ("bf16", bf16),
        ("nf4", packed("nf4", json!({}))),
        ("rtn", packed("rtn", json!({ "bits": 4, "group_size": 16 }))),
    ]
}

#[test]
fn a_fresh_adapter_leaves_logits_bit_identical() {
    for (base, blueprint) in bases() {
        let bare = assemble(&blueprint);
        let probe = FlatBatch::new(&sequences(&[17, 5, 1], 61, 3));
        let expected = lab::logits(&bare, &probe, true);
        assert!(ramekin_tests::compare::largest(&expected) > 0.5, "{base}: logits that say something");
        for (name, settings) in fresh_adapters() {
            if name == "whole modules" && base != "f32" && base != "bf16" {
                continue; // a packed head cannot be trained whole
            }
            let adapted = assemble(&with(blueprint.clone(), &[new_adapter("lora", settings)]));
            assert!(!adapted.trainable().is_empty());
            same_bits(&format!("{base}, {name}"), &lab::logits(&adapted, &probe, true), &expected);
        }
    }
}

#[test]
fn the_frozen_base_is_bit_identical_after_training() {
    let batch = lab::batch(&sequences(&[20, 9, 14], 61, 4));
    let mut cases = bases();
    cases.push(("biases", lab::fresh_model(qwen2_like())));
    for (base, blueprint) in cases {
        let bias = if base == "biases" { "lora_only" } else { "none" };
        let settings = json!({ "r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"],
            "lora_dropout": 0.1, "bias": bias });
        let assembly = assemble(&with(blueprint, &[new_adapter("lora", settings)]));
        let (frozen, trained) = (lab::frozen_bits(&assembly), lab::trained(&assembly));
        let before = lab::logits(&assembly, &batch.flat, false);
        let mut trainer = lab::trainer(1e-2);
        trainer.optimizer =
            ramekin_engine::parts::optimizer(&part("adamw", json!({ "lr": 1e-2, "weight_decay": 0.1 })))
                .expect("adamw");
        trainer.activation =
            ramekin_engine::parts::activation(&part("checkpoint", json!({}))).expect("checkpoint");
        let losses = lab::train(&assembly, &mut trainer, &batch, 6);
        assert!(losses[5] < losses[0], "{base}: {losses:?}");
        assert!(frozen.len() > 10, "{base}: the base is there to compare");
        assert!(frozen == lab::frozen_bits(&assembly), "{base}: a frozen tensor has moved");
        let moved = trained.iter().zip(&lab::trained(&assembly)).filter(|(a, b)| a.1 != b.1).count();
        assert_eq!(moved, trained.len(), "{base}: every trainable tensor moves");
        if bias == "none" {
            same_bits(base, &lab::logits(&assembly, &batch.flat, false), &before);
        } else {
            assert!(trained.iter().any(|(n, _)| n.ends_with("q_proj.bias")), "{trained:?}");
            assert!(!trained.iter().any(|(n, _)| n.ends_with("k_proj.bias")));
        }
    }
}

/// What trains of a bf16 model is held in f32 and multiplied in bf16, as what is frozen is.
#[test]
fn a_bf16_model_that_trains_whole_multiplies_in_bf16() {
    let batch = lab::batch(&sequences(&[20, 9, 14], 61, 4));
    let of = |dtype, full_training| {
        let mut blueprint = Blueprint { full_training, ..small() };
        blueprint.model.dtype = Some(dtype);
        assemble(&blueprint)
    };
    let (narrow, wide) = (of(Dtype::Bf16, true), of(Dtype::F32, true));
    assert!(narrow.trainable().iter().all(|p| p.value().dtype() == ramekin_core::DType::F32));
    let logits = |assembly: &Assembly| lab::logits(assembly, &batch.flat, true);
    if ramekin_kernels::bf16::unit().is_some() {
        assert_ne!(logits(&narrow), logits(&wide), "nothing was rounded");
    }
    close("whole and frozen", &logits(&narrow), &logits(&of(Dtype::Bf16, false)), 2e-2);
    let losses = lab::train(&narrow, &mut lab::trainer(1e-2), &batch, 6);
    assert!(losses[5] < losses[0], "{losses:?}");
}

/// Writes an adapter as files and returns its folder.
fn save(assembly: &Assembly, folder: &Path) {
    let file = assembly.adapters[0].adapter.file("base").expect("an adapter's file");
    let all: Vec<(String, Data)> = file.tensors.iter().map(|(n, a)| (n.clone(), Data::from(a))).collect();
    write_safetensors(folder.join("adapter_model.safetensors"), &all, &[("format", "pt")]).expect("written");
    std::fs::write(folder.join("adapter_config.json"), file.config.to_string()).expect("written");
}

#[test]
fn a_saved_adapter_comes_back_to_the_bit() {
    let batch = lab::batch(&sequences(&[20, 9], 61, 4));
    for (name, settings) in fresh_adapters() {
        let assembly = assemble(&with(small(), &[new_adapter("lora", settings)]));
        lab::train(&assembly, &mut lab::trainer(1e-2), &batch, 4);
        let folder = tempfile::tempdir().expect("a folder");
        save(&assembly, folder.path());
        let again = assemble(&with(small(), &[saved_adapter(folder.path())]));
        let (kept, loaded) = (lab::trained(&assembly), lab::trained(&again));
        assert_eq!(kept.len(), loaded.len(), "{name}");
        for (a, b) in kept.iter().zip(&loaded) {
            assert_eq!(a.0, b.0, "{name}");
            same_bits(&a.0, &b.1, &a.1);
        }
        let (a, b) = (lab::logits(&assembly, &batch.flat, true), lab::logits(&again, &batch.flat, true));
        same_bits(name, &b, &a);
        // And its files are the same files.
        let second = tempfile::tempdir().expect("a folder");
        save(&again, second.path());
        for file in ["adapter_config.json", "adapter_model.safetensors"] {
            assert_eq!(
                sha256(&folder.path().join(file)),
                sha256(&second.path().join(file)),
                "{name}: {file}"
            );
        }
    }
}

/// A recipe that trains an adapter on a small model and folds it in.
fn merge_recipe(config: &Json, adapter: &str, quantizer: &str) -> String {
    format!(
        r#"
seed = 3
model = {{ source = "init", config = "config.json" }}
[[stage]]
kind = "train"
{quantizer}
adapter = [{adapter}]
optimizer = {{ kind = "adamw", lr = 1e-2, weight_decay = 0.0 }}
data = {{ kind = "tokens", path = "ids.safetensors" }}
steps = 20
[[stage]]
kind = "logits"
input = "ids.safetensors"
[[stage]]
kind = "merge"
[[stage]]
kind = "logits"
input = "ids.safetensors"
# {}
"#,
        config["model_type"]
    )
}

#[test]
fn merged_logits_equal_the_adapters() {
    let mut tied = lab::small_llama();
    tied["tie_word_embeddings"] = json!(true);
    let all = r#"{ kind = "lora", r = 4, lora_alpha = 8, target_modules = "all-linear" }"#;
    let cases = [
        ("plain", lab::small_llama(), all, ""),
        ("rslora", lab::small_llama(), r#"{ kind = "lora", r = 4, use_rslora = true }"#, ""),
        ("biases", qwen2_like(), r#"{ kind = "lora", target_modules = "all-linear", bias = "all" }"#, ""),
        ("tied", tied.clone(), all, ""),
        ("tied head", tied, r#"{ kind = "lora", target_modules = ["lm_head", "v_proj"] }"#, ""),
        ("whole head", lab::small_llama(), r#"{ kind = "lora", modules_to_save = ["lm_head", "norm"] }"#, ""),
        ("nf4", lab::small_llama(), all, r#"quantizer = { kind = "nf4" }"#),
        ("two", lab::small_llama(), &format!("{all}, {{ kind = \"lora\", r = 2 }}"), ""),
        (
            "dora on nf4",
            lab::small_llama(),
            r#"{ kind = "dora", r = 4, target_modules = "all-linear" }"#,
            r#"quantizer = { kind = "nf4" }"#,
        ),
        (
            "all kinds on one linear, with biases",
            qwen2_like(),
            r#"{ kind = "lora", r = 4, lora_bias = true, bias = "all", target_modules = ["q_proj", "v_proj"] },
               { kind = "ia3" }, { kind = "dora", r = 4, bias = "none" }, { kind = "loha", r = 2 },
               { kind = "ia3", target_modules = ["v_proj", "down_proj"] }, { kind = "lokr", r = 2 },
               { kind = "vera", r = 16, target_modules = "all-linear" }"#,
            "",
        ),
    ];
    for (name, config, adapter, quantizer) in cases {
        let kitchen = Kitchen::new(&merge_recipe(&config, adapter, quantizer));
        std::fs::write(kitchen.folder().join("config.json"), config.to_string()).expect("written");
        write_ids(&kitchen.folder().join("ids.safetensors"), &sequences(&[24, 24, 24], 61, 8));
        let outcome = kitchen.run(&[]);
        assert_eq!(outcome.code, Some(0), "{name}: {}", outcome.stderr);
        let trained = losses(&kitchen.out(""));
        assert!(trained[19].1 < trained[0].1 - 0.5, "{name}: the adapter learnt something: {trained:?}");

        let certificate = json(&kitchen.out("stages/2-merge/certificate.json"));
        let relative = certificate["relative"].as_f64().expect("a number");
        assert!(relative <= 1e-5, "{name}: {certificate}");
        let logits = |stage: &str| {
            floats(&tensors(&kitchen.out(&format!("stages/{stage}/logits.safetensors")))["logits"])
        };
        let (adapted, merged) = (logits("1-logits"), logits("3-logits"));
        close(name, &merged, &adapted, 1e-5);

        // Reloaded by hand, the folder is a whole model that stands alone.
        let model = assemble(&lab::folder_model(&kitchen.out("model")));
        assert_eq!(model.unused, Vec::<String>::new(), "{name}");
        let ids = ramekin_tests::id_rows(&tensors(&kitchen.folder().join("ids.safetensors"))["input_ids"]);
        same_bits(name, &lab::logits(&model, &FlatBatch::new(&ids), true), &merged);

        // The adapter matters: without it the answers differ by far more than the tolerance.
        let mut base = lab::fresh_model(config);
        base.seed = 3;
        let bare = lab::logits(&assemble(&base), &FlatBatch::new(&ids), true);
        assert!(difference(&bare, &adapted) > 0.1, "{name}: the adapter changes nothing");
    }
}

/// Adapter training, full training and sampling on a model that is large
/// enough for its products to be split over threads.
const THREADS: &str = r#"
seed = 11
[model]
source = "init"
[model.config]
architectures = ["LlamaForCausalLM"]
model_type = "llama"
vocab_size = 300
hidden_size = 96
intermediate_size = 256
num_hidden_layers = 2
num_attention_heads = 6
num_key_value_heads = 2
max_position_embeddings = 128
rms_norm_eps = 1e-5
initializer_range = 0.1
eos_token_id = 2

[[stage]]
kind = "train"
data = { kind = "tokens", path = "ids.safetensors" }
optimizer = { kind = "adamw", lr = 1e-3 }
steps = 4
[[stage]]
kind = "train"
quantizer = { kind = "nf4" }
adapter = [{ kind = "lora", r = 8, target_modules = "all-linear", lora_dropout = 0.1 }]
activation = { kind = "checkpoint" }
optimizer = { kind = "adamw", lr = 1e-3 }
data = { kind = "tokens", path = "ids.safetensors" }
batch = { gradient_accumulation_steps = 2 }
steps = 4
[[stage]]
kind = "generate"
input = "prompts.safetensors"
max_new_tokens = 30
decode = { kind = "sample", temperature = 1.0, top_k = 50 }
"#;

#[test]
fn the_same_bits_with_one_two_and_three_threads() {
    let kitchen = Kitchen::new(THREADS);
    write_ids(&kitchen.folder().join("ids.safetensors"), &sequences(&[100; 8], 300, 1));
    write_ids(&kitchen.folder().join("prompts.safetensors"), &sequences(&[9; 3], 300, 2));
    let mut made = Vec::new();
    for threads in ["1", "2", "3", "2"] {
        let out = kitchen.folder().join(format!("with-{threads}-{}", made.len()));
        let mut command = kitchen.command(&out, &[]);
        command.env("RAMEKIN_THREADS", threads);
        finish(command).expect(0);
        let files = [
            "model/model.safetensors",
            "adapter/adapter_model.safetensors",
            "stages/2-generate/generated.safetensors",
        ];
        let found = files.map(|f| sha256(&out.join(f)));
        made.push((threads, found, losses(&out)));
    }
    for (threads, files, losses) in &made[1..] {
        assert_eq!(files, &made[0].1, "{threads} threads");
        assert_eq!(losses, &made[0].2, "{threads} threads");
    }
}

#[test]
fn another_seed_gives_other_bits() {
    let made = ["11", "12"].map(|seed| {
        let kitchen = Kitchen::new(&THREADS.replace("seed = 11", &format!("seed = {seed}")));
        write_ids(&kitchen.folder().join("ids.safetensors"), &sequences(&[100; 8], 300, 1));
        write_ids(&kitchen.folder().join("prompts.safetensors"), &sequences(&[9; 3], 300, 2));
        kitchen.run(&[]).expect(0);
        sha256(&kitchen.out("adapter/adapter_model.safetensors"))
    });
    assert_ne!(made[0], made[1]);
}

#[test]
fn a_budget_is_never_exceeded_silently() {
    let recipe = r#"
model = { source = "builtin:tiny" }
memory = { budget = "1MiB" }
[[stage]]
kind = "train"
adapter = [{ kind = "lora" }]
data = { kind = "builtin", name = "records", rows = 20, max_length = 128 }
steps = 1
"#;
    let outcome = Kitchen::new(recipe).run(&[]);
    outcome.expect(3);
    assert!(outcome.stderr.contains("budget"), "{}", outcome.stderr);
    cook(&recipe.replace("1MiB", "1GiB"));
}
