//! Check 4 for the parts beside `lora`: keys and shapes of the table, round trips, and PEFT's projections.

use std::collections::BTreeMap;

use ramekin_slots::FlatBatch;
use ramekin_tests::compare::{difference, largest, same_bits};
use ramekin_tests::lab::{self, saved_adapter, sequences};
use ramekin_tests::{floats, golden, id_rows, tensors};
use serde_json::{Value as Json, json};

use super::{adam, adapted, file_of, save, with};

/// On q_proj (32×32) and down_proj (32×48) of layer 1: what each tensor ends in and its shape for both.
type Keys = &'static [(&'static str, &'static [usize], &'static [usize])];

fn table() -> Vec<(&'static str, Json, Keys)> {
    vec![
        (
            "dora",
            json!({ "r": 3, "layers_to_transform": [1] }),
            &[
                ("lora_A.weight", &[3, 32], &[3, 48]),
                ("lora_B.weight", &[32, 3], &[32, 3]),
                ("lora_magnitude_vector", &[32], &[32]),
            ],
        ),
        (
            "vera",
            json!({ "r": 3, "layers_to_transform": [1] }),
            &[("vera_lambda_b", &[32], &[32]), ("vera_lambda_d", &[3], &[3])],
        ),
        (
            "loha",
            json!({ "r": 3, "layers_to_transform": [1] }),
            &[
                ("hada_w1_a", &[32, 3], &[32, 3]),
                ("hada_w1_b", &[3, 32], &[3, 48]),
                ("hada_w2_a", &[32, 3], &[32, 3]),
                ("hada_w2_b", &[3, 32], &[3, 48]),
            ],
        ),
        // 32 = 4·8, 48 = 6·8.
        (
            "lokr",
            json!({ "r": 3, "layers_to_transform": [1] }),
            &[
                ("lokr_w1", &[4, 4], &[4, 6]),
                ("lokr_w2_a", &[8, 3], &[8, 3]),
                ("lokr_w2_b", &[3, 8], &[3, 8]),
            ],
        ),
        (
            "lokr",
            json!({ "r": 4, "layers_to_transform": [1] }),
            &[("lokr_w1", &[4, 4], &[4, 6]), ("lokr_w2", &[8, 8], &[8, 8])],
        ),
        // 32 = 16·2, 48 = 16·3.
        (
            "lokr",
            json!({ "r": 1, "layers_to_transform": [1], "decompose_both": true, "decompose_factor": 16 }),
            &[
                ("lokr_w1_a", &[16, 1], &[16, 1]),
                ("lokr_w1_b", &[1, 16], &[1, 16]),
                ("lokr_w2", &[2, 2], &[]),
            ],
        ),
        (
            "ia3",
            json!({ "target_modules": ".*\\.1\\..*(q_proj|down_proj)", "feedforward_modules": ".*down_proj" }),
            &[("ia3_l", &[32, 1], &[1, 48])],
        ),
    ]
}

// Round trip: save → load gives bit-equal tensors and the key set of the table.
#[test]
fn check_4_keys_and_round_trips() {
    let batch = lab::batch(&sequences(&[20, 9], 61, 4));
    for (part, mut settings, keys) in table() {
        if part != "ia3" {
            settings["target_modules"] = json!(["q_proj", "down_proj"]);
        }
        let assembly = adapted(part, &settings);
        lab::train(&assembly, &mut adam(&assembly), &batch, 3);
        let (folder, file) = (tempfile::tempdir().expect("a folder"), file_of(&assembly));
        save(&file, folder.path());
        let found: BTreeMap<String, Vec<usize>> =
            file.tensors.iter().map(|(n, a)| (n.clone(), a.dims().to_vec())).collect();
        let mut expected = BTreeMap::new();
        for (tail, q, down) in keys {
            let key = |module: &str| format!("base_model.model.model.layers.1.{module}.{tail}");
            expected.insert(key("self_attn.q_proj"), q.to_vec());
            if !down.is_empty() {
                expected.insert(key("mlp.down_proj"), down.to_vec());
            }
        }
        if part == "vera" {
            expected.insert("base_model.vera_A".to_owned(), vec![3, 48]);
            expected.insert("base_model.vera_B".to_owned(), vec![32, 3]);
        }
        if settings["decompose_factor"] == 16 {
            // 1 is below half of 3: down_proj's second factor is thin.
            let key = |tail: &str| format!("base_model.model.model.layers.1.mlp.down_proj.{tail}");
            expected.insert(key("lokr_w2_a"), vec![2, 1]);
            expected.insert(key("lokr_w2_b"), vec![1, 3]);
        }
        assert_eq!(found, expected, "{part} {settings}");

        let again = with(lab::fresh_model(lab::small_llama()), &[saved_adapter(folder.path())]);
        let kept = lab::trained(&assembly);
        assert!(kept.iter().all(|(_, x)| largest(x) > 0.0), "{part}: every tensor says something");
        assert_eq!(kept.len(), lab::trained(&again).len(), "{part}");
        for ((name, a), (other, b)) in kept.iter().zip(&lab::trained(&again)) {
            assert_eq!(name, other);
            same_bits(name, b, a);
        }
        same_bits(part, &lab::logits(&again, &batch.flat, true), &lab::logits(&assembly, &batch.flat, true));
        assert_eq!(file_of(&again).config, file.config, "{part}");
    }
}

// VeRA's projections are those of PEFT for the same key, so that files without them say the same.
#[test]
fn check_4_projections() {
    let (Some(case), Some(base)) = (golden("peft-vera"), golden("llama")) else { return };
    let blueprint = || lab::folder_model(&base.join("model"));
    let recorded = tensors(&case.join("adapter/adapter_model.safetensors"));
    let settings = json!({ "r": 8, "target_modules": ["q_proj", "o_proj"], "projection_prng_key": 0 });
    let fresh = file_of(&with(blueprint(), &[lab::new_adapter("vera", settings)]));
    for name in ["base_model.vera_A", "base_model.vera_B"] {
        let drawn = fresh.tensors.iter().find(|(n, _)| n == name).expect("a projection");
        same_bits(name, &drawn.1.to_f32().expect("f32"), &floats(&recorded[name]));
    }

    let whole = with(blueprint(), &[saved_adapter(&case.join("adapter"))]);
    let mut file = file_of(&whole);
    file.config["save_projection"] = json!(false);
    file.tensors.retain(|(name, _)| !name.starts_with("base_model.vera_"));
    let folder = tempfile::tempdir().expect("a folder");
    save(&file, folder.path());
    let thin = with(blueprint(), &[saved_adapter(folder.path())]);
    assert_eq!(file_of(&thin).tensors.len(), file.tensors.len(), "saved without them again");
    let rows = FlatBatch::new(&id_rows(&tensors(&case.join("io.safetensors"))["input_ids"]));
    let logits = |assembly, adapters| lab::logits(assembly, &rows, adapters);
    same_bits("logits", &logits(&thin, true), &logits(&whole, true));
    assert!(difference(&logits(&thin, true), &logits(&thin, false)) > 1e-2, "the adapter matters");
}
