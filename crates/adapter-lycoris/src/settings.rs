//! The settings of `loha` and `lokr`, named as in `peft.LoHaConfig` and `peft.LoKrConfig`.

use std::collections::BTreeMap;

use anyhow::Result;
use ramekin_core::BadSetting;
use ramekin_core::pattern::{Modules, pattern_value};
use ramekin_peft::{Targeting, pattern_numbers, whole};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value as Json, json};

use crate::drops::Drops;

/// What a config may hold besides the settings. Linears have no kernel to decompose, and how the
/// product is computed is no matter of the file.
pub(crate) const FOREIGN: &[(&str, &[&str])] =
    &[("use_effective_conv2d", &["false"]), ("use_khatri_rao", &[]), ("r2", &["null"])];

/// A settings struct with the fields that both have and its own.
macro_rules! settings {
    ($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident: $ty:ty = $default:expr,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
        #[serde(default, deny_unknown_fields)]
        pub struct $name {
            /// Rank of the thin matrices, at least 1.
            pub r: usize,
            /// Scale: the update is multiplied by `alpha / r`.
            pub alpha: f64,
            /// Share of the update's rows that are dropped in training, in [0, 1).
            pub rank_dropout: f64,
            /// Chance that a module's update is left out of a micro-batch of training, in [0, 1).
            pub module_dropout: f64,
            /// Modules to adapt: names or path endings, a regular expression for whole paths, or "all-linear".
            pub target_modules: Modules,
            /// Modules to leave out again.
            pub exclude_modules: Option<Modules>,
            /// Layers to adapt, by number; all if absent.
            pub layers_to_transform: Option<Vec<usize>>,
            /// Name of the list that holds the layers, where it is not the usual one.
            pub layers_pattern: Option<Vec<String>>,
            /// Other ranks: module name or regular expression → r.
            pub rank_pattern: BTreeMap<String, usize>,
            /// Other scales: module name or regular expression → alpha.
            pub alpha_pattern: BTreeMap<String, f64>,
            /// Modules trained whole, as copies that are saved with the adapter.
            pub modules_to_save: Option<Vec<String>>,
            $($(#[$field_doc])* pub $field: $ty,)*
        }

        impl Default for $name {
            fn default() -> Self {
                $name {
                    r: 8,
                    alpha: 8.0,
                    rank_dropout: 0.0,
                    module_dropout: 0.0,
                    target_modules: Modules::List(vec!["q_proj".into(), "v_proj".into()]),
                    exclude_modules: None,
                    layers_to_transform: None,
                    layers_pattern: None,
                    rank_pattern: BTreeMap::new(),
                    alpha_pattern: BTreeMap::new(),
                    modules_to_save: None,
                    $($field: $default,)*
                }
            }
        }

        impl $name {
            /// Refuses values that make no sense for any model.
            pub(crate) fn check(&self) -> Result<(), BadSetting> {
                check(self.r, &self.rank_pattern, self.alpha, [self.rank_dropout, self.module_dropout])
            }

            /// Where the adapter goes.
            pub(crate) fn targeting(&self) -> Targeting<'_> {
                Targeting {
                    exclude_modules: self.exclude_modules.as_ref(),
                    layers_to_transform: self.layers_to_transform.as_deref(),
                    layers_pattern: self.layers_pattern.as_deref().unwrap_or_default(),
                    modules_to_save: self.modules_to_save.as_deref().unwrap_or_default(),
                    ..Targeting::of(&self.target_modules)
                }
            }

            /// Rank and scale of the update of one module.
            pub(crate) fn rank_and_scale(&self, path: &str) -> (usize, f64) {
                let r = *pattern_value(&self.rank_pattern, path).unwrap_or(&self.r);
                (r, pattern_value(&self.alpha_pattern, path).unwrap_or(&self.alpha) / r as f64)
            }

            /// The config's fields that both have.
            pub(crate) fn shared_config(&self) -> Json {
                json!({
                    "alpha": whole(self.alpha), "alpha_pattern": pattern_numbers(&self.alpha_pattern),
                    "exclude_modules": self.exclude_modules, "layers_pattern": self.layers_pattern,
                    "layers_to_transform": self.layers_to_transform, "module_dropout": self.module_dropout,
                    "modules_to_save": self.modules_to_save, "r": self.r, "rank_dropout": self.rank_dropout,
                    "rank_pattern": self.rank_pattern, "use_effective_conv2d": false,
                })
            }

            /// What is dropped in training.
            pub(crate) fn drops(&self, name: &'static str, rescale: bool) -> Drops {
                Drops { name, rows: self.rank_dropout, module: self.module_dropout, rescale }
            }
        }
    };
}

settings! {
    /// Settings of `adapter = [{ kind = "loha", … }]`.
    LohaSettings {
        /// How the matrices begin: true (A₁, B₁, A₂ Kaiming-uniform, B₂ zero) or false (all random, for
        /// tests of loading).
        init_weights: bool = true,
    }
}

/// How the factors of `lokr` begin.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(untagged)]
pub enum LokrInit {
    /// `true`: W₁ zero, the rest Kaiming-uniform. `false`: all random, for tests of loading.
    Default(bool),
    /// `"lycoris"`: W₂ zero, the rest Kaiming-uniform.
    Named(String),
}

settings! {
    /// Settings of `adapter = [{ kind = "lokr", … }]`.
    LokrSettings {
        /// Decomposes W₁ as well where `r` is below half its larger side.
        decompose_both: bool = false,
        /// Size of the first factor of either side; −1 is near the square root.
        decompose_factor: i64 = -1,
        /// Divides the rows that `rank_dropout` leaves by their share.
        rank_dropout_scale: bool = false,
        /// How the factors begin: true, false or "lycoris".
        init_weights: LokrInit = LokrInit::Default(true),
    }
}

fn check(
    r: usize,
    ranks: &BTreeMap<String, usize>,
    alpha: f64,
    [rank_dropout, module_dropout]: [f64; 2],
) -> Result<(), BadSetting> {
    if r == 0 {
        return Err(BadSetting::new("r", "is 0; a rank must be at least 1"));
    }
    if let Some((key, _)) = ranks.iter().find(|(_, r)| **r == 0) {
        return Err(BadSetting::new(
            "rank_pattern",
            format!("gives `{key}` rank 0; a rank must be at least 1"),
        ));
    }
    if !alpha.is_finite() {
        return Err(BadSetting::new("alpha", "must be a finite number"));
    }
    for (name, p) in [("rank_dropout", rank_dropout), ("module_dropout", module_dropout)] {
        if !(0.0..1.0).contains(&p) {
            return Err(BadSetting::new(name, format!("is {p}; it must be in [0, 1)")));
        }
    }
    Ok(())
}
