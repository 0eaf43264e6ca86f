//! What every registered merge and prune part must pass. A part without an entry here fails the suite.

use std::collections::BTreeSet;
use std::path::Path;

use ramekin_registry::{Slot, find, names};
use ramekin_tests::kitchen::{Kitchen, cook, json};
use ramekin_tests::{Tensors, floats, tensors};
use serde_json::json;

/// How a part does nothing.
struct Neutral {
    kind: &'static str,
    /// Settings, as TOML behind the kind.
    settings: &'static str,
    /// Whether the result is the model to the bit, or within one rounding of a difference.
    exact: bool,
}

/// Merges of one model that give that model.
const MERGES: &[Neutral] = &[
    Neutral { kind: "lora", settings: "", exact: true },
    Neutral { kind: "task-arithmetic", settings: "", exact: true },
    Neutral { kind: "ties", settings: ", density = 1.0", exact: true },
    Neutral { kind: "lines", settings: ", alpha = 1.0, beta = 0.0", exact: true },
    Neutral { kind: "compeft", settings: ", mode = \"prune\", density = 1.0", exact: false },
];

/// Prunings that cut nothing.
const PRUNES: &[Neutral] =
    &[Neutral { kind: "cfsp", settings: ", pruning_ratio = 1e-9, a = 0.0, block_size = 1", exact: true }];

#[test]
fn every_part_has_an_entry() {
    ramekin_catalog::link();
    for (slot, entries) in [(Slot::Merge, MERGES), (Slot::Prune, PRUNES)] {
        let registered: BTreeSet<&str> = names(slot).into_iter().collect();
        let here: BTreeSet<&str> = entries.iter().map(|e| e.kind).collect();
        assert_eq!(registered, here, "{}", slot.name());
    }
}

#[test]
fn settings_have_defaults_and_refuse_what_they_do_not_know() {
    ramekin_catalog::link();
    for (slot, entries) in [(Slot::Merge, MERGES), (Slot::Prune, PRUNES)] {
        for entry in entries {
            let part = find(slot, entry.kind).expect("a registered part");
            let full = (part.complete)(json!({})).unwrap_or_else(|e| panic!("{}: {e}", entry.kind));
            (part.build)(full.clone()).unwrap_or_else(|e| panic!("{}: {e:#}", entry.kind));
            assert_eq!((part.complete)(full.clone()).expect("the same"), full, "{}", entry.kind);
            assert!((part.complete)(json!({ "no_such_setting": 1 })).is_err(), "{}", entry.kind);
            let schema = (part.schema)().to_value();
            assert_eq!(schema["additionalProperties"], false, "{}", entry.kind);
            for (name, property) in schema["properties"].as_object().into_iter().flatten() {
                let described = property["description"].as_str().is_some_and(|d| !d.is_empty());
                assert!(described, "{}: `{name}` is not documented", entry.kind);
            }
        }
    }
}

/// Fails unless both hold the same tensors with the same numbers.
fn same(what: &str, found: &Tensors, expected: &Tensors, exact: bool) {
    assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>(), "{what}");
    for (name, tensor) in found {
        assert_eq!(tensor.dims(), expected[name].dims(), "{what}: {name}");
        for (a, b) in floats(tensor).iter().zip(floats(&expected[name])) {
            let off = (f64::from(*a) - f64::from(b)).abs();
            let allowed =
                if exact { 0.0 } else { 2.0 * f64::from(f32::EPSILON) * f64::from(b.abs()).max(1e-3) };
            assert!(off <= allowed, "{what}: {name} holds {a} and should hold {b}");
        }
    }
}

const TRAINED: &str = r#"
seed = 3
[model]
source = "builtin:tiny"
dtype = "f32"
[[stage]]
kind = "train"
optimizer = { kind = "adamw", lr = 1e-3 }
data = { kind = "builtin", name = "records", rows = 64, max_length = 96 }
batch = { micro_batch_size = 4 }
steps = 2
audit = false
"#;

const FRESH_ADAPTER: &str = r#"
seed = 3
[model]
source = "builtin:tiny"
dtype = "f32"
[[stage]]
kind = "merge"
adapter = [{ kind = "lora", target_modules = "all-linear" }]
"#;

fn tiny() -> Tensors {
    let bytes =
        ramekin_engine::builtin::find("tiny").expect("tiny").file("model.safetensors").expect("weights");
    let all = candle_core::safetensors::load_buffer(bytes, &candle_core::Device::Cpu).expect("tensors");
    all.into_iter().collect()
}

fn model(kitchen: &Kitchen, stage: &str) -> Tensors {
    let inside = kitchen.out("stages").join(stage).join("model");
    tensors(&if inside.is_dir() { inside } else { kitchen.out("model") })
}

