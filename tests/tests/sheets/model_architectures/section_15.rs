//! Section 15, common loading rules: shards, ties, missing and unknown tensors, random weights.

use std::path::Path;

use ramekin_core::{Array, Category, DType};
use ramekin_engine::assembly::Assembly;
use ramekin_slots::FlatBatch;
use ramekin_store::write::Spec;
use ramekin_store::{Data, write_safetensors, write_sharded};
use ramekin_tests::compare::{difference, largest, same_bits};
use ramekin_tests::kitchen::json as read_json;
use ramekin_tests::lab::{self, assemble, sequences};
use ramekin_tests::{Kitchen, write_ids};
use serde_json::{Value as Json, json};

use super::{changed, families};

type Named = Vec<(String, Array)>;

/// A model's tensors as its files have them.
fn tensors_of(model: &Assembly) -> Named {
    let ledger = model.ledger.borrow();
    ledger.entries().iter().map(|e| (e.name.clone(), e.param.as_ref().expect("dense").value())).collect()
}

fn write(folder: &Path, config: &Json, tensors: &Named) {
    std::fs::write(folder.join("config.json"), config.to_string()).expect("written");
    let data: Vec<(String, Data)> = tensors.iter().map(|(n, a)| (n.clone(), Data::from(a))).collect();
    write_safetensors(folder.join("model.safetensors"), &data, &[("format", "pt")]).expect("written");
}

/// A folder with this config and these tensors, loaded.
fn reload(config: &Json, tensors: &Named) -> anyhow::Result<Assembly> {
    let folder = tempfile::tempdir().expect("a folder");
    write(folder.path(), config, tensors);
    lab::folder_model(folder.path()).assemble(false)
}

fn refused(config: &Json, tensors: &Named) -> String {
    match reload(config, tensors) {
        Ok(_) => panic!("it loads"),
        Err(e) => format!("{e:#}"),
    }
}

fn ones(dims: &[usize]) -> Array {
    Array::from_vec(vec![1f32; dims.iter().product()], dims, Category::Workspace).expect("an array")
}

fn probe() -> FlatBatch {
    FlatBatch::new(&sequences(&[19, 6], 61, 3))
}

// Sharded checkpoints: `model.safetensors.index.json` → `weight_map`; the same bits as one file.
#[test]
fn shards() {
    for (name, config) in families() {
        let model = assemble(&lab::fresh_model(config.clone()));
        let tensors = tensors_of(&model);
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join("config.json"), config.to_string()).expect("written");
        let data = |name: &str| tensors.iter().find(|(n, _)| n == name).map(|(_, a)| Data::from(a));
        let specs: Vec<Spec> =
            tensors.iter().map(|(n, a)| Spec::of(n, &Data::from(a)).expect("a spec")).collect();
        let files = write_sharded(folder.path(), &specs, 16 << 10, &[("format", "pt")], |n| {
            data(n).ok_or_else(|| anyhow::anyhow!("no `{n}`"))
        });
        assert!(files.expect("shards").len() > 4, "{name}: several shards and an index");
        assert!(!folder.path().join("model.safetensors").exists());
        let sharded = assemble(&lab::folder_model(folder.path()));
        let whole = reload(&config, &tensors).expect("one file");
        let expected = lab::logits(&model, &probe(), true);
        same_bits(name, &lab::logits(&sharded, &probe(), true), &expected);
        same_bits(name, &lab::logits(&whole, &probe(), true), &expected);
        assert!(sharded.unused.is_empty() && whole.unused.is_empty());
    }
}

// Head = E when tied (the file then has no `lm_head.weight`); an untied model without a head is an error.
#[test]
fn ties() {
    let untied = lab::small_llama();
    let tied = changed(untied.clone(), json!({ "tie_word_embeddings": true }));
    let model = assemble(&lab::fresh_model(tied.clone()));
    let mut tensors = tensors_of(&model);
    assert!(!tensors.iter().any(|(n, _)| n == "lm_head.weight"));
    let expected = lab::logits(&reload(&tied, &tensors).expect("a tied model"), &probe(), true);
    same_bits("tied", &expected, &lab::logits(&model, &probe(), true));
    assert!(refused(&untied, &tensors).contains("`lm_head.weight` is missing"));

    // The same table written as a head of its own gives the same model.
    let table = tensors.iter().find(|(n, _)| n == "model.embed_tokens.weight").expect("a table").1.clone();
    tensors.push(("lm_head.weight".to_owned(), table));
    same_bits("untied", &lab::logits(&reload(&untied, &tensors).expect("untied"), &probe(), true), &expected);
    // A tied model's file may hold the head too: it is no unknown tensor.
    let both = reload(&tied, &tensors).expect("a tied model");
    assert!(both.unused.is_empty(), "{:?}", both.unused);
    same_bits("both", &lab::logits(&both, &probe(), true), &expected);
}

