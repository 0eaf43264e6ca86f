//! `html`: a report page to look at while a stage trains.

use std::path::PathBuf;

use anyhow::{Context, Result};
use ramekin_core::BadSetting;
use ramekin_registry::{Part, part};
use ramekin_report::{Line, Outcome, ReportData, StageData, read_metrics, write_report};
use ramekin_slots::{Track, TrackContext};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use crate::typed;

part! { track / "html" => HtmlTrack, "a report page that is renewed while the stage trains",
source = "DESIGN, run folder", traits = [] }

/// Settings of `track = [{ kind = "html", … }]`.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct HtmlSettings {
    /// The page, relative to the recipe. Default: `live.html` in the run folder.
    pub path: Option<String>,
    /// Steps between two renewals, at least 1.
    #[schemars(range(min = 1))]
    pub every: u64,
}

impl Default for HtmlSettings {
    fn default() -> Self {
        HtmlSettings { path: None, every: 50 }
    }
}

/// The track.
pub struct HtmlTrack {
    settings: HtmlSettings,
    page: PathBuf,
    data: ReportData,
    began: std::time::Instant,
}

impl Part for HtmlTrack {
    type Settings = HtmlSettings;

    fn new(settings: HtmlSettings) -> Result<Self> {
        if settings.every == 0 {
            return Err(BadSetting::new("every", "is 0; it must be at least 1").into());
        }
        let data = ReportData { outcome: Outcome::Running, ..ReportData::default() };
        Ok(HtmlTrack { settings, page: PathBuf::new(), data, began: std::time::Instant::now() })
    }
}

impl HtmlTrack {
    fn take(&mut self, line: Line) {
        let stages = &mut self.data.stages;
        while stages.len() <= line.at().0 {
            stages.push(StageData { kind: "train".to_owned(), ..StageData::default() });
        }
        let stage = &mut stages[line.at().0];
        match line {
            Line::Step(l) => stage.steps.push(l),
            Line::Eval(l) => stage.evals.push(l),
        }
    }

    fn write(&mut self) -> Result<()> {
        self.data.seconds = self.began.elapsed().as_secs_f64();
        write_report(&self.page, &self.data)
    }
}

impl Track for HtmlTrack {
    fn begin(&mut self, cx: &TrackContext<'_>) -> Result<()> {
        self.page = match &self.settings.path {
            Some(path) => cx.base_dir.join(path),
            None => cx.out.join("live.html"),
        };
        if let Some(folder) = self.page.parent() {
            std::fs::create_dir_all(folder).with_context(|| format!("cannot make `{}`", folder.display()))?;
        }
        self.data.outcome = Outcome::Running;
        self.data.name = cx.run.to_owned();
        self.data.recipe = cx.recipe.to_owned();
        for line in read_metrics(cx.out.join("metrics.jsonl"))? {
            self.take(line); // of stages before, and of this one before it was interrupted
        }
        self.write()
    }

    fn line(&mut self, line: &Json) -> Result<()> {
        let line = typed(line)?;
        let now = line.at().1.is_multiple_of(self.settings.every) || matches!(line, Line::Eval(_));
        self.take(line);
        if now { self.write() } else { Ok(()) }
    }

    fn end(&mut self) -> Result<()> {
        self.data.outcome = Outcome::Done; // until a stage behind begins
        self.write()
    }
}
