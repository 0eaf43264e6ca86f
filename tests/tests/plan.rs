//! The bill against the meter, and the walls of the house against `cargo metadata`.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use ramekin_core::{Category, Meter, meter};
use ramekin_engine::hidden::hidden;
use ramekin_engine::parts;
use ramekin_tests::Kitchen;
use ramekin_tests::kitchen::{cook, finish, losses};
use ramekin_tests::lab;
use serde_json::{Value as Json, json};

/// A model whose weights, activations and logits are all of some size.
fn recipe(stage: &str) -> String {
    format!(
        r#"
seed = 1
[model]
source = "init"
DTYPE
tokenizer = {{ kind = "bpe", data = "builtin:text", vocab_size = 512 }}
[model.config]
architectures = ["LlamaForCausalLM"]
model_type = "llama"
hidden_size = 128
intermediate_size = 320
num_hidden_layers = 4
num_attention_heads = 8
num_key_value_heads = 4
max_position_embeddings = 256
rms_norm_eps = 1e-5
initializer_range = 0.05

[[stage]]
kind = "train"
steps = 4
{stage}
"#
    )
}

const LORA: &str = r#"adapter = [{ kind = "lora", r = 8, target_modules = "all-linear" }]"#;
const ROWS: &str = r#"data = { kind = "builtin", name = "records", rows = 64, max_length = 128 }"#;
const PACKED: &str =
    r#"data = { kind = "builtin", name = "records", rows = 200, max_length = 200, packing = true }"#;

/// The plan before the run, the plan of the stage and what the meter saw.
fn plan_against_meter(name: &str, dtype: &str, stage: &str) {
    let kitchen = cook(&recipe(stage).replace("DTYPE", dtype));
    let figures = kitchen.figures("0-train");
    let number =
        |key: &str| figures[key].as_u64().unwrap_or_else(|| panic!("{name}: no `{key}` in {figures}"));
    let (planned, measured) = (number("planned_peak"), number("measured_peak"));
    let categories = format!("planned {}\nmeasured {}", figures["planned"], figures["measured"]);
    assert!(measured > 1_000_000, "{name}: {measured} B is no measurement");
    assert!(measured <= planned, "{name}: measured {measured} B, planned {planned} B\n{categories}");
    let off = (planned - measured) as f64 / measured as f64;
    assert!(
        off <= 0.05,
        "{name}: planned {planned} B is {:.1} % above {measured} B\n{categories}",
        off * 100.0
    );

    // `plan` says the same without loading anything.
    let mut command = Command::new(ramekin_tests::kitchen::binary());
    command.arg("plan").arg(kitchen.folder().join("recipe.toml")).arg("--json");
    let outcome = finish(command);
    outcome.expect(0);
    let bills: Json = serde_json::from_str(&outcome.stdout).expect("JSON alone on standard output");
    let before = bills[0]["peak"].as_u64().expect("a peak");
    assert!(
        before >= measured,
        "{name}: `plan` says {before} B before anything is loaded, measured {measured} B"
    );
    assert_eq!(bills[0]["trainable"], figures["trainable"], "{name}");
}

#[test]
fn full_training() {
    plan_against_meter("full", "", &format!("{ROWS}\nbatch = {{ micro_batch_size = 4 }}"));
}

#[test]
fn lora() {
    plan_against_meter("lora", "", &format!("{LORA}\n{ROWS}\nbatch = {{ micro_batch_size = 4 }}"));
}

#[test]
fn other_adapters_of_linears() {
    let nf4 = "quantizer = { kind = \"nf4\" }\n";
    for (name, settings, more) in [
        ("dora", "r = 8", ""),
        ("dora", "r = 8, lora_dropout = 0.1", nf4),
        ("ia3", "", ""),
        ("loha", "r = 4", ""),
        ("loha", "r = 4, rank_dropout = 0.1", nf4),
        ("lokr", "r = 4", nf4),
        ("vera", "r = 64", ""),
    ] {
        let comma = if settings.is_empty() { "" } else { ", " };
        let adapter =
            format!("adapter = [{{ kind = {name:?}{comma}{settings}, target_modules = \"all-linear\" }}]");
        let stage = format!("{more}{adapter}\n{ROWS}\nbatch = {{ micro_batch_size = 4 }}");
        plan_against_meter(&format!("{name} {settings} {more}"), "", &stage);
    }
}

