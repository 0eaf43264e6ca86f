//! Module sites: where they are, what they see, and that they cost nothing where nothing is attached.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use anyhow::Result;
use ramekin_core::pattern::{Modules, Selector};
use ramekin_core::{Meter, meter};
use ramekin_engine::assembly::Assembly;
use ramekin_slots::{FlatBatch, Forward, ModuleAdapter, Sites};
use ramekin_tape::{Value, ops};
use ramekin_tests::compare::{close, difference, same_bits};
use ramekin_tests::lab::{self, assemble, sequences};
use serde_json::json;

/// Inputs and outputs by path.
type Seen = Rc<RefCell<BTreeMap<String, (Option<Vec<f32>>, Vec<f32>)>>>;

/// Notes what passes, and multiplies it.
struct Times(f64, Seen);

impl ModuleAdapter for Times {
    fn forward(&self, fx: &Forward, path: &str, x: Option<&Value>, y: Value) -> Result<Value> {
        if !y.array().is_shape_only() {
            let x = x.map(|x| x.array().to_f32()).transpose()?;
            self.1.borrow_mut().insert(path.to_owned(), (x, y.array().to_f32()?));
        }
        if self.0 == 1.0 { Ok(y) } else { ops::scale(&fx.tape, &y, self.0) }
    }
}

fn attach(sites: &Sites, names: &Modules, factor: f64) -> Result<Seen> {
    let seen = Seen::default();
    let selector = Selector::new("target_modules", names, None, None, &[])?;
    for path in selector.select(&sites.module_candidates())? {
        sites.attach_module(path, Rc::new(Times(factor, seen.clone())))?;
    }
    Ok(seen)
}

fn list(names: &[&str]) -> Modules {
    Modules::List(names.iter().map(|n| (*n).to_owned()).collect())
}

fn qwen3() -> serde_json::Value {
    let mut config = lab::small_llama();
    config["model_type"] = json!("qwen3");
    config["architectures"] = json!(["Qwen3ForCausalLM"]);
    config["head_dim"] = json!(8);
    config
}

fn llama() -> Assembly {
    assemble(&lab::fresh_model(lab::small_llama()))
}

#[test]
fn every_module_has_its_path() {
    let assembly = assemble(&lab::fresh_model(qwen3()));
    let mut found: Vec<&str> = assembly.sites.module_candidates().iter().map(|c| c.path).collect();
    found.sort_unstable();
    let mut want = vec!["lm_head".to_owned(), "model.embed_tokens".to_owned(), "model.norm".to_owned()];
    for l in 0..2 {
        want.push(format!("model.layers.{l}"));
        for tail in [
            "input_layernorm",
            "mlp",
            "mlp.down_proj",
            "mlp.gate_proj",
            "mlp.up_proj",
            "post_attention_layernorm",
            "self_attn",
            "self_attn.k_norm",
            "self_attn.k_proj",
            "self_attn.o_proj",
            "self_attn.q_norm",
            "self_attn.q_proj",
            "self_attn.v_proj",
        ] {
            want.push(format!("model.layers.{l}.{tail}"));
        }
    }
    want.sort();
    assert_eq!(found, want);
}

