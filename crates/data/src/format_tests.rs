use std::path::Path;
use std::sync::Arc;

use proptest::prelude::*;
use serde_json::{Value as Json, json};

use super::*;
use crate::source::Origin;
use crate::source::tests::json_object;

fn record(row: Json) -> Record {
    let Json::Object(fields) = row else { panic!("a row is an object") };
    Record { origin: Origin { file: Arc::from(Path::new("d.jsonl")), line: Some(3) }, fields }
}

fn options(format: &str, columns: Json) -> Preparation {
    Preparation {
        format: serde_json::from_value(json!(format)).unwrap(),
        columns: serde_json::from_value(columns).unwrap(),
        ..Preparation::default()
    }
}

fn sample(format: &str, columns: Json, row: Json) -> Result<Sample> {
    Reader::new(&options(format, columns), true, Rows::Tokens).sample(record(row))
}

fn error(format: &str, columns: Json, row: Json) -> String {
    sample(format, columns, row).unwrap_err().to_string()
}

fn pair(prompt: &str, completion: &str) -> Sample {
    Sample::PromptCompletion { prompt: prompt.into(), completion: completion.into() }
}

#[test]
fn keys_choose_the_format() {
    for (row, format) in [
        (json!({"messages": [{"role": "user", "content": "a"}]}), "messages"),
        (json!({"conversations": [{"from": "human", "value": "a"}]}), "sharegpt"),
        (json!({"instruction": "a", "output": "b"}), "alpaca"),
        (json!({"prompt": "a", "completion": 5}), "prompt_completion"),
        (json!({"text": "a"}), "text"),
    ] {
        let mut reader = Reader::new(&options("auto", json!({})), true, Rows::Tokens);
        reader.sample(record(row)).unwrap();
        assert_eq!(reader.format().name(), format);
        assert!(reader.into_notes()[0].contains(format));
    }
    let e = error("auto", json!({}), json!({"question": "a", "answer": "b"}));
    assert!(
        e.starts_with("cannot tell the format from the keys `question`, `answer`\n  --> d.jsonl:3"),
        "{e}"
    );
}

#[test]
fn columns_rename_and_compose() {
    let row = json!({"question": "2 + 2?", "answer": "4", "n": 1});
    let by_name = json!({"prompt": "question", "completion": "answer"});
    assert_eq!(sample("auto", by_name, row.clone()).unwrap(), pair("2 + 2?", "4"));
    let pattern = json!({"prompt": "{{{n}}} Q: {question}\nA: ", "completion": "answer"});
    assert_eq!(sample("auto", pattern, row.clone()).unwrap(), pair("{1} Q: 2 + 2?\nA: ", "4"));
    let e = error("auto", json!({"prompt": "qestion", "completion": "answer"}), row.clone());
    assert_eq!(
        e,
        "the row has no `qestion` that `columns.prompt` names; it has `question`, `answer`, `n`\n  --> d.jsonl:3\n  help: did you mean `question`?"
    );
    assert!(
        error("auto", json!({"prompt": "{qestion}", "completion": "answer"}), row.clone())
            .contains("did you mean `question`?")
    );
    assert!(
        error("auto", json!({"prompt": "{question", "completion": "answer"}), row.clone())
            .contains("without its partner")
    );
    assert!(error("auto", json!({"promt": "question"}), row).contains("did you mean `prompt`?"));
}

#[test]
fn a_missing_key_is_named_with_what_is_there() {
    let e = error("prompt_completion", json!({}), json!({"prompt": "a", "completon": "b"}));
    assert_eq!(
        e,
        "the row has no `completion`; it has `prompt`, `completon`\n  --> d.jsonl:3\n  help: did you mean `completon`?"
    );
    assert!(error("text", json!({}), json!({"text": null})).starts_with("`text` is null"));
    assert!(error("text", json!({}), json!({"text": ["a"]})).starts_with("`text` is a list, not text"));
    assert!(error("text", json!({}), json!({})).contains("it has no key at all"));
    assert!(error("messages", json!({}), json!({"messages": []})).starts_with("`messages` is empty"));
    assert!(
        error("messages", json!({}), json!({"messages": [{"from": "human", "value": "x"}]}))
            .contains("sharegpt")
    );
    assert!(
        error("messages", json!({}), json!({"messages": [{"role": "user"}]}))
            .starts_with("`messages[0]` has no `content`")
    );
    assert!(
        error("messages", json!({}), json!({"messages": ["x"]}))
            .starts_with("`messages[0]` is text, not an object")
    );
    assert!(
        error("prompt_completion", json!({}), json!({"prompt": [], "completion": "x"}))
            .contains("both are lists")
    );
}

