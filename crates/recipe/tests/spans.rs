//! Every span is exactly what was written, however it was written.

mod support;

use ramekin_recipe::{Doc, Span};
use serde_json::Value as Json;

/// All paths below a value.
fn paths(value: &Json, at: &str, all: &mut Vec<String>) {
    let mut visit = |step: String, value: &Json| {
        let path = if at.is_empty() { step } else { format!("{at}.{step}") };
        all.push(path.clone());
        paths(value, &path, all);
    };
    match value {
        Json::Object(table) => table.iter().for_each(|(key, value)| visit(key.clone(), value)),
        Json::Array(list) => list.iter().enumerate().for_each(|(i, value)| visit(i.to_string(), value)),
        _ => {}
    }
}

fn all_paths(doc: &Doc) -> Vec<String> {
    let mut all = Vec::new();
    paths(doc.value("").unwrap(), "", &mut all);
    all
}

/// The text of a span, read as TOML, is the value at its path; headers excepted.
fn check(text: &str) -> usize {
    let doc = Doc::parse("r.toml".as_ref(), text, &[]).unwrap();
    let mut checked = 0;
    for path in all_paths(&doc) {
        if let Some(key) = doc.key_span(&path) {
            let name = path.rsplit('.').next().unwrap();
            assert_eq!(key.text().trim_matches(['"', '\'']), name, "{path}");
        }
        let Some(span) = doc.value_span(&path) else {
            continue;
        };
        if doc.value(&path).unwrap().is_object() && span.text().starts_with('[') {
            continue;
        }
        let alone = Doc::parse("v".as_ref(), &format!("v = {}", span.text()), &[]);
        // A list of tables spans from its first header to its last.
        let Ok(alone) = alone else {
            assert!(span.text().starts_with("[["), "{path}: {:?}", span.text());
            continue;
        };
        assert_eq!(alone.value("v"), doc.value(&path), "{path}");
        checked += 1;
    }
    checked
}

#[test]
fn spans_hold_the_values() {
    let whole = support::WHOLE;
    let plain = check(whole);
    assert!(plain > 50, "{plain}");
    assert_eq!(check(&whole.replace('\n', "\r\n")), plain);
    assert_eq!(check(&format!("\u{feff}{whole}")), plain);
    assert_eq!(check(&format!("# größe 日本語 🍲\n{whole}")), plain);
    check(
        "a.b.c = [1, { x = 'ü' }, [\n  2, # zwei\n  3,\n]]\n\"q d\" = '''\nmany\r\nlines'''\n[t.u]\nv = 1\n[[t.l]]\nw = 0x1F\n",
    );
}

fn position(span: Option<Span>) -> (usize, usize) {
    span.unwrap().position()
}

#[test]
fn lines_and_columns_count_characters() {
    let text = "a = \"größe\" \r\n\"日本\".x = { y = 1, \"z z\" = 2 }\r\n[[l]]\r\n[[l]]\r\nk = true";
    let doc = Doc::parse("r.toml".as_ref(), text, &[]).unwrap();
    assert_eq!(position(doc.value_span("a")), (1, 5));
    assert_eq!(position(doc.key_span("\"日本\".x")), (2, 6));
    assert_eq!(position(doc.value_span("\"日本\".x.y")), (2, 16));
    assert_eq!(position(doc.key_span("\"日本\".x.\"z z\"")), (2, 19));
    assert_eq!(position(doc.value_span("l.1")), (4, 1));
    assert_eq!(position(doc.value_span("l.1.k")), (5, 5));
}

#[test]
fn one_table_is_a_list_of_one() {
    let doc = Doc::parse("r.toml".as_ref(), "[[stage]]\nadapter = { r = 1 }\n", &[]).unwrap();
    assert_eq!(doc.value("stage.0.adapter.0.r"), Some(&Json::from(1)));
    assert_eq!(doc.value_span("stage.0.adapter.0.r").unwrap().text(), "1");
}

/// A value of a wrong type, put in place of any value of a good recipe, is what gets underlined.
#[test]
fn the_wrong_value_is_underlined() {
    let text = support::WHOLE;
    let (doc, _) = support::read("r.toml", text, &[]).unwrap();
    let mut tried = 0;
    for path in all_paths(&doc) {
        let value = doc.value(&path).unwrap();
        // Free-form settings take anything.
        if value.is_object() || value.is_array() || path.ends_with("target_modules") {
            continue;
        }
        let range = doc.value_span(&path).unwrap().range();
        let wrong = format!("{}[[false]]{}", &text[..range.start], &text[range.end..]);
        let errors = support::read("r.toml", &wrong, &[]).expect_err(&path);
        let at = range.start..range.start + "[[false]]".len();
        let found = errors
            .iter()
            .any(|e| e.labels[0].span.range().start >= at.start && e.labels[0].span.range().end <= at.end);
        assert!(found, "{path}\n{errors}");
        tried += 1;
    }
    assert!(tried > 40, "{tried}");
}

/// A stray key, put at the end of any table, is what gets underlined.
#[test]
fn the_stray_key_is_underlined() {
    let text = support::WHOLE;
    let (doc, _) = support::read("r.toml", text, &[]).unwrap();
    let mut tried = 0;
    for path in all_paths(&doc).into_iter().filter(|path| doc.value(path).unwrap().is_object()) {
        let Some(span) = doc.value_span(&path) else {
            continue;
        };
        let (at, insert) = match span.text().strip_suffix(" }") {
            Some(rest) => (span.range().start + rest.len(), ", zzz = 1".to_owned()),
            None => (span.range().end, "\nzzz = 1".to_owned()),
        };
        let stray = format!("{}{insert}{}", &text[..at], &text[at..]);
        let errors = support::read("r.toml", &stray, &[]).expect_err(&path);
        assert!(
            errors.iter().any(|e| e.labels[0].span.text() == "zzz" && e.title.ends_with("zzz`")),
            "{path}\n{errors}"
        );
        assert_eq!(errors.len(), 1, "{path}\n{errors}");
        tried += 1;
    }
    assert!(tried >= 20, "{tried}");
}
