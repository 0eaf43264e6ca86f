//! The model of images in recipes: what it reads, what it refuses, and its adapters folded in.

use std::path::Path;

use candle_core::{Device, Tensor};
use ramekin_store::write_safetensors;
use ramekin_tests::kitchen::cook;
use ramekin_tests::{Kitchen, write_ids};

const MODEL: &str = r#"model = { source = "init", config = { model_type = "vit", architectures = ["ViTForImageClassification"], hidden_size = 48, intermediate_size = 96, num_hidden_layers = 2, num_attention_heads = 4, image_size = 16, patch_size = 4, num_channels = 1, num_labels = 8, initializer_range = 0.1 } }"#;

#[test]
fn an_adapted_model_merges() {
    let glyphs = r#"data = { kind = "builtin", name = "glyphs", rows = 64 }"#;
    let kitchen = cook(&format!(
        r#"
{MODEL}
[[stage]]
kind = "train"
{glyphs}
steps = 2
[[stage]]
kind = "train"
adapter = [{{ kind = "lora", r = 2, target_modules = "all-linear", modules_to_save = ["classifier"] }}]
{glyphs}
optimizer = {{ kind = "adamw", lr = 1e-2 }}
steps = 6
[[stage]]
kind = "eval"
{glyphs}
[[stage]]
kind = "merge"
[[stage]]
kind = "eval"
{glyphs}
"#
    ));
    let loss = |stage: &str| kitchen.figures(stage)["loss"].as_f64().expect("a loss");
    let (adapted, merged) = (loss("2-eval"), loss("4-eval"));
    assert!((adapted - merged).abs() <= 1e-5 * adapted, "{adapted} and, merged, {merged}");
    assert!(kitchen.out("model/config.json").is_file());
}

/// LoRA folds into the weights, the generators stay and go on by themselves.
#[test]
fn reducers_stay_beside_a_merged_model() {
    let glyphs = r#"data = { kind = "builtin", name = "glyphs", rows = 64 }"#;
    let kitchen = cook(&format!(
        r#"
{MODEL}
[[stage]]
kind = "train"
adapter = [{{ kind = "lora", r = 2, target_modules = "all-linear", modules_to_save = ["classifier"] }}]
reducer = [{{ kind = "pyra", schedule = [6, 3], pyra_lr = 3e-2 }}]
{glyphs}
optimizer = {{ kind = "adamw", lr = 1e-2 }}
steps = 6
[[stage]]
kind = "eval"
{glyphs}
[[stage]]
kind = "merge"
[[stage]]
kind = "eval"
{glyphs}
[[stage]]
kind = "eval"
model = {{ source = "out/stages/2-merge/model" }}
{glyphs}
"#
    ));
    let loss = |stage: &str| kitchen.figures(stage)["loss"].as_f64().expect("a loss");
    let (adapted, merged, alone) = (loss("1-eval"), loss("3-eval"), loss("4-eval"));
    assert!((adapted - merged).abs() <= 1e-5 * adapted, "{adapted} and, merged, {merged}");
    assert!((adapted - alone).abs() > 1e-4 * adapted, "{adapted} and, without a reducer, {alone}");
}

fn write_images(path: &Path, side: usize, class: i64) {
    let pixels = Tensor::zeros((2, 1, side, side), candle_core::DType::F32, &Device::Cpu).expect("images");
    let labels = Tensor::new(&[0i64, class], &Device::Cpu).expect("classes");
    let all = [("pixel_values".to_owned(), pixels.into()), ("labels".to_owned(), labels.into())];
    write_safetensors(path, &all, &[]).expect("a written file");
}

#[test]
fn what_does_not_fit_is_told_in_words() {
    let said = |model: &str, stage: &str| -> String {
        let kitchen = Kitchen::new(&format!("{model}\n[[stage]]\n{stage}\n"));
        write_images(&kitchen.folder().join("small.safetensors"), 8, 1);
        write_images(&kitchen.folder().join("good.safetensors"), 16, 1);
        write_images(&kitchen.folder().join("ninth.safetensors"), 16, 8);
        write_ids(&kitchen.folder().join("ids.safetensors"), &[vec![1, 2, 3]]);
        kitchen.run(&[]).expect(2).stderr.clone()
    };
    let logits = |file: &str| format!("kind = \"logits\"\ninput = \"{file}.safetensors\"");
    for (text, words) in [
        (said(MODEL, &logits("small")), ["1×8×8", "1×16×16"]),
        (said(MODEL, &logits("ninth")), ["`labels` holds 8", "8 classes"]),
        (said(MODEL, &logits("ids")), ["pixel_values", "reads"]),
        (said("model = { source = \"builtin:tiny\" }", &logits("good")), ["holds images", "reads tokens"]),
        (said(MODEL, "kind = \"generate\"\nprompt = \"a\""), ["vit", "no next token"]),
        (
            said(MODEL, "kind = \"train\"\nsteps = 1\ndata = { kind = \"builtin\", name = \"records\" }"),
            ["reads images", "builtin"],
        ),
        (
            said(
                MODEL,
                "kind = \"train\"\nsteps = 1\ndata = { kind = \"tokens\", path = \"good.safetensors\" }\n\
                 reducer = [{ kind = \"pyra\", schedule = [4] }]",
            ),
            ["`reducer/pyra` cannot go with", "training every weight"],
        ),
        (
            said(
                MODEL,
                "kind = \"logits\"\ninput = \"good.safetensors\"\nreducer = [{ kind = \"tome\", schedule = [4, 7] }]",
            ),
            ["7 tokens in block 1", "6 at most"],
        ),
    ] {
        assert!(words.iter().all(|w| text.contains(w)), "{words:?} in\n{text}");
    }
}
