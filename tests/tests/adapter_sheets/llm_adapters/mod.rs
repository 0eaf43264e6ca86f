//! Sheet `llm-adapters`: series, parallel, prefix, and `lora` beside them.

mod prefix;
mod training;

use ramekin_core::Rng;
use ramekin_engine::assembly::Assembly;
use ramekin_engine::blueprint::Blueprint;
use ramekin_eval::extract;
use ramekin_kernels::activation::{self, Activation};
use ramekin_slots::{FlatBatch, Forward, LinearBase, Mode};
use ramekin_tape::Tape;
use ramekin_tests::compare::{close, relative_norm, same_bits};
use ramekin_tests::lab::{self, assemble, new_adapter, sequences};
use serde_json::{Value as Json, json};

use crate::{normal, ok, stir, value};

/// LLaMA-like, d = 64, 2 layers, 4 heads.
fn config(vocabulary: usize) -> Json {
    json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64,
        "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 4, "max_position_embeddings": 128, "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0, "tie_word_embeddings": false, "vocab_size": vocabulary,
        "initializer_range": 0.125,
    })
}

fn adapted(kind: &str, settings: Json) -> Assembly {
    assemble(&Blueprint { adapters: vec![new_adapter(kind, settings)], ..lab::fresh_model(config(61)) })
}

fn probe() -> FlatBatch {
    FlatBatch::new(&sequences(&[17, 5, 9], 61, 3))
}

#[test]
fn check_1() {
    let bare = lab::logits(&assemble(&lab::fresh_model(config(61))), &probe(), true);
    for (kind, settings) in [
        ("series", json!({})),
        ("series", json!({ "target_modules": ["gate_proj", "up_proj", "down_proj"] })),
        ("parallel", json!({})),
        ("lora", json!({ "target_modules": "all-linear" })),
    ] {
        same_bits(kind, &lab::logits(&adapted(kind, settings), &probe(), true), &bare);
    }
    for kind in ["series", "parallel"] {
        let near = lab::logits(&adapted(kind, json!({ "init": "bert" })), &probe(), true);
        let off = relative_norm(&near, &bare);
        println!("{kind}, bert: {off:.3}");
        assert!(off > 0.01 && off < 0.12, "{kind} starts {off:.3} away");
    }
}

/// `a [n, k] · bᵀ`, b `[m, k]`, in f64.
fn times(a: &[f64], b: &[f64], k: usize) -> Vec<f64> {
    let dot = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| x * y).sum();
    a.chunks(k).flat_map(|x| b.chunks(k).map(|y| dot(x, y)).collect::<Vec<f64>>()).collect()
}

fn plus(a: &[f64], b: &[f64], c: f64) -> Vec<f64> {
    a.iter().zip(b).map(|(a, b)| a + c * b).collect()
}

fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().map(|x| f64::from(*x)).collect()
}

/// One linear of an adapted model on random rows: what it gives, its input, weight and parameters.
fn one(kind: &str, settings: Json, path: &str) -> (Vec<f32>, Vec<f64>, Vec<f64>, Vec<Vec<f64>>) {
    let assembly = adapted(kind, settings);
    stir(&assembly, 0.3);
    let site = ok(assembly.sites.linear(path));
    let LinearBase::Dense(name) = site.base() else { panic!("a dense weight") };
    let weight = wide(&ok(ok(assembly.sites.param(&name)).base().value().to_f32()));
    let x = normal("x", 7 * site.shape.1, 1.0);
    let batch = FlatBatch::new(&[vec![0; 7]]);
    let fx = Forward::new(Tape::off(), assembly.sites.clone(), batch, Mode::inference());
    let y = ok(ok(fx.linear(path, &value(x.clone(), &[7, site.shape.1]))).array().to_f32());
    let own = format!("base_model.model.{path}.");
    let params = assembly.adapters[0].adapter.params().into_iter().filter(|(n, _)| n.starts_with(&own));
    (y, wide(&x), weight, params.map(|(_, p)| wide(&ok(p.value().to_f32()))).collect())
}

