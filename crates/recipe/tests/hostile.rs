//! Whatever is given, the answer is a recipe or a list of mistakes that lie in the text.

mod support;

use proptest::prelude::*;
use ramekin_recipe::Diagnostics;

/// Renders in every way and looks at every place.
fn look_at(errors: &Diagnostics) {
    assert!(!errors.is_empty());
    assert!(errors.render(true).len() >= errors.to_string().len());
    assert_eq!(errors.to_json().as_array().unwrap().len(), errors.len());
    for label in errors.iter().flat_map(|e| &e.labels) {
        let (line, column) = label.span.position();
        assert!(line >= 1 && column >= 1 && label.span.range().end <= label.span.source().text().len());
    }
}

fn survive(text: &str, overrides: &[&str]) {
    if let Err(errors) = support::read("r.toml", text, overrides) {
        look_at(&errors);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn random_bytes(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        survive(&String::from_utf8_lossy(&bytes), &[]);
    }

    #[test]
    fn random_toml_like_text(text in "([\\[\\]{}=.,\"'#\\\\ \n\r\ta-c0-9+\\-_:ü🍲]|\\[\\[|stage|kind|\"train\"|'''|\"\"\"){0,80}") {
        survive(&text, &[]);
    }

    #[test]
    fn random_overrides(argument in "([a-c0-9.=\\[\\]{}\"' \nü]|stage|adapter|0|kind|optimizer|lr){0,20}", rest in ".{0,12}") {
        survive(support::WHOLE, &[&argument, &format!("stage.0.{rest}"), &format!("stage.0.optimizer.lr={rest}")]);
    }

    #[test]
    fn mutated_recipes(edits in prop::collection::vec((any::<prop::sample::Index>(), 0..12_usize, "([\"'=.,{}\\[\\]\n ]|kind|-1|0|true|ü|zz){0,3}"), 1..6)) {
        let mut text = support::WHOLE.to_owned();
        for (at, cut, insert) in edits {
            let starts: Vec<usize> = text.char_indices().map(|(i, _)| i).collect();
            if starts.is_empty() {
                break;
            }
            let from = at.index(starts.len());
            let to = starts.get(from + cut).copied().unwrap_or(text.len());
            text.replace_range(starts[from]..to, &insert);
        }
        survive(&text, &[]);
    }

    #[test]
    fn lines_in_any_order(order in Just(support::WHOLE.lines().collect::<Vec<_>>()).prop_shuffle(), keep in 1..40_usize) {
        survive(&order[..keep.min(order.len())].join("\n"), &[]);
    }
}

#[test]
fn deep_and_long_recipes() {
    survive(&format!("a = {}", "[".repeat(50_000)), &[]);
    survive(&format!("a = {}1{}", "[".repeat(75), "]".repeat(75)), &[]);
    survive(&format!("{} = 1", vec!["a"; 5_000].join(".")), &[]);
    survive(&format!("[{}]\nx = 1", vec!["a"; 70].join(".")), &[]);
    survive("", &[&format!("{}=1", vec!["a"; 5_000].join("."))]);
    survive("", &[&format!("a={}", "[".repeat(5_000))]);
    survive(&"x".repeat(2 << 20), &[]);
}

/// A thousand mistakes cost seconds at most and are cut to what a person can read.
#[test]
fn very_many_mistakes() {
    let keys: String = (0..20_000).map(|i| format!("k{i} = {i}\n")).collect();
    let text = format!("model.source = \"builtin:tiny\"\n[[stage]]\nkind = \"train\"\nsteps = 1\n{keys}");
    let errors = support::read("r.toml", &text, &[]).unwrap_err();
    assert!(!errors.is_empty() && errors.len() <= 20, "{}", errors.len());
}