#[test]
fn messages_tolerate_tools_and_nulls() {
    let call = json!([{"type": "function", "function": {"name": "f", "arguments": {}}}]);
    let row = json!({
        "messages": [{"role": "user", "content": "x", "tool_calls": null}, {"role": "assistant", "content": null, "tool_calls": call}],
        "tools": "[{\"name\": \"f\"}]"
    });
    let Sample::Chat { messages, tools } = sample("auto", json!({}), row).unwrap() else { panic!() };
    assert_eq!(messages[0], json!({"role": "user", "content": "x"}));
    assert_eq!(messages[1], json!({"role": "assistant", "content": null, "tool_calls": call}));
    assert_eq!(tools, Some(json!([{"name": "f"}])));
}

#[test]
fn sharegpt_roles() {
    let row = json!({"system": "be", "conversations": [
        {"from": "human", "value": "a"}, {"from": "function_call", "value": "{\"name\": \"f\", \"arguments\": {\"x\": 1}}"},
        {"from": "observation", "value": "7"}, {"from": "gpt", "value": "b"}]});
    let Sample::Chat { messages, .. } = sample("auto", json!({}), row).unwrap() else { panic!() };
    let roles: Vec<&str> = messages.iter().map(|m| m["role"].as_str().unwrap()).collect();
    assert_eq!(roles, ["system", "user", "assistant", "tool", "assistant"]);
    assert_eq!(messages[2]["tool_calls"][0]["function"]["arguments"]["x"], 1);
    let e = error("sharegpt", json!({}), json!({"conversations": [{"from": "humann", "value": ""}]}));
    assert!(e.contains("`conversations[0].from` is `humann`") && e.contains("did you mean `human`?"), "{e}");
}

#[test]
fn alpaca_with_and_without_template() {
    let row =
        json!({"instruction": "Add.", "input": "1 2", "output": "3", "system": "S", "history": [["h", "k"]]});
    let Sample::ChatCompletion { prompt, completion, .. } = sample("auto", json!({}), row.clone()).unwrap()
    else {
        panic!()
    };
    let contents: Vec<&str> = prompt.iter().map(|m| m["content"].as_str().unwrap()).collect();
    assert_eq!(contents, ["S", "h", "k", "Add.\n1 2"]);
    assert_eq!(completion[0]["content"], "3");
    let plain = Reader::new(&options("alpaca", json!({})), false, Rows::Tokens).sample(record(row)).unwrap();
    assert_eq!(
        plain,
        pair(
            "S\n\n### Instruction:\nh\n\n### Response:\nk\n\n### Instruction:\nAdd.\n\n### Input:\n1 2\n\n### Response:\n",
            "3"
        )
    );
    assert!(
        error("alpaca", json!({}), json!({"instruction": "a", "output": "b", "history": [["x"]]}))
            .contains("`history[0]`")
    );
}

proptest! {
    #[test]
    fn any_row_is_a_sample_or_an_error_with_its_place(row in json_object(), format in prop::sample::select(vec!["auto", "messages", "sharegpt", "alpaca", "prompt_completion", "text"]), pattern in "[{}a-c]{1,6}") {
        for columns in [json!({}), json!({"prompt": pattern, "completion": "{text}"})] {
            if let Err(e) = sample(format, columns, row.clone()) {
                let e = e.to_string();
                prop_assert!(e.contains("d.jsonl:3") || e.starts_with("`columns."), "{e}");
            }
        }
    }
}

fn wanted(format: &str, columns: Json, rows: Rows, row: Json) -> Result<Sample> {
    Reader::new(&options(format, columns), true, rows).sample(record(row))
}

