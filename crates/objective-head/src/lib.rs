//! Objectives with a head of their own on the last token of each sequence.
//!
//! | kind | rows | loss |
//! |---|---|---|
//! | `classification` | `text`, `label` | cross-entropy of a class, or of each of several |
//! | `regression` | `text`, `label` | mean squared error |
//! | `reward` | `chosen`, `rejected` | −log σ(r_c − r_r) of Bradley and Terry |
//!
//! The head is transformers' `score`: a linear without bias, beside the model's own head, which plays no
//! part. It trains, and lies in files where transformers and PEFT look for it.

mod classification;
mod regression;
mod reward;
mod score;

pub use classification::{Classification, ClassificationSettings, ProblemType};
pub use regression::{Regression, RegressionSettings};
pub use reward::{Reward, RewardSettings};

/// log σ(x), for any x.
fn log_sigmoid(x: f64) -> f64 {
    x.min(0.0) - (-x.abs()).exp().ln_1p()
}

/// σ(x).
fn sigmoid(x: f64) -> f64 {
    log_sigmoid(x).exp()
}
