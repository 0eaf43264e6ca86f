//! What every registered reducer must do, whatever it is. A part without a line in [`TABLE`] fails the suite.

use std::path::Path;

use ramekin_core::Rng;
use ramekin_engine::assembly::Assembly;
use ramekin_engine::blueprint::Blueprint;
use ramekin_engine::parts;
use ramekin_registry::{PartEntry, Slot, Trait};
use ramekin_slots::{Forward, Mode};
use ramekin_store::{Data, write_safetensors};
use ramekin_tape::Tape;
use ramekin_tests::compare::{difference, largest, same_bits};
use ramekin_tests::images::{noise, small_vit, with_reducer};
use ramekin_tests::kitchen::cook;
use ramekin_tests::lab::{self, assemble, fresh_model, new_adapter, part, saved_adapter};
use ramekin_tests::tensors;
use serde_json::{Value as Json, json};

/// Each part with settings that leave fewer of 17 tokens in 4 blocks.
const TABLE: &[(&str, &str)] =
    &[("pyra", r#"{ "schedule": [4, 3, 2, 1] }"#), ("tome", r#"{ "schedule": [4, 3, 2, 1] }"#)];

fn each(f: impl Fn(&'static PartEntry, Json)) {
    ramekin_catalog::link();
    let all = ramekin_registry::parts().into_iter().filter(|p| p.slot == Slot::Reducer);
    let all: Vec<&'static PartEntry> = all.collect();
    assert_eq!(all.len(), TABLE.len(), "a line of the table for every part, and no other");
    for part in all {
        let line = TABLE.iter().find(|(name, _)| *name == part.name);
        let (_, settings) = line.unwrap_or_else(|| panic!("`{}` has no line in this suite", part.name));
        f(part, serde_json::from_str(settings).expect("JSON"));
    }
}

/// With LoRA on queries and values and a head of its own, so that something trains beside any reducer.
fn adapted(kind: &str, settings: &Json) -> Blueprint {
    let lora = json!({ "r": 2, "target_modules": ["query", "value"], "modules_to_save": ["classifier"] });
    Blueprint { adapters: vec![new_adapter("lora", lora)], ..with_reducer(16, kind, settings.clone()) }
}

fn stir(assembly: &Assembly) {
    for param in assembly.trainable() {
        let mut noise = vec![0f32; param.value().len()];
        Rng::new(23).named("suite/stir", param.name()).fill_normal(0, 0.2, &mut noise);
        let add = |x: &mut [f32]| x.iter_mut().zip(noise).for_each(|(x, n)| *x += n);
        param.value().update(add).expect("f32");
    }
}

#[test]
fn tokens_become_fewer_where_declared() {
    each(|part, settings| {
        let assembly = assemble(&with_reducer(16, part.name, settings));
        let batch = noise(&assembly, 3, 1).flat;
        let fx = Forward::new(Tape::off(), assembly.sites.clone(), batch.clone(), Mode::inference());
        let h = assembly.model.embed(&fx).expect("an embedding");
        let h = assembly.model.block(0, &fx, &h).expect("a block");
        let fewer = h.array().rows().0 < batch.len();
        assert_eq!(fewer, part.traits.contains(&Trait::ChangesTokenCount), "`{}`", part.name);
        let logits = lab::logits(&assembly, &batch, true);
        assert_eq!(logits.len(), batch.len() * 8, "every token of the batch has its row in the end");
        let bare = lab::logits(&assemble(&fresh_model(small_vit(16))), &batch, true);
        assert!(largest(&bare) > 0.1 && difference(&logits, &bare) > 1e-3, "`{}` does nothing", part.name);
        same_bits("switched off", &lab::logits(&assembly, &batch, false), &bare);
    });
}

#[test]
fn the_base_stays_and_what_trains_moves() {
    each(|part, settings| {
        let assembly = assemble(&adapted(part.name, &settings));
        let batch = noise(&assembly, 8, 2);
        let (frozen, before) = (lab::frozen_bits(&assembly), lab::trained(&assembly));
        let losses = lab::train(&assembly, &mut lab::trainer(1e-2), &batch, 6);
        assert!(losses[5] < losses[0], "`{}`: {losses:?}", part.name);
        assert!(frozen.len() > 10 && frozen == lab::frozen_bits(&assembly), "`{}`", part.name);
        let moved = before.iter().zip(&lab::trained(&assembly)).filter(|(a, b)| a.1 != b.1).count();
        assert_eq!(moved, before.len(), "`{}`: every trainable tensor moves", part.name);
    });
}

#[test]
fn activation_policies_give_the_same_bits() {
    each(|kind, settings| {
        let assembly = assemble(&adapted(kind.name, &settings));
        stir(&assembly);
        let batch = noise(&assembly, 4, 3);
        let run = |activation: &str, settings: Json| {
            let mut trainer = lab::trainer(1e-2);
            trainer.activation = parts::activation(&part(activation, settings)).expect("a policy");
            lab::loss_and_gradients(&assembly, &trainer, std::slice::from_ref(&batch))
        };
        let kept = run("keep", json!({}));
        assert!(kept.1.len() > 4);
        assert!(kept == run("checkpoint", json!({})), "`{}`: recomputing", kind.name);
        assert!(kept == run("checkpoint", json!({ "every": 2 })), "`{}`: recomputing half", kind.name);
        assert!(
            kept == run("offload", json!({ "to": "host", "min_bytes": 0 })),
            "`{}`: offloading",
            kind.name
        );
    });
}

/// Images of a batch do not see each other, nor does one decide which tokens of another go.
#[test]
fn images_do_not_meet() {
    each(|part, settings| {
        let assembly = assemble(&adapted(part.name, &settings));
        stir(&assembly);
        let both = noise(&assembly, 2, 4).flat;
        let together = lab::logits(&assembly, &both, true);
        let images = both.images.as_ref().expect("images");
        let one = images.image(1).expect("a second image").to_vec();
        let alone = lab::logits(&assembly, &ramekin_tests::images::labelled(&assembly, one, &[0]).flat, true);
        let off = difference(&together[together.len() / 2..], &alone);
        assert!(off <= 1e-5 * largest(&alone), "`{}`: off by {off:.1e}", part.name);
    });
}

fn save(assembly: &Assembly, index: usize, folder: &Path) {
    let file = assembly.adapters[index].adapter.file("base").expect("an adapter's file");
    let all: Vec<(String, Data)> = file.tensors.iter().map(|(n, a)| (n.clone(), Data::from(a))).collect();
    write_safetensors(folder.join("adapter_model.safetensors"), &all, &[("format", "pt")]).expect("written");
    std::fs::write(folder.join("adapter_config.json"), file.config.to_string()).expect("written");
}

#[test]
fn saved_and_loaded_is_the_same_to_the_bit() {
    each(|part, settings| {
        let assembly = assemble(&with_reducer(16, part.name, settings));
        stir(&assembly);
        let folder = tempfile::tempdir().expect("a folder");
        save(&assembly, 0, folder.path());
        let adapters = vec![saved_adapter(folder.path())];
        let again = assemble(&Blueprint { adapters, ..fresh_model(small_vit(16)) });
        let flat = noise(&assembly, 3, 5).flat;
        same_bits(part.name, &lab::logits(&again, &flat, true), &lab::logits(&assembly, &flat, true));
    });
}

#[test]
fn settings_are_complete_and_closed() {
    each(|part, _| {
        let full = (part.complete)(json!({})).unwrap_or_else(|e| panic!("`{}`: {e}", part.name));
        let schema = (part.schema)().to_value();
        for key in full.as_object().expect("an object").keys() {
            let described = &schema["properties"][key];
            assert!(described["description"].is_string(), "`{}`: `{key}` is not described", part.name);
        }
        (part.build)(full).unwrap_or_else(|e| panic!("`{}` refuses its defaults: {e:#}", part.name));
        let refused = (part.build)(json!({ "no_such_setting": 1 })).err().expect("an unknown key");
        assert!(refused.to_string().contains("no_such_setting"), "`{}`: {refused}", part.name);
    });
}

/// A recipe of three stages: what was trained goes on by itself, and the bill is what the meter sees.
#[test]
fn a_recipe_trains_measures_and_is_billed() {
    each(|part, settings| {
        let schedule = &settings["schedule"];
        let kitchen = cook(&format!(
            r#"
seed = 3
model = {{ source = "init", config = {{ model_type = "vit", architectures = ["ViTForImageClassification"], hidden_size = 48, intermediate_size = 96, num_hidden_layers = 4, num_attention_heads = 4, image_size = 16, patch_size = 4, num_channels = 1, num_labels = 8, initializer_range = 0.1 }} }}
[[stage]]
kind = "train"
adapter = [{{ kind = "lora", r = 2, target_modules = ["query", "value"], modules_to_save = ["classifier"] }}]
reducer = [{{ kind = "{0}", schedule = {schedule} }}]
data = {{ kind = "builtin", name = "glyphs", rows = 64 }}
eval = {{ data = {{ kind = "builtin", name = "glyphs", rows = 32, held_out = true }} }}
optimizer = {{ kind = "adamw", lr = 1e-2 }}
batch = {{ micro_batch_size = 16 }}
steps = 6
[[stage]]
kind = "eval"
data = {{ kind = "builtin", name = "glyphs", rows = 32, held_out = true }}
"#,
            part.name
        ));
        let figures = kitchen.figures("0-train");
        for stage in ["0-train", "1-eval"] {
            let figures = kitchen.figures(stage);
            let number = |key: &str| figures[key].as_f64().unwrap_or_else(|| panic!("{stage}: no {key}"));
            let (planned, measured) = (number("planned_peak"), number("measured_peak"));
            let off = (planned - measured).abs() / measured;
            assert!(off <= 0.05, "`{}`, {stage}: planned {planned}, measured {measured}", part.name);
        }
        let (before, after) = (figures["eval_before"]["loss"].as_f64(), figures["eval"]["loss"].as_f64());
        assert!(after < before, "`{}`: {before:?} → {after:?}", part.name);
        // The adapter and the reducer are carried on by themselves.
        assert_eq!(kitchen.figures("1-eval")["loss"].as_f64(), after, "`{}`", part.name);
        let saved = kitchen.out("stages/0-train/adapter-1");
        assert_eq!(tensors(&saved.join("adapter_model.safetensors")).is_empty(), part.name == "tome");
    });
}
