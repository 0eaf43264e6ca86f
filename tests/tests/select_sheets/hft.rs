//! Sheet `hft`.

use std::collections::HashMap;

use ramekin_core::{Array, Category, Rng};
use ramekin_engine::assembly::Assembly;
use ramekin_engine::blueprint::Blueprint;
use ramekin_engine::parts;
use ramekin_select_half::{Choice, HftSettings, reset};
use ramekin_tests::domains::{self, Domain};
use ramekin_tests::lab::{self, assemble, batch, fresh_model, sequences};
use ramekin_tests::selecting::{loss, refusal, weights, with_selection, write_model};
use serde_json::{Value as Json, json};

/// Six layers, plain multi-head attention.
fn six_layers() -> Json {
    let mut config = lab::small_llama();
    config["num_hidden_layers"] = 6.into();
    config["num_key_value_heads"] = 4.into();
    config
}

fn hft(settings: Json) -> Blueprint {
    with_selection(fresh_model(six_layers()), "hft", settings)
}

fn draw(assembly: &Assembly, seed: u64, round: u64) -> Choice {
    let settings = HftSettings::default();
    Choice::draw(&settings, &assembly.sites, assembly.model.facts(), Rng::new(seed), round).expect("a choice")
}

/// Frozen tensors keep their bits, all trained ones differ.
#[test]
fn check_1() {
    let assembly = assemble(&hft(json!({})));
    let before = weights(&assembly);
    let mut trainer = lab::trainer(1e-3);
    let adamw = lab::part("adamw", json!({ "lr": 1e-3, "weight_decay": 0.1 }));
    trainer.optimizer = parts::optimizer(&adamw).expect("adamw");
    let rows = batch(&sequences(&[14, 9, 17], 61, 3));
    lab::train(&assembly, &mut trainer, &rows, 20);
    let ledger = assembly.ledger.borrow();
    let mut counts = (0, 0);
    for ((name, old), (_, new)) in before.iter().zip(weights(&assembly)) {
        let trains = ledger.get(name).is_some_and(|e| e.is_trainable());
        assert_eq!(*old != new, trains, "`{name}`");
        counts = if trains { (counts.0 + 1, counts.1) } else { (counts.0, counts.1 + 1) };
    }
    assert!(counts.0 > 20 && counts.1 > 20, "{counts:?}");
}

/// The halves are halves, for every seed; rounds differ, seeds repeat.
#[test]
fn check_2() {
    let assembly = assemble(&fresh_model(six_layers()));
    let size = |name: &str| assembly.sites.param(name).expect("a tensor").base().value().len();
    for seed in 0..200 {
        let choice = draw(&assembly, seed, 1);
        let of = |layer: usize, names: &[&str]| {
            names
                .iter()
                .filter(|n| choice.trained.contains(&format!("model.layers.{layer}.{n}.weight")))
                .count()
        };
        let attention = ["q_proj", "k_proj", "v_proj", "o_proj"].map(|n| format!("self_attn.{n}"));
        let attention: Vec<&str> = attention.iter().map(String::as_str).collect();
        let mlp = ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"];
        let mut ones = 0;
        for layer in 0..6 {
            assert_eq!(of(layer, &attention), 2, "attention of layer {layer}, seed {seed}");
            assert_eq!(of(layer, &["input_layernorm", "post_attention_layernorm"]), 1);
            let trained = of(layer, &mlp);
            assert!(trained == 1 || trained == 2);
            ones += usize::from(trained == 1);
        }
        assert_eq!(ones, 3, "layers with one trained feed-forward matrix, seed {seed}");
        let matrices = choice.block.iter().filter(|n| n.contains("_proj"));
        let (mut all, mut half) = (0, 0);
        for name in matrices {
            all += size(name);
            half += if choice.trained.contains(name) { size(name) } else { 0 };
        }
        assert_eq!(2 * half, all, "seed {seed}");
        assert_ne!(choice.trained, draw(&assembly, seed, 2).trained, "rounds of seed {seed}");
        assert_eq!(choice, draw(&assembly, seed, 1));
        assert!(
            choice.trained.contains("model.embed_tokens.weight") && choice.trained.contains("lm_head.weight")
        );
    }
}

/// An odd number of layers gives the extra one to either side, both about as often.
#[test]
fn check_2_odd_layers() {
    let mut config = six_layers();
    config["num_hidden_layers"] = 5.into();
    let assembly = assemble(&fresh_model(config));
    let twos = |seed| {
        let choice = draw(&assembly, seed, 0);
        let mlp = |l: &usize| {
            choice.trained.iter().filter(|n| n.starts_with(&format!("model.layers.{l}.mlp."))).count() == 2
        };
        (0..5).filter(mlp).count()
    };
    let counts: Vec<usize> = (0..200).map(twos).collect();
    assert!(counts.iter().all(|c| *c == 2 || *c == 3), "{counts:?}");
    let more = counts.iter().filter(|c| **c == 3).count();
    assert!((60..=140).contains(&more), "{more} of 200");
}

