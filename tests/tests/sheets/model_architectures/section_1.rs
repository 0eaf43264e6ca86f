//! Section 1's rules of config and forward that no check of the sheet covers.

use ramekin_model_llama::LlamaConfig;
use ramekin_slots::FlatBatch;
use ramekin_tests::compare::{difference, same_bits};
use ramekin_tests::lab::{self, assemble, sequences};
use serde_json::{Value as Json, json};

use super::changed;

fn inv_freq(fields: Json) -> Vec<f32> {
    let config = LlamaConfig::parse(&changed(lab::small_llama(), fields)).expect("a config");
    config.rope.inv_freq(config.head_dim)
}

/// theta^(−2i/hd), in f64.
fn plain(theta: f64, head_dim: usize) -> Vec<f64> {
    (0..head_dim / 2).map(|i| theta.powf(-2.0 * i as f64 / head_dim as f64)).collect()
}

fn close(found: &[f32], expected: &[f64]) {
    assert_eq!(found.len(), expected.len());
    for (a, b) in found.iter().zip(expected) {
        assert!((f64::from(*a) / b - 1.0).abs() < 1e-6, "{a} is not {b}");
    }
}

// RoPE: inv_freq_i = theta^(−2i/hd); `linear` divides the position by F; `llama3` by wavelength.
#[test]
fn rope_scaling() {
    close(&inv_freq(json!({ "rope_theta": 500_000.0, "head_dim": 64 })), &plain(500_000.0, 64));
    let linear = json!({ "rope_scaling": { "rope_type": "linear", "factor": 4.0 }, "head_dim": 64 });
    close(&inv_freq(linear), &plain(10_000.0, 64).iter().map(|f| f / 4.0).collect::<Vec<_>>());

    // Llama 3.2: F = 32, l = 1, h = 4, N = 8192.
    let (factor, low, high, original) = (32.0, 1.0, 4.0, 8192.0);
    let rule = |f: f64| {
        let wave = 2.0 * std::f64::consts::PI / f;
        if wave > original / low {
            f / factor
        } else if wave < original / high {
            f
        } else {
            let s = (original / wave - low) / (high - low);
            (1.0 - s) * f / factor + s * f
        }
    };
    let before = plain(500_000.0, 64);
    let expected: Vec<f64> = before.iter().map(|f| rule(*f)).collect();
    let kept = expected.iter().zip(&before).filter(|(a, b)| a == b).count();
    let divided = expected.iter().zip(&before).filter(|(a, b)| **a == **b / factor).count();
    assert!(kept > 3 && divided > 3 && kept + divided < 32, "all three branches are met");
    let llama3 = json!({ "factor": factor, "low_freq_factor": low, "high_freq_factor": high,
        "original_max_position_embeddings": original, "rope_type": "llama3" });
    close(&inv_freq(json!({ "rope_theta": 500_000.0, "rope_scaling": llama3, "head_dim": 64 })), &expected);
}

// `dynamic`, `yarn`: refuse if not implemented, never ignore; the same for an unknown activation.
#[test]
fn refusals() {
    let refused = |fields: Json| match LlamaConfig::parse(&changed(lab::small_llama(), fields.clone())) {
        Ok(_) => panic!("{fields} is taken"),
        Err(e) => e.to_string(),
    };
    for kind in ["dynamic", "yarn", "longrope"] {
        let rules = json!({ "rope_type": kind, "factor": 2.0 });
        assert!(refused(json!({ "rope_scaling": rules })).contains(kind));
        assert!(refused(json!({ "rope_parameters": rules })).contains(kind));
        assert!(refused(json!({ "rope_scaling": { "type": kind, "factor": 2.0 } })).contains(kind));
    }
    assert!(refused(json!({ "hidden_act": "gelu" })).contains("gelu"));
    assert!(
        refused(json!({ "num_attention_heads": 5, "num_key_value_heads": 5 }))
            .contains("num_attention_heads")
    );
    assert!(refused(json!({ "num_key_value_heads": 3 })).contains("num_key_value_heads"));
    let given = json!({ "num_attention_heads": 5, "num_key_value_heads": 5, "head_dim": 8 });
    assert!(LlamaConfig::parse(&changed(lab::small_llama(), given)).is_ok(), "head_dim makes it fit");
}

