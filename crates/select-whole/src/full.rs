//! Full fine-tuning, of everything or of the modules named.

use anyhow::Result;
use ramekin_core::BadSetting;
use ramekin_core::pattern::{Candidate, Modules, Selector};
use ramekin_registry::{Part, part};
use ramekin_slots::{AttachContext, LinearBase, Selection, Sites, Stateful};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::module;

part! { selection / "full" => Full, "trains every weight, or whole modules by name",
source = "plain fine-tuning", traits = [NeedsBackboneBackward, IdentityAtStart] }

/// Settings of `selection = { kind = "full", … }`.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct FullSettings {
    /// Modules to train: names or path endings, or a regular expression for whole paths. All if absent.
    pub modules: Option<Modules>,
    /// Modules to leave frozen again.
    pub exclude_modules: Option<Modules>,
}

/// The selection.
pub struct Full {
    settings: FullSettings,
}

impl Part for Full {
    type Settings = FullSettings;

    fn new(settings: FullSettings) -> Result<Self> {
        let full = Full { settings };
        full.selector()?;
        Ok(full)
    }
}

impl Full {
    fn selector(&self) -> Result<Selector, BadSetting> {
        let everything = Modules::Pattern(".*".to_owned());
        let include = self.settings.modules.as_ref().unwrap_or(&everything);
        Selector::new("modules", include, self.settings.exclude_modules.as_ref(), None, &[])
    }
}

/// Every module that holds numbers, the packed ones too.
fn modules(sites: &Sites) -> Vec<Candidate<'_>> {
    let dense = sites.param_names().iter().map(|name| Candidate { path: module(name), is_head: false });
    let mut all: Vec<Candidate<'_>> = dense.chain(sites.candidates()).collect();
    all.sort_by(|a, b| a.path.cmp(b.path).then(b.is_head.cmp(&a.is_head)));
    all.dedup_by(|a, b| a.path == b.path);
    all
}

impl Stateful for Full {}

impl Selection for Full {
    fn attach(&mut self, cx: &mut AttachContext<'_>) -> Result<Vec<String>> {
        let sites = cx.sites.clone();
        let candidates = modules(&sites);
        let chosen = self.selector()?.select(&candidates)?;
        if self.settings.exclude_modules.is_some() && chosen.len() == candidates.len() {
            return Err(BadSetting::new("exclude_modules", "matches no module of this model").into());
        }
        let packed =
            |path: &&str| sites.linear(path).is_ok_and(|l| matches!(l.base(), LinearBase::Packed(_)));
        if let Some(path) = chosen.iter().find(|path| packed(path)) {
            let why = format!(
                "takes in `{path}`, which a quantizer holds packed and which cannot train; exclude it, or leave the quantizer out"
            );
            return Err(BadSetting::new("modules", why).against("quantizer").into());
        }
        let names: Vec<String> =
            sites.param_names().iter().filter(|n| chosen.contains(&module(n))).cloned().collect();
        if names.is_empty() {
            let why = "names only modules that share another's weights, as a tied head does";
            return Err(BadSetting::new("modules", why).into());
        }
        for name in &names {
            cx.train(name)?;
        }
        Ok(names)
    }
}
