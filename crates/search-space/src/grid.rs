//! `grid`: every combination.

use anyhow::Result;
use ramekin_core::{BadSetting, Rng};
use ramekin_registry::{Part, part};
use ramekin_slots::{Axis, Search, Space, Trial};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

part! { search / "grid" => Grid, "every combination of the values", source = "plain enumeration", traits = [] }

/// Settings of `search = { kind = "grid", … }`.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct GridSettings {
    /// Values taken of a range, its ends included; at least 2.
    pub points: usize,
}

impl Default for GridSettings {
    fn default() -> Self {
        GridSettings { points: 3 }
    }
}

/// The search.
pub struct Grid {
    points: usize,
}

impl Part for Grid {
    type Settings = GridSettings;

    fn new(s: GridSettings) -> Result<Self> {
        if s.points < 2 {
            return Err(BadSetting::new("points", format!("is {}; it must be at least 2", s.points)).into());
        }
        Ok(Grid { points: s.points })
    }
}

impl Grid {
    fn values(&self, axis: &Axis) -> Vec<Json> {
        match axis {
            Axis::Values(all) => all.clone(),
            Axis::Range { .. } => {
                let mut all: Vec<Json> =
                    (0..self.points).map(|i| axis.at(i as f64 / (self.points - 1) as f64)).collect();
                all.dedup(); // a narrow range of whole numbers has fewer
                all
            }
        }
    }
}

impl Search for Grid {
    fn next(&self, space: &Space, done: &[Trial], _: Rng) -> Result<Option<Vec<Json>>> {
        let mut rest = done.len();
        if rest >= self.trials(space)? {
            return Ok(None);
        }
        let mut chosen: Vec<Json> = Vec::with_capacity(space.len());
        for (_, axis) in space.iter().rev() {
            let values = self.values(axis);
            chosen.push(values[rest % values.len()].clone());
            rest /= values.len();
        }
        chosen.reverse();
        Ok(Some(chosen))
    }

    fn trials(&self, space: &Space) -> Result<usize> {
        let mut sizes = space.iter().map(|(_, axis)| self.values(axis).len());
        let all = sizes.try_fold(1usize, usize::checked_mul).filter(|n| *n <= 100_000);
        all.ok_or_else(|| {
            BadSetting::new("kind", "`grid` has more than 100000 combinations; try `random`").into()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn every_combination_once() {
        let range = Axis::Range { min: 1.0, max: 100.0, log: true, integer: true };
        let space = vec![("a".to_owned(), Axis::Values(vec![json!(1), json!("x")])), ("b".to_owned(), range)];
        let grid = Grid { points: 3 };
        let mut done = Vec::new();
        while let Some(values) = grid.next(&space, &done, Rng::new(0)).unwrap() {
            done.push(Trial { values, score: None });
        }
        let found: Vec<Vec<Json>> = done.into_iter().map(|t| t.values).collect();
        assert_eq!(found.len(), 6);
        assert_eq!(found[..3], [[json!(1), json!(1)], [json!(1), json!(10)], [json!(1), json!(100)]]);
        assert_eq!(found[3], [json!("x"), json!(1)]);
    }
}
