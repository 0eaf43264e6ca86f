//! What every activation policy and every placement must hold: they decide where bytes are, not what they are.
//!
//! The lists come from the registry: a part that is in no table here fails.

use std::collections::BTreeMap;

use ramekin_core::{Meter, Rng, meter};
use ramekin_engine::assembly::Assembly;
use ramekin_engine::blueprint::Blueprint;
use ramekin_engine::generation::{Generator, Limits};
use ramekin_engine::parts;
use ramekin_recipe::Part;
use ramekin_registry::{Slot, complete, names};
use ramekin_tests::kitchen::{binary, cook, finish, losses};
use ramekin_tests::{Kitchen, compare, lab, toy, write_ids};
use serde_json::{Value as Json, json};

/// Settings to try of each activation policy, by name.
fn activations() -> BTreeMap<&'static str, Vec<Json>> {
    BTreeMap::from([
        ("keep", vec![json!({})]),
        ("checkpoint", vec![json!({}), json!({ "every": 2 })]),
        (
            "offload",
            vec![
                json!({ "to": "host", "min_bytes": 0 }),
                json!({ "to": "host", "recompute": true }),
                json!({ "to": "disk", "min_bytes": 0, "prefetch": 2 }),
                json!({ "to": "disk", "recompute": true, "bandwidth": 2e8 }),
            ],
        ),
    ])
}

fn placements() -> BTreeMap<&'static str, Vec<Json>> {
    BTreeMap::from([
        ("resident", vec![json!({})]),
        ("disk", vec![json!({}), json!({ "prefetch": 0 }), json!({ "prefetch": 3, "bandwidth": 1e8 })]),
        (
            "offload",
            vec![
                json!({}),
                json!({ "overlap": false, "bucket": true }),
                json!({ "offloading_blocks": [0, 2, 3], "prefetch_buffers": 2, "bandwidth": 1e9 }),
                json!({ "offload_device": "disk", "bucket": true, "prefetch_buffers": 1 }),
            ],
        ),
    ])
}

fn table(slot: Slot, table: BTreeMap<&'static str, Vec<Json>>) -> Vec<Part> {
    ramekin_catalog::link();
    let known: Vec<&str> = table.keys().copied().collect();
    let mut registered = names(slot);
    registered.sort_unstable();
    assert_eq!(registered, known, "every part of the slot `{}` is in the table", slot.name());
    table.into_iter().flat_map(|(kind, all)| all.into_iter().map(move |s| lab::part(kind, s))).collect()
}

fn plan(quantizer: bool, placement: Option<Part>) -> Blueprint {
    let quantizer = quantizer.then(|| lab::part("nf4", json!({ "block_size": 32 })));
    Blueprint {
        quantizer,
        placement,
        adapters: vec![lab::new_adapter("lora", json!({ "r": 4, "target_modules": "all-linear" }))],
        ..lab::fresh_model(toy::llama(61, 64, 4, 4, 96))
    }
}

/// Trained tensors by name.
type Weights = Vec<(String, Vec<f32>)>;

/// Losses of an update after two others, what they trained, and the highest point of the meter.
fn trained(plan: &Blueprint, activation: &Part) -> (Vec<f64>, Weights, High) {
    let meter = Meter::new();
    let _scope = meter::scope(meter.clone());
    let assembly = lab::assemble(plan);
    let mut trainer = lab::trainer(1e-2);
    trainer.activation = parts::activation(activation).expect("an activation policy");
    let batch = lab::batch(&lab::sequences(&[40, 33, 21], 61, 3));
    lab::train(&assembly, &mut trainer, &batch, 2);
    meter.reset_peak();
    let losses = lab::train(&assembly, &mut trainer, &batch, 1);
    let high = High { activations: meter.highest().activations, peak: meter.peak() };
    (losses, lab::trained(&assembly), high)
}

#[derive(Clone, Copy, Debug)]
struct High {
    activations: u64,
    peak: u64,
}

fn same(what: &str, found: &[(String, Vec<f32>)], expected: &[(String, Vec<f32>)]) {
    for ((name, a), (_, b)) in found.iter().zip(expected) {
        compare::same_bits(&format!("{what}: {name}"), a, b);
    }
}

