//! `jsonl`: one file of lines for many runs.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::path::Path;

use anyhow::{Context, Result};
use ramekin_core::BadSetting;
use ramekin_registry::{Part, part};
use ramekin_slots::{Track, TrackContext};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

part! { track / "jsonl" => JsonlTrack, "lines like those of `metrics.jsonl`, with the run's name, into a file that runs share",
source = "DESIGN, run folder", traits = [] }

/// Settings of `track = [{ kind = "jsonl", … }]`.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct JsonlSettings {
    /// The file, relative to the recipe; made where it is missing. Must be set.
    pub path: Option<String>,
}

/// The track.
pub struct JsonlTrack {
    path: String,
    run: String,
    file: Option<File>,
}

impl Part for JsonlTrack {
    type Settings = JsonlSettings;

    fn new(s: JsonlSettings) -> Result<Self> {
        let why = "is missing; name a file, as \"../all-runs.jsonl\" (the run folder has its `metrics.jsonl` anyway)";
        let path = s.path.ok_or_else(|| BadSetting::new("path", why))?;
        Ok(JsonlTrack { path, run: String::new(), file: None })
    }
}

/// Takes out what this run told before of the stage's later steps, and of later stages.
fn forget(path: &Path, run: &str, stage: usize, after: u64) -> Result<()> {
    let Ok(text) = std::fs::read_to_string(path) else { return Ok(()) };
    let keep = |line: &&str| {
        let Ok(line) = serde_json::from_str::<Json>(line) else { return true };
        let at = |key: &str| line[key].as_u64().unwrap_or(0);
        let again =
            at("stage") > stage as u64 || at("stage") == stage as u64 && (after == 0 || at("step") > after);
        line["run"] != run || !again
    };
    let kept: String = text.lines().filter(keep).flat_map(|line| [line, "\n"]).collect();
    if kept.len() != text.len() {
        ramekin_store::write_atomic(path, kept.as_bytes())?;
    }
    Ok(())
}

impl Track for JsonlTrack {
    fn begin(&mut self, cx: &TrackContext<'_>) -> Result<()> {
        let path = cx.base_dir.join(&self.path);
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).with_context(|| format!("cannot make `{}`", folder.display()))?;
        }
        cx.run.clone_into(&mut self.run);
        forget(&path, cx.run, cx.stage, cx.after)?;
        let file = OpenOptions::new().create(true).append(true).open(&path);
        self.file = Some(file.with_context(|| format!("cannot open `{}`", path.display()))?);
        Ok(())
    }

    fn line(&mut self, line: &Json) -> Result<()> {
        let Some(file) = &mut self.file else { return Ok(()) };
        let mut named = serde_json::Map::from_iter([("run".to_owned(), Json::from(&*self.run))]);
        named.extend(line.as_object().into_iter().flatten().map(|(k, v)| (k.clone(), v.clone())));
        let mut text = serde_json::to_vec(&named)?;
        text.push(b'\n');
        file.write_all(&text).with_context(|| format!("cannot write `{}`", self.path))
    }
}
