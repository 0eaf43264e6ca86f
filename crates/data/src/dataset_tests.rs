use proptest::prelude::*;
use serde_json::{Value as Json, json};

use super::*;
use crate::audit::audit;
use crate::batch::Sampler;
use crate::tokenizer::tests::small;

fn load(kind: &str, settings: Json, file: (&str, &str)) -> Result<Dataset> {
    let folder = tempfile::tempdir()?;
    std::fs::write(folder.path().join(file.0), file.1)?;
    let mut settings = settings;
    settings["path"] = json!(file.0);
    DataSettings::from_json(kind, settings)?.load(small(), folder.path())
}

fn builtin(settings: Json) -> Dataset {
    DataSettings::from_json("builtin", settings).unwrap().load(small(), Path::new(".")).unwrap()
}

#[test]
fn loads_reports_and_holds_out() {
    let rows: String = (0..40)
        .map(|i| format!("{{\"question\": \"What is {i}?\\n\", \"answer\": \"It is {i}.\"}}\n"))
        .collect();
    let settings = json!({"columns": {"prompt": "question", "completion": "answer"}, "split": {"dev": 0.1}, "skip_rows": 5, "max_rows": 30});
    let data = load("jsonl", settings, ("q.jsonl", &rows)).unwrap();
    let dev = data.dev.as_ref().unwrap();
    assert_eq!((data.report.read, data.examples.len(), dev.examples.len()), (30, 27, 3));
    assert_eq!(dev.examples[2].reference.as_ref().unwrap().completion, "It is 34.");
    assert!(data.report.notes[0].contains("prompt_completion"), "{:?}", data.report.notes);
    assert_eq!(data.report.tokens, data.histogram().iter().map(|(len, n)| len * n).sum::<usize>());
    assert_eq!(data.report.prefix_differs, 0);
}

#[test]
fn a_set_without_target_shows_a_row() {
    let rows =
        "{\"prompt\": \"Anna has 4 red apples and gives 2 to Ben.\", \"completion\": \" So 2.\"}\n".repeat(3);
    let e = load("jsonl", json!({"max_length": 4}), ("q.jsonl", &rows)).unwrap_err().to_string();
    assert!(
        e.starts_with("none of the 3 examples has a target: every label is masked\n  --> q.jsonl"),
        "{e}"
    );
    assert!(e.contains("[<s>Anna"), "{e}");
    assert!(load("jsonl", json!({}), ("q.jsonl", "\n")).unwrap_err().to_string().contains("no rows"));
    // One of two: dropped and counted.
    let rows = format!("{rows}{{\"prompt\": \"A\", \"completion\": \" b\"}}\n");
    let data = load("jsonl", json!({"max_length": 4}), ("q.jsonl", &rows)).unwrap();
    assert_eq!((data.report.without_target, data.report.kept, data.report.truncated), (3, 1, 3));
}

#[test]
fn errors_in_rows_name_the_line() {
    let rows = "{\"messages\": [{\"role\": \"user\", \"content\": \"x\"}]}\n".repeat(2);
    let e = load("jsonl", json!({"template": "{{ raise_exception('no') }}"}), ("m.jsonl", &rows))
        .unwrap_err()
        .to_string();
    assert!(e.contains("refuses the chat: no") && e.contains("m.jsonl:1"), "{e}");
    let e = load("jsonl", json!({}), ("m.jsonl", &rows)).unwrap_err();
    assert_eq!(ramekin_core::exit_code(&e), 2);
    assert!(e.to_string().contains("m.jsonl:1"), "{e}");
    let e = load("jsonl", json!({"template": "chatm.jinja"}), ("m.jsonl", &rows)).unwrap_err().to_string();
    assert!(e.contains("no such file"), "{e}");
}

#[test]
fn a_stream_is_cut_into_rows() {
    let text = "One day, Anna went to the park. ".repeat(50);
    let data =
        load("text", json!({"unit": "whole", "max_length": 16, "split": {"dev": 0.25}}), ("t.txt", &text))
            .unwrap();
    let dev = data.dev.as_ref().unwrap();
    let ids = small().encode(&text, true).unwrap();
    assert_eq!(data.examples[0].ids, ids[..data.examples[0].len()]);
    assert_eq!(data.report.tokens + dev.report.tokens, ids.len());
    assert!(data.rows[..data.rows.len() - 1].iter().all(|r| r.len() == 16));
    assert!((dev.report.tokens as f64 / ids.len() as f64 - 0.25).abs() < 0.01);
    // No end token in a stream, and every token but each row's first is a target.
    assert!(!data.examples[0].ids.contains(&small().eos_id().unwrap()));
    let batch = crate::Batch::of_rows(&data, &data.rows[..2]);
    assert_eq!(batch.active_tokens(), 30);
}