/// Every policy trains to the same bits; all but `keep` hold less for backward.
#[test]
fn activation_policies_do_not_change_a_bit() {
    for quantizer in [false, true] {
        let plan = plan(quantizer, None);
        let (losses, weights, kept) = trained(&plan, &Part::of("keep"));
        for part in table(Slot::Activation, activations()) {
            let what = format!("{} {:?}", part.kind, part.settings);
            let (l, w, high) = trained(&plan, &part);
            assert_eq!(l, losses, "{what}");
            same(&what, &w, &weights);
            if part.kind != "keep" {
                assert!(high.activations < kept.activations, "{what}: {high:?} against {kept:?} with keep");
            }
        }
    }
}

fn generated(assembly: &Assembly) -> Vec<Vec<u32>> {
    let decoder = parts::decoder(&Part::of("greedy")).expect("greedy");
    let kv = parts::kv(&Part::of("full")).expect("full");
    let generator =
        Generator { assembly, decoder: &*decoder, kv: Some(&*kv), rng: Rng::new(0), adapters: true };
    let limits = Limits { max_new_tokens: 12, eos: &[] };
    generator.run(&lab::sequences(&[9, 5], 61, 8), &limits, &mut |_, _| {}).expect("tokens").ids
}

/// Every placement trains, predicts and generates the same bits; one that is not resident holds less.
#[test]
fn placements_do_not_change_a_bit() {
    let recompute = Part::of("checkpoint");
    for quantizer in [false, true] {
        let resident = plan(quantizer, None);
        let (losses, weights, kept) = trained(&resident, &recompute);
        let base = lab::assemble(&resident);
        let flat = lab::batch(&lab::sequences(&[17, 30], 61, 4)).flat;
        let (logits, ids) = (lab::logits(&base, &flat, true), generated(&base));
        for part in table(Slot::Placement, placements()) {
            let what = format!("{} {:?}, packed: {quantizer}", part.kind, part.settings);
            let prefetch = part.settings.get("prefetch").and_then(Json::as_u64).unwrap_or(1);
            let away = part.kind != "resident";
            let plan = plan(quantizer, Some(part));
            let (l, w, high) = trained(&plan, &recompute);
            assert_eq!(l, losses, "{what}");
            same(&what, &w, &weights);
            if away && prefetch < 2 {
                assert!(high.peak < kept.peak, "{what}: {high:?} against {kept:?} in memory");
            }
            let assembly = lab::assemble(&plan);
            compare::same_bits(&what, &lab::logits(&assembly, &flat, true), &logits);
            assert_eq!(generated(&assembly), ids, "{what}");
        }
    }
}

/// Every default holds, and a key that nobody knows is refused.
#[test]
fn settings_are_closed() {
    for (slot, parts) in [
        (Slot::Activation, table(Slot::Activation, activations())),
        (Slot::Placement, table(Slot::Placement, placements())),
    ] {
        for part in parts {
            complete(slot, &part.kind, json!({})).expect("the default");
            assert!(complete(slot, &part.kind, json!({ "nonsense": 1 })).is_err(), "{}", part.kind);
        }
    }
}

fn recipe(stage: &str) -> String {
    format!(
        r#"
seed = 1
model = {{ source = "builtin:tiny" }}

[[stage]]
kind = "train"
steps = 3
adapter = [{{ kind = "lora", r = 8, target_modules = "all-linear" }}]
data = {{ kind = "builtin", name = "records", rows = 64, max_length = 128 }}
batch = {{ micro_batch_size = 4 }}
{stage}
"#
    )
}

