use std::path::PathBuf;

use proptest::prelude::*;
use serde_json::{Value as Json, json};

use crate::settings::DataSettings;
use crate::source::Record;

fn read(name: &str, bytes: &[u8], mut settings: Json) -> anyhow::Result<Vec<Record>> {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join(name), bytes).unwrap();
    settings["path"] = json!(name);
    let kind = settings.as_object_mut().unwrap().shift_remove("kind").unwrap();
    let settings = DataSettings::from_json(kind.as_str().unwrap(), settings)?;
    let records = settings.records(folder.path())?.collect::<anyhow::Result<Vec<_>>>();
    // The folder's name changes from run to run.
    records.map_err(|e| {
        anyhow::anyhow!("{}", e.to_string().replace(&format!("{}/", folder.path().display()), ""))
    })
}

fn rows(name: &str, text: &str, settings: Json) -> Vec<Json> {
    read(name, text.as_bytes(), settings).unwrap().into_iter().map(|r| Json::Object(r.fields)).collect()
}

fn error(name: &str, bytes: &[u8], settings: Json) -> String {
    read(name, bytes, settings).unwrap_err().to_string()
}

#[test]
fn jsonl() {
    let kind = json!({"kind": "jsonl"});
    assert_eq!(
        rows("a.jsonl", "\u{feff}{\"a\": 1}\r\n\n  \n{\"b\": \"é\"}", kind.clone()),
        [json!({"a": 1}), json!({"b": "é"})]
    );
    let good = "{\"a\": 1}\n".repeat(1002);
    let bad = format!("{good}{{\"a\": }}\n{good}");
    assert_eq!(
        error("a.jsonl", bad.as_bytes(), kind.clone()),
        "the line is not JSON: expected value at column 7\n  --> a.jsonl:1003"
    );
    assert_eq!(
        error("a.jsonl", b"{}\n{}\n\xff\xfe{}", kind.clone()),
        "the line is not UTF-8 from byte 1 on\n  --> a.jsonl:3"
    );
    let e = error("a.jsonl", b"[\n{}\n]", kind.clone());
    assert!(e.contains("a.jsonl:1") && e.contains("`kind = \"json\"`"), "{e}");
    assert!(error("a.jsonl", b"3", kind).contains("a number, not a JSON object"));
}

#[test]
fn json_array() {
    let kind = json!({"kind": "json"});
    assert_eq!(
        rows("a.json", " [ {\"a\": [1, 2]} ,\n{\"b\": \"]\"}\n ] \n", kind.clone()),
        [json!({"a": [1, 2]}), json!({"b": "]"})]
    );
    assert_eq!(rows("a.json", "[]", kind.clone()), [] as [Json; 0]);
    for (text, expected) in [
        (
            "{\"a\": 1}",
            "the file is not a JSON array\n  --> a.json:1\n  help: one object a line is `kind = \"jsonl\"`",
        ),
        ("[{},\n{}\n{}]", "a `,` or `]` is missing here\n  --> a.json:3"),
        ("[{},\n\n{\"a\":\n tru}]", "the file is not JSON: expected ident at column 5\n  --> a.json:4"),
        ("[{},\n5]", "an element of the array is a number, not an object\n  --> a.json:2"),
        ("[{}", "the file ends inside the array\n  --> a.json:1"),
        ("[{},]", "the file is not JSON: expected value at column 1\n  --> a.json:1"),
        ("[{}] x", "there is more after the array's end\n  --> a.json:1"),
    ] {
        assert_eq!(error("a.json", text.as_bytes(), kind.clone()), expected, "{text}");
    }
}

#[test]
fn csv_and_tsv() {
    let kind = json!({"kind": "csv"});
    assert_eq!(
        rows("a.csv", "q, a\n\"1, 2\",\"x\"\"y\"\n", kind.clone()),
        [json!({"q": "1, 2", "a": "x\"y"})]
    );
    assert_eq!(rows("a.tsv", "q\ta\n\"1\t2\n", kind.clone()), [json!({"q": "\"1", "a": "2"})]);
    assert_eq!(
        rows("a.tsv", "good\t1\nbad\t0\n", json!({"kind": "csv", "header": false}))[1],
        json!({"0": "bad", "1": "0"})
    );
    assert_eq!(
        rows("a.csv", "a;b\n1;2\n", json!({"kind": "csv", "delimiter": ";"})),
        [json!({"a": "1", "b": "2"})]
    );
    let e = error("a.csv", b"a,b\n1,2\n1,2,3\n", kind.clone());
    assert!(e.starts_with("the row has 3 fields, the header 2\n  --> a.csv:3"), "{e}");
    assert_eq!(error("a.csv", b"a,a\n1,2\n", kind.clone()), "two columns are called `a`\n  --> a.csv:1");
    assert!(
        error("a.csv", b"a,b\n1,\xff\n", kind).contains("field 2 of the row is not UTF-8\n  --> a.csv:2")
    );
}

