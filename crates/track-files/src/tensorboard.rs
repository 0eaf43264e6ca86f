//! `tensorboard`: event files where the runs of a project lie side by side.

use anyhow::{Context, Result};
use ramekin_core::BadSetting;
use ramekin_registry::{Part, part};
use ramekin_report::{EventWriter, Line};
use ramekin_slots::{Track, TrackContext};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use crate::typed;

part! { track / "tensorboard" => TensorboardTrack, "TensorBoard events below a `logdir` in which runs lie side by side",
source = "TensorBoard's event files", traits = [] }

/// Settings of `track = [{ kind = "tensorboard", … }]`.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct TensorboardSettings {
    /// The folder that `tensorboard --logdir` is given, relative to the recipe; the run's events go into a
    /// folder of its name below. Must be set.
    pub logdir: Option<String>,
}

/// The track.
pub struct TensorboardTrack {
    logdir: String,
    events: Option<EventWriter>,
}

impl Part for TensorboardTrack {
    type Settings = TensorboardSettings;

    fn new(s: TensorboardSettings) -> Result<Self> {
        let why = "is missing; name a folder, as \"../tensorboard\" (the run folder has its events anyway)";
        let logdir = s.logdir.ok_or_else(|| BadSetting::new("logdir", why))?;
        Ok(TensorboardTrack { logdir, events: None })
    }
}

impl Track for TensorboardTrack {
    fn begin(&mut self, cx: &TrackContext<'_>) -> Result<()> {
        let folder = cx.base_dir.join(&self.logdir).join(cx.run);
        std::fs::create_dir_all(&folder).with_context(|| format!("cannot make `{}`", folder.display()))?;
        self.events = Some(EventWriter::create(&folder)?);
        Ok(())
    }

    fn line(&mut self, line: &Json) -> Result<()> {
        let Some(events) = &mut self.events else { return Ok(()) };
        match typed(line)? {
            Line::Step(l) => events.step(l.step, &l),
            Line::Eval(l) => events.eval(l.step, &l),
        }
    }
}