/// The bill of a streamed stage and of an offloaded one is what the meter then sees.
#[test]
fn the_bill_knows_where_bytes_are() {
    for stage in [
        "placement = { kind = \"disk\" }\nactivation = { kind = \"checkpoint\" }",
        "placement = { kind = \"disk\", prefetch = 0 }\nactivation = { kind = \"checkpoint\" }\nquantizer = { kind = \"nf4\" }",
        "placement = { kind = \"offload\" }\nactivation = { kind = \"checkpoint\" }",
        "placement = { kind = \"offload\", offload_device = \"disk\", overlap = false }\nactivation = { kind = \"checkpoint\" }\nquantizer = { kind = \"nf4\" }",
        "activation = { kind = \"offload\", to = \"host\" }",
        "activation = { kind = \"offload\", to = \"disk\", recompute = true }",
    ] {
        let kitchen = cook(&recipe(stage));
        let figures = kitchen.figures("0-train");
        let number = |key: &str| figures[key].as_u64().expect("a figure") as f64;
        let (planned, measured) = (number("planned_peak"), number("measured_peak"));
        assert!(
            measured <= planned && planned <= 1.05 * measured,
            "{stage}: {planned} for {measured}\n{figures}"
        );
        let plain = cook(&recipe("activation = { kind = \"checkpoint\" }"));
        if !stage.contains("nf4") {
            assert_eq!(losses(&kitchen.out("")), losses(&plain.out("")), "{stage}");
        }
    }
}

/// Traffic of a step over each link as the plan tells it, and as the meter counts it.
#[test]
fn the_bill_knows_what_goes_over_the_links() {
    let mut pages = Vec::new();
    for (stage, used) in [
        ("placement = { kind = \"disk\" }\nactivation = { kind = \"checkpoint\" }", ["disk"].as_slice()),
        (
            "placement = { kind = \"disk\", prefetch = 0 }\nactivation = { kind = \"checkpoint\" }\nquantizer = { kind = \"nf4\" }",
            &["disk"],
        ),
        ("activation = { kind = \"offload\", to = \"host\", min_bytes = 0 }", &["host"]),
        ("activation = { kind = \"offload\", to = \"disk\", min_bytes = 0 }", &["disk"]),
        (
            "placement = { kind = \"disk\" }\nactivation = { kind = \"offload\", to = \"host\", recompute = true }",
            &["host", "disk"],
        ),
        ("activation = { kind = \"checkpoint\" }", &[]),
    ] {
        for micros in [1, 3] {
            let data = "data = { kind = \"tokens\", path = \"ids.safetensors\", repeat = false }";
            let batch = format!("micro_batch_size = 4, gradient_accumulation_steps = {micros}");
            let old = "data = { kind = \"builtin\", name = \"records\", rows = 64, max_length = 128 }";
            let text = recipe(stage).replace(old, data).replace("micro_batch_size = 4", &batch);
            let kitchen = Kitchen::new(&text);
            write_ids(&kitchen.folder().join("ids.safetensors"), &lab::sequences(&[48; 16], 60, 2));
            kitchen.run(&[]).expect(0);
            let figures = kitchen.figures("0-train");
            for link in ["host", "disk", "ranks"] {
                for way in ["sent", "fetched"] {
                    let number = |key: &str| figures[key][link][way].as_f64().expect("bytes");
                    let (planned, measured) = (number("planned_traffic"), number("measured_traffic"));
                    let what = format!("{stage}, {micros} micro-batches: {link} {way} {planned}, {measured}");
                    println!("{what}");
                    assert!((planned - measured).abs() <= 0.05 * measured, "{what}");
                    let idle = link == "disk" && way == "sent" && stage.contains("placement");
                    let used = used.contains(&link) && !idle;
                    assert!(!used || measured > 0.0, "{what}");
                }
            }
            let page = std::fs::read_to_string(kitchen.out("report.html")).expect("a page");
            assert!(used.iter().all(|link| page.contains(&format!("{link}, fetched a step"))), "{stage}");
            let mut command = std::process::Command::new(binary());
            command.arg("plan").arg(kitchen.folder().join("recipe.toml"));
            pages.push((used, finish(command).expect(0).stdout.clone()));
        }
    }
    for (used, text) in pages {
        let told = |link: &&str| text.contains(&format!("traffic      {link}:"));
        assert!(used.iter().all(told) && text.matches("traffic").count() == used.len(), "{text}");
    }
}

const WHOLE: &str = "adapter = [{ kind = \"lora\", r = 8, target_modules = \"all-linear\" }]";

/// A recipe that trains everything by forwards alone.
fn forwards(stage: &str) -> String {
    let more = "optimizer = { kind = \"sgd\", lr = 1e-4 }\nmax_grad_norm = 0\neval = { data = { kind = \"builtin\", \
                name = \"records\", rows = 8, max_length = 128 }, every = 2 }";
    recipe(&format!("{more}\n{stage}")).replace(WHOLE, "")
}

