//! The composition matrix: any two parts of different slots, and any two adapters, either train
//! together or are refused by the plan with a sentence that names both. There is no third outcome.
//!
//! `COMPOSITION.md` shows what came out; `RAMEKIN_BLESS=1` writes it anew.

mod draft;
mod table;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{LazyLock, Mutex};

use candle_core::{Device, Tensor};
use draft::{Draft, End, cook};
use ramekin_core::{Draws, Rng};
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
    for (name, first) in [("images", 0), ("held-images", 24)] {
        write_images(&folder.path().join(format!("{name}.safetensors")), 24, first);
    }
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

/// Grey images of 16 by 16 pixels: noise, brighter with the class; most are of the last of 8 classes.
fn write_images(path: &Path, count: usize, first: usize) {
    let class = |i: usize| if i.is_multiple_of(3) { i % 8 } else { 7 };
    let mut pixels = vec![0f32; count * 256];
    Rng::new(1).stream("matrix/images", first as u64).fill_normal(0, 0.5, &mut pixels);
    for (image, i) in pixels.chunks_exact_mut(256).zip(first..) {
        image.iter_mut().for_each(|x| *x += class(i) as f32 / 4.0);
    }
    let classes: Vec<i64> = (first..first + count).map(|i| class(i) as i64).collect();
    let pixels = Tensor::from_vec(pixels, (count, 1, 16, 16), &Device::Cpu).expect("whole images");
    let labels = Tensor::from_vec(classes, count, &Device::Cpu).expect("a class an image");
    let all = [("pixel_values".to_owned(), pixels.into()), ("labels".to_owned(), labels.into())];
    ramekin_store::write_safetensors(path, &all, &[]).expect("a written file");
}

/// Runs every draft with the parts that it is of, on two threads.
fn run(groups: &[(Draft, Vec<&Entry>)]) -> Vec<End> {
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
                    let Some((draft, group)) = groups.get(i) else { return };
                    let (end, recipe) = cook(draft, data.path());
                    // A reducer brings the one model that it can stand on, and what cannot go with that model
                    // cannot go with it.
                    let named = |text: &str, e: &Entry| {
                        text.contains(e.name) || e.slot == Slot::Reducer && text.contains("vit")
                    };
                    let silent = |text: &str| group.iter().find(|e| !named(text, e));
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
    let ends = run(&groups.iter().map(|g| (Draft::of(g), g.clone())).collect::<Vec<_>>());
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

/// Groups of `size` parts that go together in pairs, by a draw that is always the same.
fn drawn(what: &str, size: usize, groups: usize) -> Vec<Vec<&'static Entry>> {
    let mut draws = toy::draws(what, 7);
    let mut found: Vec<Vec<&Entry>> = Vec::new();
    while found.len() < groups {
        let picked: Vec<&Entry> = (0..size).map(|_| &TABLE[draws.below(TABLE.len())]).collect();
        // A refusal names the two that disagree; those are among the pairs.
        let together = pairs_of(&picked).iter().all(|[a, b]| a.slot != b.slot && meet(a, b) && allowed(a, b));
        if together {
            found.push(picked);
        }
    }
    found
}

/// Parts that go together in pairs do so as three.
#[test]
fn triples() {
    let groups = drawn("matrix/triples", 3, 30);
    let ends = run(&groups.iter().map(|g| (Draft::of(g), g.clone())).collect::<Vec<_>>());
    let not = groups.iter().zip(&ends).filter(|(_, e)| **e != End::Works);
    let not: Vec<_> = not.map(|(g, e)| (g.iter().map(|p| p.label()).collect::<Vec<_>>(), e)).collect();
    assert!(not.is_empty(), "three parts that go together in pairs do not as three: {not:?}");
}

/// And as five of five slots, over a whole training instead of three steps.
#[test]
fn five_long_recipes_of_five_slots() {
    let groups = drawn("matrix/fives", 5, 5);
    let long = |g: &Vec<&'static Entry>| (Draft::of(g).long(120), g.clone());
    let ends = run(&groups.iter().map(long).collect::<Vec<_>>());
    let labels: Vec<Vec<String>> = groups.iter().map(|g| g.iter().map(|p| p.label()).collect()).collect();
    assert!(ends.iter().all(|e| *e == End::Works), "{labels:?}: {ends:?}");
}

fn pairs_of<'a>(group: &[&'a Entry]) -> Vec<[&'a Entry; 2]> {
    let pairs = group.iter().enumerate().flat_map(|(i, a)| group[i + 1..].iter().map(move |b| [*a, *b]));
    pairs.collect()
}

/// What the page says of a pair.
fn allowed(a: &Entry, b: &Entry) -> bool {
    static PAGE: LazyLock<String> =
        LazyLock::new(|| std::fs::read_to_string(page_file()).unwrap_or_default());
    let labels = [a.label(), b.label()];
    !PAGE.lines().any(|l| labels.iter().all(|name| l.contains(&format!("`{name}`"))))
}

fn page_file() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../COMPOSITION.md")
}

/// A table of slots against slots: pairs that work, and those that are refused.
fn slots(text: &mut String, found: &BTreeMap<(String, String), &End>) {
    let of = |label: &str| label.split('/').next().unwrap_or_default().to_owned();
    let mut counts: BTreeMap<(String, String), [usize; 2]> = BTreeMap::new();
    for ((a, b), end) in found {
        let (a, b) = (of(a), of(b));
        for key in [(a.clone(), b.clone()), (b.clone(), a.clone())].into_iter().take(1 + usize::from(a != b))
        {
            counts.entry(key).or_default()[usize::from(**end != End::Works)] += 1;
        }
    }
    let names: Vec<String> = Slot::ALL
        .iter()
        .map(|s| s.name().to_owned())
        .filter(|n| counts.keys().any(|(a, _)| a == n))
        .collect();
    let _ = writeln!(text, "| | {} |\n|{}", names.join(" | "), " --- |".repeat(names.len() + 1));
    for a in &names {
        let cell = |b: &String| match counts.get(&(a.clone(), b.clone())) {
            None => String::new(),
            Some([works, 0]) => works.to_string(),
            Some([works, refused]) => format!("{works} −{refused}"),
        };
        let _ = writeln!(text, "| **{a}** | {} |", names.iter().map(cell).collect::<Vec<_>>().join(" | "));
    }
}

fn page(found: &BTreeMap<(String, String), &End>) -> String {
    let mut text = String::from(
        "# What goes with what\n\nEvery pair of parts of different slots, and every two adapters, is tried: three steps \
         train and held rows lose\nless than before, or the plan refuses the two with a sentence that names both (a\nreducer also by the \
         model of images that it stands on). A test makes this page.\n\n",
    );
    let refused = found.iter().filter(|(_, e)| ***e != End::Works).count();
    let _ = writeln!(
        text,
        "{} pairs work together, {refused} are refused.\n\n## By slot\n\nPairs that work; `−n` of them are refused.\n",
        found.len() - refused
    );
    slots(&mut text, found);
    text.push_str("\n## Refused\n\n");
    for ((a, b), end) in found {
        if let End::Refused(why) = end {
            let line = why.lines().next().unwrap_or_default().trim_start_matches("error: ");
            let _ = writeln!(text, "* `{a}` with `{b}`: {line}");
        }
    }
    text
}
