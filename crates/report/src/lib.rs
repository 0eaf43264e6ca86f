//! What a run leaves to look at: metrics, TensorBoard events, progress and the report page.
//!
//! | module | writes |
//! |---|---|
//! | [`metrics`] | `metrics.jsonl`, one object a step, and reads it back |
//! | [`tensorboard`] | `events.out.tfevents.*` |
//! | [`progress`] | a bar on a terminal, plain lines elsewhere, always on standard error |
//! | [`summary`] | `summary.json`: final figures and the hashes of what was made |
//! | [`mod@scatter`] | points as an SVG picture |
//! | [`data`], [`html`] | `report.html`: one file, no network, no script |
//!
//! Nothing here knows a recipe or a model: the engine fills in plain structs.

pub mod chart;
pub mod data;
pub mod html;
pub mod metrics;
pub mod progress;
pub mod scale;
pub mod scatter;
pub mod summary;
mod table;
pub mod tensorboard;

pub use data::{Check, Figure, Outcome, ReportData, Sample, StageData};
pub use html::{render, write_report};
pub use metrics::{EvalLine, Line, Mem, MetricsWriter, StepLine, read_metrics};
pub use progress::{Console, Progress};
pub use scatter::scatter;
pub use summary::{hash_tree, write_summary};
pub use tensorboard::EventWriter;