/// Training everything with blocks that visit is what the plan says, and what training in memory gives. The
/// model's head is tied, which in place would round once more.
#[test]
fn visiting_blocks_train_as_those_in_memory() {
    let plain = cook(&forwards("estimator = { kind = \"mezo\", perturb_mode = \"scratch\" }"));
    let bytes = |k: &Kitchen| std::fs::read(k.out("model/model.safetensors")).expect("a model");
    for stage in [
        "estimator = { kind = \"zo2\", perturb_mode = \"scratch\" }",
        "estimator = { kind = \"zo2\", perturb_mode = \"scratch\" }\nplacement = { kind = \"offload\", prefetch_buffers = 2 }",
        "estimator = { kind = \"zo2\", perturb_mode = \"scratch\" }\nplacement = { kind = \"offload\", offload_device = \"disk\", bucket = true }\n\
         checkpoint = { every = 1 }",
    ] {
        let kitchen = cook(&forwards(stage));
        let figures = kitchen.figures("0-train");
        let number = |key: &str| figures[key].as_u64().expect("a figure") as f64;
        let (planned, measured) = (number("planned_peak"), number("measured_peak"));
        assert!(
            measured <= planned && planned <= 1.05 * measured,
            "{stage}: {planned} for {measured}\n{figures}"
        );
        assert_eq!(losses(&kitchen.out("")), losses(&plain.out("")), "{stage}");
        assert!(bytes(&kitchen) == bytes(&plain), "{stage}: another model");
    }
}

/// What cannot go together is refused before a weight is read, with both lines.
#[test]
fn refusals_name_both() {
    let refused = |stage: &str, both: [&str; 2]| {
        let outcome = Kitchen::new(&recipe(stage)).run(&[]);
        outcome.expect(2);
        for name in both {
            assert!(outcome.stderr.contains(name), "{stage}: no `{name}` in\n{}", outcome.stderr);
        }
    };
    refused("placement = { kind = \"disk\" }", ["placement/disk", "activation/keep"]);
    let zo2 = "estimator = { kind = \"zo2\" }\nmax_grad_norm = 0";
    refused(&format!("{zo2}\noptimizer = {{ kind = \"adamw\" }}"), ["estimator/zo2", "optimizer/adamw"]);
    let sgd = format!("{zo2}\noptimizer = {{ kind = \"sgd\" }}");
    refused(
        &format!("{sgd}\nplacement = {{ kind = \"offload\", offloading_blocks = [0, 99] }}"),
        ["offloading_blocks", "lists block 99"],
    );
    refused(
        &format!("{sgd}\nplacement = {{ kind = \"offload\", amp = true }}\nquantizer = {{ kind = \"nf4\" }}"),
        ["`amp`", "is packed"],
    );
    let whole = |stage: &str, both: [&str; 2]| {
        let outcome = Kitchen::new(&forwards(stage)).run(&[]);
        outcome.expect(2);
        for name in both {
            assert!(outcome.stderr.contains(name), "{stage}: no `{name}` in\n{}", outcome.stderr);
        }
    };
    let offload = "placement = { kind = \"offload\" }";
    whole(&format!("estimator = {{ kind = \"mezo\" }}\n{offload}"), ["placement/offload", "zo2"]);
    let visited = format!("estimator = {{ kind = \"zo2\" }}\n{offload}");
    whole(&format!("{visited}\nselection = {{ kind = \"hft\" }}"), ["estimator/zo2", "selection/hft"]);
    whole(&format!("{visited}\nhook = [{{ kind = \"ema\" }}]"), ["estimator/zo2", "hook/ema"]);
    let everything = recipe("placement = { kind = \"disk\" }\nactivation = { kind = \"checkpoint\" }")
        .replace("adapter = [{ kind = \"lora\", r = 8, target_modules = \"all-linear\" }]", "");
    let outcome = Kitchen::new(&everything).run(&[]);
    outcome.expect(2);
    assert!(outcome.stderr.contains("training weights of the base"), "{}", outcome.stderr);
}
