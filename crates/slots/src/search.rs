//! Searches: which recipe to try next.

use anyhow::Result;
use ramekin_core::Rng;
use serde_json::Value as Json;

/// The values that one key of a recipe may take.
#[derive(Clone, Debug, PartialEq)]
pub enum Axis {
    /// One of these.
    Values(Vec<Json>),
    /// Any number from `min` to `max`.
    Range {
        /// The smallest.
        min: f64,
        /// The largest.
        max: f64,
        /// Spread evenly by logarithm.
        log: bool,
        /// Whole numbers only.
        integer: bool,
    },
}

impl Axis {
    /// The number at `share` (0 to 1) of the way along a range; the value there of a list.
    pub fn at(&self, share: f64) -> Json {
        match self {
            Axis::Values(all) => {
                let i = (share * all.len() as f64) as usize;
                all.get(i.min(all.len().saturating_sub(1))).cloned().unwrap_or(Json::Null)
            }
            Axis::Range { min, max, log, integer } => {
                let x = if *log {
                    (min.ln() + share * (max.ln() - min.ln())).exp()
                } else {
                    min + share * (max - min)
                };
                let x = x.clamp(*min, *max);
                if *integer { Json::from(x.round() as i64) } else { Json::from(x) }
            }
        }
    }
}

/// A recipe's keys with the values each may take.
pub type Space = Vec<(String, Axis)>;

/// A recipe that has been tried: its values, in the space's order, and what came of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Trial {
    /// One value for each key.
    pub values: Vec<Json>,
    /// The figure that is made better, smaller always being better here; `None` where the trial failed.
    pub score: Option<f64>,
}

/// Chooses the values of the next trial.
pub trait Search {
    /// Values for each key of the space, or `None` when there is nothing left to try. A pure function of
    /// what is done, so that a search goes on after an interruption as if there had been none.
    ///
    /// # Errors
    /// [`ramekin_core::BadSetting`] if this search cannot handle the space.
    fn next(&self, space: &Space, done: &[Trial], rng: Rng) -> Result<Option<Vec<Json>>>;
    /// How many trials there will be at most.
    fn trials(&self, space: &Space) -> Result<usize>;
}