/// What trains gets the gradients of full fine-tuning, bit for bit.
#[test]
fn check_3() {
    let (half, full) = (assemble(&hft(json!({}))), fresh_model(six_layers()));
    let full = assemble(&Blueprint { full_training: true, ..full });
    let rows = [batch(&sequences(&[14, 9, 17], 61, 3))];
    let trainer = lab::trainer(1e-3);
    let (a, some) = lab::loss_and_gradients(&half, &trainer, &rows);
    let (b, all) = lab::loss_and_gradients(&full, &trainer, &rows);
    assert_eq!(a.to_bits(), b.to_bits());
    let all: HashMap<String, Vec<f32>> = all.into_iter().collect();
    assert!(!some.is_empty() && some.len() < all.len());
    for (name, grad) in &some {
        ramekin_tests::compare::same_bits(name, grad, &all[name]);
    }
}

/// Half-Reset: twice is once; mask and complement give the start; a reset share near 0 changes nothing.
#[test]
fn check_4() {
    let assembly = assemble(&fresh_model(six_layers()));
    let choice = draw(&assembly, 4, 0);
    let values = || -> HashMap<String, Array> {
        let copy = |n: &String| {
            let value = assembly.sites.param(n).expect("a tensor").base().value();
            Array::from_vec(value.to_f32().expect("f32"), value.dims(), Category::Workspace)
                .expect("an array")
        };
        assembly.sites.param_names().iter().map(|n| (n.clone(), copy(n))).collect()
    };
    let start = values();
    for name in assembly.sites.param_names() {
        let value = assembly.sites.param(name).expect("a tensor").base().value();
        value.update(|x: &mut [f32]| x.iter_mut().for_each(|x| *x = 1.5 * *x + 0.25)).expect("an update");
    }
    let tuned = weights(&assembly);
    reset(&assembly.sites, &start, &choice).expect("a reset");
    let once = weights(&assembly);
    assert_ne!(once, tuned);
    for ((name, now), (_, tuned)) in once.iter().zip(&tuned) {
        let kept = !choice.block.contains(name) || choice.trained.contains(name);
        assert_eq!(now == tuned, kept, "`{name}`");
    }
    reset(&assembly.sites, &start, &choice).expect("a reset");
    assert_eq!(weights(&assembly), once, "twice is once");
    reset(&assembly.sites, &start, &choice.complement()).expect("a reset");
    for name in &choice.block {
        let now = assembly.sites.param(name).expect("a tensor").base().value().to_f32().expect("f32");
        ramekin_tests::compare::same_bits(name, &now, &start[name].to_f32().expect("f32"));
    }
    let nearly_all = HftSettings {
        ratio: 0.999,
        norm_policy: ramekin_select_half::NormPolicy::All,
        strategy: ramekin_select_half::Strategy::Category,
        ..HftSettings::default()
    };
    let facts = assembly.model.facts();
    let none = Choice::draw(&nearly_all, &assembly.sites, facts, Rng::new(4), 0).expect("a choice");
    let left_out: Vec<&String> = none.block.difference(&none.trained).collect();
    assert!(left_out.len() <= 1, "{left_out:?}");
    let other = HashMap::from([("model.norm.weight".to_owned(), start["model.norm.weight"].clone())]);
    let e = reset(&assembly.sites, &other, &choice).expect_err("names differ");
    assert!(e.to_string().contains("the start has no tensor"), "{e}");
}

/// Half-Reset as a stage does it: everything trains, and the unselected half is back at the end.
#[test]
fn check_4_in_training() {
    let assembly = assemble(&hft(json!({ "mode": "half_reset" })));
    let before: HashMap<_, _> = weights(&assembly).into_iter().collect();
    let mut trainer = lab::trainer(1e-3);
    let rows = batch(&sequences(&[14, 9, 17], 61, 3));
    lab::train(&assembly, &mut trainer, &rows, 3);
    let tuned: HashMap<_, _> = weights(&assembly).into_iter().collect();
    trainer.finish(&assembly, 3).expect("an end");
    let file = assembly.selection.borrow().as_ref().expect("hft").file().expect("a file").expect("a file");
    let trained: Vec<String> = serde_json::from_value(file.config["trained"].clone()).expect("names");
    let mut back = 0;
    for (name, now) in weights(&assembly) {
        if name.contains(".layers.") && !trained.contains(&name) {
            assert_eq!(now, before[&name], "`{name}` is back");
            assert_ne!(now, tuned[&name], "`{name}` had trained");
            back += 1;
        } else {
            assert_eq!(now, tuned[&name], "`{name}` stays");
        }
    }
    assert!(back > 20, "{back}");
}