#[test]
fn check_2() {
    const DOWN: &str = "model.layers.1.mlp.down_proj"; // 128 inputs, 64 outputs
    let functions = [
        ("relu", Activation::Relu),
        ("gelu", Activation::Gelu),
        ("silu", Activation::Silu),
        ("tanh", Activation::Tanh),
    ];
    for (name, f) in functions {
        let through = |x: &[f64], p: &[Vec<f64>], k: usize| {
            let low = times(x, &p[0], k);
            let mut bent = low.clone();
            activation::forward(f, &low, &mut bent);
            times(&bent, &p[1], 8)
        };
        let base = json!({ "bottleneck_size": 8, "activation": name, "scaling": 0.7, "target_modules": ["down_proj"] });
        let with = |key: &str, v: Json| {
            let mut settings = base.clone();
            settings[key] = v;
            settings
        };
        let narrow = |x: Vec<f64>| x.into_iter().map(|x| x as f32).collect::<Vec<f32>>();

        let (y, x, w, p) = one("series", base.clone(), DOWN);
        let u = times(&x, &w, 128);
        close("series, output", &y, &narrow(plus(&u, &through(&u, &p, 64), 0.7)), 1e-6);

        let (y, x, w, p) = one("series", with("position", json!("input")), DOWN);
        let moved = plus(&x, &through(&x, &p, 128), 0.7);
        close("series, input", &y, &narrow(times(&moved, &w, 128)), 1e-6);

        let (y, x, w, p) = one("parallel", base.clone(), DOWN);
        close("parallel", &y, &narrow(plus(&times(&x, &w, 128), &through(&x, &p, 128), 0.7)), 1e-6);

        let (y, x, w, p) = one("parallel", with("scaling", json!("learned")), DOWN);
        assert_eq!(p[2].len(), 1, "one learned factor");
        assert!((p[2][0] - 1.0).abs() > 1e-3, "which moved");
        close("learned", &y, &narrow(plus(&times(&x, &w, 128), &through(&x, &p, 128), p[2][0])), 1e-6);
    }
    // Without an activation parallel is LoRA of rank b.
    let settings = json!({ "bottleneck_size": 4, "activation": "linear", "target_modules": "all-linear" });
    let parallel = adapted("parallel", settings);
    let lora = adapted("lora", json!({ "r": 4, "lora_alpha": 4, "target_modules": "all-linear" }));
    stir(&parallel, 0.2);
    for (name, param) in lora.adapters[0].adapter.params() {
        let twin = name.replace("lora_A", "adapter_down").replace("lora_B", "adapter_up");
        let found = parallel.adapters[0].adapter.params().into_iter().find(|(n, _)| *n == twin);
        param.set(found.expect("the same factor").1.value());
    }
    close("lora", &lab::logits(&parallel, &probe(), true), &lab::logits(&lora, &probe(), true), 1e-6);
    // By role: the first matrices of the MLP take the adapter before them.
    let by_role =
        adapted("series", json!({ "target_modules": ["up_proj", "down_proj"], "bottleneck_size": 4 }));
    for (name, param) in by_role.adapters[0].adapter.params() {
        let down = name.contains("adapter_down");
        let dims = param.value().dims().to_vec();
        assert_eq!(dims, if down { vec![4, 64] } else { vec![64, 4] }, "{name}");
    }
}

#[test]
fn check_3() {
    let batch = lab::batch(&sequences(&[20, 9, 14], 61, 4));
    for (kind, settings) in [
        ("series", json!({ "bottleneck_size": 8 })),
        ("parallel", json!({ "bottleneck_size": 8 })),
        ("lora", json!({})),
        ("prefix", json!({ "num_virtual_tokens": 4 })),
        ("prompt", json!({ "num_virtual_tokens": 4 })),
    ] {
        let assembly = adapted(kind, settings);
        let (frozen, bare) = (lab::frozen_bits(&assembly), lab::logits(&assembly, &batch.flat, false));
        lab::train(&assembly, &mut lab::trainer(1e-2), &batch, 5);
        let after = lab::logits(&assembly, &batch.flat, true);
        assert!(relative_norm(&after, &bare) > 1e-3, "{kind} has learnt something");
        same_bits(kind, &lab::logits(&assembly, &batch.flat, false), &bare);
        assert!(frozen == lab::frozen_bits(&assembly), "{kind}: the base has moved");
    }
}

