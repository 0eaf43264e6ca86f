//! Several stages: killed in each, what comes out at the end has the same bits.

use std::collections::BTreeMap;
use std::path::Path;

use ramekin_tests::Kitchen;
use serde_json::Value as Json;

use crate::run_folder::{Left, leftovers};
use crate::{cook, single, start, until};

/// Trains, merges, goes on from the merged model, merges again, evaluates and answers.
const RECIPE: &str = r#"
seed = 5
model = { source = "builtin:tiny" }

[[stage]]
kind = "train"
adapter = [{ kind = "lora", r = 4, target_modules = ["q_proj", "v_proj"], lora_dropout = 0.1 }]
optimizer = { kind = "adamw", lr = 5e-3 }
data = { kind = "builtin", name = "records", rows = 60, packing = true, max_length = 96 }
checkpoint = { every = 1, keep = 2 }
steps = 3

[[stage]]
kind = "merge"

[[stage]]
kind = "train"
adapter = [{ kind = "lora", r = 2, target_modules = ["down_proj"] }]
optimizer = { kind = "adamw", lr = 5e-3 }
data = { kind = "builtin", name = "records", rows = 60, packing = true, max_length = 96 }
checkpoint = { every = 1, keep = 2 }
steps = 3

[[stage]]
kind = "merge"

[[stage]]
kind = "eval"
data = { kind = "builtin", name = "records", rows = 2, held_out = true, max_length = 96 }
metrics = ["loss", "exact_match"]
max_new_tokens = 4

[[stage]]
kind = "generate"
prompts = ["Anna has 4 red apples", "Once upon a time"]
max_new_tokens = 8
"#;

const NAMES: [&str; 6] = ["0-train", "1-merge", "2-train", "3-merge", "4-eval", "5-generate"];

/// What lies in the folder when nobody disturbs the run. Models are named by their paths in
/// what is made of them, so that runs to be compared go into a folder of one name.
fn undisturbed(kitchen: &Kitchen, out: &Path) -> Left {
    cook(kitchen, out, &[]).expect(0);
    Left::in_folder(out)
}

/// Whether a stage has begun and not ended.
fn in_stage(out: &Path, stage: usize) -> bool {
    out.join("stages").join(NAMES[stage]).exists()
}

#[test]
fn killed_in_each_stage_and_resumed() {
    let kitchen = Kitchen::new(RECIPE);
    let out = kitchen.folder().join("out");
    let undisturbed = undisturbed(&kitchen, &out);
    assert!(undisturbed.files().contains_key("model/model.safetensors"));
    // What each stage leaves last.
    let late =
        ["adapter", "certificate.json", "adapter", "certificate.json", "samples.jsonl", "samples.jsonl"];
    for (stage, late) in late.iter().enumerate() {
        // As soon as the stage begins, and where it is about to have ended.
        for when in ["", late] {
            std::fs::remove_dir_all(&out).expect("removed");
            let mut child = start(&kitchen, &out, &[]);
            let there = out.join("stages").join(NAMES[stage]).join(when);
            assert!(until(&mut child, || there.exists()), "`{}` never came", there.display());
            child.kill().expect("killed");
            child.wait().expect("gone");
            let what = format!("killed in stage {}, `{when}` there", NAMES[stage]);
            let outcome = cook(&kitchen, &out, &["--resume"]);
            assert_eq!(outcome.code, Some(0), "{what}: {}", outcome.stderr);
            Left::in_folder(&out).same_as(&undisturbed, &what);
            assert_eq!(leftovers(&out), Vec::<String>::new(), "{what}");
        }
    }
}

/// A kill after a stage has left what it made, and before it is noted as done: the stage is done
/// again, and must not stand on what it has itself made.
#[test]
fn a_stage_done_twice_does_the_same() {
    let kitchen = Kitchen::new(RECIPE);
    let out = kitchen.folder().join("out");
    let mut child = start(&kitchen, &out, &[]);
    let mut noted = BTreeMap::new();
    until(&mut child, || {
        if let Ok(text) = std::fs::read_to_string(out.join("state.json")) {
            let state: Json = serde_json::from_str(&text).expect("a state, whole at any time");
            noted.insert(state["done"].as_u64().expect("a number"), text);
        }
        false
    });
    assert_eq!(noted.len(), NAMES.len(), "a state after each stage: {:?}", noted.keys());
    let undisturbed = Left::in_folder(&out);
    for stage in (0..NAMES.len()).rev() {
        match noted.get(&(stage as u64)) {
            Some(text) => std::fs::write(out.join("state.json"), text).expect("written"),
            None => std::fs::remove_file(out.join("state.json")).expect("removed"),
        }
        std::fs::remove_file(out.join("summary.json")).expect("removed");
        let what = format!("stage {} done twice", NAMES[stage]);
        let outcome = cook(&kitchen, &out, &["--resume"]);
        assert_eq!(outcome.code, Some(0), "{what}: {}", outcome.stderr);
        Left::in_folder(&out).same_as(&undisturbed, &what);
    }
}

#[test]
fn a_signal_in_a_stage_without_checkpoints() {
    let kitchen = Kitchen::new(RECIPE);
    let out = kitchen.folder().join("out");
    let undisturbed = undisturbed(&kitchen, &out);
    for stage in [1, 4] {
        std::fs::remove_dir_all(&out).expect("removed");
        let mut command = single(kitchen.command(&out, &[]));
        let mut child = command.stderr(std::process::Stdio::null()).spawn().expect("the binary starts");
        assert!(until(&mut child, || in_stage(&out, stage)));
        crate::signal(&child, "INT");
        assert_eq!(child.wait().expect("a child").code(), Some(130), "stage {}", NAMES[stage]);
        assert!(!out.join("summary.json").exists());
        cook(&kitchen, &out, &["--resume"]).expect(0);
        Left::in_folder(&out).same_as(&undisturbed, NAMES[stage]);
    }
}
