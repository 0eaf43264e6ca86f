//! Sheet `model-architectures`, for the llama family: Llama, Mistral, Qwen2 and Qwen3.
//!
//! Left out until their parts exist: 5 (Mamba-2, T5 and DiT) and 6 (experts); of check 1 the totals
//! of other families, of check 2 their checkpoints.

mod section_1;
mod section_15;

use std::collections::BTreeSet;
use std::rc::Rc;

use ramekin_engine::assembly::Assembly;
use ramekin_engine::parts;
use ramekin_recipe::Part;
use ramekin_slots::{FlatBatch, Forward, KvShape, Mode};
use ramekin_store::write_safetensors;
use ramekin_tape::Tape;
use ramekin_tests::compare::{difference, largest, same_bits};
use ramekin_tests::lab::{self, assemble, sequences};
use ramekin_tests::{Kitchen, floats, golden, id_rows, integers, tensors};
use serde_json::{Value as Json, json};

/// Cases that HF wrote for this family.
const CASES: [&str; 5] = ["llama", "llama-tied-rope3", "mistral-window", "qwen2", "qwen3"];

/// Changes fields of a config.
fn changed(mut config: Json, fields: Json) -> Json {
    for (key, value) in fields.as_object().expect("an object") {
        config[key] = value.clone();
    }
    config
}

/// Small models of the four families, each with what it has of its own.
fn families() -> Vec<(&'static str, Json)> {
    let small = lab::small_llama;
    vec![
        ("llama", small()),
        ("one kv head", changed(small(), json!({ "num_key_value_heads": 1 }))),
        ("mistral", changed(small(), json!({ "model_type": "mistral", "sliding_window": 5 }))),
        (
            "qwen2 with a window",
            changed(
                small(),
                json!({ "model_type": "qwen2", "use_sliding_window": true, "max_window_layers": 1, "sliding_window": 4 }),
            ),
        ),
        (
            "qwen3",
            changed(small(), json!({ "model_type": "qwen3", "head_dim": 12, "num_key_value_heads": 1 })),
        ),
        ("tied", changed(small(), json!({ "tie_word_embeddings": true }))),
    ]
}