#[test]
fn batches_are_flat_shifted_and_apart() {
    let labels = vec![vec![-100, 11, 12], vec![-100, 21]];
    let data =
        Dataset::from_token_rows("t", vec![vec![10, 11, 12], vec![20, 21]], None, Some(labels)).unwrap();
    let batch = Sampler::new(data.clone().into(), 0, 2, 1).batch(0, 0);
    assert_eq!(batch.ids, [10, 11, 12, 20, 21]);
    assert_eq!(batch.labels, [11, 12, -100, 21, -100]);
    assert_eq!(batch.positions, [0, 1, 2, 0, 1]);
    assert_eq!(batch.segments, [0..3, 3..5]);
    assert_eq!((batch.rows, batch.active_tokens(), batch.longest_segment()), (2, 3, 3));
    assert_eq!(Sampler::new(data.into(), 0, 2, 1).batch(9, 0), batch, "rows of a file repeat in order");
}

#[test]
fn token_rows_are_checked() {
    let rows = |ids, mask, labels| Dataset::from_token_rows("t", ids, mask, labels);
    let padded =
        rows(vec![vec![1, 2, 3, 0], vec![0, 4, 5, 6]], Some(vec![vec![1, 1, 1, 0], vec![0, 1, 1, 1]]), None)
            .unwrap();
    assert_eq!(padded.examples[0].ids, [1, 2, 3]);
    assert_eq!(padded.examples[1].labels, [4, 5, 6]);
    for (got, expected) in [
        (rows(vec![vec![1, 2, 3]], Some(vec![vec![1, 0, 1]]), None), "has a gap"),
        (rows(vec![vec![1]], Some(vec![vec![0]]), None), "no token"),
        (rows(vec![vec![1, 2]], None, Some(vec![vec![1]])), "1 entries for 2 ids"),
        (rows(vec![vec![1, 2]], None, Some(vec![])), "`labels` has 0 rows, `input_ids` 1"),
        (rows(vec![vec![1, 2]], None, Some(vec![vec![1, -5]])), "-5"),
        (rows(vec![], None, None), "no rows"),
    ] {
        let e = got.unwrap_err().to_string();
        assert!(e.contains(expected), "{e}");
    }
}

#[test]
fn batches_are_a_function_of_seed_and_step() {
    let data = std::sync::Arc::new(builtin(json!({"name": "records", "rows": 50})));
    let sampler = || Sampler::new(data.clone(), 5, 4, 2);
    let forward: Vec<_> = (0..40).map(|s| sampler().step(s)).collect();
    let one = sampler();
    for s in (0..40).rev() {
        assert_eq!(one.step(s), forward[s], "step {s}");
    }
    // Every epoch shows each row once, in an order of its own.
    let first_tokens = |epoch: usize| -> Vec<Vec<u32>> {
        let rows = Sampler::new(data.clone(), 5, 1, 1);
        (epoch * 50..epoch * 50 + 50).map(|s| rows.batch(s, 0).ids).collect()
    };
    let (mut a, mut b) = (first_tokens(0), first_tokens(1));
    assert_ne!(a, b);
    a.sort();
    b.sort();
    assert_eq!(a, b);
    assert_ne!(Sampler::new(data.clone(), 6, 4, 2).step(0), forward[0]);
    assert_eq!((one.steps_for(2.0), one.rows_per_step()), (13, 8));
}

#[test]
fn the_largest_micro_batch_is_met_and_never_exceeded() {
    let data = std::sync::Arc::new(builtin(json!({"name": "tiny-text", "bytes": 30000, "max_length": 64})));
    let sampler = Sampler::new(data.clone(), 5, 3, 2);
    let sizes = |steps: usize| (0..steps).flat_map(|s| sampler.step(s)).map(|b| (b.len(), b.active_tokens()));
    for steps in [1, 7, 300] {
        let largest = sampler.largest(steps as u64);
        assert!(largest.met);
        assert_eq!(Some(largest.segments.iter().sum()), sizes(steps).map(|s| s.0).max());
        assert_eq!(Some(largest.active), sizes(steps).map(|s| s.1).max());
    }
    let bound = sampler.largest(u64::MAX);
    assert!(!bound.met);
    assert_eq!(bound.segments.iter().max(), Some(&data.longest_row()));
    assert!(sizes(300).all(|s| s.0 <= bound.segments.iter().sum()));
    assert_eq!(data.longest_batch(5).rows, 5);
}

