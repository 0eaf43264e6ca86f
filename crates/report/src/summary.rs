//! `summary.json`: the final figures of a run and the hashes of what it made.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use ramekin_store::disk::Sum;
use serde::Serialize;
use serde_json::{Map, Value, json};

/// Sizes and SHA-256 of a file, or of all files below a folder, by their path
/// relative to `root` (with `/`), sorted. Hidden files and `checksums.json` are left out.
///
/// # Errors
/// If something cannot be listed or read.
pub fn hash_tree(root: &Path, path: &Path) -> Result<Map<String, Value>> {
    let mut out = Map::new();
    let mut waiting = vec![path.to_owned()];
    let mut files = Vec::new();
    while let Some(next) = waiting.pop() {
        if next.is_dir() {
            let list = || format!("cannot list `{}`", next.display());
            for entry in next.read_dir().with_context(list)? {
                let entry = entry.with_context(list)?;
                let name = entry.file_name();
                let name = name.to_string_lossy();
                if !name.starts_with('.') && name != "checksums.json" {
                    waiting.push(entry.path());
                }
            }
        } else {
            files.push(next);
        }
    }
    files.sort();
    for file in files {
        let sum = Sum::of_file(&file).with_context(|| format!("cannot read `{}`", file.display()))?;
        let name = file.strip_prefix(root).unwrap_or(&file).to_string_lossy().replace('\\', "/");
        out.insert(name, json!({"bytes": sum.bytes, "sha256": sum.sha256}));
    }
    Ok(out)
}

/// Writes `summary.json` whole: the figures (an object) and, under `artifacts`,
/// size and SHA-256 of each file in `artifacts` (files or folders below `run`
/// by relative path; those that are not there are left out).
///
/// # Errors
/// If an artifact cannot be read or the file not be written.
pub fn write_summary(run: &Path, figures: &impl Serialize, artifacts: &[&str]) -> Result<()> {
    let Value::Object(mut all) = serde_json::to_value(figures)? else {
        anyhow::bail!("the figures of a summary must be an object");
    };
    ensure!(!all.contains_key("artifacts"), "a summary makes its own `artifacts`");
    let mut hashes = Map::new();
    for name in artifacts {
        let path = run.join(name);
        if path.exists() {
            hashes.extend(hash_tree(run, &path)?);
        }
    }
    all.insert("artifacts".into(), Value::Object(hashes));
    let mut text = serde_json::to_vec_pretty(&all)?;
    text.push(b'\n');
    ramekin_store::write_atomic(run.join("summary.json"), &text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_and_hashes() {
        let dir = tempfile::tempdir().unwrap();
        let run = dir.path();
        std::fs::create_dir_all(run.join("adapter/sub")).unwrap();
        std::fs::write(run.join("adapter/b.json"), "abc").unwrap();
        std::fs::write(run.join("adapter/sub/a.bin"), "").unwrap();
        std::fs::write(run.join("adapter/checksums.json"), "{}").unwrap();
        let figures = json!({"loss": 0.5});
        write_summary(run, &figures, &["adapter", "model"]).unwrap();
        let text = std::fs::read_to_string(run.join("summary.json")).unwrap();
        let value: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["loss"], json!(0.5));
        let names: Vec<_> = value["artifacts"].as_object().unwrap().keys().collect();
        assert_eq!(names, ["adapter/b.json", "adapter/sub/a.bin"]);
        assert_eq!(
            value["artifacts"]["adapter/b.json"],
            json!({"bytes": 3, "sha256": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"})
        );
        assert!(write_summary(run, &json!({"artifacts": 1}), &[]).is_err());
    }
}
