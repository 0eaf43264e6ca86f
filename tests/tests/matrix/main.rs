//! The composition matrix: any two parts of different slots, and any two adapters, either train
//! together or are refused by the plan with a sentence that names both. There is no third outcome.
//!
//! `COMPOSITION.md` shows what came out; `RAMEKIN_BLESS=1` writes it anew.

mod draft;
mod table;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use draft::{Draft, End, cook};
use ramekin_core::Draws;
use ramekin_registry::{Slot, parts};
use ramekin_tests::toy;
use table::{Entry, TABLE};

/// Rows that a few steps get better at, and prompts.
fn data() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    let mut draws = toy::draws("matrix/rows", 1);
    let rows = |count: usize, length: usize, draws: &mut Draws| -> Vec<Vec<u32>> {
        let row = |_| {
            let first = draws.below(20) as u32;
            (0..length as u32).map(|i| 3 + (first + i) % 20).collect()
        };
        (0..count).map(row).collect()
    };
    ramekin_tests::write_ids(&folder.path().join("train.safetensors"), &rows(4, 24, &mut draws));
    ramekin_tests::write_ids(&folder.path().join("held.safetensors"), &rows(4, 24, &mut draws));
    ramekin_tests::write_ids(&folder.path().join("prompt.safetensors"), &rows(2, 10, &mut draws));
    let pairs: Vec<(String, String)> =
        (0..16).map(|i| (format!("{i} and {i} are"), format!(" {}", 2 * i))).collect();
    let object = |(p, c): &(String, String)| serde_json::json!({ "prompt": p, "completion": c });
    let lines: Vec<String> = pairs.iter().map(|p| object(p).to_string()).collect();
    let write = |name: &str, text: String| std::fs::write(folder.path().join(name), text).expect("a file");
    write("rows.jsonl", lines.join("\n"));
    write("rows.json", format!("[{}]", lines.join(",")));
    let csv: Vec<String> = pairs.iter().map(|(p, c)| format!("\"{p}\",\"{c}\"")).collect();
    write("rows.csv", format!("prompt,completion\n{}", csv.join("\n")));
    write("chars.txt", (' '..='~').chain(['\n']).collect());
    write("rows.txt", "The cat has 4 red apples. The dog has 2 blue stamps.\n".repeat(40));
    for entry in TABLE.iter().filter(|e| e.slot == Slot::Model) {
        draft::saved(folder.path(), &format!("saved-{}", entry.name), entry.name, entry.settings, 2);
    }
    let teacher = TABLE.iter().find(|e| e.slot == Slot::Model).expect("a model");
    draft::saved(folder.path(), "teacher", teacher.name, teacher.settings, 30);
    folder
}

/// Runs every group of parts, on two threads.
fn run(groups: &[Vec<&Entry>]) -> Vec<End> {
    ramekin_catalog::link();
    let data = data();
    let next = AtomicUsize::new(0);
    let ends = Mutex::new(vec![End::Works; groups.len()]);
    let faults = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let i = next.fetch_add(1, Ordering::Relaxed);
                    let Some(group) = groups.get(i) else { return };
                    let (end, recipe) = cook(&Draft::of(group), data.path());
                    let silent = |text: &str| group.iter().find(|e| !text.contains(e.name));
                    let fault = match &end {
                        End::Works => None,
                        End::Refused(text) => {
                            silent(text).map(|e| format!("the refusal does not name `{}`:\n{text}", e.name))
                        }
                        End::Neither(text) => Some(text.clone()),
                    };
                    if let Some(fault) = fault {
                        let names: Vec<String> = group.iter().map(|e| e.label()).collect();
                        faults
                            .lock()
                            .expect("the list")
                            .push(format!("{}: {fault}\n{recipe}", names.join(" + ")));
                    }
                    ends.lock().expect("the list")[i] = end;
                }
            });
        }
    });
    let faults = faults.into_inner().expect("the list");
    assert!(
        faults.is_empty(),
        "{} of {} went neither way:\n\n{}",
        faults.len(),
        groups.len(),
        faults.join("\n\n")
    );
    ends.into_inner().expect("the list")
}