// Unknown tensors are reported, missing ones and other shapes are errors (naming both shapes); old
// files' `rotary_emb.inv_freq` is ignored.
#[test]
fn missing_and_unknown() {
    let config = lab::small_llama();
    let model = assemble(&lab::fresh_model(config.clone()));
    let tensors = tensors_of(&model);
    for name in ["model.layers.1.self_attn.k_proj.weight", "model.norm.weight"] {
        let some = tensors.iter().filter(|(n, _)| n != name).cloned().collect();
        let error = refused(&config, &some);
        assert!(error.contains(&format!("`{name}` is missing")), "{error}");
    }
    let mut more = tensors.clone();
    more.push(("model.layers.0.self_attn.rotary_emb.inv_freq".to_owned(), ones(&[4])));
    more.push(("model.layers.7.extra.weight".to_owned(), ones(&[2, 2])));
    let loaded = reload(&config, &more).expect("it loads");
    assert!(loaded.unused.contains(&"model.layers.7.extra.weight".to_owned()), "{:?}", loaded.unused);
    same_bits("with more", &lab::logits(&loaded, &probe(), true), &lab::logits(&model, &probe(), true));

    let mut other = tensors;
    let v = other.iter_mut().find(|(n, _)| n == "model.layers.0.self_attn.v_proj.weight").expect("v");
    v.1 = ones(&[32, 32]);
    let error = refused(&config, &other);
    assert!(error.contains("v_proj") && error.contains("[32, 32]") && error.contains("[16, 32]"), "{error}");
}

// Dtype from the file, overridable.
#[test]
fn dtype() {
    let config = changed(lab::small_llama(), json!({ "torch_dtype": "bfloat16" }));
    let model = assemble(&lab::fresh_model(lab::small_llama()));
    let half: Named = tensors_of(&model)
        .into_iter()
        .map(|(n, a)| (n, a.to_dtype(DType::BF16, Category::Workspace).expect("bf16")))
        .collect();
    let folder = tempfile::tempdir().expect("a folder");
    write(folder.path(), &config, &half);
    let mut blueprint = lab::folder_model(folder.path());
    let stored = assemble(&blueprint);
    assert_eq!(stored.dtype, DType::BF16);
    blueprint.model.dtype = Some(ramekin_recipe::Dtype::F32);
    let widened = assemble(&blueprint);
    assert_eq!(widened.dtype, DType::F32);
    // The same numbers, wide or narrow, but for what products in bf16 round; and nearly those that were rounded.
    let wide = lab::logits(&widened, &probe(), true);
    let rounding = if ramekin_kernels::bf16::unit().is_some() { 0.02 } else { 1e-5 };
    assert!(difference(&lab::logits(&stored, &probe(), true), &wide) <= rounding * largest(&wide));
    assert!(difference(&wide, &lab::logits(&model, &probe(), true)) < 0.05 * largest(&wide));
}

// Random initialisation: N(0, initializer_range = 0.02) for linears and embeddings, biases 0, norms 1.
#[test]
fn random_weights() {
    let mut config = changed(lab::small_llama(), json!({ "model_type": "qwen2", "hidden_size": 128 }));
    config.as_object_mut().expect("an object").remove("initializer_range");
    let model = assemble(&lab::fresh_model(config));
    for (name, array) in tensors_of(&model) {
        let x = array.to_f32().expect("f32");
        if name.ends_with(".bias") {
            assert!(x.iter().all(|v| *v == 0.0), "{name}");
        } else if array.dims().len() == 1 {
            assert!(x.iter().all(|v| *v == 1.0), "{name}");
        } else {
            let n = x.len() as f64;
            let mean = x.iter().map(|v| f64::from(*v)).sum::<f64>() / n;
            let std = (x.iter().map(|v| (f64::from(*v) - mean).powi(2)).sum::<f64>() / n).sqrt();
            // Five standard errors of each.
            assert!(mean.abs() < 5.0 * 0.02 / n.sqrt(), "{name}: mean {mean}");
            assert!((std - 0.02).abs() < 5.0 * 0.02 / (2.0 * n).sqrt(), "{name}: std {std}");
        }
    }
}

// A model that was written keeps its config, old style or new, and its tensors' names: what goes
// through `merge` into shards comes back as the same model.
#[test]
fn round_trip() {
    let rope3 = json!({ "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32 });
    let mut all = families();
    all.push((
        "old style",
        changed(lab::small_llama(), json!({ "rope_scaling": rope3, "torch_dtype": "float32" })),
    ));
    for (name, config) in all {
        let kitchen = Kitchen::new(
            "seed = 5\nmodel = { source = \"init\", config = \"config.json\" }\n\
             [[stage]]\nkind = \"train\"\nadapter = [{ kind = \"lora\", target_modules = [\"v_proj\"] }]\n\
             optimizer = { kind = \"adamw\", lr = 1e-2 }\n\
             data = { kind = \"tokens\", path = \"ids.safetensors\" }\nsteps = 2\n\
             [[stage]]\nkind = \"merge\"\nmax_shard_size = \"20KB\"\n",
        );
        std::fs::write(kitchen.folder().join("config.json"), config.to_string()).expect("written");
        write_ids(&kitchen.folder().join("ids.safetensors"), &sequences(&[20, 20], 61, 8));
        kitchen.run(&[]).expect(0);
        let folder = kitchen.out("model");
        let kept = read_json(&folder.join("config.json"));
        for (key, value) in config.as_object().expect("an object") {
            assert_eq!(&kept[key], value, "{name}: `{key}`");
        }
        let index = read_json(&folder.join("model.safetensors.index.json"));
        let names: Vec<&String> = index["weight_map"].as_object().expect("a map").keys().collect();
        let again = assemble(&lab::folder_model(&folder));
        let fresh = assemble(&lab::fresh_model(config));
        let (a, b) = (tensors_of(&again), tensors_of(&fresh));
        assert_eq!(names.len(), a.len(), "{name}");
        for ((n, x), (m, y)) in a.iter().zip(&b) {
            assert_eq!(n, m, "{name}");
            let (x, y) = (x.to_f32().expect("f32"), y.to_f32().expect("f32"));
            assert_eq!(x != y, n.contains("v_proj.weight"), "{name}: {n} has changed if it was adapted");
        }
    }
}
