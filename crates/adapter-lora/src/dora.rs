//! DoRA: a weight's direction by LoRA, the length of each of its rows by a vector.
//!
//! `W' = m ⊙ (W + s·B A) / n`, n = ‖W + s·B A‖₂ of each row (over the inputs), m `[O]` starts as n.
//! With g = m / n:
//!
//! `y = (Wx + b + u) + (g − 1) ⊙ (Wx + u)`, u = s·B A x
//!
//! n is a plain number for the gradient, as in the paper's section 4.3 and in PEFT. It is taken anew in
//! every forward, tile by tile (`ops::row_norms`), so a packed base is never dense; this costs 2·O·I·r
//! operations a linear and forward, in generation a token, so merge before serving. A fresh adapter has
//! n = m to the bit, hence g = 1 and the base's own bits. With dropout in training, Wx is computed a
//! second time from the dropped inputs, which see the whole correction.
//!
//! Source: Liu et al. 2024, arXiv:2402.09353; sheet `lora-family`.

use std::sync::Arc;

use anyhow::Result;
use ramekin_core::{Array, BadSetting, Category, Param, ParamId};
use ramekin_peft::{Kept, Method, PeftAdapter, Targeting};
use ramekin_registry::part;
use ramekin_slots::{
    AttachContext, Below, Forward, LinearAdapter, LinearBase, LinearSite, ParamGroup, Sites,
};
use ramekin_tape::ops::{self, HeldWeight};
use ramekin_tape::{Tape, Value, dispatch};
use serde_json::Value as Json;

use crate::config;
use crate::low_rank::{LowRank, groups};
use crate::settings::LoraSettings;

part! { adapter / "dora" => PeftAdapter<Dora>,
"LoRA for the direction of a weight's rows and a vector for their lengths, in PEFT's files",
source = "arXiv:2402.09353; sheet lora-family", traits = [Mergeable, IdentityAtStart, NeedsBackboneBackward],
from_peft = PeftAdapter::<Dora>::from_peft }

/// The method.
pub struct Dora(LoraSettings);

impl Method for Dora {
    type Settings = LoraSettings;
    const NAME: &'static str = "dora";
    const PEFT_TYPE: &'static str = "LORA";
    const INIT: &'static str = "init_lora_weights";
    const FOREIGN: &'static [(&'static str, &'static [&'static str])] = config::FOREIGN;

    fn new(settings: LoraSettings) -> Result<Self> {
        settings.check()?;
        if settings.lora_bias {
            let why =
                "is true; a bias of B has no place under the rows' lengths, leave it out or take `lora`";
            return Err(BadSetting::new("lora_bias", why).into());
        }
        Ok(Dora(settings))
    }

    fn reads(config: &Json) -> bool {
        config::is_dora(config)
    }

    fn targeting(&self) -> Targeting<'_> {
        config::targeting(&self.0)
    }

    fn config(&self) -> Json {
        config::write(&self.0, true)
    }

    fn adapt(
        &self,
        kept: &mut Kept,
        cx: &mut AttachContext<'_>,
        site: &LinearSite,
    ) -> Result<Box<dyn LinearAdapter>> {
        let update = LowRank::new(&self.0, kept, cx, site)?;
        let (b, a) = (update.b.value(), update.a.value());
        let sites = cx.sites.clone();
        let lengths =
            sites.with_weights_of(&site.path, || norms(&sites, site, true, &b, &a, update.scale))?;
        let m = kept.add(cx, Kept::key(site, "lora_magnitude_vector"), lengths)?;
        Ok(Box::new(Rows { update, m }))
    }

    fn groups(&self, kept: &Kept) -> Vec<(ParamId, ParamGroup)> {
        groups(&self.0, kept)
    }
}

