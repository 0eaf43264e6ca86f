//! LoRA, rsLoRA and LoRA+.
//!
//! `y = Wx + b + s·B A drop(x)`; A `[r, I]` Kaiming-uniform, B `[O, r]` zero,
//! s = alpha/r or alpha/√r. LoRA+ gives B and every trainable vector a larger
//! learning rate.
//!
//! Source: Hu et al. 2021, arXiv:2106.09685; Kalajdzievski 2023,
//! arXiv:2312.03732; Hayou et al. 2024, arXiv:2402.12354; sheet `lora-family`.

use std::rc::Rc;
use std::sync::Arc;

use anyhow::Result;
use ramekin_core::pattern::Selector;
use ramekin_core::{Array, Category, DType, Param, ParamId, UserError};
use ramekin_registry::{Part, part};
use ramekin_slots::{
    Adapter, AdapterFile, AttachContext, Forward, LinearAdapter, LinearSite, ParamGroup, Sites, WeightSource,
};
use ramekin_tape::{Tape, Value, ops};
use serde_json::Value as Json;

use crate::file;
use crate::settings::{Bias, InitWeights, LoraSettings};

part! { adapter / "lora" => Lora, "low-rank updates of linears, in PEFT's files (rsLoRA and LoRA+ by setting)",
source = "arXiv:2106.09685; sheet lora-family", traits = [Mergeable, IdentityAtStart, NeedsBackboneBackward],
from_peft = file::from_peft }

/// One saved parameter: its name in the file and the parameter.
pub(crate) struct Named {
    pub(crate) key: String,
    pub(crate) param: Arc<Param>,
}

/// The adapter; empty until attached.
pub struct Lora {
    pub(crate) settings: LoraSettings,
    pub(crate) targets: Vec<String>,
    pub(crate) params: Vec<Named>,
    groups: Vec<(ParamId, ParamGroup)>,
}

impl Part for Lora {
    type Settings = LoraSettings;

    fn new(settings: LoraSettings) -> Result<Self> {
        settings.check()?;
        Ok(Lora { settings, targets: Vec::new(), params: Vec::new(), groups: Vec::new() })
    }
}

/// The update of one linear.
struct LowRank {
    a: Arc<Param>,
    b: Arc<Param>,
    bias: Option<Arc<Param>>,
    scale: f64,
    dropout: f64,
}

impl LinearAdapter for LowRank {
    fn forward(&self, fx: &Forward, site: &LinearSite, x: &Value, y: Value) -> Result<Value> {
        let tape: &Tape = &fx.tape;
        let p = if fx.mode.training { self.dropout } else { 0.0 };
        let x = ops::dropout(tape, x, p, fx.stream("lora_dropout", &site.path))?;
        let low = ops::scale(tape, &ops::linear(tape, &x, &tape.param(&self.a)?, None)?, self.scale)?;
        let y = ops::linear_onto(tape, y, &low, &tape.param(&self.b)?)?;
        match &self.bias {
            None => Ok(y),
            Some(bias) => ops::add_row(tape, &y, &tape.param(bias)?, self.scale),
        }
    }

    fn fold(&self, site: &LinearSite, weight: Array) -> Result<Array> {
        if self.bias.is_some() {
            return Err(UserError::new(format!(
                "`lora_bias` at `{}` has no place in the merged weight",
                site.path
            ))
            .help("train without `lora_bias`, or serve the adapter unmerged")
            .into());
        }
        let (a, b) = (self.a.value(), self.b.value());
        let ((o, i), r) = (site.shape, a.dims()[0]);
        let (a, b) = (a.view::<f32>()?, b.view::<f32>()?);
        weight.update(|w: &mut [f32]| {
            ramekin_kernels::matmul::nn(o, r, i, self.scale as f32, &b, &a, true, w);
        })?;
        Ok(weight)
    }
}

impl Lora {
    /// A trainable parameter with its place in the file.
    fn add(&mut self, cx: &mut AttachContext<'_>, key: String, value: Array) -> Result<Arc<Param>> {
        let name = if cx.index == 0 { key.clone() } else { format!("adapter{}.{key}", cx.index) };
        let param = Param::new(name, value);
        param.set_trainable(true);
        cx.ledger.add(&param, &cx.owner)?;
        self.params.push(Named { key, param: param.clone() });
        Ok(param)
    }

    fn initial(&self, cx: &AttachContext<'_>, key: &str, dims: &[usize], b_side: bool) -> Result<Array> {
        let stream = cx.rng.named(&format!("{}/init", cx.owner), key);
        Array::build::<f32>(dims, cx.shape_only, Category::Workspace, |out| {
            let bound = 1.0 / (dims[1].max(1) as f64).sqrt();
            match &self.settings.init_lora_weights {
                InitWeights::Default(true) if b_side => {}
                InitWeights::Named(_) if b_side => {}
                InitWeights::Named(_) => stream.fill_normal(0, 1.0 / dims[0] as f64, out),
                InitWeights::Default(_) => stream.fill_uniform(0, -bound, bound, out),
            }
            Ok(())
        })
    }

