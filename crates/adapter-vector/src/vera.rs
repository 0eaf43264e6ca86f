//! VeRA: one pair of random, frozen matrices for the whole model, and two vectors a linear.
//!
//! `y = Wx + b + λ_b ⊙ B(λ_d ⊙ A drop(x))`; A `[r, max I]`, B `[max O, r]`, cut to the linear's size,
//! uniform in ±√(6/fan_in); λ_d `[r]` starts at `d_initial`, λ_b `[O]` at 0.
//!
//! λ_b scales B's rows rather than the output, so that backward keeps `[N, r]` a linear and not `[N, O]`.
//! PEFT draws A and B from torch's generator; the same numbers are drawn here ([`crate::projection`]),
//! so that files without them (`save_projection = false`) mean the same on both sides.
//!
//! Source: Kopiczko et al. 2024, arXiv:2310.11454; sheet `lora-family`.

use std::rc::Rc;
use std::sync::Arc;

use anyhow::Result;
use ramekin_core::pattern::Modules;
use ramekin_core::{Array, BadSetting, Category, Param};
use ramekin_kernels::{broadcast, matmul};
use ramekin_peft::{Biases, Kept, Method, PeftAdapter, Targeting};
use ramekin_registry::part;
use ramekin_slots::{AttachContext, Below, Forward, LinearAdapter, LinearSite, Sites};
use ramekin_tape::{Value, ops};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value as Json, json};

use crate::projection::{Cut, Mersenne, Projection};

part! { adapter / "vera" => PeftAdapter<Vera>,
"two vectors a linear around random matrices that all share, in PEFT's files",
source = "arXiv:2310.11454; sheet lora-family", traits = [Mergeable, IdentityAtStart, NeedsBackboneBackward],
from_peft = PeftAdapter::<Vera>::from_peft }

/// Which bias vectors of the base model train along.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum VeraBias {
    /// None.
    #[default]
    None,
    /// Every bias of the model.
    All,
    /// Those of the targeted linears.
    VeraOnly,
}

/// Settings of `adapter = [{ kind = "vera", … }]`, named as in `peft.VeraConfig`.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct VeraSettings {
    /// Rank of the shared matrices, at least 1.
    pub r: usize,
    /// What λ_d starts at.
    pub d_initial: f64,
    /// Share of the branch's inputs dropped in training, in [0, 1).
    pub vera_dropout: f64,
    /// Seed of the shared matrices.
    pub projection_prng_key: u64,
    /// Saves the shared matrices with the adapter; without, they are drawn again from their seed.
    pub save_projection: bool,
    /// Modules to adapt: names or path endings, a regular expression for whole paths, or "all-linear".
    pub target_modules: Modules,
    /// Layers to adapt, by number; all if absent.
    pub layers_to_transform: Option<Vec<usize>>,
    /// Name of the list that holds the layers, where it is not the usual one.
    pub layers_pattern: Option<Vec<String>>,
    /// Modules trained whole, as copies that are saved with the adapter.
    pub modules_to_save: Option<Vec<String>>,
    /// Bias vectors of the base that train along: "none", "all" or "vera_only".
    pub bias: VeraBias,
    /// How the vectors begin: true as above, false λ_b at 1 and λ_d ~ N(0, 1), for tests of loading.
    pub init_weights: bool,
}

impl Default for VeraSettings {
    fn default() -> Self {
        VeraSettings {
            r: 256,
            d_initial: 0.1,
            vera_dropout: 0.0,
            projection_prng_key: 0,
            save_projection: true,
            target_modules: Modules::List(vec!["q_proj".into(), "v_proj".into()]),
            layers_to_transform: None,
            layers_pattern: None,
            modules_to_save: None,
            bias: VeraBias::None,
            init_weights: true,
        }
    }
}

/// The method.
pub struct Vera {
    settings: VeraSettings,
    shared: Option<Rc<(Projection, Projection)>>,
}

const A: &str = "base_model.vera_A";
const B: &str = "base_model.vera_B";

