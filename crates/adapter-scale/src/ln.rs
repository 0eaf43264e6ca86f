//! Layer-norm tuning: only the norms train.
//!
//! Copies of the weights (and biases) of the targeted modules take their place, train and are saved, so
//! that the base stays as it is. A fresh copy is the base to the bit.
//!
//! Source: Zhao et al. 2023, arXiv:2312.11420; PEFT's `LNTuningConfig`.

use std::rc::Rc;
use std::sync::Arc;

use anyhow::Result;
use ramekin_core::pattern::{Modules, Selector};
use ramekin_core::{Array, BadSetting, Category, DType, Param};
use ramekin_peft::{Kept, own_fields, settings, whole_config};
use ramekin_registry::{AnyPart, Part, part};
use ramekin_slots::{Adapter, AdapterFile, AttachContext, Sites, WeightSource};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value as Json, json};

part! { adapter / "ln" => LnTuning, "trains the norms, in PEFT's files",
source = "arXiv:2312.11420; PEFT LNTuningConfig", traits = [Mergeable, IdentityAtStart, NeedsBackboneBackward],
from_peft = LnTuning::from_peft }

/// Settings of `adapter = [{ kind = "ln", … }]`, named as in `peft.LNTuningConfig`.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct LnTuningSettings {
    /// Norms to train: names or path endings, or a regular expression for whole paths; absent is all but
    /// those inside an attention.
    pub target_modules: Option<Modules>,
    /// Modules to leave out again.
    pub exclude_modules: Option<Modules>,
    /// Modules trained whole, as copies that are saved with the adapter.
    pub modules_to_save: Option<Vec<String>>,
}

/// The adapter; empty until attached.
pub struct LnTuning {
    settings: LnTuningSettings,
    targets: Vec<String>,
    kept: Kept,
}

impl Part for LnTuning {
    type Settings = LnTuningSettings;

    fn new(settings: LnTuningSettings) -> Result<Self> {
        Ok(LnTuning { settings, targets: Vec::new(), kept: Kept::default() })
    }
}

impl LnTuning {
    /// The part that a PEFT config describes, if it is this one's.
    pub fn from_peft(config: &Json) -> Option<Result<AnyPart>> {
        (config["peft_type"].as_str() == Some("LN_TUNING")).then(|| {
            let own = own_fields(config, "ln", &[])?;
            Ok(AnyPart::Adapter(Box::new(LnTuning::new(settings(&own)?)?)))
        })
    }

    fn names(&self, sites: &Sites) -> Modules {
        self.settings.target_modules.clone().unwrap_or_else(|| {
            let norms = sites.modules().iter().filter(|m| m.norm.is_some() && !m.path.contains("attn."));
            let mut names: Vec<String> =
                norms.map(|m| m.path.rsplit('.').next().unwrap_or(&m.path).to_owned()).collect();
            names.sort_unstable();
            names.dedup();
            Modules::List(names)
        })
    }
}

impl Adapter for LnTuning {
    fn attach(&mut self, cx: &mut AttachContext<'_>) -> Result<Vec<String>> {
        let sites: Rc<Sites> = cx.sites.clone();
        let modules = self.names(&sites);
        let exclude = self.settings.exclude_modules.as_ref();
        let selector = Selector::new("target_modules", &modules, exclude, None, &[])?;
        let candidates = sites.module_candidates();
        let found = selector.select(&candidates)?;
        for path in &found {
            let Some(norm) = sites.module(path).and_then(|m| m.norm.as_ref()) else {
                let why = format!("names `{path}`, which is no norm; train it whole with `modules_to_save`");
                return Err(BadSetting::new("target_modules", why).into());
            };
            for name in std::iter::once(&norm.weight).chain(&norm.bias) {
                let tail = name.rsplit('.').next().unwrap_or(name);
                let site = sites.param(name)?;
                let base = site.base().value();
                let copy = if cx.shape_only {
                    Array::shape_only(base.dims(), DType::F32, Category::Workspace)?
                } else if base.is_shape_only() {
                    Array::zeros(base.dims(), DType::F32, Category::Workspace)? // a file brings the numbers
                } else {
                    let numbers = sites.with_weights_of(name, || site.base().value().to_f32())?;
                    Array::from_vec(numbers, base.dims(), Category::Workspace)?
                };
                let key = format!("base_model.model.{path}.ln_tuning_layers.{tail}");
                site.set_stand_in(Some(self.kept.add(cx, key, copy)?));
            }
        }
        let whole = self.settings.modules_to_save.clone().unwrap_or_default();
        self.kept.add_modules(cx, &whole)?;
        self.targets = match modules {
            Modules::List(names) => names,
            Modules::Pattern(_) => Vec::new(),
        };
        Ok(found.into_iter().map(str::to_owned).collect())
    }

    fn load(&mut self, source: &mut dyn WeightSource) -> Result<()> {
        self.kept.load(source, |_| false)
    }

    fn file(&self, base: &str) -> Result<AdapterFile> {
        let s = &self.settings;
        let targets = match &s.target_modules {
            Some(pattern @ Modules::Pattern(_)) => json!(pattern),
            _ => json!(self.targets),
        };
        let own = json!({
            "exclude_modules": s.exclude_modules, "modules_to_save": s.modules_to_save,
            "target_modules": targets,
        });
        Ok(AdapterFile {
            config: whole_config(own, "LN_TUNING", base),
            tensors: self.kept.tensors().map(|(key, p)| (key.to_owned(), p.value())).collect(),
            extra: Json::Null,
        })
    }

    fn params(&self) -> Vec<(String, Arc<Param>)> {
        self.kept.params().map(|(key, p)| (key.to_owned(), p.clone())).collect()
    }
}