#[test]
fn one_model_with_weight_one_is_that_model() {
    for entry in MERGES {
        if entry.kind == "lora" {
            same("a fresh adapter", &model(&cook(FRESH_ADAPTER), "0-merge"), &tiny(), true);
            continue;
        }
        let method = format!("method = {{ kind = \"{}\"{} }}", entry.kind, entry.settings);
        let kitchen =
            cook(&format!("{TRAINED}\n[[stage]]\nkind = \"merge\"\n{method}\nmodels = [{{ stage = 0 }}]\n"));
        let trained = model(&kitchen, "0-train");
        let moved = trained.iter().any(|(name, t)| floats(t) != floats(&tiny()[name]));
        assert!(moved, "training moved nothing");
        same(entry.kind, &model(&kitchen, "1-merge"), &trained, entry.exact);
        // What was written is what was computed.
        let certificate = json(&kitchen.out("stages/1-merge/certificate.json"));
        assert_eq!(certificate["relative"].as_f64(), Some(0.0), "{}", entry.kind);
        assert!(certificate["probe_loss"].as_f64().is_some_and(f64::is_finite), "{}", entry.kind);
        // And within its bill.
        let figures = kitchen.figures("1-merge");
        let (planned, measured) = (&figures["planned_peak"], &figures["measured_peak"]);
        assert!(measured.as_u64() <= planned.as_u64(), "{}: held {measured}, planned {planned}", entry.kind);
    }
}

fn compress(prune: &str, more: &str) -> Kitchen {
    cook(&format!(
        r#"
seed = 3
[model]
source = "builtin:tiny"
dtype = "f32"
[[stage]]
kind = "compress"
prune = {{ kind = {prune} }}
data = {{ kind = "builtin", name = "tiny-text", bytes = 20000, max_length = 128 }}
nsamples = 8
seqlen = 64
{more}
"#
    ))
}

#[test]
fn nothing_cut_is_the_same_model() {
    for entry in PRUNES {
        let kitchen = compress(&format!("\"{}\"{}", entry.kind, entry.settings), "");
        same(entry.kind, &model(&kitchen, "0-compress"), &tiny(), entry.exact);
        let certificate = json(&kitchen.out("certificate.json"));
        assert_eq!(certificate["loss_before"], certificate["loss_after"], "{}", entry.kind);
    }
}

/// Reloads a model and answers with the logits of a fixed batch.
fn answers(folder: &Path) -> Vec<f32> {
    use ramekin_tests::lab::{assemble, folder_model, logits, sequences};
    let assembly = assemble(&folder_model(folder));
    let rows = sequences(&[24, 11], assembly.model.facts().vocab_size, 6);
    logits(&assembly, &ramekin_slots::FlatBatch::new(&rows), true)
}

#[test]
fn a_cut_model_is_smaller_and_reads_back_padded_or_not() {
    for entry in PRUNES {
        let cut = format!("\"{}\", pruning_ratio = 0.5, block_size = 8", entry.kind);
        let (uneven, padded) = (compress(&cut, ""), compress(&cut, "pad = true"));
        let certificate = json(&uneven.out("certificate.json"));
        let widths = certificate["report"]["widths"].as_array().expect("widths").clone();
        assert!(widths.iter().any(|w| *w != widths[0]), "{}: blocks of one width, {widths:?}", entry.kind);
        let found = model(&uneven, "0-compress");
        for (block, width) in widths.iter().enumerate() {
            let up = &found[&format!("model.layers.{block}.mlp.up_proj.weight")];
            assert_eq!(Some(up.dims()[0] as u64), width.as_u64());
        }
        assert!(certificate["parameters_after"].as_u64() < certificate["parameters_before"].as_u64());
        assert!(certificate["loss_after"].as_f64() > certificate["loss_before"].as_f64());
        // Public loaders read one width from `config.json`; ours reads all of them beside it.
        let config = json(&padded.out("model/config.json"));
        let widest = widths.iter().filter_map(|w| w.as_u64()).max();
        assert_eq!(config["intermediate_size"].as_u64(), widest);
        assert!(json(&padded.out("model/ramekin.json")).get("intermediate_sizes").is_none());
        assert!(json(&uneven.out("model/config.json")).get("intermediate_sizes").is_none());
        assert_eq!(json(&uneven.out("model/ramekin.json"))["intermediate_sizes"], json!(widths));
        let (a, b) = (answers(&uneven.out("model")), answers(&padded.out("model")));
        ramekin_tests::compare::close(entry.kind, &a, &b, 1e-5);
        let figures = uneven.figures("0-compress");
        let (planned, measured) = (&figures["planned_peak"], &figures["measured_peak"]);
        assert!(measured.as_u64() <= planned.as_u64(), "{}: held {measured}, planned {planned}", entry.kind);
    }
}

