//! The hub's cache on disk: `models--ORG--NAME/{blobs,refs,snapshots}`.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// The folder of a model in the cache.
pub fn model_dir(cache: &Path, repo: &str) -> PathBuf {
    cache.join(format!("models--{}", repo.replace('/', "--")))
}

/// The snapshot folder of a branch, tag or commit, if the cache has one.
pub fn snapshot(cache: &Path, repo: &str, revision: &str) -> Option<PathBuf> {
    let dir = model_dir(cache, repo);
    let named = fs::read_to_string(dir.join("refs").join(revision)).ok();
    let commit = named.as_deref().map_or(revision, str::trim);
    // A commit is one plain name; anything else would lead out of the cache.
    let plain = !commit.is_empty() && commit.bytes().all(|b| b.is_ascii_alphanumeric());
    let folder = dir.join("snapshots").join(commit);
    (plain && folder.is_dir()).then_some(folder)
}

/// What a snapshot lacks before a model can be loaded from it; empty if nothing.
/// A dangling link counts as lacking.
pub fn lacking(folder: &Path) -> Vec<String> {
    let there = |name: &str| folder.join(name).is_file();
    let mut lacks = Vec::new();
    if !there("config.json") && !there("adapter_config.json") {
        lacks.push("config.json".to_owned());
    }
    if there("model.safetensors") {
        return lacks;
    }
    let index = "model.safetensors.index.json";
    if there(index) {
        match shards(&folder.join(index)) {
            Some(shards) => lacks.extend(shards.into_iter().filter(|s| !there(s))),
            None => lacks.push(index.to_owned()),
        }
    } else if !files(folder).iter().any(|f| f.ends_with(".safetensors") && there(f)) {
        lacks.push("model.safetensors".to_owned());
    }
    lacks
}

/// The file names in an index's weight map; `None` if it cannot be understood.
fn shards(index: &Path) -> Option<BTreeSet<String>> {
    let json: serde_json::Value = serde_json::from_slice(&fs::read(index).ok()?).ok()?;
    let map = json.get("weight_map")?.as_object()?;
    map.values().map(|file| file.as_str().map(str::to_owned)).collect()
}

fn files(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter_map(|e| e.file_name().into_string().ok()).collect()
}

/// The models that the cache holds, as `ORG/NAME`, sorted.
pub fn models(cache: &Path) -> Vec<String> {
    let mut all: Vec<String> = files(cache)
        .into_iter()
        .filter_map(|name| Some(name.strip_prefix("models--")?.replacen("--", "/", 1)))
        .collect();
    all.sort();
    all
}
