//! Tracks: where a training stage's figures go besides its run folder.

use std::path::Path;

use anyhow::Result;
use serde_json::Value as Json;

/// The run that is tracked.
pub struct TrackContext<'a> {
    /// The recipe's name.
    pub run: &'a str,
    /// Number of the stage.
    pub stage: usize,
    /// The run folder, whose `metrics.jsonl` has every line up to here.
    pub out: &'a Path,
    /// Folder that relative paths start from.
    pub base_dir: &'a Path,
    /// The resolved recipe, as TOML.
    pub recipe: &'a str,
    /// Updates done before; above 0 where a run is resumed, which may have told of later ones.
    pub after: u64,
}

/// Is told each figure as it comes. An error ends the tracking, never the training.
pub trait Track {
    /// Before the first line of a stage.
    fn begin(&mut self, cx: &TrackContext<'_>) -> Result<()>;
    /// A line of `metrics.jsonl`: a step, or an evaluation where it has `eval`.
    fn line(&mut self, line: &Json) -> Result<()>;
    /// After the last line of a stage.
    fn end(&mut self) -> Result<()> {
        Ok(())
    }
}
