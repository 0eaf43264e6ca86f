//! The worked chapter of CONTRIBUTING.md, "Add a method in an hour": its code is the code of this folder, built
//! and run here, its manifest is a family's, and what it says one sees is what one sees.

mod centralize;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use ramekin_core::{Array, Category, Param};
use ramekin_engine::Options;
use ramekin_recipe::Doc;
use ramekin_registry::{AnyPart, Slot, build, describe, find};

fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|e| panic!("`{path}`: {e}"))
}

/// The fenced blocks of the chapter in a language, in order.
fn blocks(language: &str) -> Vec<String> {
    let text = read("CONTRIBUTING.md");
    let chapter = text.split("\n## Add a method in an hour\n").nth(1).expect("the chapter");
    let chapter = chapter.split("\n## ").next().unwrap_or(chapter);
    let fence = format!("```{language}\n");
    let parts = chapter.split(&fence as &str).skip(1);
    parts.map(|p| p.split("```").next().unwrap_or_default().to_owned()).collect()
}

/// The chapter's Rust, put together, is the file that is compiled here.
#[test]
fn the_code_of_the_chapter_is_what_is_built() {
    let written = blocks("rust").concat();
    let built = include_str!("centralize.rs");
    let lines = |text: &str| -> Vec<String> {
        text.lines().filter(|l| !l.trim().is_empty()).map(str::to_owned).collect()
    };
    assert_eq!(lines(&written), lines(built));
}

/// The chapter's manifest is `gradient-clip`'s with another name, so it builds where that one does.
#[test]
fn the_manifest_of_the_chapter_is_a_family_s() {
    let manifest = &blocks("toml")[0];
    let clip = read("crates/gradient-clip/Cargo.toml");
    let keys = |text: &str| -> Vec<String> {
        let lines = text.lines().filter(|l| !l.starts_with("name") && !l.starts_with("description"));
        lines.filter(|l| !l.trim().is_empty()).map(str::to_owned).collect()
    };
    let allowed = keys(&clip);
    for line in keys(manifest) {
        assert!(allowed.contains(&line), "`{line}` is not in gradient-clip's manifest");
    }
}

/// The transform does what its formula says, on a matrix whose rows have known means; a vector stays.
#[test]
fn centralize_takes_the_mean_of_rows() {
    let settings = serde_json::json!({ "share": 0.5 });
    let Ok(AnyPart::Gradient(mut transform)) = build(Slot::Gradient, "centralize", settings) else {
        panic!("it is registered in its slot");
    };
    let array =
        |numbers: Vec<f32>, dims: &[usize]| Array::from_vec(numbers, dims, Category::Gradients).unwrap();
    let param = |dims: &[usize]| Param::new("w", array(vec![0.0; dims.iter().product()], dims));
    let mut grads = vec![
        (param(&[2, 3]), array(vec![1.0, 2.0, 3.0, -1.0, 0.0, 4.0], &[2, 3])),
        (param(&[3]), array(vec![1.0, 2.0, 3.0], &[3])),
    ];
    transform.whole(&mut grads, 1.0).unwrap();
    let numbers = |a: &Array| a.view::<f32>().unwrap().to_vec();
    assert_eq!(numbers(&grads[0].1), [0.0, 1.0, 2.0, -1.5, -0.5, 3.5]);
    assert_eq!(numbers(&grads[1].1), [1.0, 2.0, 3.0]);
}

/// The chapter's recipe runs with the part, and the reference shows it.
#[test]
fn the_recipe_of_the_chapter_runs() {
    ramekin_catalog::link();
    let told = describe(find(Slot::Gradient, "centralize").expect("registered"));
    assert_eq!(told.settings[0]["name"], "share");
    let recipe = &blocks("toml")[1];
    let folder = tempfile::tempdir().unwrap();
    let doc = Doc::parse(Path::new("chapter.toml"), recipe, &[]).unwrap();
    let recipe = ramekin_engine::read::recipe(&doc).unwrap();
    let options = Options {
        out: folder.path().join("out"),
        base_dir: folder.path().to_owned(),
        resume: false,
        stop: Arc::new(AtomicBool::new(false)),
        resolved: ramekin_recipe::resolved(&recipe),
    };
    let outcome = ramekin_engine::run(&recipe, &options).unwrap();
    let train = &outcome.stages["0-train"];
    let (before, after) = (&train["eval_before"]["loss"], &train["eval"]["loss"]);
    assert!(after.as_f64() < before.as_f64(), "{before} and {after}");
    let wrong = blocks("toml")[1].replace("kind = \"centralize\"", "kind = \"centralize\", share = 2");
    let doc = Doc::parse(Path::new("chapter.toml"), &wrong, &[]).unwrap();
    let recipe = ramekin_engine::read::recipe(&doc);
    let said = match recipe {
        Err(e) => e.render(false),
        Ok(recipe) => format!("{:#}", ramekin_engine::run(&recipe, &options).unwrap_err()),
    };
    assert!(said.contains("it must be above 0 and at most 1"), "{said}");
}