/// Nobody registers a part without being in the table.
#[test]
fn every_part_is_in_the_table() {
    ramekin_catalog::link();
    let known: Vec<String> = TABLE.iter().map(Entry::label).collect();
    let missing: Vec<String> = parts()
        .iter()
        .map(|p| format!("{}/{}", p.slot.name(), p.name))
        .filter(|p| !known.contains(p))
        .collect();
    assert!(missing.is_empty(), "not in the composition table: {}", missing.join(", "));
}

fn meet(a: &Entry, b: &Entry) -> bool {
    // A search stands around whole recipes and meets no part; what it tries is tested where it is.
    if [a.slot, b.slot].contains(&Slot::Search) {
        return false;
    }
    a.slot != b.slot || a.slot == Slot::Adapter && a.name != b.name
}

/// Every pair works or is refused; what came out is what `COMPOSITION.md` says.
#[test]
fn pairs() {
    let mut groups = Vec::new();
    for (i, a) in TABLE.iter().enumerate() {
        groups.extend(TABLE[i + 1..].iter().filter(|b| meet(a, b)).map(|b| vec![a, b]));
    }
    let ends = run(&groups);
    let found: BTreeMap<(String, String), &End> =
        groups.iter().zip(&ends).map(|(g, e)| ((g[0].label(), g[1].label()), e)).collect();
    let page = page(&found);
    let file = page_file();
    if std::env::var_os("RAMEKIN_BLESS").is_some() {
        std::fs::write(&file, &page).expect("a written page");
    }
    let written = std::fs::read_to_string(&file).unwrap_or_default();
    assert!(written == page, "`COMPOSITION.md` is not what came out; RAMEKIN_BLESS=1 writes it anew");
}

/// Threes by a draw that is always the same.
#[test]
fn triples() {
    let mut draws = toy::draws("matrix/triples", 7);
    let mut groups: Vec<Vec<&Entry>> = Vec::new();
    while groups.len() < 30 {
        let picked: Vec<&Entry> = (0..3).map(|_| &TABLE[draws.below(TABLE.len())]).collect();
        if meet(picked[0], picked[1]) && meet(picked[1], picked[2]) && meet(picked[0], picked[2]) {
            groups.push(picked);
        }
    }
    // A refusal names the two that disagree, so pairs of a refused triple are looked at instead.
    let (works, refused): (Vec<_>, Vec<_>) =
        groups.into_iter().partition(|g| pairs_of(g).iter().all(allowed));
    assert!(works.len() >= 15, "only {} of the triples are of pairs that go together", works.len());
    drop(refused);
    let ends = run(&works);
    assert!(
        ends.iter().all(|e| *e == End::Works),
        "three parts that go together in pairs do not as three: {ends:?}"
    );
}

fn pairs_of<'a>(group: &[&'a Entry]) -> Vec<[&'a Entry; 2]> {
    vec![[group[0], group[1]], [group[0], group[2]], [group[1], group[2]]]
}

/// What the page says of a pair.
fn allowed(pair: &[&Entry; 2]) -> bool {
    let page = std::fs::read_to_string(page_file()).unwrap_or_default();
    let labels = pair.map(Entry::label);
    !page.lines().any(|l| labels.iter().all(|name| l.contains(&format!("`{name}`"))))
}

fn page_file() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../COMPOSITION.md")
}

fn page(found: &BTreeMap<(String, String), &End>) -> String {
    let mut text = String::from(
        "# What goes with what\n\nEvery pair of parts of different slots, and every two adapters, is tried: three steps \
         train and held rows lose\nless than before, or the plan refuses the two with a sentence that names both. A test \
         makes this page.\n\n",
    );
    let refused = found.iter().filter(|(_, e)| ***e != End::Works).count();
    let _ = writeln!(
        text,
        "{} pairs work together, {refused} are refused.\n\n## Refused\n",
        found.len() - refused
    );
    for ((a, b), end) in found {
        if let End::Refused(why) = end {
            let line = why.lines().next().unwrap_or_default().trim_start_matches("error: ");
            let _ = writeln!(text, "* `{a}` with `{b}`: {line}");
        }
    }
    text
}