/// A public checkpoint's config and its total of parameters.
fn public() -> Vec<(&'static str, Json, u64)> {
    let config = |family: &str, sizes: [usize; 6], more: Json| {
        let [v, d, f, l, h, kv] = sizes;
        let base = json!({ "model_type": family, "vocab_size": v, "hidden_size": d, "intermediate_size": f,
            "num_hidden_layers": l, "num_attention_heads": h, "num_key_value_heads": kv,
            "rms_norm_eps": 1e-6, "max_position_embeddings": 32768, "hidden_act": "silu" });
        changed(base, more)
    };
    let rope3 = json!({ "factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192, "rope_type": "llama3" });
    let tied = json!({ "tie_word_embeddings": true });
    vec![
        (
            "Llama-2-7B",
            config("llama", [32000, 4096, 11008, 32, 32, 32], json!({ "rope_scaling": null })),
            6_738_415_616,
        ),
        (
            "Llama-3.2-1B",
            changed(
                config("llama", [128_256, 2048, 8192, 16, 32, 8], tied.clone()),
                json!({ "rope_scaling": rope3, "rope_theta": 500_000.0, "head_dim": 64 }),
            ),
            1_235_814_400,
        ),
        (
            "Mistral-7B",
            config("mistral", [32000, 4096, 14336, 32, 32, 8], json!({ "sliding_window": 4096 })),
            7_241_732_096,
        ),
        ("Qwen2.5-0.5B", config("qwen2", [151_936, 896, 4864, 24, 14, 2], tied.clone()), 494_032_768),
        (
            "Qwen3-0.6B",
            changed(config("qwen3", [151_936, 1024, 3072, 28, 16, 8], tied), json!({ "head_dim": 128 })),
            596_049_920,
        ),
    ]
}

/// The tensors that the sheet lists for such a model.
fn listed(config: &Json) -> BTreeSet<String> {
    let mut names: BTreeSet<String> =
        ["model.embed_tokens.weight", "model.norm.weight"].map(str::to_owned).into();
    if config["tie_word_embeddings"] != json!(true) {
        names.insert("lm_head.weight".to_owned());
    }
    for i in 0..config["num_hidden_layers"].as_u64().expect("layers") {
        let mut add = |tail: &str| assert!(names.insert(format!("model.layers.{i}.{tail}")));
        for norm in ["input_layernorm", "post_attention_layernorm"] {
            add(&format!("{norm}.weight"));
        }
        for p in ["q", "k", "v", "o"] {
            add(&format!("self_attn.{p}_proj.weight"));
        }
        for p in ["gate", "up", "down"] {
            add(&format!("mlp.{p}_proj.weight"));
        }
        match config["model_type"].as_str() {
            Some("qwen2") => ["q", "k", "v"].iter().for_each(|p| add(&format!("self_attn.{p}_proj.bias"))),
            Some("qwen3") => ["q", "k"].iter().for_each(|p| add(&format!("self_attn.{p}_norm.weight"))),
            _ => {}
        }
    }
    names
}

// The totals come out of the builders run shape-only (no allocation), every tensor named as listed.
#[test]
fn check_1() {
    for (name, config, total) in public() {
        let (before, _) = ramekin_core::meter::resident();
        let model =
            lab::fresh_model(config.clone()).assemble(true).unwrap_or_else(|e| panic!("{name}: {e:#}"));
        let (after, _) = ramekin_core::meter::resident();
        let ledger = model.ledger.borrow();
        assert_eq!(ledger.counts().0, total, "{name}");
        let shapes_only =
            |e: &ramekin_core::ledger::Entry| e.param.as_ref().is_some_and(|p| p.value().is_shape_only());
        assert!(ledger.entries().iter().all(shapes_only), "{name}: a tensor has numbers");
        // Other tests run beside this one; the smallest of these models would take 2 GB.
        let grown = after.saturating_sub(before);
        assert!(grown < 512 << 20, "{name}: {grown} bytes were allocated");
        let names: BTreeSet<String> = ledger.entries().iter().map(|e| e.name.clone()).collect();
        assert_eq!(names, listed(&config), "{name}");
    }
}

/// A recorded case: the model, its unpadded rows, and their recorded logits.
struct Recorded {
    model: Assembly,
    rows: Vec<Vec<u32>>,
    logits: Vec<f32>,
}

fn recorded(case: &str) -> Option<Recorded> {
    let folder = golden(case)?;
    let model = assemble(&lab::folder_model(&folder.join("model")));
    let io = tensors(&folder.join("io.safetensors"));
    let ids = id_rows(&io["input_ids"]);
    let mask: Vec<Vec<i64>> =
        integers(&io["attention_mask"]).chunks(ids[0].len()).map(<[i64]>::to_vec).collect();
    let real = |row: &[u32], mask: &[i64]| {
        row.iter().zip(mask).filter(|(_, m)| **m == 1).map(|(id, _)| *id).collect::<Vec<_>>()
    };
    let rows = ids.iter().zip(&mask).map(|(r, m)| real(r, m)).collect();
    let all = floats(&io["logits"]);
    let v = model.model.facts().vocab_size;
    let kept = all.chunks(v).zip(mask.concat()).filter(|(_, m)| *m == 1);
    let logits = kept.flat_map(|(row, _)| row.to_vec()).collect();
    Some(Recorded { model, rows, logits })
}

// A tiny checkpoint of each family, written by HF, reproduces the recorded logits within 1e-4.
#[test]
fn check_2_recorded_logits() {
    for case in CASES {
        let Some(Recorded { model, rows, logits }) = recorded(case) else { return };
        let numbers = model.ledger.borrow().counts().0;
        assert!(numbers <= 200_000, "{case} has {numbers} numbers");
        let off = difference(&lab::logits(&model, &FlatBatch::new(&rows), true), &logits);
        println!("{case}: off by {off:.1e} where the largest is {:.2}", largest(&logits));
        assert!(off <= 1e-4, "{case}: off by {off:.1e}");
    }
}

// Padding on either side leaves real tokens' outputs within 1e-5.
#[test]
fn check_2_padding() {
    let width = 20;
    let rows = sequences(&[11, 19, 7, 20], 61, 12);
    // Padding in front of, behind, and around a row; none.
    let left = [9, 0, 6, 0];
    let cells = |fill: &dyn Fn(usize, usize) -> i64| -> candle_core::Tensor {
        let all: Vec<i64> = (0..4 * width).map(|n| fill(n / width, n % width)).collect();
        candle_core::Tensor::from_vec(all, (4, width), &candle_core::Device::Cpu).expect("a tensor")
    };
    let inside = |r: usize, t: usize| (left[r]..left[r] + rows[r].len()).contains(&t);
    let ids = cells(&|r, t| if inside(r, t) { i64::from(rows[r][t - left[r]]) } else { 3 });
    let mask = cells(&|r, t| i64::from(inside(r, t)));
    for (name, config) in families() {
        let kitchen = Kitchen::new(
            "seed = 5\nmodel = { source = \"init\", config = \"config.json\" }\n\
             [[stage]]\nkind = \"logits\"\ninput = \"padded.safetensors\"\n",
        );
        std::fs::write(kitchen.folder().join("config.json"), config.to_string()).expect("written");
        let file = [
            ("input_ids".to_owned(), ids.clone().into()),
            ("attention_mask".to_owned(), mask.clone().into()),
        ];
        write_safetensors(kitchen.folder().join("padded.safetensors"), &file, &[]).expect("written");
        kitchen.run(&[]).expect(0);
        let padded = floats(&tensors(&kitchen.out("logits.safetensors"))["logits"]);
        let model = assemble(&lab::fresh_model(config));
        for (r, row) in rows.iter().enumerate() {
            let alone = lab::logits(&model, &FlatBatch::new(std::slice::from_ref(row)), true);
            let from = (r * width + left[r]) * 61;
            let off = difference(&padded[from..from + row.len() * 61], &alone);
            println!("{name}: row {r} is off by {off:.1e}");
            assert!(off <= 1e-5, "{name}: row {r} is off by {off:.1e}");
        }
    }
}

// Changing token t leaves outputs before t bit-identical.
#[test]
fn check_3_causality() {
    for (name, config) in families() {
        let model = assemble(&lab::fresh_model(config));
        let ids = sequences(&[23], 61, 6).remove(0);
        let before = lab::logits(&model, &FlatBatch::new(std::slice::from_ref(&ids)), true);
        for t in [0, 1, 11, 22] {
            let mut other = ids.clone();
            other[t] = (other[t] + 1) % 61;
            let after = lab::logits(&model, &FlatBatch::new(&[other]), true);
            same_bits(name, &after[..t * 61], &before[..t * 61]);
            assert!(difference(&after[t * 61..], &before[t * 61..]) > 1e-2, "{name}: token {t} matters");
        }
    }
}

/// Logits of sequences of one length, token by token through the full cache.
fn one_by_one(model: &Assembly, rows: &[Vec<u32>]) -> Vec<Vec<f32>> {
    let facts = model.model.facts();
    let shape = KvShape::new(facts, rows.len(), 1, rows[0].len());
    let cache = parts::kv(&Part::of("full")).expect("full").cache(shape).expect("a cache");
    let mut logits = vec![Vec::new(); rows.len()];
    for t in 0..rows[0].len() {
        let batch = FlatBatch {
            images: None,
            ids: Rc::new(rows.iter().map(|r| r[t]).collect()),
            positions: Rc::new(vec![t as u32; rows.len()]),
            segments: Rc::new((0..rows.len()).map(|i| i..i + 1).collect()),
        };
        let fx = Forward::new(Tape::off(), model.sites.clone(), batch, Mode::inference())
            .with_cache(cache.clone());
        let h = ramekin_engine::hidden::hidden(&model.model, &fx, None).expect("a forward");
        let z = model.model.head(&fx, &h).and_then(|z| z.array().to_f32()).expect("logits");
        z.chunks(facts.vocab_size).zip(&mut logits).for_each(|(row, all)| all.extend_from_slice(row));
    }
    logits
}

// Cached decoding token by token equals the full forward within 1e-4, with a window and with kv = 1.
#[test]
fn check_3_cache() {
    for (name, config) in families() {
        let model = assemble(&lab::fresh_model(config));
        let rows = sequences(&[27, 27], 61, 7);
        for (row, cached) in rows.iter().zip(one_by_one(&model, &rows)) {
            let full = lab::logits(&model, &FlatBatch::new(std::slice::from_ref(row)), true);
            let off = difference(&cached, &full);
            println!("{name}: off by {off:.1e}");
            assert!(off <= 1e-4, "{name}: off by {off:.1e}");
        }
    }
}

// Attention scores depend on position differences only: a shift by 17 leaves logits within 1e-4.
#[test]
fn check_4_shift() {
    let rope3 = json!({ "rope_parameters": { "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0,
        "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32 } });
    let mut all = families();
    all.retain(|(_, c)| c["sliding_window"].is_null());
    all.push(("llama3 scaling", changed(lab::small_llama(), rope3)));
    assert_eq!(all.len(), 5);
    for (name, config) in all {
        let model = assemble(&lab::fresh_model(config));
        let batch = FlatBatch::new(&sequences(&[29, 8], 61, 8));
        let moved = |by: &dyn Fn(u32) -> u32| {
            let positions = Rc::new(batch.positions.iter().map(|p| by(*p)).collect());
            lab::logits(&model, &FlatBatch { positions, ..batch.clone() }, true)
        };
        let plain = lab::logits(&model, &batch, true);
        let off = difference(&moved(&|p| p + 17), &plain);
        println!("{name}: off by {off:.1e}");
        assert!(off <= 1e-4, "{name}: off by {off:.1e}");
        assert!(difference(&moved(&|p| 2 * p), &plain) > 1e-2, "{name}: other differences matter");
    }
}

// The interleaved-pair variant must fail check 2. Rotating pairs is rotating halves with the rows of q
// and k (weights, biases, norms) of each head brought from (hd/2, 2) to (2, hd/2).
#[test]
fn check_4_interleaved() {
    for case in CASES {
        let Some(Recorded { model, rows, logits }) = recorded(case) else { return };
        let half = model.model.facts().head_dim / 2;
        for name in model.sites.param_names() {
            let of_q_or_k = ["q_proj.", "k_proj.", "q_norm.", "k_norm."].iter().any(|p| name.contains(p));
            if !of_q_or_k {
                continue;
            }
            let value = model.sites.param(name).expect("a parameter").base().value();
            let width = if name.ends_with("proj.weight") { value.dims()[1] } else { 1 };
            value
                .update(|w: &mut [f32]| {
                    let old = w.to_vec();
                    let from = |n: usize| n / (2 * half) * 2 * half + n % half * 2 + n / half % 2;
                    for (n, row) in w.chunks_mut(width).enumerate() {
                        row.copy_from_slice(&old[from(n) * width..(from(n) + 1) * width]);
                    }
                })
                .expect("f32");
        }
        let off = difference(&lab::logits(&model, &FlatBatch::new(&rows), true), &logits);
        println!("{case}: off by {off:.1e}");
        assert!(off > 1e-4, "{case}: pairs are off by {off:.1e} only");
    }
}