    /// LoRA+'s larger rate, for B and for everything with one dimension; biases and norms do not decay.
    fn hasten(&mut self, param: &Arc<Param>) {
        if let Some(lr_scale) = self.settings.loraplus_lr_ratio {
            let decay = param.value().dims().len() > 1;
            self.groups.push((param.id(), ParamGroup { lr_scale, decay }));
        }
    }

    fn attach_linear(&mut self, cx: &mut AttachContext<'_>, sites: &Sites, path: &str) -> Result<()> {
        let site = sites.linear(path)?;
        let (o, i) = site.shape;
        let (r, scale) = self.settings.rank_and_scale(path);
        let key = |tail: &str| format!("base_model.model.{path}.{tail}");
        let a = self.initial(cx, &key("lora_A.weight"), &[r, i], false)?;
        let b = self.initial(cx, &key("lora_B.weight"), &[o, r], true)?;
        let a = self.add(cx, key("lora_A.weight"), a)?;
        let b = self.add(cx, key("lora_B.weight"), b)?;
        let bias = if self.settings.lora_bias {
            let zeros = zeros(&[o], cx.shape_only)?;
            Some(self.add(cx, key("lora_B.bias"), zeros)?)
        } else {
            None
        };
        self.hasten(&b);
        if let Some(bias) = &bias {
            self.hasten(bias);
        }
        site.attach(Box::new(LowRank { a, b, bias, scale, dropout: self.settings.lora_dropout }));
        Ok(())
    }

    /// Copies of whole modules that train and are saved with the adapter.
    fn attach_saved_modules(&mut self, cx: &mut AttachContext<'_>, sites: &Sites) -> Result<()> {
        for entry in self.settings.modules_to_save.clone().unwrap_or_default() {
            let names: Vec<String> = sites.params_of_module(&entry)?.into_iter().map(str::to_owned).collect();
            for name in names {
                let site = sites.param(&name)?;
                let base = site.base().value();
                let copy = if cx.shape_only {
                    Array::shape_only(base.dims(), DType::F32, Category::Workspace)?
                } else {
                    Array::from_vec(base.to_f32()?, base.dims(), Category::Workspace)?
                };
                let param = self.add(cx, format!("base_model.model.{name}"), copy)?;
                if param.value().dims().len() == 1 {
                    self.hasten(&param);
                }
                site.set_stand_in(Some(param));
            }
        }
        Ok(())
    }

    /// Bias vectors of the base that train along.
    fn claim_biases(&mut self, cx: &mut AttachContext<'_>, sites: &Sites) -> Result<()> {
        let wanted = |path: &str| match self.settings.bias {
            Bias::None => false,
            Bias::All => true,
            Bias::LoraOnly => self.targets.iter().any(|t| t == path),
        };
        let mut found = Vec::new();
        for site in sites.linears().iter().filter(|s| wanted(&s.path)) {
            let Some(name) = &site.bias else { continue };
            let targeted = self.targets.contains(&site.path);
            let key = if targeted { format!("{}.base_layer.bias", site.path) } else { name.clone() };
            found.push((name.clone(), format!("base_model.model.{key}")));
        }
        for (name, key) in found {
            cx.ledger.claim(&name, &cx.owner)?;
            let param = sites.param(&name)?.base().clone();
            param.set_trainable(true);
            self.hasten(&param);
            self.params.push(Named { key, param });
        }
        Ok(())
    }
}

fn zeros(dims: &[usize], shape_only: bool) -> Result<Array> {
    Array::build::<f32>(dims, shape_only, Category::Workspace, |_| Ok(()))
}

impl Adapter for Lora {
    fn attach(&mut self, cx: &mut AttachContext<'_>) -> Result<Vec<String>> {
        let s = &self.settings;
        let selector = Selector::new(
            "target_modules",
            &s.target_modules,
            s.exclude_modules.as_ref(),
            s.layers_to_transform.as_deref(),
            s.layers_pattern.as_deref().unwrap_or_default(),
        )?;
        let sites: Rc<Sites> = cx.sites.clone();
        self.targets = selector.select(&sites.candidates())?.into_iter().map(str::to_owned).collect();
        for path in self.targets.clone() {
            self.attach_linear(cx, &sites, &path)?;
        }
        self.attach_saved_modules(cx, &sites)?;
        self.claim_biases(cx, &sites)?;
        Ok(self.targets.clone())
    }

    fn load(&mut self, source: &mut dyn WeightSource) -> Result<()> {
        file::load(self, source)
    }

    fn file(&self, base: &str) -> Result<AdapterFile> {
        Ok(AdapterFile {
            config: file::config(self, base),
            tensors: self.params.iter().map(|p| (p.key.clone(), p.param.value())).collect(),
            extra: Json::Null,
        })
    }

    fn params(&self) -> Vec<(String, Arc<Param>)> {
        self.params.iter().map(|p| (p.key.clone(), p.param.clone())).collect()
    }

    fn groups(&self) -> Vec<(ParamId, ParamGroup)> {
        self.groups.clone()
    }
}
