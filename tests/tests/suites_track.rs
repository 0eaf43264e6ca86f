//! What every track must do, for every registered one: a part without a line in [`table`] fails.
//!
//! * each line of `metrics.jsonl` arrives, once, in order, also where a run is resumed
//! * what cannot be made is said with the track's name

use std::path::Path;
use std::time::{Duration, Instant};

use ramekin_registry::{Slot, complete};
use ramekin_tests::Kitchen;
use serde_json::{Value as Json, json};

/// A track, its settings, and how many steps and evaluations of the run `tracked` it knows of.
type Line = (&'static str, Json, fn(&Path) -> Vec<(u64, bool)>);

fn table() -> Vec<Line> {
    vec![
        ("jsonl", json!({ "path": "shared/all.jsonl" }), |folder| {
            lines(&folder.join("shared/all.jsonl")).iter().filter(|l| l["run"] == "tracked").map(at).collect()
        }),
        ("tensorboard", json!({ "logdir": "shared/tb" }), |folder| {
            // Each file holds scalars by step; a resumed run begins a new one and tells no step twice.
            let mut all = Vec::new();
            for file in std::fs::read_dir(folder.join("shared/tb/tracked")).expect("a folder").flatten() {
                all.extend(scalars(&std::fs::read(file.path()).expect("events")));
            }
            all.sort_unstable();
            all
        }),
        ("html", json!({ "path": "shared/live.html", "every": 2 }), |folder| {
            let page = std::fs::read_to_string(folder.join("shared/live.html")).expect("a page");
            assert!(page.contains("tracked") && page.contains("<svg"), "a page with its chart");
            Vec::new()
        }),
    ]
}

fn lines(file: &Path) -> Vec<Json> {
    let text = std::fs::read_to_string(file).expect("a file of lines");
    text.lines().map(|l| serde_json::from_str(l).expect("a line")).collect()
}

fn at(line: &Json) -> (u64, bool) {
    (line["step"].as_u64().expect("a step"), line["eval"].is_object())
}

/// Steps at which an event file has `train/loss` (false) or `eval/loss` (true): length, crc, event, crc.
fn scalars(bytes: &[u8]) -> Vec<(u64, bool)> {
    let (mut found, mut i) = (Vec::new(), 0);
    while i < bytes.len() {
        let n = u64::from_le_bytes(bytes[i..i + 8].try_into().expect("a length")) as usize;
        let event = &bytes[i + 12..i + 12 + n];
        let has = |tag: &str| event.windows(tag.len()).any(|w| w == tag.as_bytes());
        // Field 2 of an event is its step, behind the nine bytes of the wall time.
        let step = if event.get(9) == Some(&0x10) { u64::from(event[10]) } else { 0 };
        if has("train/loss") || has("eval/loss") {
            found.push((step, has("eval/loss")));
        }
        i += 16 + n;
    }
    found
}

fn recipe(tracks: &str, steps: u64) -> String {
    format!(
        "name = \"tracked\"\nseed = 3\nmodel = {{ source = \"builtin:tiny\" }}\n\n[[stage]]\nkind = \"train\"\n\
         adapter = [{{ kind = \"lora\", r = 2, lora_alpha = 4, target_modules = [\"q_proj\"] }}]\n\
         data = {{ kind = \"builtin\", name = \"records\", rows = 40, max_length = 64 }}\n\
         eval = {{ every = 2, data = {{ kind = \"builtin\", name = \"records\", rows = 2, held_out = true, max_length = 64 }}, metrics = [\"loss\"] }}\n\
         batch = {{ micro_batch_size = 1 }}\ncheckpoint = {{ every = 1, keep = 2 }}\nsteps = {steps}\ntrack = [{tracks}]\n"
    )
}

fn tracks() -> String {
    let one = |(kind, settings, _): &Line| {
        let keys = settings.as_object().expect("a table").iter().map(|(k, v)| format!(", {k} = {v}"));
        format!("{{ kind = \"{kind}\"{} }}", keys.collect::<String>())
    };
    table().iter().map(one).collect::<Vec<_>>().join(", ")
}

#[test]
fn every_track_is_in_the_table() {
    ramekin_catalog::link();
    for name in ramekin_registry::names(Slot::Track) {
        let line = table().into_iter().find(|l| l.0 == name);
        let (_, settings, _) = line.unwrap_or_else(|| panic!("`{name}` has no line in this suite's table"));
        let mut full = complete(Slot::Track, name, settings).expect("settings");
        assert!(ramekin_registry::build(Slot::Track, name, full.clone()).is_ok(), "{name}");
        full["no_such_setting"] = json!(1);
        let said = ramekin_registry::build(Slot::Track, name, full).err().map(|e| format!("{e:#}"));
        assert!(said.is_some_and(|s| s.contains("no_such_setting")), "{name}");
    }
}

#[test]
fn every_line_arrives_once() {
    let kitchen = Kitchen::new(&recipe(&tracks(), 6));
    std::fs::create_dir(kitchen.folder().join("shared")).expect("a folder");
    let other = "{\"run\":\"another\",\"stage\":0,\"step\":1}\n";
    std::fs::write(kitchen.folder().join("shared/all.jsonl"), other).expect("another run's line");
    kitchen.run(&[]).expect(0);
    let told: Vec<(u64, bool)> = lines(&kitchen.out("metrics.jsonl")).iter().map(at).collect();
    assert!(told.len() >= 9, "{told:?}");
    for (kind, _, known) in table() {
        let mut found = known(kitchen.folder());
        if kind == "html" {
            continue;
        }
        let mut wanted = told.clone();
        if kind == "tensorboard" {
            wanted.sort_unstable();
            found.sort_unstable();
        }
        assert_eq!(found, wanted, "{kind}");
    }
    let shared = lines(&kitchen.folder().join("shared/all.jsonl"));
    assert_eq!(shared[0]["run"], "another", "the file's other runs stay");
}

/// A run that is killed and resumed tells its lines to the shared file once.
#[test]
fn a_resumed_run_tells_nothing_twice() {
    let kitchen = Kitchen::new(&recipe(&tracks(), 60));
    let out = kitchen.out("");
    let mut child = kitchen.start(&out, &[]);
    let began = Instant::now();
    while lines_so_far(&kitchen) < 12 && began.elapsed() < Duration::from_secs(60) {
        std::thread::sleep(Duration::from_millis(10));
    }
    child.kill().expect("a kill");
    child.wait().expect("an end");
    kitchen.run(&["--resume"]).expect(0);
    let told: Vec<(u64, bool)> = lines(&kitchen.out("metrics.jsonl")).iter().map(at).collect();
    let found = (table()[0].2)(kitchen.folder());
    assert_eq!(found, told);
}

fn lines_so_far(kitchen: &Kitchen) -> usize {
    std::fs::read_to_string(kitchen.out("metrics.jsonl")).map_or(0, |text| text.lines().count())
}

#[test]
fn a_track_that_cannot_begin_says_which_it_is() {
    let kitchen = Kitchen::new(&recipe("{ kind = \"html\", path = \"page.html\" }", 4));
    std::fs::create_dir(kitchen.folder().join("page.html")).expect("a folder in the page's place");
    let ended = kitchen.run(&[]);
    assert_eq!(ended.code, Some(1), "{}", ended.stderr);
    assert!(ended.stderr.contains("track/html") && ended.stderr.contains("page.html"), "{}", ended.stderr);
}
