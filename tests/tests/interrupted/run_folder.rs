//! What lies in a run folder, as far as it must not depend on interruptions.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use ramekin_tests::kitchen::json;
use ramekin_tests::sha256;
use serde_json::Value as Json;

/// What a finished run leaves, without times and memory.
pub struct Left {
    /// Files by name with their SHA-256, those alone that say nothing of time.
    files: BTreeMap<String, String>,
    /// Every line of `metrics.jsonl`.
    metrics: Vec<Json>,
    /// The figures of each stage and the hashes.
    summary: Json,
}

/// Figures that differ from run to run.
const OF_TIME: [&str; 10] = [
    "tokens_per_s",
    "prefill_tokens_per_s",
    "decode_tokens_per_s",
    "seconds",
    "peak_rss",
    "rss_before",
    "measured",
    "measured_peak",
    "mem",
    "peak_rss_growth",
];

impl Left {
    /// Reads a finished run's folder; fails if it lacks what every run leaves.
    #[track_caller]
    pub fn in_folder(out: &Path) -> Left {
        let text = std::fs::read_to_string(out.join("metrics.jsonl")).unwrap_or_default();
        let line = |text: &str| {
            let mut line: Json = serde_json::from_str(text).expect("a line of metrics");
            strip(&mut line);
            line
        };
        let mut summary = json(&out.join("summary.json"));
        strip(&mut summary);
        let page = std::fs::read_to_string(out.join("report.html")).expect("a report page");
        assert!(page.trim_end().ends_with("</html>"), "the report page is cut off");
        let told = ["metrics.jsonl", "summary.json", "report.html", "state.json"];
        let timeless = |name: &String| {
            let file = name.rsplit('/').next().unwrap_or(name);
            !told.contains(&file) && !file.starts_with("events.out.") && file != "certificate.json"
        };
        Left {
            files: files(out).into_iter().filter(|(name, _)| timeless(name)).collect(),
            metrics: text.lines().map(line).collect(),
            summary,
        }
    }

    /// Fails where this differs from a run that nobody disturbed.
    #[track_caller]
    pub fn same_as(&self, undisturbed: &Left, what: &str) {
        let steps = |left: &Left| {
            let at = |l: &Json| (l["stage"].as_u64(), l["step"].as_u64(), l.get("eval").is_some());
            left.metrics.iter().map(at).collect::<Vec<_>>()
        };
        assert_eq!(steps(self), steps(undisturbed), "{what}: steps and evaluations, each once");
        assert_eq!(self.metrics, undisturbed.metrics, "{what}: metrics");
        assert_eq!(self.files, undisturbed.files, "{what}: files");
        assert_eq!(self.summary, undisturbed.summary, "{what}: summary");
    }

    /// Number of files compared by their bytes.
    pub fn files(&self) -> &BTreeMap<String, String> {
        &self.files
    }

    /// Lines of `metrics.jsonl`.
    pub fn metrics(&self) -> &[Json] {
        &self.metrics
    }
}

fn strip(value: &mut Json) {
    match value {
        Json::Object(map) => {
            map.retain(|key, _| !OF_TIME.contains(&key.as_str()));
            map.values_mut().for_each(strip);
        }
        Json::Array(list) => list.iter_mut().for_each(strip),
        _ => {}
    }
}

/// Every file below a folder with its SHA-256, by its path in it.
pub fn files(folder: &Path) -> BTreeMap<String, String> {
    let name = |path: &PathBuf| path.strip_prefix(folder).expect("inside").display().to_string();
    paths(folder).iter().filter(|p| p.is_file()).map(|p| (name(p), sha256(p))).collect()
}

/// Half-written leftovers below a folder.
pub fn leftovers(folder: &Path) -> Vec<String> {
    let hidden = |p: &PathBuf| p.file_name().is_some_and(|n| n.to_string_lossy().starts_with('.'));
    paths(folder).iter().filter(|p| hidden(p)).map(|p| p.display().to_string()).collect()
}

/// Every file and folder below a folder.
fn paths(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let Ok(entries) = std::fs::read_dir(folder) else { return found };
    for entry in entries.flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(paths(&path));
        }
        found.push(path);
    }
    found
}

/// Copies a folder with all that is in it.
pub fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("a folder");
    for entry in std::fs::read_dir(from).expect("a folder") {
        let entry = entry.expect("an entry");
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).expect("a copy");
        }
    }
}

/// The checkpoints that stand in a run folder, oldest first.
pub fn checkpoints(out: &Path) -> Vec<(u64, PathBuf)> {
    let Ok(entries) = std::fs::read_dir(out.join("checkpoints")) else { return Vec::new() };
    let step = |p: &Path| p.file_name()?.to_str()?.strip_prefix("checkpoint-")?.parse().ok();
    let mut all: Vec<(u64, PathBuf)> =
        entries.flatten().filter_map(|e| Some((step(&e.path())?, e.path()))).collect();
    all.sort();
    all
}