#[test]
fn adapters_elsewhere() {
    let nf4 = "quantizer = { kind = \"nf4\" }\n";
    let checkpoint = "activation = { kind = \"checkpoint\" }\n";
    for (name, settings, more) in [
        ("series", "bottleneck_size = 16", ""),
        ("parallel", "bottleneck_size = 16, adapter_dropout = 0.1", nf4),
        ("ssf", "train_head = false", nf4),
        ("ssf", "", checkpoint),
        ("ln", "", ""),
        ("prefix", "num_virtual_tokens = 8", nf4),
        ("prefix", "num_virtual_tokens = 8, prefix_projection = true", checkpoint),
        ("prompt", "num_virtual_tokens = 8", checkpoint),
        ("unipt", "causal = true, pool = \"prefix_mean\"", nf4),
    ] {
        let comma = if settings.is_empty() { "" } else { ", " };
        let adapter = format!("adapter = [{{ kind = {name:?}{comma}{settings} }}]");
        let stage = format!("{more}{adapter}\n{ROWS}\nbatch = {{ micro_batch_size = 4 }}");
        plan_against_meter(&format!("{name} {settings} {more}"), "", &stage);
    }
}

#[test]
fn methods() {
    let nf4 = "quantizer = { kind = \"nf4\" }\n";
    for (settings, more) in [
        ("kind = \"meft\"", ""),
        ("kind = \"meft\", variant = \"meft2\", checkpoint_every = 0, dropout = 0.1", nf4),
        ("kind = \"meft\", variant = \"meft3\", checkpoint_every = 1", nf4),
        ("kind = \"meft\", num_rev_layers = 2, layernorm_in_adapter = true, report_drift = true", ""),
        ("kind = \"meft\", num_rev_layers = 2, freeze_irreversible_layers = true", ""),
        ("kind = \"meft\", num_rev_layers = 0", ""),
    ] {
        let stage = format!("{more}method = {{ {settings} }}\n{ROWS}\nbatch = {{ micro_batch_size = 4 }}");
        plan_against_meter(&format!("{settings} {more}"), "", &stage);
    }
}

#[test]
fn lora_with_checkpointing() {
    let stage = format!(
        "{LORA}\n{ROWS}\nactivation = {{ kind = \"checkpoint\" }}\nbatch = {{ micro_batch_size = 8 }}"
    );
    plan_against_meter("lora, checkpoint", "", &stage);
}

#[test]
fn nf4_with_checkpointing() {
    let stage = format!(
        "quantizer = {{ kind = \"nf4\" }}\n{LORA}\n{ROWS}\nactivation = {{ kind = \"checkpoint\" }}\n\
         batch = {{ micro_batch_size = 8 }}"
    );
    plan_against_meter("nf4, checkpoint", "", &stage);
}

#[test]
fn packing() {
    let stage = format!("{LORA}\n{PACKED}\nbatch = {{ micro_batch_size = 2 }}");
    plan_against_meter("packing", "", &stage);
}

#[test]
fn accumulation() {
    let stage =
        format!("{LORA}\n{ROWS}\nbatch = {{ micro_batch_size = 4, gradient_accumulation_steps = 3 }}");
    plan_against_meter("accumulation", "", &stage);
}

#[test]
fn bf16() {
    let stage = format!("{LORA}\n{ROWS}\nbatch = {{ micro_batch_size = 4 }}");
    plan_against_meter("bf16", "dtype = \"bf16\"", &stage);
}

#[test]
fn full_training_with_accumulation_and_checkpointing() {
    let stage = format!(
        "{ROWS}\nactivation = {{ kind = \"checkpoint\" }}\n\
         batch = {{ micro_batch_size = 4, gradient_accumulation_steps = 2 }}"
    );
    plan_against_meter("full, accumulation, checkpoint", "", &stage);
}

/// A budget below what the recipe asks for: the planner takes what `allow` names, the run keeps
/// to it, and the numbers are those of the recipe as written.
#[test]
fn a_budget_chooses_among_what_is_allowed() {
    let stage = format!("{LORA}\n{ROWS}\nbatch = {{ micro_batch_size = 8 }}");
    let free = cook(&recipe(&stage).replace("DTYPE", ""));
    let asked = free.figures("0-train")["planned_peak"].as_u64().expect("a plan");
    let budget = asked * 2 / 3;
    for allow in ["micro_batch_size", "checkpoint"] {
        let memory = format!("memory = {{ budget = {budget}, allow = [\"{allow}\"] }}\n");
        let tight = cook(&(memory + &recipe(&stage).replace("DTYPE", "")));
        let figures = tight.figures("0-train");
        assert_eq!(figures["changes"].as_array().map(Vec::len), Some(1), "{allow}");
        assert!(figures["measured_peak"].as_u64().is_some_and(|n| n <= budget), "{allow}: {figures}");
        let (written, changed) = (losses(&free.out("")), losses(&tight.out("")));
        assert_eq!(written.len(), changed.len());
        for (a, b) in written.iter().zip(&changed) {
            assert!((a.1 - b.1).abs() <= 1e-5 * a.1, "{allow}: step {}: {} and {}", a.0, a.1, b.1);
        }
    }
    // Without permission the run is refused and the way out named.
    let memory = format!("memory = {{ budget = {budget} }}\n");
    let refused = Kitchen::new(&(memory + &recipe(&stage).replace("DTYPE", ""))).run(&[]);
    refused.expect(3);
    assert!(refused.stderr.contains("allow = [\"micro_batch_size\"]"), "{}", refused.stderr);
}