impl Method for Vera {
    type Settings = VeraSettings;
    const NAME: &'static str = "vera";
    const PEFT_TYPE: &'static str = "VERA";
    const INIT: &'static str = "init_weights";
    const FOREIGN: &'static [(&'static str, &'static [&'static str])] = &[("fan_in_fan_out", &["false"])];

    fn new(settings: VeraSettings) -> Result<Self> {
        if settings.r == 0 {
            return Err(BadSetting::new("r", "is 0; a rank must be at least 1").into());
        }
        if !(0.0..1.0).contains(&settings.vera_dropout) {
            let why = format!("is {}; it must be in [0, 1)", settings.vera_dropout);
            return Err(BadSetting::new("vera_dropout", why).into());
        }
        if !settings.d_initial.is_finite() {
            return Err(BadSetting::new("d_initial", "must be a finite number").into());
        }
        Ok(Vera { settings, shared: None })
    }

    fn targeting(&self) -> Targeting<'_> {
        let s = &self.settings;
        Targeting {
            layers_to_transform: s.layers_to_transform.as_deref(),
            layers_pattern: s.layers_pattern.as_deref().unwrap_or_default(),
            modules_to_save: s.modules_to_save.as_deref().unwrap_or_default(),
            biases: match s.bias {
                VeraBias::None => Biases::None,
                VeraBias::All => Biases::All,
                VeraBias::VeraOnly => Biases::Targets,
            },
            ..Targeting::of(&s.target_modules)
        }
    }

    fn config(&self) -> Json {
        let s = &self.settings;
        json!({
            "bias": s.bias, "d_initial": s.d_initial, "fan_in_fan_out": false, "init_weights": s.init_weights,
            "layers_pattern": s.layers_pattern, "layers_to_transform": s.layers_to_transform,
            "modules_to_save": s.modules_to_save, "projection_prng_key": s.projection_prng_key, "r": s.r,
            "save_projection": s.save_projection, "vera_dropout": s.vera_dropout,
        })
    }

    fn prepare(&mut self, kept: &mut Kept, cx: &mut AttachContext<'_>) -> Result<()> {
        let (mut outputs, mut inputs, r) = (0, 0, self.settings.r);
        for path in kept.targets() {
            let (o, i) = cx.sites.linear(path)?.shape;
            (outputs, inputs) = (outputs.max(o), inputs.max(i));
        }
        let mut random = Mersenne::new(self.settings.projection_prng_key);
        let mut draw = |dims: [usize; 2]| {
            Array::build::<f32>(&dims, cx.shape_only, Category::Workspace, |out| {
                random.uniform((6.0 / dims[1].max(1) as f64).sqrt(), out);
                Ok(())
            })
        };
        let (a, b) = (draw([r, inputs])?, draw([outputs, r])?);
        let a = Projection::new(kept.add_buffer(cx, A, a)?, Cut::Columns);
        let b = Projection::new(kept.add_buffer(cx, B, b)?, Cut::Rows);
        self.shared = Some(Rc::new((a, b)));
        Ok(())
    }

    fn adapt(
        &self,
        kept: &mut Kept,
        cx: &mut AttachContext<'_>,
        site: &LinearSite,
    ) -> Result<Box<dyn LinearAdapter>> {
        let s = &self.settings;
        let shared = self.shared.clone().ok_or_else(|| anyhow::anyhow!("`vera` has no projections yet"))?;
        let mut vector = |tail: &str, len: usize, start: f32| {
            let key = Kept::key(site, tail);
            let stream = cx.rng.named(&format!("{}/init", cx.owner), &key);
            let fresh = Array::build::<f32>(&[len], cx.shape_only, Category::Workspace, |out| {
                match (s.init_weights, tail) {
                    (true, _) => out.fill(start),
                    (false, "vera_lambda_b") => out.fill(1.0),
                    (false, _) => stream.fill_normal(0, 1.0, out),
                }
                Ok(())
            })?;
            kept.add(cx, key, fresh)
        };
        let lambda_b = vector("vera_lambda_b", site.shape.0, 0.0)?;
        let lambda_d = vector("vera_lambda_d", s.r, s.d_initial as f32)?;
        Ok(Box::new(Scaled { lambda_b, lambda_d, shared, dropout: s.vera_dropout }))
    }

    fn optional(&self, key: &str) -> bool {
        !self.saves(key)
    }

    fn saves(&self, key: &str) -> bool {
        self.settings.save_projection || (key != A && key != B)
    }

    fn loaded(&self) {
        if let Some(shared) = &self.shared {
            shared.0.renew();
            shared.1.renew();
        }
    }
}

/// What sits at one linear.
struct Scaled {
    lambda_b: Arc<Param>,
    lambda_d: Arc<Param>,
    shared: Rc<(Projection, Projection)>,
    dropout: f64,
}

impl LinearAdapter for Scaled {
    fn forward(&self, fx: &Forward, site: &LinearSite, x: &Value, below: &Below<'_>) -> Result<Value> {
        let (tape, y) = (&fx.tape, below(x)?);
        let p = if fx.mode.training { self.dropout } else { 0.0 };
        let x = ops::dropout(tape, x, p, fx.stream("vera_dropout", &site.path))?;
        let (a, b) = (self.shared.0.part(site.shape.1)?, self.shared.1.part(site.shape.0)?);
        let low = ops::linear(tape, &x, &Value::constant(a), None)?;
        let low = ops::mul_row(tape, &low, &tape.param(&self.lambda_d)?)?;
        let b = ops::mul_column(tape, &Value::constant(b), &tape.param(&self.lambda_b)?)?;
        ops::linear_onto(tape, y, &low, &b)
    }

    fn fold(&self, _: &Sites, site: &LinearSite, weight: Array) -> Result<Array> {
        let ((o, i), r) = (site.shape, self.lambda_d.value().len());
        let (a, b) = (self.shared.0.part(i)?, self.shared.1.part(o)?);
        let (mut rows, mut scaled) = (vec![0.0; o * r], vec![0.0; o * r]);
        broadcast::mul_column(&b.view::<f32>()?, &self.lambda_b.value().view::<f32>()?, &mut rows);
        broadcast::mul_row(&rows, &self.lambda_d.value().view::<f32>()?, &mut scaled);
        let a = a.view::<f32>()?;
        weight.update(|w: &mut [f32]| matmul::nn(o, r, i, 1.0, &scaled, &a, true, w))?;
        Ok(weight)
    }
}
