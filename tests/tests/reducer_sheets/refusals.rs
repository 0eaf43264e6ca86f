//! What reducers refuse, and the model of images with them.

use ramekin_engine::blueprint::Blueprint;
use ramekin_tests::images::{small_vit, with_reducer};
use ramekin_tests::lab::{fresh_model, new_adapter, part, small_llama};
use serde_json::{Value as Json, json};

fn refusal(plan: &Blueprint) -> String {
    format!("{:#}", plan.assemble(true).err().expect("a refusal"))
}

#[track_caller]
fn says(text: &str, words: &[&str]) {
    assert!(words.iter().all(|w| text.contains(w)), "{text}");
}

#[test]
fn a_schedule_that_does_not_fit_is_refused_by_its_block() {
    let why = |kind: &str, schedule: Json| refusal(&with_reducer(16, kind, json!({ "schedule": schedule })));
    for kind in ["tome", "pyra"] {
        says(&why(kind, json!([4, 7])), &["schedule", "7 tokens in block 1", "has 13", "6 at most"]);
        says(&why(kind, json!([1, 1, 1, 1, 1])), &["5 numbers", "block 4", "4 blocks"]);
        says(&why(kind, json!("high")), &["high", "197 tokens", "17 in 4"]);
        says(&why(kind, json!([-1])), &["a list of whole numbers"]);
        says(
            &refusal(&with_reducer(16, kind, json!({ "schedule": [1], "protected": 3 }))),
            &["protected", "3"],
        );
    }
    says(&refusal(&with_reducer(16, "pyra", json!({ "schedule": [1], "pyra_lr": 0.0 }))), &["pyra_lr"]);
}

#[test]
fn causal_models_are_refused_by_name() {
    for kind in ["tome", "pyra"] {
        let reducers = vec![part(kind, json!({ "schedule": [1] }))];
        let text = refusal(&Blueprint { reducers, ..fresh_model(small_llama()) });
        says(&text, &[kind, "llama", "causal language model"]);
    }
}

#[test]
fn tokens_before_the_sequence_and_networks_beside_it_are_refused_by_name() {
    for (adapter, settings) in [
        ("prefix", json!({ "num_virtual_tokens": 2 })),
        ("prompt", json!({ "num_virtual_tokens": 2 })),
        ("unipt", json!({ "reduction": 2 })),
    ] {
        let plan = with_reducer(16, "tome", json!({ "schedule": [4] }));
        let alone =
            Blueprint { adapters: vec![new_adapter(adapter, settings)], ..fresh_model(small_vit(16)) };
        match alone.assemble(true) {
            Ok(_) => assert_eq!(adapter, "unipt"),
            Err(e) => says(&format!("{e:#}"), &[&format!("adapter/{adapter}"), "`vit`"]),
        }
        let text = refusal(&Blueprint { adapters: alone.adapters, ..plan });
        says(&text, &["reducer/tome", &format!("adapter/{adapter}"), "cannot go with"]);
    }
}

#[test]
fn two_reducers_are_one_too_many() {
    let one = with_reducer(16, "tome", json!({ "schedule": [4] }));
    let reducers = [one.reducers.clone(), vec![part("pyra", json!({ "schedule": [4] }))]].concat();
    says(&refusal(&Blueprint { reducers, ..one }), &["two parts", "fewer tokens"]);
}
