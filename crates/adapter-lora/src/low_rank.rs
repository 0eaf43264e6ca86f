//! The pair of thin matrices that LoRA and DoRA share.

use std::sync::Arc;

use anyhow::Result;
use ramekin_core::{Array, Category, Param, ParamId};
use ramekin_peft::{Kept, kaiming, zeros};
use ramekin_slots::{AttachContext, Forward, LinearSite, ParamGroup};
use ramekin_tape::{Value, ops};

use crate::settings::{InitWeights, LoraSettings};

/// s·B A at one linear: A `[r, I]`, B `[O, r]`.
pub(crate) struct LowRank {
    pub(crate) a: Arc<Param>,
    pub(crate) b: Arc<Param>,
    pub(crate) scale: f64,
    pub(crate) dropout: f64,
}

impl LowRank {
    /// Makes both matrices.
    pub(crate) fn new(
        s: &LoraSettings,
        kept: &mut Kept,
        cx: &mut AttachContext<'_>,
        site: &LinearSite,
    ) -> Result<Self> {
        let ((o, i), (r, scale)) = (site.shape, s.rank_and_scale(&site.path));
        let key = Kept::key(site, "lora_A.weight");
        let a = match &s.init_lora_weights {
            InitWeights::Default(_) => kaiming(cx, &key, [r, i])?,
            InitWeights::Named(_) => gaussian(cx, &key, [r, i])?,
        };
        let a = kept.add(cx, key, a)?;
        let key = Kept::key(site, "lora_B.weight");
        let b = match &s.init_lora_weights {
            InitWeights::Default(false) => kaiming(cx, &key, [o, r])?,
            _ => zeros(cx, &[o, r])?,
        };
        let b = kept.add(cx, key, b)?;
        Ok(LowRank { a, b, scale, dropout: s.lora_dropout })
    }

    /// Whether inputs are dropped in this forward.
    pub(crate) fn drops(&self, fx: &Forward) -> bool {
        fx.mode.training && self.dropout > 0.0
    }

    /// drop(x).
    pub(crate) fn dropped(&self, fx: &Forward, site: &LinearSite, x: &Value) -> Result<Value> {
        let p = if fx.mode.training { self.dropout } else { 0.0 };
        ops::dropout(&fx.tape, x, p, fx.stream("lora_dropout", &site.path))
    }

    /// s·A x, `[…, r]`.
    pub(crate) fn low(&self, fx: &Forward, x: &Value) -> Result<Value> {
        ops::scale(&fx.tape, &ops::linear(&fx.tape, x, &fx.tape.param(&self.a)?, None)?, self.scale)
    }

    /// W + s·B A.
    pub(crate) fn fold(&self, site: &LinearSite, weight: Array) -> Result<Array> {
        let (a, b) = (self.a.value(), self.b.value());
        let ((o, i), r) = (site.shape, a.dims()[0]);
        let (a, b) = (a.view::<f32>()?, b.view::<f32>()?);
        weight.update(|w: &mut [f32]| {
            ramekin_kernels::matmul::nn(o, r, i, self.scale as f32, &b, &a, true, w);
        })?;
        Ok(weight)
    }
}

/// N(0, 1/r²) for `[r, I]`.
fn gaussian(cx: &AttachContext<'_>, key: &str, dims: [usize; 2]) -> Result<Array> {
    let stream = cx.rng.named(&format!("{}/init", cx.owner), key);
    Array::build::<f32>(&dims, cx.shape_only, Category::Workspace, |out| {
        stream.fill_normal(0, 1.0 / dims[0] as f64, out);
        Ok(())
    })
}

/// LoRA+'s larger rate, for B and for everything with one dimension; biases and norms do not decay.
pub(crate) fn groups(s: &LoraSettings, kept: &Kept) -> Vec<(ParamId, ParamGroup)> {
    let Some(lr_scale) = s.loraplus_lr_ratio else { return Vec::new() };
    let fast =
        kept.params().filter(|(key, p)| key.ends_with(".lora_B.weight") || p.value().dims().len() == 1);
    fast.map(|(_, p)| (p.id(), ParamGroup { lr_scale, decay: p.value().dims().len() > 1 })).collect()
}
