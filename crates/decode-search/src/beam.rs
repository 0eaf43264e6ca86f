//! Beam search.
//!
//! score(y) = Σ log p(y_t | y_<t) / |y|^length_penalty          |y| new tokens, the end included
//!
//! Source: transformers' `generate` with `num_beams`; the rules of a step are in [`crate::hypotheses`].

use anyhow::Result;
use ramekin_core::BadSetting;
use ramekin_kernels::sampling::log_softmax;
use ramekin_registry::{Part, part};
use ramekin_slots::{Decoder, Session};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::hypotheses::{Rules, Search, Stop};

part! { decode / "beam" => Beam, "the most probable of several continuations that are kept side by side",
source = "transformers beam search", traits = [] }

/// When a search is over though beams still run.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(untagged, expecting = "expected true, false or \"never\"")]
pub enum EarlyStopping {
    /// `true`: as soon as `num_beams` have finished; `false`: when none that runs beats them as it is now.
    When(bool),
    /// `"never"`: when none that runs could beat them at any length.
    Word(Never),
}

/// The word `never`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Never {
    /// Only when no running beam could win at any length.
    Never,
}

/// Settings of `decode = { kind = "beam", … }`.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct BeamSettings {
    /// Continuations kept side by side; the cache holds as many sequences for each prompt.
    pub num_beams: usize,
    /// Exponent of the length that sums are divided by: above 0 favours long texts, below 0 short ones.
    pub length_penalty: f64,
    /// `true`, `false` or `"never"`: when a search is over.
    pub early_stopping: EarlyStopping,
}

impl Default for BeamSettings {
    fn default() -> Self {
        BeamSettings { num_beams: 4, length_penalty: 1.0, early_stopping: EarlyStopping::When(false) }
    }
}

/// The decoder.
pub struct Beam(BeamSettings);

impl Part for Beam {
    type Settings = BeamSettings;

    fn new(s: BeamSettings) -> Result<Self> {
        if s.num_beams == 0 {
            return Err(BadSetting::new("num_beams", "is 0; it must be at least 1").into());
        }
        if !s.length_penalty.is_finite() {
            let why = format!("is {}; it must be a finite number", s.length_penalty);
            return Err(BadSetting::new("length_penalty", why).into());
        }
        Ok(Beam(s))
    }
}

impl Decoder for Beam {
    fn branches(&self) -> usize {
        self.0.num_beams
    }

    fn decode(&self, session: &mut Session<'_>) -> Result<()> {
        let b = self.0.num_beams;
        let rules = Rules {
            beams: b,
            length_penalty: self.0.length_penalty,
            stop: match self.0.early_stopping {
                EarlyStopping::When(true) => Stop::Early,
                EarlyStopping::When(false) => Stop::Heuristic,
                EarlyStopping::Word(Never::Never) => Stop::Never,
            },
            longest: session.max_new_tokens,
        };
        let mut searches: Vec<Search> = session.lines.iter().map(|_| Search::new(rules)).collect();
        let lanes = searches.len() * b;
        let mut from: Vec<usize> = (0..lanes).collect();
        for step in 0..rules.longest {
            let mut new: Vec<&[u32]> = vec![&[]; lanes];
            for (i, search) in searches.iter().enumerate().filter(|(_, s)| !s.done) {
                for (k, beam) in search.running.iter().enumerate() {
                    new[i * b + k] = match beam.ids.last() {
                        Some(last) => std::slice::from_ref(last),
                        None => &session.lines[i].ids,
                    };
                }
            }
            let logits = session.model.feed(&new, 1)?;
            let Some(rows) = logits.read()? else {
                if step > 0 {
                    return Ok(()); // a plan has seen the prompts and a step of every beam
                }
                for (i, search) in searches.iter_mut().enumerate() {
                    let beam = crate::hypotheses::Running { ids: vec![0], sum: 0.0, from: 0 };
                    search.running = vec![beam; b];
                    from[i * b..(i + 1) * b].fill(i * b);
                }
                session.model.reorder(&from)?;
                continue;
            };
            for (i, search) in searches.iter_mut().enumerate().filter(|(_, s)| !s.done) {
                let log_probs: Vec<Vec<f64>> = (0..search.running.len())
                    .map(|k| log_softmax(rows.row(i * b + k, 0).iter().map(|z| f64::from(*z))))
                    .collect();
                search.step(&log_probs, session.eos);
                for k in 0..b {
                    from[i * b + k] = i * b + search.running.get(k).map_or(0, |beam| beam.from);
                }
            }
            if searches.iter().all(|s| s.done) {
                break;
            }
            session.model.reorder(&from)?;
        }
        for (i, search) in searches.iter().enumerate() {
            for id in search.best() {
                session.settle(i, *id);
            }
        }
        Ok(())
    }
}
