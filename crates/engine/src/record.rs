//! `metrics.jsonl`: one object a step, and what a resumed run keeps of it.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::Value as Json;

/// Appends to a stage's metrics.
pub struct Recorder {
    file: File,
    path: PathBuf,
}

impl Recorder {
    /// Opens the file, keeping of `stage` the lines up to `after` steps (a torn last line goes too).
    pub fn open(path: &Path, stage: &str, after: u64) -> Result<Self> {
        let before = std::fs::read_to_string(path).unwrap_or_default();
        let kept: Vec<&str> = before
            .lines()
            .filter(|line| match serde_json::from_str::<Json>(line) {
                Ok(v) => v["stage"] != stage || v["step"].as_u64().is_some_and(|s| s <= after),
                Err(_) => false,
            })
            .collect();
        let mut text = kept.join("\n");
        if !text.is_empty() {
            text.push('\n');
        }
        ramekin_store::write_atomic(path, text.as_bytes())?;
        let file = OpenOptions::new()
            .append(true)
            .open(path)
            .with_context(|| format!("cannot write `{}`", path.display()))?;
        Ok(Recorder { file, path: path.to_owned() })
    }

    /// Adds one object.
    pub fn line(&mut self, value: &Json) -> Result<()> {
        let mut text = value.to_string();
        text.push('\n');
        self.file.write_all(text.as_bytes()).with_context(|| format!("cannot write `{}`", self.path.display()))
    }
}
