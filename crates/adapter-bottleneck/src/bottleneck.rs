//! The small network itself: `c · Up f(Down drop(x))`.

use std::sync::Arc;

use anyhow::Result;
use ramekin_core::{Array, BadSetting, Category, Param};
use ramekin_peft::{Kept, kaiming, zeros};
use ramekin_slots::{AttachContext, Forward, LinearSite};
use ramekin_tape::{Value, ops};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value as Json, json};

/// The function between Down and Up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// max(x, 0)
    Relu,
    /// x·Φ(x)
    Gelu,
    /// x·σ(x)
    Silu,
    /// tanh x
    #[default]
    Tanh,
    /// None: `parallel` is then a LoRA of rank b, and merges.
    Linear,
}

impl Activation {
    fn op(self) -> ops::Activation {
        match self {
            Activation::Relu => ops::Activation::Relu,
            Activation::Gelu => ops::Activation::Gelu,
            Activation::Silu => ops::Activation::Silu,
            Activation::Tanh => ops::Activation::Tanh,
            Activation::Linear => ops::Activation::Linear,
        }
    }
}

/// How Down and Up begin.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Init {
    /// Both N(0, 0.02²): near the base model, not at it.
    Bert,
    /// Down Kaiming-uniform (a = √5), Up zero: exactly the base model.
    #[default]
    MamAdapter,
}

/// The factor c.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(untagged)]
pub enum Scaling {
    /// A constant.
    Fixed(f64),
    /// `"learned"`: one number an adapter that trains, from 1.
    Named(String),
}

/// What both kinds set.
pub(crate) struct Shape<'a> {
    pub size: usize,
    pub activation: Activation,
    pub dropout: f64,
    pub scaling: &'a Scaling,
    pub init: Init,
}

impl Shape<'_> {
    pub(crate) fn check(&self) -> Result<(), BadSetting> {
        if self.size == 0 {
            return Err(BadSetting::new("bottleneck_size", "is 0; it must be at least 1"));
        }
        if !(0.0..1.0).contains(&self.dropout) {
            let why = format!("is {}; it must be in [0, 1)", self.dropout);
            return Err(BadSetting::new("adapter_dropout", why));
        }
        let why = match self.scaling {
            Scaling::Fixed(c) if !c.is_finite() => {
                format!("is {c}; it must be a finite number or \"learned\"")
            }
            Scaling::Named(name) if name != "learned" => {
                format!("is {name:?}; it must be a number or \"learned\"")
            }
            _ => return Ok(()),
        };
        Err(BadSetting::new("scaling", why))
    }

    pub(crate) fn is_learned(&self) -> bool {
        matches!(self.scaling, Scaling::Named(_))
    }

    /// The fields of a `BottleneckConfig`.
    pub(crate) fn config(&self, parallel: bool) -> Json {
        let scaling = match self.scaling {
            Scaling::Fixed(c) => json!(c),
            Scaling::Named(name) => json!(name),
        };
        json!({
            "adapter_dropout": self.dropout, "bias": "none", "bottleneck_size": self.size,
            "init_weights": self.init, "modules_to_save": null, "non_linearity": self.activation,
            "scaling": scaling, "use_adapterp": false, "use_parallel_adapter": parallel,
        })
    }
}

/// What a saved config may hold besides the settings, with the values that mean "off".
pub(crate) const FOREIGN: &[(&str, &[&str])] = &[
    ("use_parallel_adapter", &[]),
    ("use_adapterp", &[]),
    ("bias", &["\"none\""]),
    ("modules_to_save", &["null"]),
    ("enable_lora", &["null"]),
];

/// Whether a saved config is of the parallel kind.
pub(crate) fn is_parallel(config: &Json) -> bool {
    config["use_parallel_adapter"] == true
}

/// The network at one linear.
pub(crate) struct Bottleneck {
    pub down: Arc<Param>,
    pub up: Arc<Param>,
    learned: Option<Arc<Param>>,
    pub fixed: f64,
    activation: Activation,
    dropout: f64,
}

impl Bottleneck {
    /// From rows of `inputs` to rows of `outputs`.
    pub(crate) fn new(
        shape: &Shape<'_>,
        kept: &mut Kept,
        cx: &mut AttachContext<'_>,
        site: &LinearSite,
        (inputs, outputs): (usize, usize),
    ) -> Result<Self> {
        let (down_key, up_key) =
            (Kept::key(site, "adapter_down.weight"), Kept::key(site, "adapter_up.weight"));
        let (down_dims, up_dims) = ([shape.size, inputs], [outputs, shape.size]);
        let (down, up) = match shape.init {
            Init::MamAdapter => (kaiming(cx, &down_key, down_dims)?, zeros(cx, &up_dims)?),
            Init::Bert => (normal(cx, &down_key, &down_dims)?, normal(cx, &up_key, &up_dims)?),
        };
        let down = kept.add(cx, down_key, down)?;
        let up = kept.add(cx, up_key, up)?;
        let learned = if shape.is_learned() {
            let one = Array::build::<f32>(&[1], cx.shape_only, Category::Workspace, |out| {
                out.fill(1.0);
                Ok(())
            })?;
            Some(kept.add(cx, Kept::key(site, "adapter_scaling"), one)?)
        } else {
            None
        };
        let fixed = if let Scaling::Fixed(c) = shape.scaling { *c } else { 1.0 };
        Ok(Bottleneck { down, up, learned, fixed, activation: shape.activation, dropout: shape.dropout })
    }

    /// `y + c · Up f(Down drop(x))`
    pub(crate) fn onto(&self, fx: &Forward, site: &LinearSite, y: Value, x: &Value) -> Result<Value> {
        let tape = &fx.tape;
        let p = if fx.mode.training { self.dropout } else { 0.0 };
        let x = ops::dropout(tape, x, p, fx.stream("adapter_dropout", &site.path))?;
        let low = ops::linear(tape, &x, &tape.param(&self.down)?, None)?;
        let low = ops::activation(tape, &low, self.activation.op())?;
        let low = match &self.learned {
            Some(c) => times(fx, &low, c)?,
            None if self.fixed == 1.0 => low,
            None => ops::scale(tape, &low, self.fixed)?,
        };
        ops::linear_onto(tape, y, &low, &tape.param(&self.up)?)
    }
}

/// Every number of `x` times the one of `c`.
fn times(fx: &Forward, x: &Value, c: &Arc<Param>) -> Result<Value> {
    let (tape, dims) = (&fx.tape, x.dims().to_vec());
    let row = ops::reshape(tape, x, &[1, x.array().len()])?;
    ops::reshape(tape, &ops::mul_column(tape, &row, &tape.param(c)?)?, &dims)
}

fn normal(cx: &AttachContext<'_>, key: &str, dims: &[usize]) -> Result<Array> {
    let stream = cx.rng.named(&format!("{}/init", cx.owner), key);
    Array::build::<f32>(dims, cx.shape_only, Category::Workspace, |out| {
        stream.fill_normal(0, 0.02, out);
        Ok(())
    })
}