/// layer(x) = x + attention + mlp, each site between the right neighbours.
#[test]
fn sites_see_inputs_and_outputs() {
    let assembly = llama();
    let batch = FlatBatch::new(&sequences(&[7, 4], 61, 3));
    let bare = lab::logits(&assembly, &batch, true);
    let everything = Modules::Pattern(".*".to_owned());
    let seen = attach(&assembly.sites, &everything, 1.0).expect("a pattern that matches");
    same_bits("watched", &lab::logits(&assembly, &batch, true), &bare);
    let seen = seen.borrow();
    assert_eq!(seen.len(), assembly.sites.module_candidates().len(), "every module was run");
    let input = |path: &str| seen[path].0.clone().expect("an input");
    let output = |path: &str| seen[path].1.clone();
    let plus = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a + b).collect::<Vec<f32>>();
    assert!(seen["model.embed_tokens"].0.is_none(), "the embedding's input are ids");
    same_bits("first layer", &input("model.layers.0"), &output("model.embed_tokens"));
    for l in 0..2 {
        let at = |tail: &str| format!("model.layers.{l}.{tail}");
        let layer = format!("model.layers.{l}");
        let middle = plus(&input(&layer), &output(&at("self_attn")));
        same_bits("layer", &output(&layer), &plus(&middle, &output(&at("mlp"))));
        same_bits("attention", &input(&at("self_attn")), &output(&at("input_layernorm")));
        same_bits("q", &input(&at("self_attn.q_proj")), &output(&at("input_layernorm")));
        same_bits("middle", &input(&at("post_attention_layernorm")), &middle);
        same_bits("mlp", &input(&at("mlp")), &output(&at("post_attention_layernorm")));
        same_bits("mlp's last", &output(&at("mlp")), &output(&at("mlp.down_proj")));
    }
    same_bits("final norm", &input("model.norm"), &output("model.layers.1"));
    same_bits("head", &output("lm_head"), &bare);
}

#[test]
fn patterns_choose_and_adapters_act() {
    let batch = FlatBatch::new(&sequences(&[7, 4], 61, 3));
    let bare = lab::logits(&llama(), &batch, true);
    for names in [&["mlp"][..], &["self_attn"], &["layers.0"], &["embed_tokens"], &["norm"], &["q_proj"]] {
        let assembly = llama();
        let seen = attach(&assembly.sites, &list(names), 0.5).expect("a name that matches");
        let changed = lab::logits(&assembly, &batch, true);
        assert!(difference(&changed, &bare) > 1e-2, "{names:?} does nothing");
        same_bits("adapters off", &lab::logits(&assembly, &batch, false), &bare);
        let counts =
            [("mlp", 2), ("self_attn", 2), ("layers.0", 1), ("embed_tokens", 1), ("norm", 1), ("q_proj", 2)];
        let want = counts.iter().find(|(n, _)| *n == names[0]).expect("a count").1;
        assert_eq!(seen.borrow().len(), want, "{names:?}");
    }
    // Half the head's input halves the logits.
    let assembly = llama();
    attach(&assembly.sites, &list(&["norm"]), 0.5).expect("the final norm");
    let halves: Vec<f32> = bare.iter().map(|x| x / 2.0).collect();
    close("half", &lab::logits(&assembly, &batch, true), &halves, 1e-6);

    let error = attach(&llama().sites, &list(&["self_atn"]), 1.0).expect_err("no such module").to_string();
    assert!(error.contains("did you mean `self_attn`"), "{error}");
    let text = llama().sites.new_biases().map(|b| b.len()).expect("nothing attached");
    assert_eq!(text, 0);
    let assembly = llama();
    attach(&assembly.sites, &list(&["mlp"]), 0.5).expect("mlp");
    let error = assembly.sites.new_biases().expect_err("nothing to fold into").to_string();
    assert!(error.contains("no weight to be folded into"), "{error}");
}

/// What a forward holds at most grows only where something is attached.
#[test]
fn inputs_die_where_nothing_is_attached() {
    let peak = |names: Option<&[&str]>| {
        let own = Meter::new();
        let _scope = meter::scope(own.clone());
        let mut config = lab::small_llama();
        config["intermediate_size"] = json!(8); // the attention is where most is held
        let shapes = lab::fresh_model(config).assemble(true).expect("shapes");
        if let Some(names) = names {
            attach(&shapes.sites, &list(names), 1.0).expect("a name that matches");
        }
        own.reset_peak();
        ramekin_engine::bill::forward(&shapes, 64).expect("a forward on shapes");
        own.peak()
    };
    let bare = peak(None);
    assert_eq!(peak(Some(&["o_proj"])), bare, "a linear's input is alive anyway");
    assert!(peak(Some(&["self_attn"])) > bare, "the attention's input lives on");
}
