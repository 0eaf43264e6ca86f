//! Series adapters: a bottleneck behind a linear's output, or before its input.
//!
//! output: `y = u + c·Up f(Down u)`, u = Wx + b, Down `[b, O]`, Up `[O, b]`
//! input: `y = W(x + c·Up f(Down x)) + b`, Down `[b, I]`, Up `[I, b]`
//!
//! Source: Hu et al. 2023, arXiv:2304.01933; Houlsby et al. 2019, arXiv:1902.00751; sheet `llm-adapters`.

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

part! { adapter / "series" => PeftAdapter<Series>, "a bottleneck behind a linear, or before it",
source = "arXiv:2304.01933; sheet llm-adapters", traits = [IdentityAtStart, NeedsBackboneBackward],
from_peft = PeftAdapter::<Series>::from_peft }

/// Where a series adapter sits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Position {
    /// Before the linear.
    Input,
    /// Behind it.
    Output,
}

/// Settings of `adapter = [{ kind = "series", … }]`.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct SeriesSettings {
    /// Width of the bottleneck, at least 1.
    pub bottleneck_size: usize,
    /// `relu`, `gelu`, `silu`, `tanh` or `linear`.
    #[serde(alias = "non_linearity")]
    pub activation: Activation,
    /// Share of the bottleneck's inputs dropped in training, in [0, 1).
    pub adapter_dropout: f64,
    /// Factor of what is added: a number, or "learned".
    pub scaling: Scaling,
    /// `mam_adapter` starts at the base model, `bert` near it.
    #[serde(alias = "init_weights")]
    pub init: Init,
    /// `input` or `output` at every target; absent is by the module's role: `input` at the first matrices
    /// of an MLP (`gate_proj`, `up_proj`, `dense_h_to_4h`, `fc_in`, `fc1`), `output` elsewhere.
    pub position: Option<Position>,
    /// Linears to adapt: names or path endings, a regular expression for whole paths, or "all-linear".
    pub target_modules: Modules,
}

impl Default for SeriesSettings {
    fn default() -> Self {
        SeriesSettings {
            bottleneck_size: 256,
            activation: Activation::Tanh,
            adapter_dropout: 0.0,
            scaling: Scaling::Fixed(1.0),
            init: Init::MamAdapter,
            position: None,
            target_modules: Modules::List(vec!["down_proj".into()]),
        }
    }
}

/// First matrices of an MLP.
const FIRST: [&str; 5] = ["gate_proj", "up_proj", "dense_h_to_4h", "fc_in", "fc1"];

/// The method.
pub struct Series(SeriesSettings);

impl Series {
    fn shape(&self) -> Shape<'_> {
        Shape {
            size: self.0.bottleneck_size,
            activation: self.0.activation,
            dropout: self.0.adapter_dropout,
            scaling: &self.0.scaling,
            init: self.0.init,
        }
    }
}

impl Method for Series {
    type Settings = SeriesSettings;
    const NAME: &'static str = "series";
    const PEFT_TYPE: &'static str = "BOTTLENECK";
    const INIT: &'static str = "init_weights";
    const FOREIGN: &'static [(&'static str, &'static [&'static str])] = FOREIGN;

    fn new(settings: SeriesSettings) -> Result<Self> {
        let series = Series(settings);
        series.shape().check()?;
        Ok(series)
    }

    fn reads(config: &Json) -> bool {
        !is_parallel(config)
    }

    fn targeting(&self) -> Targeting<'_> {
        Targeting::of(&self.0.target_modules)
    }

    fn config(&self) -> Json {
        let mut config = self.shape().config(false);
        if let Some(position) = self.0.position {
            config["position"] = serde_json::json!(position);
        }
        config
    }

    fn adapt(
        &self,
        kept: &mut Kept,
        cx: &mut AttachContext<'_>,
        site: &LinearSite,
    ) -> Result<Box<dyn LinearAdapter>> {
        let name = site.path.rsplit('.').next().unwrap_or(&site.path);
        let by_role = if FIRST.contains(&name) { Position::Input } else { Position::Output };
        let position = self.0.position.unwrap_or(by_role);
        let (o, i) = site.shape;
        let width = if position == Position::Input { i } else { o };
        let net = Bottleneck::new(&self.shape(), kept, cx, site, (width, width))?;
        Ok(Box::new(InSeries { net, position }))
    }

    fn unmergeable(&self) -> Option<String> {
        Some("a series adapter is no linear function of its input; serve it unmerged".to_owned())
    }
}

struct InSeries {
    net: Bottleneck,
    position: Position,
}

impl LinearAdapter for InSeries {
    fn forward(&self, fx: &Forward, site: &LinearSite, x: &Value, below: &Below<'_>) -> Result<Value> {
        match self.position {
            Position::Input => below(&self.net.onto(fx, site, x.clone(), x)?),
            Position::Output => {
                let u = below(x)?;
                self.net.onto(fx, site, u.clone(), &u)
            }
        }
    }

    fn fold(&self, _: &Sites, site: &LinearSite, _: Array) -> Result<Array> {
        let why = format!("the series adapter at `{}` cannot be folded into its weight", site.path);
        Err(UserError::new(why).help("serve it unmerged").into())
    }
}