#[test]
fn a_packed_model_is_left_packed() {
    let kitchen = cook(
        r#"
seed = 3
[model]
source = "builtin:tiny"
[[stage]]
kind = "compress"
quantizer = { kind = "nf4" }
data = { kind = "builtin", name = "tiny-text", bytes = 20000, max_length = 128 }
nsamples = 8
seqlen = 64
[[stage]]
kind = "eval"
data = { kind = "builtin", name = "records", rows = 8, max_length = 128 }
"#,
    );
    let certificate = json(&kitchen.out("stages/0-compress/certificate.json"));
    assert_eq!(certificate["parameters_after"], certificate["parameters_before"]);
    assert!(certificate["bytes_after"].as_u64() < certificate["bytes_before"].as_u64());
    let state = json(&kitchen.out("state.json"));
    assert_eq!(state["quantizer"]["kind"], "nf4", "the eval stage stands on packed weights");
}

/// A LoRA of two steps, folded by `lora` or added as a task vector.
fn adapted(merge: &str) -> Kitchen {
    let train = TRAINED.replace(
        "optimizer =",
        "adapter = [{ kind = \"lora\", r = 4, target_modules = \"all-linear\" }]\noptimizer =",
    );
    cook(&format!("{train}\n[[stage]]\nkind = \"merge\"\n{merge}\n"))
}

#[test]
fn an_adapter_is_a_task_vector() {
    let folded = model(&adapted(""), "1-merge");
    let added =
        model(&adapted("method = { kind = \"task-arithmetic\" }\nmodels = [{ stage = 0 }]"), "1-merge");
    same("an adapter of weight 1", &added, &folded, true);
    let halved =
        "method = { kind = \"task-arithmetic\", lambda = 0.5 }\nmodels = [{ stage = 0, weight = 2.0 }]";
    same("half of twice", &model(&adapted(halved), "1-merge"), &folded, true);
    let taken = model(
        &adapted("method = { kind = \"task-arithmetic\" }\nmodels = [{ stage = 0, weight = -1.0 }]"),
        "1-merge",
    );
    let base = tiny();
    let up = "model.layers.0.mlp.up_proj.weight";
    let numbers = floats(&base[up]).into_iter().zip(floats(&folded[up])).zip(floats(&taken[up]));
    for ((b, plus), minus) in numbers {
        assert!(((b - plus) - (minus - b)).abs() < 1e-6, "{b}, {plus}, {minus}");
    }
}

#[test]
fn a_file_of_sparse_differences_is_a_model() {
    let stages = r#"
[[stage]]
kind = "merge"
method = { kind = "compeft", density = 0.1 }
models = [{ stage = 0 }]
[[stage]]
kind = "merge"
method = { kind = "task-arithmetic" }
models = [{ source = "out/stages/1-merge/compressed/task-0.safetensors" }]
"#;
    let kitchen = cook(&format!("{TRAINED}{stages}"));
    let (direct, again) = (model(&kitchen, "1-merge"), model(&kitchen, "2-merge"));
    same("through a file", &again, &direct, true);
    let certificate = json(&kitchen.out("stages/1-merge/certificate.json"));
    let file = &certificate["stored"]["files"][0];
    let (bytes, dense) =
        (file["bytes"].as_f64().expect("bytes"), file["dense_bytes"].as_f64().expect("bytes"));
    assert!(dense / bytes > 40.0, "{dense} to {bytes}");
    let changed = direct
        .iter()
        .map(|(name, t)| floats(t).iter().zip(floats(&tiny()[name])).filter(|(a, b)| **a != *b).count());
    let all: usize = direct.values().map(|t| floats(t).len()).sum();
    assert_eq!(changed.sum::<usize>(), all / 10, "a tenth of the numbers moves");
}

#[test]
fn a_compressed_adapter_goes_on_as_an_adapter() {
    let merge = "method = { kind = \"compeft\", density = 0.3 }\nmodels = [{ stage = 0 }]";
    let eval = "\n[[stage]]\nkind = \"merge\"\n";
    let kitchen = adapted(&format!("{merge}{eval}"));
    let expanded = cook(&format!(
        "[model]\nsource = \"builtin:tiny\"\ndtype = \"f32\"\n[[stage]]\nkind = \"merge\"\nadapter = [{{ load = \"{}\" }}]\n",
        kitchen.out("stages/1-merge/adapter").display()
    ));
    same("compressed and expanded", &model(&kitchen, "2-merge"), &model(&expanded, "0-merge"), true);
    let moved = model(&kitchen, "2-merge").iter().any(|(name, t)| floats(t) != floats(&tiny()[name]));
    assert!(moved, "the compressed adapter does nothing");
}