#[test]
fn packed_and_unpacked_rows_hold_the_same_targets() {
    let settings =
        |packing: bool| json!({"name": "tiny-text", "bytes": 20000, "max_length": 512, "packing": packing});
    let (packed, plain) = (builtin(settings(true)), builtin(settings(false)));
    assert_eq!(packed.examples, plain.examples);
    assert!(packed.rows.len() * 2 < plain.rows.len());
    let sequences = |data: &Dataset| {
        let batch = crate::Batch::of_rows(data, &data.rows);
        let mut all: Vec<_> = batch
            .segments
            .iter()
            .map(|s| (batch.ids[s.clone()].to_vec(), batch.labels[s.clone()].to_vec()))
            .collect();
        all.sort();
        all
    };
    assert_eq!(sequences(&packed), sequences(&plain));
}

#[test]
fn audits_find_what_is_wrong() {
    let data = builtin(json!({"name": "records", "rows": 60}));
    let a = audit(&data, small(), 600, 50, 2, false);
    assert_eq!((a.examples, a.begin_with_bos, a.doubled_bos, a.eos_targets), (50, 50, 0, 50));
    assert!(a.errors.is_empty() && a.warnings.is_empty(), "{:?}", a.lines());
    assert!(a.views[0].starts_with("[<s>") && a.views[0].contains("Record:] giver:"), "{}", a.views[0]);
    assert!(a.masked_share > 0.3 && a.masked_share < 0.9);
    assert!(audit(&data, small(), 600, 50, 1, true).views[0].contains("\u{1b}[32m"));
    assert!(audit(&data, small(), 300, 50, 0, false).errors[0].contains("knows ids below 300"));
    // The text brings a BOS of its own.
    let doubled = load("text", json!({}), ("t.txt", "<s>One day.\nTwo days.\n")).unwrap();
    let a = audit(&doubled, small(), 600, 50, 0, false);
    assert!(a.errors[0].contains("1 of 2 examples begin with two `<s>`"), "{:?}", a.errors);
    // Chats whose template never says the end.
    let rows = "{\"messages\": [{\"role\": \"user\", \"content\": \"x\"}, {\"role\": \"assistant\", \"content\": \"y\"}]}\n";
    let chat = load("jsonl", json!({"template": "{{ messages[1].content }}!"}), ("m.jsonl", rows)).unwrap();
    let a = audit(&chat, small(), 600, 50, 0, false);
    assert!(a.warnings.iter().any(|w| w.contains("no end token")), "{:?}", a.warnings);
}

#[test]
fn settings_refuse_what_makes_no_sense() {
    let bad = |kind: &str, settings: Json| DataSettings::from_json(kind, settings).unwrap_err().to_string();
    assert!(bad("jsonl", json!({"path": "a", "packin": true})).contains("unknown field `packin`"));
    assert!(bad("jsonl", json!({})).contains("missing field `path`"));
    assert!(bad("jsonl", json!({"path": 5})).contains("expected a path or a list of paths"));
    assert!(bad("jsnl", json!({})).contains("did you mean `jsonl`?"));
    assert!(
        bad("jsonl", json!({"path": "a", "packing": true, "max_length": 0}))
            .starts_with("`packing` needs a row length")
    );
    assert!(bad("jsonl", json!({"path": "a", "split": {"dev": 1.5}})).starts_with("`split.dev` is 1.5"));
    assert!(bad("builtin", json!({"name": "record"})).contains("did you mean `records`?"));
    assert!(bad("csv", json!({"path": "a", "delimiter": "é"})).starts_with("`delimiter`"));
    let aliased = DataSettings::from_json("jsonl", json!({"path": "a", "max_seq_length": 77})).unwrap();
    assert_eq!(aliased.preparation().unwrap().max_length, 77);
    // What is written out can be read back.
    let full = json!({"path": ["a", "b"], "columns": {"prompt": "q"}, "packing_strategy": "bfd_split", "split": {"dev": 0.5}});
    let once: crate::JsonlSettings = serde_json::from_value(full).unwrap();
    assert_eq!(once, serde_json::from_value(serde_json::to_value(&once).unwrap()).unwrap());
}

#[test]
fn every_kind_is_registered() {
    for kind in DataSettings::KINDS {
        assert!(ramekin_registry::find(ramekin_registry::Slot::Data, kind).is_ok(), "{kind}");
    }
}

