//! BitFit: only the bias vectors train.
//!
//! θ = (W, b):  W stays, b ← b − η ∂L/∂b
//!
//! Source: Ben Zaken et al. 2022, arXiv:2106.10199.

use anyhow::Result;
use ramekin_core::BadSetting;
use ramekin_core::pattern::{Candidate, Modules, Selector};
use ramekin_registry::{Part, part};
use ramekin_slots::{AttachContext, Selection, Stateful};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::module;

part! { selection / "bias" => BiasOnly, "trains bias vectors alone (BitFit), norm weights by setting",
source = "arXiv:2106.10199", traits = [NeedsBackboneBackward, IdentityAtStart] }

/// Settings of `selection = { kind = "bias", … }`.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct BiasSettings {
    /// Trains the weights of norms too.
    pub norms: bool,
    /// Modules whose biases train: names or path endings, or a regular expression for whole paths. All if absent.
    pub target_modules: Option<Modules>,
}

/// The selection.
pub struct BiasOnly {
    settings: BiasSettings,
}

impl Part for BiasOnly {
    type Settings = BiasSettings;

    fn new(settings: BiasSettings) -> Result<Self> {
        Ok(BiasOnly { settings })
    }
}

impl Stateful for BiasOnly {}

impl Selection for BiasOnly {
    fn attach(&mut self, cx: &mut AttachContext<'_>) -> Result<Vec<String>> {
        let sites = cx.sites.clone();
        let is_norm = |name: &str| {
            name.ends_with(".weight") && sites.param(name).is_ok_and(|p| p.base().value().dims().len() == 1)
        };
        let mut names: Vec<&String> = sites
            .param_names()
            .iter()
            .filter(|n| n.ends_with(".bias") || self.settings.norms && is_norm(n))
            .collect();
        if names.is_empty() {
            let kind = &cx.facts.model_type;
            let why = format!(
                "is false, and this `{kind}` has no bias to train; `norms = true` trains the weights of its norms instead"
            );
            return Err(BadSetting::new("norms", why).into());
        }
        if let Some(targets) = &self.settings.target_modules {
            let candidates: Vec<Candidate<'_>> =
                names.iter().map(|n| Candidate { path: module(n), is_head: false }).collect();
            let selector = Selector::new("target_modules", targets, None, None, &[])?;
            let chosen: Vec<String> = selector.select(&candidates)?.into_iter().map(str::to_owned).collect();
            names.retain(|n| chosen.iter().any(|c| c == module(n)));
        }
        let names: Vec<String> = names.into_iter().cloned().collect();
        for name in &names {
            cx.train(name)?;
        }
        Ok(names)
    }
}
