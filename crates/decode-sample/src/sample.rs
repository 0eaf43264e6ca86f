//! Sampling with the usual filters.

use anyhow::Result;
use ramekin_core::{BadSetting, Draws};
use ramekin_kernels::sampling::Filters;
use ramekin_registry::{Part, part};
use ramekin_slots::{Decoder, Draft, Session};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::penalty;

part! { decode / "sample" => Sample, "by probability, after temperature, top-k, top-p and min-p",
source = "transformers sampling; min-p arXiv:2407.01082", traits = [] }

/// Settings of `decode = { kind = "sample", … }`.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct SampleSettings {
    /// Logits are divided by it; above 0.
    pub temperature: f64,
    /// Keeps this many of the most probable tokens; 0 is off.
    pub top_k: usize,
    /// Keeps the most probable tokens whose sum just reaches this share; 1 is off.
    pub top_p: f64,
    /// Keeps tokens of at least this share of the best one's probability; 0 is off.
    pub min_p: f64,
    /// Above 1 makes tokens that were seen less likely; 1 is off.
    pub repetition_penalty: f64,
}

impl Default for SampleSettings {
    fn default() -> Self {
        SampleSettings { temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0, repetition_penalty: 1.0 }
    }
}

/// The decoder.
pub struct Sample(SampleSettings);

impl Part for Sample {
    type Settings = SampleSettings;

    fn new(s: SampleSettings) -> Result<Self> {
        if !(s.temperature.is_finite() && s.temperature > 0.0) {
            let why =
                format!("is {}; it must be above 0 (for the best token always: `greedy`)", s.temperature);
            return Err(BadSetting::new("temperature", why).into());
        }
        if !(s.top_p > 0.0 && s.top_p <= 1.0) {
            return Err(BadSetting::new("top_p", format!("is {}; it must be in (0, 1]", s.top_p)).into());
        }
        if !(0.0..=1.0).contains(&s.min_p) {
            return Err(BadSetting::new("min_p", format!("is {}; it must be in [0, 1]", s.min_p)).into());
        }
        penalty::check(s.repetition_penalty)?;
        Ok(Sample(s))
    }
}

impl Sample {
    /// The tokens that pass the filters with their probabilities, most probable
    /// first, summing to 1.
    fn candidates(&self, draft: &Draft<'_>) -> Vec<(u32, f64)> {
        let mut logits = draft.logits.to_vec();
        penalty::apply(&mut logits, draft.ids, self.0.repetition_penalty);
        let s = &self.0;
        let filters = Filters { temperature: s.temperature, top_k: s.top_k, top_p: s.top_p, min_p: s.min_p };
        filters.candidates(logits.iter().map(|z| f64::from(*z)))
    }

    fn next(&self, draft: &Draft<'_>, draws: &mut Draws) -> u32 {
        let candidates = self.candidates(draft);
        let mut left = draws.uniform();
        for (id, p) in &candidates {
            left -= p;
            if left < 0.0 {
                return *id;
            }
        }
        candidates.last().map_or(0, |c| c.0)
    }
}

impl Decoder for Sample {
    fn decode(&self, session: &mut Session<'_>) -> Result<()> {
        session.token_by_token(&mut |draft, draws| self.next(draft, draws))
    }
}

#[cfg(test)]
mod tests {
    use ramekin_core::Rng;

    use super::*;

    fn kept(s: SampleSettings, logits: &[f32]) -> Vec<u32> {
        Sample::new(s).unwrap().candidates(&Draft { logits, ids: &[] }).iter().map(|c| c.0).collect()
    }

    #[test]
    fn filters() {
        let logits: Vec<f32> = [0.5f64, 0.25, 0.15, 0.1].iter().map(|p| p.ln() as f32).collect();
        let base = SampleSettings::default();
        assert_eq!(kept(SampleSettings { top_k: 2, ..base.clone() }, &logits), [0, 1]);
        assert_eq!(kept(SampleSettings { top_p: 0.6, ..base.clone() }, &logits), [0, 1]);
        assert_eq!(kept(SampleSettings { min_p: 0.29, ..base.clone() }, &logits), [0, 1, 2]);
        assert_eq!(kept(base, &logits), [0, 1, 2, 3]);
    }

    #[test]
    fn frequencies_follow_the_probabilities() {
        let logits: Vec<f32> = [0.6f64, 0.3, 0.1].iter().map(|p| p.ln() as f32).collect();
        let sample = Sample::new(SampleSettings::default()).unwrap();
        let mut draws = Draws::new(Rng::new(3).stream("t", 0));
        let mut counts = [0u32; 3];
        for _ in 0..20_000 {
            counts[sample.next(&Draft { logits: &logits, ids: &[] }, &mut draws) as usize] += 1;
        }
        for (count, p) in counts.iter().zip([0.6, 0.3, 0.1]) {
            assert!((f64::from(*count) / 20_000.0 - p).abs() < 0.015, "{counts:?}");
        }
    }
}