#[test]
fn check_5() {
    let numbers: [(&str, f64, f64, bool); 6] = [
        ("The total is 1,234 apples.", 1234.0, 1234.0, true),
        ("So 12,345,678.50 in all", 12345678.5, 12345678.5, true),
        ("It falls to -7 degrees", -7.0, -7.0, true),
        ("First 3, then 4. The answer is 4.", 4.0, 5.0, false),
        ("I cannot tell", f64::INFINITY, 3.0, false),
        ("about 2.9995", 2.9995, 3.0, true),
    ];
    for (text, want, label, right) in numbers {
        assert_eq!(extract::last_number(text), want, "{text}");
        assert_eq!(extract::same_number(extract::last_number(text), label), right, "{text}");
    }
    let letters = [("The answer is C.", Some('C')), ("options B and D", Some('B')), ("none of them", None)];
    for (text, want) in letters {
        assert_eq!(extract::letter(text), want, "{text}");
    }
    let labels = [
        ("the correct answer is answer3, not answer1", Some("answer3")),
        ("I say it is false and not true", Some("false")),
        ("answer9, or rather solution2", Some("solution2")),
    ];
    for (text, want) in labels {
        assert_eq!(extract::choice(text), want, "{text}");
    }
    // The shares that an evaluation reports.
    let mut all = ramekin_eval::Metrics::new(&["number"]).expect("a metric");
    for (text, _, label, _) in numbers {
        ok(all.add_answer(text, &label.to_string()));
    }
    assert_eq!(all.finish()["number"], json!(4.0 / 6.0));
    let mut all = ramekin_eval::Metrics::new(&["letter"]).expect("a metric");
    for (text, label) in [letters[0].0, letters[1].0, letters[2].0].into_iter().zip(["C", "D", "A"]) {
        ok(all.add_answer(text, label));
    }
    assert_eq!(all.finish()["letter"], json!(1.0 / 3.0));
    let mut all = ramekin_eval::Metrics::new(&["choice"]).expect("a metric");
    for ((text, _), label) in labels.iter().zip(["answer3", "true", "solution2"]) {
        ok(all.add_answer(text, label));
    }
    assert_eq!(all.finish()["choice"], json!(2.0 / 3.0));
}

/// What the sheet calls bad input is refused in words.
#[test]
fn bad_input() {
    let refused = |kind: &str, settings: Json| {
        let plan = Blueprint { adapters: vec![new_adapter(kind, settings)], ..lab::fresh_model(config(61)) };
        format!("{:#}", plan.assemble(true).err().expect("a refusal"))
    };
    let cases = [
        ("series", json!({ "target_modules": ["down_porj"] }), "did you mean `down_proj`"),
        ("series", json!({ "bottleneck_size": 0 }), "`bottleneck_size` is 0"),
        ("parallel", json!({ "adapter_dropout": 1.0 }), "`adapter_dropout` is 1"),
        ("parallel", json!({ "scaling": "large" }), "\"learned\""),
        ("prefix", json!({ "num_virtual_tokens": 128 }), "leaves none for a prompt"),
        ("prefix", json!({ "num_virtual_tokens": 0 }), "at least 1"),
        ("prompt", json!({ "num_virtual_tokens": 500 }), "knows 128 positions"),
    ];
    for (kind, settings, part) in cases {
        let text = refused(kind, settings);
        assert!(text.contains(part), "{kind}: {text}");
    }
    let long = FlatBatch::new(&sequences(&[120], 61, 1));
    let assembly = adapted("prefix", json!({ "num_virtual_tokens": 10 }));
    let fx = Forward::new(
        Tape::off(),
        assembly.sites.clone(),
        long,
        Mode { rng: Rng::new(1), ..Mode::inference() },
    );
    let text =
        ramekin_engine::hidden::hidden(&assembly.model, &fx, None).err().expect("too long").to_string();
    assert!(text.contains("needs 130 positions; the model knows 128"), "{text}");
    for (kind, settings) in [
        ("series", json!({})),
        ("parallel", json!({})),
        ("parallel", json!({ "activation": "linear", "scaling": "learned" })),
        ("prefix", json!({})),
    ] {
        let why = adapted(kind, settings).adapters[0].adapter.unmergeable();
        assert!(why.is_some_and(|w| w.contains("unmerged")), "{kind}");
    }
}
