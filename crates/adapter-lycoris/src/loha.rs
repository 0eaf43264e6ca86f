//! LoHa (FedPara): the entrywise product of two low-rank matrices, of rank up to r².
//!
//! `y = Wx + b + s·((A₁B₁) ⊙ (A₂B₂)) x`, s = alpha/r; A₁, A₂ `[O, r]`, B₁, B₂ `[r, I]`; all Kaiming-uniform
//! but B₂, which is zero.
//!
//! ΔW is never formed: row o of A is the outer product of the rows o of A₁ and A₂, column i of B that of
//! the columns i of B₁ and B₂, and ΔW = s·A B with A `[O, r²]`, B `[r², I]`. A step thus costs what a LoRA
//! of rank r² costs, in time and in what it keeps (N·r² + r²(O + I) numbers a linear). Only folding
//! takes the dense products, row by row.
//!
//! Source: Hyeon-Woo et al. 2022, arXiv:2108.06098; Yeh et al. 2023, arXiv:2309.14859; sheet `lora-family`.

use std::sync::Arc;

use anyhow::Result;
use ramekin_core::{Array, Param};
use ramekin_kernels::{elementwise, matmul};
use ramekin_peft::{Kept, Method, PeftAdapter, Targeting, kaiming, zeros};
use ramekin_registry::part;
use ramekin_slots::{AttachContext, Below, Forward, LinearAdapter, LinearSite, Sites};
use ramekin_tape::{Value, ops};
use serde_json::{Value as Json, json};

use crate::drops::Drops;
use crate::settings::{FOREIGN, LohaSettings};

part! { adapter / "loha" => PeftAdapter<Loha>,
"the entrywise product of two low-rank updates, in PEFT's files",
source = "arXiv:2108.06098; sheet lora-family", traits = [Mergeable, IdentityAtStart, NeedsBackboneBackward],
from_peft = PeftAdapter::<Loha>::from_peft }

/// The method.
pub struct Loha(LohaSettings);

impl Method for Loha {
    type Settings = LohaSettings;
    const NAME: &'static str = "loha";
    const PEFT_TYPE: &'static str = "LOHA";
    const INIT: &'static str = "init_weights";
    const FOREIGN: &'static [(&'static str, &'static [&'static str])] = FOREIGN;

    fn new(settings: LohaSettings) -> Result<Self> {
        settings.check()?;
        Ok(Loha(settings))
    }

    fn targeting(&self) -> Targeting<'_> {
        self.0.targeting()
    }

    fn config(&self) -> Json {
        let mut config = self.0.shared_config();
        config["init_weights"] = json!(self.0.init_weights);
        config
    }

    fn adapt(
        &self,
        kept: &mut Kept,
        cx: &mut AttachContext<'_>,
        site: &LinearSite,
    ) -> Result<Box<dyn LinearAdapter>> {
        let ((o, i), (r, scale)) = (site.shape, self.0.rank_and_scale(&site.path));
        let mut matrix = |tail: &str, dims: [usize; 2], zero: bool| {
            let key = Kept::key(site, tail);
            let fresh = if zero { zeros(cx, &dims)? } else { kaiming(cx, &key, dims)? };
            kept.add(cx, key, fresh)
        };
        Ok(Box::new(Hadamard {
            a1: matrix("hada_w1_a", [o, r], false)?,
            b1: matrix("hada_w1_b", [r, i], false)?,
            a2: matrix("hada_w2_a", [o, r], false)?,
            b2: matrix("hada_w2_b", [r, i], self.0.init_weights)?,
            scale,
            drops: self.0.drops("loha", true),
        }))
    }
}

/// What sits at one linear.
struct Hadamard {
    a1: Arc<Param>,
    b1: Arc<Param>,
    a2: Arc<Param>,
    b2: Arc<Param>,
    scale: f64,
    drops: Drops,
}

impl LinearAdapter for Hadamard {
    fn forward(&self, fx: &Forward, site: &LinearSite, x: &Value, below: &Below<'_>) -> Result<Value> {
        let (tape, y) = (&fx.tape, below(x)?);
        if self.drops.module(fx, site) {
            return Ok(y);
        }
        let b = ops::column_products(tape, &tape.param(&self.b1)?, &tape.param(&self.b2)?)?;
        let low = ops::scale(tape, &ops::linear(tape, x, &b, None)?, self.scale)?;
        let a = ops::row_products(tape, &tape.param(&self.a1)?, &tape.param(&self.a2)?)?;
        if fx.mode.training && self.drops.rows > 0.0 {
            let branch = self.drops.rows(fx, site, ops::linear(tape, &low, &a, None)?)?;
            return ops::add(tape, &y, &branch);
        }
        ops::linear_onto(tape, y, &low, &a)
    }

    fn fold(&self, _: &Sites, site: &LinearSite, weight: Array) -> Result<Array> {
        let [a1, b1, a2, b2] = [&self.a1, &self.b1, &self.a2, &self.b2].map(|p| p.value());
        let (a1, b1, a2, b2) = (a1.view::<f32>()?, b1.view::<f32>()?, a2.view::<f32>()?, b2.view::<f32>()?);
        let (i, r) = (site.shape.1.max(1), a1.len() / site.shape.0.max(1));
        let (mut one, mut two) = (vec![0.0; i], vec![0.0; i]);
        weight.update(|w: &mut [f32]| {
            for (o, row) in w.chunks_exact_mut(i).enumerate() {
                let at = o * r..(o + 1) * r;
                matmul::nn(1, r, i, self.scale as f32, &a1[at.clone()], &b1, false, &mut one);
                matmul::nn(1, r, i, 1.0, &a2[at], &b2, false, &mut two);
                one.iter_mut().zip(&two).for_each(|(a, b)| *a *= b);
                elementwise::add_assign(row, &one);
            }
        })?;
        Ok(weight)
    }
}