#[test]
fn text() {
    let text = |r: Vec<Json>| r.iter().map(|r| r["text"].as_str().unwrap().to_owned()).collect::<Vec<_>>();
    assert_eq!(text(rows("a.txt", "one\n\n two\n", json!({"kind": "text"}))), ["one", " two"]);
    assert_eq!(
        text(rows("a.txt", "one\n\n two\n", json!({"kind": "text", "unit": "file"}))),
        ["one\n\n two\n"]
    );
    assert_eq!(
        error("a.txt", b"one\ntw\xffo", json!({"kind": "text", "unit": "whole"})),
        "the text is not UTF-8 from this line on\n  --> a.txt:2"
    );
}

#[test]
fn paths() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    std::fs::create_dir(at("d")).unwrap();
    for (name, text) in [
        ("d/b.jsonl", "{\"n\": 2}"),
        ("d/a.jsonl", "{\"n\": 1}"),
        ("d/x.txt", "no"),
        ("c.jsonl", "{\"n\": 3}"),
    ] {
        std::fs::write(at(name), text).unwrap();
    }
    let records = |path: Json| -> anyhow::Result<Vec<i64>> {
        let settings = DataSettings::from_json("jsonl", json!({ "path": path }))?;
        settings.records(folder.path())?.map(|r| Ok(r?.fields["n"].as_i64().unwrap_or_default())).collect()
    };
    assert_eq!(records(json!(["c.jsonl", "d"])).unwrap(), [3, 1, 2]);
    let e = records(json!("d/c.jsonl")).unwrap_err().to_string();
    assert!(e.starts_with("there is no such file") && e.contains("did you mean `"), "{e}");
    let csv = DataSettings::from_path(&PathBuf::from("d")).unwrap();
    assert_eq!(csv.kind(), "text");
    let settings = DataSettings::from_json("csv", json!({ "path": "d" })).unwrap();
    let e = settings.records(folder.path()).err().unwrap().to_string();
    assert!(e.contains("the folder has no `.csv` or `.tsv` file"), "{e}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn any_bytes_are_rows_or_an_error(bytes in prop::collection::vec(prop_oneof![any::<u8>(), prop::sample::select(b"[]{}\",:\n\t 1a".to_vec())], 0..60)) {
        for (name, settings) in [
            ("a.jsonl", json!({"kind": "jsonl"})), ("a.json", json!({"kind": "json"})), ("a.csv", json!({"kind": "csv"})),
            ("a.tsv", json!({"kind": "csv", "header": false})), ("a.txt", json!({"kind": "text"})),
        ] {
            if let Err(e) = read(name, &bytes, settings) {
                prop_assert!(e.to_string().contains(name), "{e}");
            }
        }
    }

    #[test]
    fn any_json_array_reads_as_serde_reads_it(rows in prop::collection::vec(json_object(), 0..5), spaces in "[ \n]{0,2}") {
        let text = format!("{spaces}{}{spaces}", serde_json::to_string_pretty(&rows).unwrap());
        let read = read("a.json", text.as_bytes(), json!({"kind": "json"})).unwrap();
        prop_assert_eq!(read.into_iter().map(|r| Json::Object(r.fields)).collect::<Vec<_>>(), rows);
    }
}

/// Any object, with the keys that formats know among its keys.
pub(crate) fn json_object() -> impl Strategy<Value = Json> {
    let leaf = prop_oneof![
        Just(Json::Null),
        any::<bool>().prop_map(Json::from),
        any::<i32>().prop_map(Json::from),
        "\\PC{0,6}".prop_map(Json::from),
        prop::sample::select(vec!["user", "assistant", "human", "gpt", "system", "function_call"])
            .prop_map(Json::from)
    ];
    let key = prop_oneof![
        "[a-z]{1,3}",
        prop::sample::select(vec![
            "messages",
            "conversations",
            "role",
            "content",
            "from",
            "value",
            "prompt",
            "completion",
            "instruction",
            "output",
            "input",
            "history",
            "system",
            "text",
            "tools",
            "tool_calls"
        ])
        .prop_map(str::to_owned)
    ];
    let value = leaf.prop_recursive(3, 16, 4, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..3).prop_map(Json::from),
            prop::collection::hash_map(key.clone(), inner, 0..4)
                .prop_map(|m| Json::Object(m.into_iter().collect())),
        ]
    });
    let known = prop::sample::select(vec![
        "messages",
        "conversations",
        "prompt",
        "completion",
        "instruction",
        "output",
        "history",
        "text",
        "tools",
    ]);
    prop::collection::hash_map(known.prop_map(str::to_owned), value, 0..4)
        .prop_map(|m| Json::Object(m.into_iter().collect()))
}