#[test]
fn pairs_with_and_without_prompt() {
    let both = |row: Json| match wanted("auto", json!({}), Rows::Pairs, row).unwrap() {
        Sample::Pair(p) => (*p.chosen, *p.rejected, p.margin),
        other => panic!("{other:?}"),
    };
    let expected = (pair("Q:", " yes"), pair("Q:", " no"), None);
    assert_eq!(both(json!({"prompt": "Q:", "chosen": " yes", "rejected": " no"})), expected);
    assert_eq!(both(json!({"chosen": "Q: yes", "rejected": "Q: no"})), expected);
    let margin = json!({"prompt": "Q:", "chosen": " yes", "rejected": " no", "margin": "0.5"});
    assert_eq!(both(margin).2, Some(0.5));
    let turn = |role: &str, content: &str| json!({"role": role, "content": content});
    let (ask, yes, no) = (turn("user", "Q"), turn("assistant", "yes"), turn("assistant", "no"));
    let explicit = both(json!({"prompt": [ask], "chosen": [yes], "rejected": [no]}));
    assert_eq!(both(json!({"chosen": [ask, yes], "rejected": [ask, no]})), explicit);
    let Sample::ChatCompletion { prompt, completion, .. } = explicit.1 else { panic!() };
    assert_eq!((prompt, completion), (vec![ask], vec![no]));
}

#[test]
fn pairs_that_make_none_are_refused() {
    let error = |row: Json| wanted("preference", json!({}), Rows::Pairs, row).unwrap_err().to_string();
    assert!(error(json!({"chosen": "yes", "rejected": "no"})).contains("do not begin alike"));
    assert!(
        error(json!({"prompt": "Q", "chosen": "yes", "rejected": " "})).contains("`rejected` has no answer")
    );
    assert!(error(json!({"chosen": ["yes"], "rejected": "no"})).contains("both are alike"));
    assert!(error(json!({"chosen": "Q: yes"})).contains("no `rejected`"));
    let other = wanted("auto", json!({}), Rows::Pairs, json!({"text": "a"})).unwrap_err().to_string();
    assert!(other.contains("`chosen` and `rejected`") && other.contains("read as `text`"), "{other}");
    let pairs = wanted("auto", json!({}), Rows::Tokens, json!({"chosen": "a b", "rejected": "a c"}));
    assert!(pairs.unwrap_err().to_string().contains("read as `preference`"));
}

#[test]
fn labels_are_numbers_lists_or_names() {
    let of = |row: Json| wanted("auto", json!({}), Rows::Targets, row);
    let label = |row: Json| match of(row).unwrap() {
        Sample::Labelled { text, label } => (text, label),
        other => panic!("{other:?}"),
    };
    for (value, expected) in [
        (json!(1), vec![1.0]),
        (json!("2"), vec![2.0]),
        (json!(true), vec![1.0]),
        (json!([0, 1.5]), vec![0.0, 1.5]),
    ] {
        assert_eq!(label(json!({"text": "t", "label": value})), ("t".to_owned(), expected));
    }
    let bad = of(json!({"text": "t", "label": "good"})).unwrap_err().to_string();
    assert!(bad.contains("`label` is `good`, not a number"), "{bad}");
    let mut named = options("classification", json!({"text": "0", "label": "1"}));
    named.label_names = vec!["bad".to_owned(), "good".to_owned()];
    let mut reader = Reader::new(&named, true, Rows::Targets);
    let Sample::Labelled { label, .. } = reader.sample(record(json!({"0": "t", "1": "good"}))).unwrap()
    else {
        panic!()
    };
    assert_eq!(label, [1.0]);
    let missing = reader.sample(record(json!({"0": "t", "1": "god"}))).unwrap_err();
    assert!(missing.to_string().contains("`god`"));
    // A text with a label beside it stays text where tokens are wanted.
    let text = wanted("auto", json!({}), Rows::Tokens, json!({"text": "t", "label": 1})).unwrap();
    assert_eq!(text, Sample::Text("t".to_owned()));
}
