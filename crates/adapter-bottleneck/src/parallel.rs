//! Parallel adapters: a bottleneck beside a linear.
//!
//! `y = Wx + b + c·Up f(Down x)`, Down `[b, I]`, Up `[O, b]`
//!
//! Source: Hu et al. 2023, arXiv:2304.01933; He et al. 2021, arXiv:2110.04366; sheet `llm-adapters`.

use anyhow::Result;
use ramekin_core::pattern::Modules;
use ramekin_core::{Array, UserError};
use ramekin_peft::{Kept, Method, PeftAdapter, Targeting};
use ramekin_registry::part;
use ramekin_slots::{AttachContext, Below, Forward, LinearAdapter, LinearSite, Sites};
use ramekin_tape::Value;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use crate::bottleneck::{Activation, Bottleneck, FOREIGN, Init, Scaling, Shape, is_parallel};

part! { adapter / "parallel" => PeftAdapter<Parallel>, "a bottleneck beside a linear",
source = "arXiv:2304.01933; sheet llm-adapters", traits = [IdentityAtStart, NeedsBackboneBackward],
from_peft = PeftAdapter::<Parallel>::from_peft }

/// Settings of `adapter = [{ kind = "parallel", … }]`.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ParallelSettings {
    /// Width of the bottleneck, at least 1.
    pub bottleneck_size: usize,
    /// `relu`, `gelu`, `silu`, `tanh` or `linear`; only `linear` can be merged.
    #[serde(alias = "non_linearity")]
    pub activation: Activation,
    /// Share of the bottleneck's inputs dropped in training, in [0, 1).
    pub adapter_dropout: f64,
    /// Factor of what is added: a number, or "learned".
    pub scaling: Scaling,
    /// `mam_adapter` starts at the base model, `bert` near it.
    #[serde(alias = "init_weights")]
    pub init: Init,
    /// Linears to adapt: names or path endings, a regular expression for whole paths, or "all-linear".
    pub target_modules: Modules,
}

impl Default for ParallelSettings {
    fn default() -> Self {
        ParallelSettings {
            bottleneck_size: 256,
            activation: Activation::Tanh,
            adapter_dropout: 0.0,
            scaling: Scaling::Fixed(1.0),
            init: Init::MamAdapter,
            target_modules: Modules::List(vec!["up_proj".into(), "down_proj".into()]),
        }
    }
}

/// The method.
pub struct Parallel(ParallelSettings);

impl Parallel {
    fn shape(&self) -> Shape<'_> {
        Shape {
            size: self.0.bottleneck_size,
            activation: self.0.activation,
            dropout: self.0.adapter_dropout,
            scaling: &self.0.scaling,
            init: self.0.init,
        }
    }

    fn refusal(&self) -> Option<&'static str> {
        if self.0.activation != Activation::Linear {
            return Some("a parallel adapter is no linear function of its input; serve it unmerged");
        }
        self.shape().is_learned().then_some(
            "`scaling` is \"learned\", which is not merged; give a number, or serve the adapter unmerged",
        )
    }
}

impl Method for Parallel {
    type Settings = ParallelSettings;
    const NAME: &'static str = "parallel";
    const PEFT_TYPE: &'static str = "BOTTLENECK";
    const INIT: &'static str = "init_weights";
    const FOREIGN: &'static [(&'static str, &'static [&'static str])] = FOREIGN;

    fn new(settings: ParallelSettings) -> Result<Self> {
        let parallel = Parallel(settings);
        parallel.shape().check()?;
        Ok(parallel)
    }

    fn reads(config: &Json) -> bool {
        is_parallel(config)
    }

    fn targeting(&self) -> Targeting<'_> {
        Targeting::of(&self.0.target_modules)
    }

    fn config(&self) -> Json {
        self.shape().config(true)
    }

    fn adapt(
        &self,
        kept: &mut Kept,
        cx: &mut AttachContext<'_>,
        site: &LinearSite,
    ) -> Result<Box<dyn LinearAdapter>> {
        let (o, i) = site.shape;
        let net = Bottleneck::new(&self.shape(), kept, cx, site, (i, o))?;
        Ok(Box::new(Beside { net, refusal: self.refusal() }))
    }

    fn unmergeable(&self) -> Option<String> {
        self.refusal().map(str::to_owned)
    }
}

struct Beside {
    net: Bottleneck,
    refusal: Option<&'static str>,
}

impl LinearAdapter for Beside {
    fn forward(&self, fx: &Forward, site: &LinearSite, x: &Value, below: &Below<'_>) -> Result<Value> {
        self.net.onto(fx, site, below(x)?, x)
    }

    fn fold(&self, _: &Sites, site: &LinearSite, weight: Array) -> Result<Array> {
        if let Some(why) = self.refusal {
            return Err(UserError::new(format!("`{}`: {why}", site.path)).into());
        }
        let (down, up) = (self.net.down.value(), self.net.up.value());
        let ((o, i), b) = (site.shape, down.dims()[0]);
        let (down, up) = (down.view::<f32>()?, up.view::<f32>()?);
        weight.update(|w: &mut [f32]| {
            ramekin_kernels::matmul::nn(o, b, i, self.net.fixed as f32, &up, &down, true, w);
        })?;
        Ok(weight)
    }
}