/// Optimizer state for trained numbers alone.
#[test]
fn check_5() {
    let assembly = assemble(&hft(json!({})));
    let mut trainer = lab::trainer(1e-3);
    let rows = batch(&sequences(&[14, 9, 17], 61, 3));
    lab::train(&assembly, &mut trainer, &rows, 2);
    let trained: u64 = assembly.trainable().iter().map(|p| p.value().len() as u64).sum();
    let names: Vec<String> = assembly.trainable().iter().map(|p| p.name().to_owned()).collect();
    let mut bytes = 0;
    for t in trainer.state(&assembly).expect("state") {
        let Some(of) = t.name.strip_prefix("exp_avg.").or_else(|| t.name.strip_prefix("exp_avg_sq.")) else {
            continue;
        };
        assert!(names.iter().any(|n| n == of), "state of the frozen `{of}`");
        bytes += t.array.bytes();
    }
    assert_eq!(bytes, 2 * 4 * trained);
}

/// Less forgetting than full fine-tuning at the same learning, and more learning than embeddings and head alone.
#[test]
fn check_6() {
    let (mut gains, mut wrong_versions) = (Vec::new(), 0);
    for seed in 0..5 {
        let (a, b) = (Domain::new(seed, 0), Domain::new(seed, 1));
        let fresh = Blueprint { seed, ..fresh_model(domains::config()) };
        let base = assemble(&Blueprint { full_training: true, ..fresh });
        domains::learn(&base, &a, 2e-3, 400);
        let folder = tempfile::tempdir().expect("a folder");
        write_model(&base, folder.path());
        let tuned = |plan: Blueprint| {
            let assembly = assemble(&Blueprint { seed, stage: 1, ..plan });
            let trainer = domains::learn(&assembly, &b, 2e-3, 300);
            (loss(&assembly, &trainer, &a.held()), loss(&assembly, &trainer, &b.held()))
        };
        let model = || lab::folder_model(folder.path());
        let full = tuned(Blueprint { full_training: true, ..model() });
        let half = tuned(with_selection(model(), "hft", json!({})));
        let ends = json!({ "modules": ["embed_tokens", "lm_head"] });
        let ends = tuned(with_selection(model(), "full", ends));
        println!("seed {seed}: full {full:.4?}, half {half:.4?}, embeddings and head {ends:.4?}");
        assert!(half.1 <= 1.02 * full.1, "seed {seed}: loss on B {} against {}", half.1, full.1);
        gains.push(full.0 - half.0);
        wrong_versions += usize::from(ends.1 >= 1.03 * full.1);
    }
    let mean = gains.iter().sum::<f64>() / 5.0;
    let good = gains.iter().filter(|g| **g >= 0.03).count();
    assert!(good >= 4 && mean >= 0.08, "less forgotten by {gains:.3?} nats, mean {mean:.3}");
    assert_eq!(wrong_versions, 5, "embeddings and head alone must be told apart");
}

/// What the sheet says must be refused.
#[test]
fn refusals() {
    let e = refusal(&hft(json!({ "ratio": 1.0 })));
    assert!(e.contains("`ratio` is 1; it must be above 0 and below 1"), "{e}");
    let e = refusal(&hft(json!({ "mlp_modules": ["gate_proj", "up_proj"] })));
    assert!(e.contains("leaves `model.layers.0.mlp.down_proj` out"), "{e}");
    let mut tied = six_layers();
    tied["tie_word_embeddings"] = true.into();
    let e = refusal(&with_selection(fresh_model(tied), "hft", json!({ "train_lm_head": false })));
    assert!(e.contains("embeddings and head of this model are one table"), "{e}");
    let quantized = |settings| Blueprint {
        quantizer: Some(lab::part("rtn", json!({ "bits": 8, "group_size": 16 }))),
        ..hft(settings)
    };
    let e = refusal(&quantized(json!({})));
    assert!(e.contains("`resample` is \"per_round\""), "{e}");
    let e = refusal(&quantized(json!({ "resample": "fixed" })));
    assert!(e.contains("`modules_to_not_convert`"), "{e}");
    // A checkpoint of another round.
    let (one, other) = (assemble(&hft(json!({ "round": 1 }))), assemble(&hft(json!({ "round": 2 }))));
    let folder = tempfile::tempdir().expect("a folder");
    ramekin_tests::selecting::save(folder.path(), 1, &one, &lab::trainer(1e-3));
    let all = ramekin_engine::checkpoint::open(folder.path(), 1).expect("checkpoints");
    let e =
        ramekin_engine::checkpoint::restore(&all, &other, &mut lab::trainer(1e-3)).err().expect("refused");
    assert!(e.to_string().contains("has no `") || e.to_string().contains("another round"), "{e:#}");
}
