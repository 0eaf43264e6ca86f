//! (IA)³: learnt factors of activations.
//!
//! `y = l ⊙ (Wx + b)` with l `[O, 1]`; at feed-forward modules `y = W(l ⊙ x) + b` with l `[1, I]`. l
//! starts at 1. Folded: W ⊙ l by row, and b ⊙ l; or W ⊙ l by column.
//!
//! Source: Liu et al. 2022, arXiv:2205.05638; sheet `lora-family`.

use std::sync::Arc;

use anyhow::Result;
use ramekin_core::pattern::{Candidate, Modules, Selector};
use ramekin_core::{Array, BadSetting, Category, Param};
use ramekin_kernels::broadcast;
use ramekin_peft::{Kept, Method, PeftAdapter, Targeting};
use ramekin_registry::part;
use ramekin_slots::{AttachContext, Below, Forward, LinearAdapter, LinearSite, Sites};
use ramekin_tape::{Value, ops};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value as Json, json};

part! { adapter / "ia3" => PeftAdapter<Ia3>,
"learnt factors of keys, values and feed-forward activations, in PEFT's files",
source = "arXiv:2205.05638; sheet lora-family", traits = [Mergeable, IdentityAtStart, NeedsBackboneBackward],
from_peft = PeftAdapter::<Ia3>::from_peft }

/// Settings of `adapter = [{ kind = "ia3", … }]`, named as in `peft.IA3Config`.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Ia3Settings {
    /// Modules to adapt: names or path endings, a regular expression for whole paths, or "all-linear".
    pub target_modules: Modules,
    /// Modules to leave out again.
    pub exclude_modules: Option<Modules>,
    /// Targets whose inputs are scaled instead of their outputs: names, a part of `target_modules`, or a
    /// regular expression for whole paths. If absent, `down_proj` where it is a target.
    pub feedforward_modules: Option<Modules>,
    /// Modules trained whole, as copies that are saved with the adapter.
    pub modules_to_save: Option<Vec<String>>,
    /// How the factors begin: true is 1, false N(0, 1), for tests of loading.
    pub init_ia3_weights: bool,
}

impl Default for Ia3Settings {
    fn default() -> Self {
        Ia3Settings {
            target_modules: Modules::List(["k_proj", "v_proj", "down_proj"].map(str::to_owned).to_vec()),
            exclude_modules: None,
            feedforward_modules: None,
            modules_to_save: None,
            init_ia3_weights: true,
        }
    }
}

/// The method.
pub struct Ia3 {
    settings: Ia3Settings,
    feedforward: Modules,
    selector: Selector,
}

impl Method for Ia3 {
    type Settings = Ia3Settings;
    const NAME: &'static str = "ia3";
    const PEFT_TYPE: &'static str = "IA3";
    const INIT: &'static str = "init_ia3_weights";
    const FOREIGN: &'static [(&'static str, &'static [&'static str])] = &[("fan_in_fan_out", &["false"])];

    fn new(settings: Ia3Settings) -> Result<Self> {
        if let (Modules::List(targets), Some(Modules::List(inputs))) =
            (&settings.target_modules, &settings.feedforward_modules)
            && let Some(name) = inputs.iter().find(|n| !targets.contains(n))
        {
            let why =
                format!("names `{name}`, which is not among `target_modules`; add it there or leave it out");
            return Err(BadSetting::new("feedforward_modules", why).into());
        }
        let usual = || Modules::List(vec!["down_proj".to_owned()]);
        let feedforward = settings.feedforward_modules.clone().unwrap_or_else(usual);
        let nothing = matches!(&feedforward, Modules::List(names) if names.is_empty());
        // A pattern that matches no path stands for an empty list, which is a choice here.
        let matched = if nothing { Modules::Pattern("[^\\s\\S]".to_owned()) } else { feedforward.clone() };
        let selector = Selector::new("feedforward_modules", &matched, None, None, &[])?;
        Ok(Ia3 { settings, feedforward, selector })
    }

    fn targeting(&self) -> Targeting<'_> {
        Targeting {
            exclude_modules: self.settings.exclude_modules.as_ref(),
            modules_to_save: self.settings.modules_to_save.as_deref().unwrap_or_default(),
            ..Targeting::of(&self.settings.target_modules)
        }
    }

    fn config(&self) -> Json {
        json!({
            "exclude_modules": self.settings.exclude_modules, "fan_in_fan_out": false,
            "feedforward_modules": self.feedforward, "init_ia3_weights": self.settings.init_ia3_weights,
            "modules_to_save": self.settings.modules_to_save,
        })
    }

    fn adapt(
        &self,
        kept: &mut Kept,
        cx: &mut AttachContext<'_>,
        site: &LinearSite,
    ) -> Result<Box<dyn LinearAdapter>> {
        let on_input = self.selector.matches(&Candidate { path: &site.path, is_head: site.is_head });
        let dims = if on_input { [1, site.shape.1] } else { [site.shape.0, 1] };
        let key = Kept::key(site, "ia3_l");
        let stream = cx.rng.named(&format!("{}/init", cx.owner), &key);
        let fresh = Array::build::<f32>(&dims, cx.shape_only, Category::Workspace, |out| {
            match self.settings.init_ia3_weights {
                true => out.fill(1.0),
                false => stream.fill_normal(0, 1.0, out),
            }
            Ok(())
        })?;
        Ok(Box::new(Factors { l: kept.add(cx, key, fresh)?, on_input }))
    }
}

/// What sits at one linear.
struct Factors {
    l: Arc<Param>,
    on_input: bool,
}

impl LinearAdapter for Factors {
    fn forward(&self, fx: &Forward, _: &LinearSite, x: &Value, below: &Below<'_>) -> Result<Value> {
        let l = fx.tape.param(&self.l)?;
        if self.on_input {
            below(&ops::mul_row(&fx.tape, x, &l)?)
        } else {
            ops::mul_row(&fx.tape, &below(x)?, &l)
        }
    }

    fn fold(&self, _: &Sites, _: &LinearSite, weight: Array) -> Result<Array> {
        let l = self.l.value();
        let l = l.view::<f32>()?;
        weight.update(|w: &mut [f32]| {
            let from = w.to_vec();
            match self.on_input {
                true => broadcast::mul_row(&from, &l, w),
                false => broadcast::mul_column(&from, &l, w),
            }
        })?;
        Ok(weight)
    }

    fn fold_bias(&self, _: &LinearSite, bias: Array) -> Result<Array> {
        if !self.on_input {
            let l = self.l.value();
            let l = l.view::<f32>()?;
            bias.update(|b: &mut [f32]| b.iter_mut().zip(&*l).for_each(|(b, l)| *b *= l))?;
        }
        Ok(bias)
    }
}
