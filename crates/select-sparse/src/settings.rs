//! The settings of `lt-sft`, named as in the authors' package.

use ramekin_core::BadSetting;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Which entries are chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Ranking {
    /// Those that phase 1 moved most.
    #[default]
    Largest,
    /// Those that it moved least: a control.
    Smallest,
    /// Any, without a phase 1: the random baseline.
    Random,
}

/// Settings of `selection = { kind = "lt-sft", … }`. It sets the stage's length: leave `steps` and `epochs` out.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct LtSftSettings {
    /// How many entries may differ from the base in the end. Default: by `ft_params_proportion`.
    pub ft_params_num: Option<u64>,
    /// How many, as a share of the entries that could.
    pub ft_params_proportion: f64,
    /// Times that both phases are gone through, each adding its share of the entries.
    pub n_ft_iterations: u64,
    /// Length of phase 1 in passes over the rows; 0 leaves it to `full_ft_max_steps`.
    #[serde(alias = "full_ft_max_epochs_per_iteration")]
    pub full_ft_max_epochs: f64,
    /// Most updates of phase 1. Default: no bound.
    #[serde(alias = "full_ft_max_steps_per_iteration")]
    pub full_ft_max_steps: Option<u64>,
    /// Fewest updates of phase 1.
    #[serde(alias = "full_ft_min_steps_per_iteration")]
    pub full_ft_min_steps: u64,
    /// Length of phase 2 in passes over the rows; 0 leaves it to `sparse_ft_max_steps`.
    #[serde(alias = "sparse_ft_max_epochs_per_iteration")]
    pub sparse_ft_max_epochs: f64,
    /// Most updates of phase 2. Default: no bound.
    #[serde(alias = "sparse_ft_max_steps_per_iteration")]
    pub sparse_ft_max_steps: Option<u64>,
    /// Fewest updates of phase 2.
    #[serde(alias = "sparse_ft_min_steps_per_iteration")]
    pub sparse_ft_min_steps: u64,
    /// Weight λ of the mean distance from the base in phase 1's loss, λ/N Σ|θ − θ₀|; N all parameters.
    pub full_l1_reg: f64,
    /// The same in phase 2.
    pub sparse_l1_reg: f64,
    /// Leaves heads, which train whole, out of that sum.
    pub apply_reg_to_sparse_only: bool,
    /// Norms stay as they are.
    pub freeze_layer_norm: bool,
    /// The output embedding stays as it is.
    pub freeze_decoder: bool,
    /// Gives a head that shares the input embeddings' table a frozen one of its own.
    pub untie_embeddings: bool,
    /// Input embeddings stay as they are.
    pub freeze_embeddings: bool,
    /// Task heads, which are neither embeddings nor in a layer, stay as they are; else they train whole.
    pub freeze_head: bool,
    /// Which entries are chosen: "largest", or the controls "smallest" and "random".
    pub ranking: Ranking,
    /// Seed of "random". Default: the recipe's.
    pub seed: Option<u64>,
}

impl Default for LtSftSettings {
    fn default() -> Self {
        LtSftSettings {
            ft_params_num: None,
            ft_params_proportion: 0.01,
            n_ft_iterations: 1,
            full_ft_max_epochs: 3.0,
            full_ft_max_steps: None,
            full_ft_min_steps: 0,
            sparse_ft_max_epochs: 10.0,
            sparse_ft_max_steps: None,
            sparse_ft_min_steps: 0,
            full_l1_reg: 0.0,
            sparse_l1_reg: 0.0,
            apply_reg_to_sparse_only: false,
            freeze_layer_norm: true,
            freeze_decoder: true,
            untie_embeddings: true,
            freeze_embeddings: false,
            freeze_head: false,
            ranking: Ranking::Largest,
            seed: None,
        }
    }
}

impl LtSftSettings {
    /// Refuses what no model could take.
    pub fn check(&self) -> Result<(), BadSetting> {
        let bad = |name: &str, why: String| Err(BadSetting::new(name, why));
        let p = self.ft_params_proportion;
        if !(p > 0.0 && p <= 1.0) {
            return bad("ft_params_proportion", format!("is {p}; it must be above 0 and at most 1"));
        }
        if self.ft_params_num == Some(0) {
            return bad("ft_params_num", "is 0; it must be at least 1".to_owned());
        }
        if self.n_ft_iterations == 0 {
            return bad("n_ft_iterations", "is 0; it must be at least 1".to_owned());
        }
        if self.ranking == Ranking::Random && self.n_ft_iterations > 1 {
            let why = format!("is {}; with `ranking = \"random\"` there is one", self.n_ft_iterations);
            return bad("n_ft_iterations", why);
        }
        for (name, l1) in [("full_l1_reg", self.full_l1_reg), ("sparse_l1_reg", self.sparse_l1_reg)] {
            if !(l1.is_finite() && l1 >= 0.0) {
                return bad(name, format!("is {l1}; it must be a number of at least 0"));
            }
        }
        for (phase, epochs, most, least) in [
            ("full", self.full_ft_max_epochs, self.full_ft_max_steps, self.full_ft_min_steps),
            ("sparse", self.sparse_ft_max_epochs, self.sparse_ft_max_steps, self.sparse_ft_min_steps),
        ] {
            if !(epochs.is_finite() && epochs >= 0.0) {
                return bad(&format!("{phase}_ft_max_epochs"), format!("is {epochs}; it must be at least 0"));
            }
            if epochs == 0.0 && most.is_none_or(|n| n == 0) {
                let why = format!("is 0 and `{phase}_ft_max_steps` gives no steps: the phase has no length");
                return bad(&format!("{phase}_ft_max_epochs"), why);
            }
            if most.is_some_and(|most| least > most) {
                let why = format!("is {least}, above `{phase}_ft_max_steps`; it must be at most that");
                return bad(&format!("{phase}_ft_min_steps"), why);
            }
        }
        Ok(())
    }

    /// Updates of both phases: epochs in updates, capped and raised.
    pub fn lengths(&self, epoch: f64) -> (u64, u64) {
        let length = |epochs: f64, most: Option<u64>, least: u64| {
            let by_rows = (epochs * epoch).ceil() as u64;
            let steps = match most {
                Some(most) if epochs == 0.0 => most,
                Some(most) => by_rows.min(most),
                None => by_rows,
            };
            steps.max(least).max(1)
        };
        let full = length(self.full_ft_max_epochs, self.full_ft_max_steps, self.full_ft_min_steps);
        let sparse = length(self.sparse_ft_max_epochs, self.sparse_ft_max_steps, self.sparse_ft_min_steps);
        (if self.ranking == Ranking::Random { 0 } else { full }, sparse)
    }
}