/// Stages that train nothing are billed too.
#[test]
fn inference_stages() {
    let kitchen = cook(
        r#"
model = { source = "builtin:tiny" }
[[stage]]
kind = "generate"
prompts = ["Anna has 4 red apples", "Once"]
max_new_tokens = 30
[[stage]]
kind = "eval"
quantizer = { kind = "nf4" }
data = { kind = "builtin", name = "records", rows = 40, held_out = true, max_length = 128 }
metrics = ["loss", "exact_match"]
max_new_tokens = 20
[[stage]]
kind = "merge"
dtype = "f32"
"#,
    );
    for stage in ["0-generate", "1-eval"] {
        let figures = kitchen.figures(stage);
        let number = |key: &str| figures[key].as_u64().unwrap_or_else(|| panic!("{stage}: {figures}"));
        let (planned, measured) = (number("planned_peak"), number("measured_peak"));
        assert!(measured <= planned && planned - measured <= measured / 20, "{stage}: {figures}");
    }
    let figures = kitchen.figures("2-merge");
    assert!(figures["measured_peak"].as_u64() <= figures["planned_peak"].as_u64(), "{figures}");
}

/// In a step on a packed base no array is as large as a frozen weight's dense
/// form, and logits never exist all at once.
#[test]
fn no_dense_weight_and_never_all_logits() {
    let config = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 256,
        "intermediate_size": 1024, "num_hidden_layers": 2, "num_attention_heads": 4,
        "max_position_embeddings": 1024, "rms_norm_eps": 1e-5, "vocab_size": 2048,
        "initializer_range": 0.05, "tie_word_embeddings": false,
    });
    let meter = Meter::new();
    let _scope = meter::scope(meter.clone());
    let mut blueprint = lab::fresh_model(config);
    blueprint.quantizer = Some(lab::part("nf4", json!({})));
    blueprint.adapters = vec![lab::new_adapter(
        "lora",
        json!({ "r": 4, "target_modules": ["q_proj", "v_proj", "down_proj"] }),
    )];
    let assembly = lab::assemble(&blueprint);
    let (tokens, vocabulary) = (100, 2048);
    let smallest_ffn = 256 * 1024 * 4;
    let batch = lab::batch(&lab::sequences(&[tokens], vocabulary, 1));
    let mut trainer = lab::trainer(1e-3);
    trainer.activation = parts::activation(&lab::part("checkpoint", json!({}))).expect("checkpoint");
    trainer.objective = parts::objective(&lab::part("sft", json!({ "chunk_tokens": 16 }))).expect("sft");
    meter.reset_peak();
    lab::train(&assembly, &mut trainer, &batch, 2);
    let largest = meter.largest();
    let all_logits = (tokens * vocabulary * 4) as u64;
    for category in Category::ALL {
        let n = largest.get(category);
        assert!(
            n < smallest_ffn,
            "{}: an array of {n} B; a frozen weight has {smallest_ffn}",
            category.name()
        );
        assert!(n < all_logits, "{}: an array of {n} B; all logits have {all_logits}", category.name());
    }
    // The meter does see such an array where there is one.
    meter.reset_peak();
    let fx = ramekin_slots::Forward::new(
        ramekin_tape::Tape::off(),
        assembly.sites.clone(),
        batch.flat.clone(),
        ramekin_slots::Mode::inference(),
    );
    let h = hidden(&assembly.model, &fx, None).expect("a forward");
    drop(assembly.model.head(&fx, &h).expect("logits"));
    let seen = Category::ALL.into_iter().map(|c| meter.largest().get(c)).max();
    assert_eq!(seen, Some(all_logits));
}

