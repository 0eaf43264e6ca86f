//! What the house promises of its parts: described whole, written down, and small.

use std::path::{Path, PathBuf};
use std::process::Command;

use ramekin_registry::{describe, parts};
use ramekin_tests::kitchen::{binary, finish};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Every part says what it is for and where it comes from, every setting its type and meaning.
#[test]
fn every_part_and_setting_is_described() {
    ramekin_catalog::link();
    for part in parts().into_iter().map(describe) {
        let name = format!("{}/{}", part.slot, part.name);
        assert!(part.summary.len() > 10, "{name} does not say what it is for");
        assert!(part.source.len() > 3, "{name} does not say where it comes from");
        for setting in &part.settings {
            let text = |key: &str| setting[key].as_str().unwrap_or_default().to_owned();
            assert!(text("description").len() > 10, "{name}: `{}` is not described", text("name"));
            assert!(!["", "any"].contains(&&*text("type")), "{name}: `{}` has no type", text("name"));
        }
    }
}

/// `PARTS.md` is what `parts --markdown` prints; `RAMEKIN_BLESS=1` writes it.
#[test]
fn the_reference_is_current() {
    let mut command = Command::new(binary());
    command.args(["parts", "--markdown"]);
    let printed = finish(command);
    printed.expect(0);
    let file = root().join("PARTS.md");
    if std::env::var_os("RAMEKIN_BLESS").is_some() {
        std::fs::write(&file, &printed.stdout).expect("a written reference");
    }
    let written = std::fs::read_to_string(&file).unwrap_or_default();
    assert!(written == printed.stdout, "PARTS.md is not current: RAMEKIN_BLESS=1 writes it");
}

/// Lines of a source with its docs, up to its tests.
fn lines(text: &str) -> usize {
    text.lines().take_while(|l| !l.starts_with("#[cfg(test)]")).count()
}

/// Half of all methods take fewer than 250 lines, docs included: the file that registers one, and also
/// a family's whole crate shared out among its methods.
#[test]
fn a_method_is_small() {
    let (mut files, mut shares) = (Vec::new(), Vec::new());
    for family in std::fs::read_dir(root().join("crates")).expect("crates").flatten() {
        let (mut whole, mut methods) = (0, 0);
        let mut folders = vec![family.path().join("src")];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
                let path = entry.path();
                let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
                if path.is_dir() {
                    folders.push(path);
                } else if path.extension().is_some_and(|e| e == "rs") && !stem.ends_with("tests") {
                    let text = std::fs::read_to_string(&path).expect("a source");
                    let here = text.lines().filter(|l| l.trim_start().starts_with("part! {")).count();
                    whole += lines(&text);
                    methods += here;
                    files.extend(std::iter::repeat_n(lines(&text), here));
                }
            }
        }
        shares.extend(std::iter::repeat_n(whole / methods.max(1), methods));
    }
    for all in [&mut files, &mut shares] {
        all.sort_unstable();
        assert!(all.len() > 60, "{} methods", all.len());
        assert!(all[all.len() / 2] < 250, "half of all methods take {} lines or more", all[all.len() / 2]);
    }
}