// Old configs (`rope_theta`, `rope_scaling`, `type`, nulls) and new ones (`rope_parameters`) are one model.
#[test]
fn old_and_new_style() {
    let rules = |kind: &str| {
        json!({ kind: "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32 })
    };
    let mut new = lab::small_llama();
    new.as_object_mut().expect("an object").remove("rope_theta");
    let new = changed(
        new,
        json!({ "rope_parameters": changed(rules("rope_type"), json!({ "rope_theta": 2000.0 })) }),
    );
    let old = json!({ "rope_theta": 2000.0, "rope_scaling": rules("rope_type"), "torch_dtype": "float32",
        "head_dim": null, "pretraining_tp": 1 });
    let older = json!({ "rope_theta": 2000.0, "rope_scaling": rules("type"), "rope_parameters": null });
    let batch = FlatBatch::new(&sequences(&[40], 61, 3));
    let logits = |config: Json| lab::logits(&assemble(&lab::fresh_model(config)), &batch, true);
    let expected = logits(new);
    same_bits("old style", &logits(changed(lab::small_llama(), old)), &expected);
    same_bits("older style", &logits(changed(lab::small_llama(), older)), &expected);
    let bare = logits(changed(lab::small_llama(), json!({ "rope_theta": 2000.0 })));
    assert!(difference(&bare, &expected) > 1e-3, "the scaling matters");
    // Without key/value heads every head has its own.
    let own = json!({ "num_key_value_heads": null });
    let config = LlamaConfig::parse(&changed(lab::small_llama(), own)).expect("a config");
    assert_eq!((config.kv_heads, config.head_dim), (4, 8));
    let qwen3 = LlamaConfig::parse(&changed(lab::small_llama(), json!({ "model_type": "qwen3" })));
    assert_eq!(qwen3.expect("a config").head_dim, 128, "Qwen3's head_dim does not follow from d/heads");
}

/// How many tokens of one layer's output a token reaches, itself included, in a sequence of 20.
fn reach(fields: Json) -> usize {
    let config = changed(changed(lab::small_llama(), json!({ "num_hidden_layers": 1 })), fields);
    let model = assemble(&lab::fresh_model(config));
    let ids = sequences(&[20], 61, 6).remove(0);
    let mut other = ids.clone();
    other[3] = (ids[3] + 1) % 61;
    let (a, b) = [ids, other].map(|x| lab::logits(&model, &FlatBatch::new(&[x]), true)).into();
    let moved: Vec<bool> = a.chunks(61).zip(b.chunks(61)).map(|(a, b)| a != b).collect();
    assert!(!moved[..3].contains(&true));
    let count = moved.iter().filter(|m| **m).count();
    assert!(moved[3..3 + count].iter().all(|m| *m), "one stretch");
    count
}

// Windows: token i sees j with i − w < j ≤ i, null disables. Mistral's is on; Qwen2's only with
// `use_sliding_window` and from `max_window_layers` on; `layer_types` says it layer by layer.
#[test]
fn windows() {
    assert_eq!(reach(json!({ "model_type": "mistral", "sliding_window": 5 })), 5);
    assert_eq!(reach(json!({ "model_type": "mistral", "sliding_window": 1 })), 1);
    assert_eq!(reach(json!({ "model_type": "mistral", "sliding_window": null })), 17);
    assert_eq!(reach(json!({ "sliding_window": 5 })), 17, "Llama has none");
    for family in ["qwen2", "qwen3"] {
        let with =
            |fields: Json| reach(changed(json!({ "model_type": family, "sliding_window": 5 }), fields));
        assert_eq!(with(json!({})), 17);
        assert_eq!(with(json!({ "use_sliding_window": false, "max_window_layers": 0 })), 17);
        assert_eq!(with(json!({ "use_sliding_window": true, "max_window_layers": 1 })), 17);
        assert_eq!(with(json!({ "use_sliding_window": true, "max_window_layers": 0 })), 5);
        assert_eq!(with(json!({ "layer_types": ["sliding_attention"] })), 5);
        assert_eq!(with(json!({ "use_sliding_window": true, "layer_types": ["full_attention"] })), 17);
    } // transformers' default where the key is absent: the first 28 layers are full.
    let deep = json!({ "model_type": "qwen2", "num_hidden_layers": 30, "sliding_window": 5, "use_sliding_window": true });
    let reach = LlamaConfig::parse(&changed(lab::small_llama(), deep)).expect("a config").reach;
    assert_eq!(reach[27..].iter().map(|r| r.window).collect::<Vec<_>>(), [None, Some(5), Some(5)]);
}