/// ‖W + s·B A‖₂ by row, of the base's own weight.
fn norms(sites: &Sites, site: &LinearSite, stand_ins: bool, b: &Array, a: &Array, s: f64) -> Result<Array> {
    match site.base() {
        LinearBase::Packed(w) => ops::row_norms(HeldWeight::Packed(&*w), b, a, s),
        LinearBase::Dense(name) => {
            let w = sites.param(&name)?.active(stand_ins).value();
            ops::row_norms(HeldWeight::Dense(&w), b, a, s)
        }
    }
}

/// What sits at one linear.
struct Rows {
    update: LowRank,
    m: Arc<Param>,
}

impl LinearAdapter for Rows {
    fn forward(&self, fx: &Forward, site: &LinearSite, x: &Value, below: &Below<'_>) -> Result<Value> {
        let tape = &fx.tape;
        let (a, b, m) = (tape.param(&self.update.a)?, tape.param(&self.update.b)?, tape.param(&self.m)?);
        let n = norms(&fx.sites, site, fx.mode.adapters, b.array(), a.array(), self.update.scale)?;
        let y = below(x)?;
        let dropped = self.update.dropped(fx, site, x)?;
        let low = self.update.low(fx, &dropped)?;
        let y = ops::linear_onto(tape, y, &low, &b)?;
        let turned = if self.update.drops(fx) {
            ops::linear_onto(tape, below(&dropped)?, &low, &b)?
        } else {
            y.clone()
        };
        let turned = match offset(fx, site, x, below)? {
            Some(bias) => ops::add_row(tape, &turned, &bias, -1.0)?,
            None => turned,
        };
        ops::add(tape, &y, &ops::mul_row(tape, &turned, &excess(tape, &m, n)?)?)
    }

    fn fold(&self, sites: &Sites, site: &LinearSite, weight: Array) -> Result<Array> {
        let (b, a) = (self.update.b.value(), self.update.a.value());
        let n = norms(sites, site, true, &b, &a, self.update.scale)?;
        let weight = self.update.fold(site, weight)?;
        let (m, n, inputs) = (self.m.value(), n.view::<f32>()?, site.shape.1.max(1));
        let m = m.view::<f32>()?;
        weight.update(|w: &mut [f32]| {
            for ((row, m), n) in w.chunks_exact_mut(inputs).zip(&*m).zip(&*n) {
                ramekin_kernels::elementwise::scale_assign(row, if *n == 0.0 { 1.0 } else { m / n });
            }
        })?;
        Ok(weight)
    }
}

/// What comes out below whatever goes in: the linear's bias, as adapters before this one left it.
fn offset(fx: &Forward, site: &LinearSite, x: &Value, below: &Below<'_>) -> Result<Option<Value>> {
    let Some(bias) = &site.bias else { return Ok(None) };
    if site.adapter_count() == 1 {
        return fx.param(bias).map(Some);
    }
    let (outputs, inputs) = site.shape;
    let nothing = if x.array().is_shape_only() {
        Array::shape_only(&[1, inputs], x.array().dtype(), Category::Workspace)?
    } else {
        Array::zeros(&[1, inputs], x.array().dtype(), Category::Workspace)?
    };
    ops::reshape(&fx.tape, &below(&Value::constant(nothing))?, &[outputs]).map(Some)
}

/// g − 1 = m / n − 1, with n a plain number; 0 where a row is zero and has no direction.
fn excess(tape: &Tape, m: &Value, n: Array) -> Result<Value> {
    let shape_only = m.array().is_shape_only() || n.is_shape_only();
    let over = move |x: &Array, n: &Array, less: f64| {
        dispatch!(x, T => Array::build::<T>(x.dims(), shape_only, Category::Workspace, |out| {
            let (x, n) = (x.view::<T>()?, n.view::<T>()?);
            for ((out, x), n) in out.iter_mut().zip(&*x).zip(&*n) {
                *out = if *n == 0.0 { 0.0 } else { x / n - less as T };
            }
            Ok(())
        }))
    };
    let excess = over(m.array(), &n, 1.0)?;
    tape.record(&[m], excess, || Ok(Box::new(move |g| Ok(vec![Some(over(&g, &n, 0.0)?)]))))
}
