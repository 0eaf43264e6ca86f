//! SSF: every feature times a learned scale plus a learned shift, channel by channel.
//!
//! `y ← γ ⊙ y + β` behind each linear and norm; γ ~ N(1, σ²), β ~ N(0, σ²), σ = `init_std`
//!
//! folded: `W' = diag(γ) W, b' = γ⊙b + β` at a linear, `w' = γ⊙w, c' = γ⊙c + β` at a norm. The shift of a
//! norm without bias moves on into the linears that read it: `b' = b + W β`.
//!
//! γ and β have one dimension and never decay.
//!
//! Source: Lian et al. 2022, arXiv:2210.08823; sheet `ssf`.

use std::rc::Rc;
use std::sync::Arc;

use anyhow::Result;
use ramekin_core::{Array, BadSetting, Category, Param, ParamId};
use ramekin_peft::{Kept, own_fields, settings, whole_config};
use ramekin_registry::{AnyPart, Part, part};
use ramekin_slots::{
    Adapter, AdapterFile, Affine, AttachContext, Forward, LinearBase, LinearSite, ModuleAdapter, ModuleSite,
    ParamGroup, Sites, WeightSource,
};
use ramekin_tape::Value;
use ramekin_tape::ops::{self, Channels};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value as Json, json};

part! { adapter / "ssf" => Ssf, "a learned scale and shift of every feature, folded in afterwards",
source = "arXiv:2210.08823; sheet ssf", traits = [Mergeable, NeedsBackboneBackward],
from_peft = Ssf::from_peft }

/// A kind of place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Where {
    /// Linears, but for the head and the patch projection.
    Linear,
    /// Convolutions.
    Conv,
    /// Norms inside the blocks.
    Norm,
    /// The projection of patches.
    PatchEmbed,
    /// The norm before the head.
    FinalNorm,
}

/// Which places.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(untagged)]
pub enum Places {
    /// `"all"`: whichever of them the model has.
    All(All),
    /// These.
    Some(Vec<Where>),
}

/// The word for every place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum All {
    /// `"all"`
    All,
}

/// Settings of `adapter = [{ kind = "ssf", … }]`.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct SsfSettings {
    /// Where the pairs go: "all", or a list of `linear`, `conv`, `norm`, `patch_embed` and `final_norm`.
    pub sites: Places,
    /// Spread σ of the initial scales around 1 and shifts around 0, at least 0; 0 starts at the base model.
    pub init_std: f64,
    /// Trains a copy of the head along, saved with the adapter.
    pub train_head: bool,
}

impl Default for SsfSettings {
    fn default() -> Self {
        SsfSettings { sites: Places::All(All::All), init_std: 0.02, train_head: true }
    }
}

impl SsfSettings {
    fn wants(&self, place: Where) -> bool {
        match &self.sites {
            Places::All(_) => true,
            Places::Some(list) => list.contains(&place),
        }
    }
}

/// The adapter; empty until attached.
pub struct Ssf {
    settings: SsfSettings,
    kept: Kept,
    refusal: Option<String>,
}

impl Part for Ssf {
    type Settings = SsfSettings;

    fn new(settings: SsfSettings) -> Result<Self> {
        if !(settings.init_std >= 0.0 && settings.init_std.is_finite()) {
            let why = format!("is {}; it must be at least 0", settings.init_std);
            return Err(BadSetting::new("init_std", why).into());
        }
        if matches!(&settings.sites, Places::Some(list) if list.is_empty()) {
            let why = "is an empty list; name at least one kind of place or use \"all\"";
            return Err(BadSetting::new("sites", why).into());
        }
        Ok(Ssf { settings, kept: Kept::default(), refusal: None })
    }
}

/// The kind of place that a linear is; `None` for the head.
fn of_linear(site: &LinearSite) -> Option<Where> {
    let patch = site.path.split('.').any(|part| part.starts_with("patch_embed"));
    match (site.is_head, patch) {
        (true, _) => None,
        (_, true) => Some(Where::PatchEmbed),
        _ => Some(Where::Linear),
    }
}

/// The kind of place that a module is; `None` if it is no norm whose shift has somewhere to go.
fn of_module(module: &ModuleSite, sites: &Sites) -> Option<Where> {
    let norm = module.norm.as_ref()?;
    let is_head = |path: &String| sites.linear(path).is_ok_and(|l| l.is_head);
    match norm.readers.iter().any(is_head) {
        true => Some(Where::FinalNorm),
        false if norm.bias.is_some() || !norm.readers.is_empty() => Some(Where::Norm),
        false => None,
    }
}

impl Ssf {
    /// The part that a saved config describes, if it is this one's.
    pub fn from_peft(config: &Json) -> Option<Result<AnyPart>> {
        (config["peft_type"].as_str() == Some("SSF")).then(|| {
            let own = own_fields(config, "ssf", &[])?;
            Ok(AnyPart::Adapter(Box::new(Ssf::new(settings(&own)?)?)))
        })
    }

