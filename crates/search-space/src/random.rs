//! `random`: independent draws.
//!
//! Source: Bergstra & Bengio 2012, "Random search for hyper-parameter optimization".

use anyhow::Result;
use ramekin_core::{BadSetting, Draws, Rng};
use ramekin_registry::{Part, part};
use ramekin_slots::{Search, Space, Trial};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

part! { search / "random" => Random, "independent draws from each key's values or range",
source = "Bergstra & Bengio 2012, JMLR 13", traits = [] }

/// Settings of `search = { kind = "random", … }`.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RandomSettings {
    /// Recipes tried.
    pub trials: usize,
}

impl Default for RandomSettings {
    fn default() -> Self {
        RandomSettings { trials: 8 }
    }
}

/// The search.
pub struct Random {
    trials: usize,
}

impl Part for Random {
    type Settings = RandomSettings;

    fn new(s: RandomSettings) -> Result<Self> {
        if s.trials == 0 {
            return Err(BadSetting::new("trials", "is 0; it must be at least 1").into());
        }
        Ok(Random { trials: s.trials })
    }
}

impl Search for Random {
    fn next(&self, space: &Space, done: &[Trial], rng: Rng) -> Result<Option<Vec<Json>>> {
        if done.len() >= self.trials {
            return Ok(None);
        }
        // Drawn by number, so that what is tried does not depend on when.
        let mut draws = Draws::new(rng.stream("search/random", done.len() as u64));
        Ok(Some(space.iter().map(|(_, axis)| axis.at(draws.uniform())).collect()))
    }

    fn trials(&self, _: &Space) -> Result<usize> {
        Ok(self.trials)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ramekin_slots::Axis;

    #[test]
    fn stays_within_its_ranges_and_repeats() {
        let axis = Axis::Range { min: 1e-5, max: 1e-2, log: true, integer: false };
        let whole = Axis::Range { min: 4.0, max: 16.0, log: false, integer: true };
        let space = vec![("lr".to_owned(), axis), ("r".to_owned(), whole)];
        let search = Random { trials: 50 };
        let run = || {
            let mut done = Vec::new();
            while let Some(values) = search.next(&space, &done, Rng::new(3)).unwrap() {
                done.push(Trial { values, score: Some(0.0) });
            }
            done
        };
        let done = run();
        assert_eq!((done.len(), &done), (50, &run()));
        for t in &done {
            let (lr, r) = (t.values[0].as_f64().unwrap(), t.values[1].as_i64().unwrap());
            assert!((1e-5..=1e-2).contains(&lr) && (4..=16).contains(&r));
        }
        assert!(done.iter().any(|t| t.values[0].as_f64().unwrap() < 1e-4), "small rates are drawn too");
    }
}