#[test]
fn pairs_lie_in_one_row_and_split_together() {
    let settings = json!({"name": "preferences", "rows": 20, "split": {"dev": 0.2}});
    let settings = DataSettings::from_json("builtin", settings).unwrap();
    let data = settings.load_rows(small(), Path::new("."), Rows::Pairs).unwrap();
    let dev = data.dev.as_ref().unwrap();
    assert_eq!((data.kind, data.rows.len(), data.examples.len(), dev.rows.len()), (Rows::Pairs, 16, 32, 4));
    assert_eq!(data.report.kept, 16);
    let batch = Sampler::new(data.clone().into(), 1, 3, 1).batch(0, 0);
    assert_eq!((batch.segments.len(), batch.rows), (6, 3));
    for row in &data.rows {
        let of = |i: usize| &data.examples[row.pieces[i].example];
        let (chosen, rejected) = (of(0), of(1));
        // One prompt, of which nothing is a target, and two answers.
        assert_eq!(chosen.prompt_len, rejected.prompt_len);
        assert_eq!(chosen.ids[..chosen.prompt_len], rejected.ids[..chosen.prompt_len]);
        assert!(chosen.labels[..chosen.prompt_len].iter().all(|l| *l == IGNORED));
        assert_ne!(chosen.ids, rejected.ids);
    }
    let packed = json!({"name": "preferences", "packing": true});
    let packed = DataSettings::from_json("builtin", packed).unwrap();
    let e = packed.load_rows(small(), Path::new("."), Rows::Pairs).unwrap_err().to_string();
    assert!(e.contains("packing"), "{e}");
}

#[test]
fn labels_go_with_their_text_through_packing() {
    for packing in [false, true] {
        let settings =
            json!({"name": "colours", "rows": 12, "packing": packing, "max_length": 64, "shuffle": false});
        let settings = DataSettings::from_json("builtin", settings).unwrap();
        let data = settings.load_rows(small(), Path::new("."), Rows::Targets).unwrap();
        assert_eq!(data.rows.len() < 12, packing);
        let batch = Batch::of_rows(&data, &data.rows);
        assert_eq!((batch.targets.len(), batch.active_tokens()), (12, 0));
        for (segment, target) in batch.segments.iter().zip(&batch.targets) {
            let ids = &batch.ids[segment.clone()];
            let own = data.examples.iter().find(|x| x.ids == ids).unwrap();
            assert_eq!(*target, own.target);
        }
        assert!(audit(&data, small(), 600, 100, 1, false).errors.is_empty());
    }
}

#[test]
fn sst2_loads() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data/sst2");
    if !folder.is_dir() {
        println!("skipped sst2_loads: ../shared is not here");
        return;
    }
    let columns = json!({"text": "0", "label": "1"});
    let settings = json!({"path": "train.tsv", "header": false, "columns": columns, "max_rows": 200, "format": "classification"});
    let settings = DataSettings::from_json("csv", settings).unwrap();
    let data = settings.load_rows(small(), &folder, Rows::Targets).unwrap();
    assert_eq!((data.report.read, data.report.kept), (200, 200));
    assert_eq!(data.examples[0].target, [1.0]);
    assert_eq!(data.examples[1].target, [0.0]);
}

#[test]
fn gsm8k_loads() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data/gsm8k");
    if !folder.is_dir() {
        println!("skipped gsm8k_loads: ../shared is not here");
        return;
    }
    let columns = json!({"prompt": "Question: {question}\nAnswer:", "completion": " {answer}"});
    let settings = json!({"path": "train.jsonl", "columns": columns, "max_rows": 300, "packing": true});
    let data = DataSettings::from_json("jsonl", settings).unwrap().load(small(), &folder).unwrap();
    assert_eq!((data.report.read, data.report.kept, data.report.prefix_differs), (300, 300, 0));
    assert!(audit(&data, small(), 600, 100, 1, false).errors.is_empty());
    assert!(data.examples[0].reference.as_ref().unwrap().completion.ends_with("#### 72"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn any_row_loads_or_is_an_error(rows in prop::collection::vec(crate::source::tests::json_object(), 1..3), packing in any::<bool>(), max_length in 2usize..20) {
        let text: String = rows.iter().map(|r| format!("{r}\n")).collect();
        let settings = json!({"packing": packing, "max_length": max_length, "template": "chatml"});
        if let Ok(data) = load("jsonl", settings, ("a.jsonl", &text)) {
            let batch = Sampler::new(data.into(), 1, 2, 1).batch(0, 0);
            prop_assert!(batch.active_tokens() > 0 || batch.rows > 0);
            prop_assert_eq!(batch.segments.last().unwrap().end, batch.len());
        }
    }
}