/// Families of parts: their crates' names begin so.
const FAMILIES: [&str; 12] = [
    "ramekin-activation-",
    "ramekin-adapter-",
    "ramekin-decode-",
    "ramekin-gradient-",
    "ramekin-kv-",
    "ramekin-method-",
    "ramekin-model-",
    "ramekin-objective-",
    "ramekin-optim-",
    "ramekin-quant-",
    "ramekin-reduce-",
    "ramekin-schedule-",
];

/// The crates that may know a recipe or the engine.
const ABOVE: [&str; 6] =
    ["ramekin-engine", "ramekin-catalog", "ramekin-cli", "ramekin-serve", "ramekin-tests", "ramekin-bench"];

/// Each crate of the workspace with the crates of the workspace that it is built from.
fn crates() -> BTreeMap<String, BTreeSet<String>> {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(["metadata", "--no-deps", "--offline", "--format-version", "1", "--manifest-path"]);
    command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.toml"));
    let outcome = finish(command);
    outcome.expect(0);
    let metadata: Json = serde_json::from_str(&outcome.stdout).expect("JSON");
    let list = |v: &Json| v.as_array().cloned().unwrap_or_default();
    list(&metadata["packages"])
        .iter()
        .map(|p| {
            let needs = list(&p["dependencies"]);
            let needs = needs.iter().filter(|d| d["kind"] != "dev").filter_map(|d| d["name"].as_str());
            let needs = needs.filter(|d| d.starts_with("ramekin-")).map(str::to_owned).collect();
            (p["name"].as_str().unwrap_or_default().to_owned(), needs)
        })
        .collect()
}

fn is_family(name: &str) -> bool {
    FAMILIES.iter().any(|f| name.starts_with(f))
}

#[test]
fn dependencies_point_downwards() {
    let crates = crates();
    assert!(crates.len() > 20, "{crates:?}");
    for (name, needs) in crates.iter().filter(|(n, _)| !ABOVE.contains(&n.as_str()) && *n != "xtask") {
        for above in ["ramekin-recipe", "ramekin-engine", "ramekin-catalog", "ramekin-cli"] {
            assert!(!needs.contains(above), "`{name}` is below the engine and depends on `{above}`");
        }
    }
    assert!(crates["ramekin-engine"].contains("ramekin-recipe"));
    for low in ["ramekin-core", "ramekin-kernels", "ramekin-kernels-cuda", "ramekin-tape", "ramekin-slots"] {
        let up: Vec<_> = crates[low].iter().filter(|n| is_family(n) || *n == "ramekin-registry").collect();
        assert!(up.is_empty(), "`{low}` depends on {up:?}");
    }
    // The compiler of the CUDA files is a tool beside everything: it needs no crate, and no crate needs it.
    assert!(crates["ramekin-cuda-build"].is_empty());
    assert!(crates.values().all(|needs| !needs.contains("ramekin-cuda-build")));
}

#[test]
fn no_part_knows_another() {
    let crates = crates();
    let families: Vec<_> = crates.iter().filter(|(n, _)| is_family(n)).collect();
    assert!(families.len() >= 10, "{families:?}");
    for (name, needs) in families {
        let others: Vec<_> = needs.iter().filter(|n| is_family(n)).collect();
        assert!(others.is_empty(), "`{name}` depends on {others:?}");
    }
    for name in ["ramekin-engine", "ramekin-plan", "ramekin-data", "ramekin-registry", "ramekin-recipe"] {
        let parts: Vec<_> = crates[name].iter().filter(|n| is_family(n)).collect();
        assert!(parts.is_empty(), "`{name}` knows the parts {parts:?} by name");
    }
}

#[test]
fn the_catalog_links_every_family() {
    let crates = crates();
    let families: BTreeSet<_> = crates.keys().filter(|n| is_family(n)).cloned().collect();
    let linked: BTreeSet<_> = crates["ramekin-catalog"].iter().filter(|n| is_family(n)).cloned().collect();
    assert_eq!(linked, families);
    // And the binary shows parts of each slot.
    let mut command = Command::new(ramekin_tests::kitchen::binary());
    command.args(["parts", "--json"]);
    let outcome = finish(command);
    outcome.expect(0);
    let parts: Vec<Json> = serde_json::from_str(&outcome.stdout).expect("a list of parts");
    let slots: BTreeSet<_> = parts.iter().filter_map(|p| p["slot"].as_str()).collect();
    let expected = [
        "activation",
        "adapter",
        "data",
        "decode",
        "gradient",
        "kv",
        "model",
        "objective",
        "optimizer",
        "quantizer",
        "schedule",
    ];
    for slot in expected {
        assert!(slots.contains(slot), "no part of slot `{slot}` is linked");
    }
}
