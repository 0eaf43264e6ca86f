//! Figures into files besides the run folder's own, while a stage trains.
//!
//! | kind | writes |
//! |---|---|
//! | `jsonl` | lines like those of `metrics.jsonl` into one file that many runs may share |
//! | `tensorboard` | event files in a folder of the run's name below a `logdir` that many runs share |
//! | `html` | a report page that is renewed while the stage trains |

mod html;
mod jsonl;
mod tensorboard;

use anyhow::Result;
use ramekin_report::{EvalLine, Line, StepLine};
use serde_json::Value as Json;

pub use html::{HtmlSettings, HtmlTrack};
pub use jsonl::{JsonlSettings, JsonlTrack};
pub use tensorboard::{TensorboardSettings, TensorboardTrack};

/// A line as the report's types.
fn typed(line: &Json) -> Result<Line> {
    Ok(match line.get("eval") {
        Some(_) => Line::Eval(serde_json::from_value::<EvalLine>(line.clone())?),
        None => Line::Step(serde_json::from_value::<StepLine>(line.clone())?),
    })
}