    fn pair(&mut self, cx: &mut AttachContext<'_>, path: &str, channels: usize) -> Result<()> {
        let std = self.settings.init_std;
        let mut begin = |tail: &str, mean: f32| {
            let key = format!("base_model.model.{path}.{tail}");
            let stream = cx.rng.named(&format!("{}/init", cx.owner), &key);
            let value = Array::build::<f32>(&[channels], cx.shape_only, Category::Workspace, |out| {
                if std > 0.0 {
                    stream.fill_normal(0, std, out);
                }
                out.iter_mut().for_each(|x| *x += mean);
                Ok(())
            })?;
            self.kept.add(cx, key, value)
        };
        let (gamma, beta) = (begin("ssf_scale", 1.0)?, begin("ssf_shift", 0.0)?);
        cx.sites.attach_module(path, Rc::new(Pair { gamma, beta }))
    }

    fn train_head(&mut self, cx: &mut AttachContext<'_>) -> Result<()> {
        let sites = cx.sites.clone();
        for head in sites.linears().iter().filter(|l| l.is_head) {
            let own = format!("{}.weight", head.path);
            if matches!(head.base(), LinearBase::Dense(name) if name != own) {
                let why =
                    format!("is true, and `{}` shares the embedding's table; set it to false", head.path);
                return Err(BadSetting::new("train_head", why).into());
            }
            self.kept.add_modules(cx, std::slice::from_ref(&head.path))?;
        }
        Ok(())
    }
}

impl Adapter for Ssf {
    fn attach(&mut self, cx: &mut AttachContext<'_>) -> Result<Vec<String>> {
        let sites: Rc<Sites> = cx.sites.clone();
        let linears = sites.linears().iter().map(|l| (of_linear(l), l.path.as_str(), l.shape.0));
        let modules = sites.modules().iter().map(|m| (of_module(m, &sites), m.path.as_str(), m.width));
        let places: Vec<(Where, &str, usize)> =
            linears.chain(modules).filter_map(|(w, path, width)| Some((w?, path, width))).collect();
        if let Places::Some(list) = &self.settings.sites
            && let Some(none) = list.iter().find(|w| !places.iter().any(|(p, _, _)| p == *w))
        {
            let why = format!("names {}, which this model has none of", json!(none));
            return Err(BadSetting::new("sites", why).into());
        }
        let mut at = Vec::new();
        for (place, path, width) in places {
            if !self.settings.wants(place) {
                continue;
            }
            self.pair(cx, path, width)?;
            at.push(path.to_owned());
            let module = sites.module(path).and_then(|m| m.norm.as_ref());
            if place == Where::FinalNorm && module.is_some_and(|n| n.bias.is_none()) {
                self.refusal = Some(format!(
                    "the shift of `ssf` behind `{path}` would need a bias of the head; leave \"final_norm\" out of `sites`"
                ));
            }
        }
        if self.settings.train_head {
            self.train_head(cx)?;
        }
        Ok(at)
    }

    fn load(&mut self, source: &mut dyn WeightSource) -> Result<()> {
        self.kept.load(source, |_| false)
    }

    fn file(&self, base: &str) -> Result<AdapterFile> {
        Ok(AdapterFile {
            config: whole_config(serde_json::to_value(&self.settings)?, "SSF", base),
            tensors: self.kept.tensors().map(|(key, p)| (key.to_owned(), p.value())).collect(),
            extra: Json::Null,
        })
    }

    fn params(&self) -> Vec<(String, Arc<Param>)> {
        self.kept.params().map(|(key, p)| (key.to_owned(), p.clone())).collect()
    }

    fn groups(&self, _: f64) -> Vec<(ParamId, ParamGroup)> {
        let vectors = self.kept.params().filter(|(_, p)| p.value().dims().len() == 1);
        vectors.map(|(_, p)| (p.id(), ParamGroup { decay: false, ..ParamGroup::default() })).collect()
    }

    fn unmergeable(&self) -> Option<String> {
        self.refusal.clone()
    }
}

/// γ and β behind one module.
struct Pair {
    gamma: Arc<Param>,
    beta: Arc<Param>,
}

impl ModuleAdapter for Pair {
    fn forward(&self, fx: &Forward, _: &str, _: Option<&Value>, y: Value) -> Result<Value> {
        let tape = &fx.tape;
        ops::scale_shift(tape, &y, &tape.param(&self.gamma)?, &tape.param(&self.beta)?, Channels::Last)
    }

    fn affine(&self, _: &str) -> Result<Affine> {
        Ok(Affine { scale: self.gamma.value(), shift: Some(self.beta.value()) })
    }
}
