//! The settings of `s2ft`.

use ramekin_core::BadSetting;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// By what units are chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[allow(missing_docs)]
pub enum Score {
    /// At random.
    #[default]
    R,
    /// Norm of the unit's coupled weights.
    W,
    /// Mean absolute activation of the unit's output.
    A,
    /// Product of the norms of weights and activations.
    S,
    /// Norm of the gradient of the weights that would train.
    G,
}

/// Where the budget is counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// Over all layers together: layers get different numbers, perhaps none.
    #[default]
    Global,
    /// In each layer.
    PerLayer,
}

/// Where a slice lives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Storage {
    /// As a difference of its own beside a frozen base.
    #[default]
    Separate,
    /// In the base's matrix.
    InPlace,
}

/// Settings of `selection = { kind = "s2ft", … }`. Defaults of the ratios are those for LLaMA-2.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct S2ftSettings {
    /// Share of the heads whose value rows train, in [0, 1]. Under grouped queries a head is a group.
    pub v_ratio: f64,
    /// Share of the heads whose output columns train, in [0, 1].
    pub o_ratio: f64,
    /// Share of the channels whose up rows train, in [0, 1].
    pub u_ratio: f64,
    /// Share of the channels whose down columns train, in [0, 1].
    pub d_ratio: f64,
    /// By what units are chosen: "R", "W", "A", "S" or "G".
    pub selection: Score,
    /// Whether the units with the largest score are chosen, or those with the smallest.
    pub largest: bool,
    /// Where ratios are counted: "global" or "per_layer".
    pub scope: Scope,
    /// Where slices live: "separate" or "in_place".
    pub storage: Storage,
    /// Puts chosen heads and channels side by side while training, so that slices are contiguous.
    /// The model is saved in its own order.
    pub permute: bool,
    /// Seed of the draw. Default: the recipe's.
    pub seed: Option<u64>,
    /// Batches that "A", "S" and "G" look at, at least 1.
    pub calibration_batches: u64,
    /// Rows of each of these batches, at least 1.
    pub calibration_rows: usize,
}

impl Default for S2ftSettings {
    fn default() -> Self {
        S2ftSettings {
            v_ratio: 0.0,
            o_ratio: 0.052,
            u_ratio: 0.0,
            d_ratio: 0.02,
            selection: Score::R,
            largest: true,
            scope: Scope::Global,
            storage: Storage::Separate,
            permute: true,
            seed: None,
            calibration_batches: 4,
            calibration_rows: 8,
        }
    }
}

impl S2ftSettings {
    /// The four ratios by name.
    pub fn ratios(&self) -> [(&'static str, f64); 4] {
        [
            ("v_ratio", self.v_ratio),
            ("o_ratio", self.o_ratio),
            ("u_ratio", self.u_ratio),
            ("d_ratio", self.d_ratio),
        ]
    }

    /// Whether the choice needs a look at rows.
    pub fn looks(&self) -> bool {
        matches!(self.selection, Score::A | Score::S | Score::G)
    }

    /// Refuses what no model could take.
    pub fn check(&self) -> Result<(), BadSetting> {
        for (name, ratio) in self.ratios() {
            if !(0.0..=1.0).contains(&ratio) {
                return Err(BadSetting::new(name, format!("is {ratio}; it must be in [0, 1]")));
            }
        }
        if self.ratios().iter().all(|(_, r)| *r == 0.0) {
            return Err(BadSetting::new("o_ratio", "is 0 like the other three ratios: nothing would train"));
        }
        if self.calibration_batches == 0 {
            return Err(BadSetting::new("calibration_batches", "is 0; it must be at least 1"));
        }
        if self.calibration_rows == 0 {
            return Err(BadSetting::new("calibration_rows", "is 0; it must be at least 1"));
        }
        Ok(())
    }
}
