//! LoRA, rsLoRA and LoRA+.
//!
//! `y = Wx + b + s·B A drop(x)`; A `[r, I]` Kaiming-uniform, B `[O, r]` zero,
//! s = alpha/r or alpha/√r. LoRA+ gives B and every trainable vector a larger
//! learning rate.
//!
//! Source: Hu et al. 2021, arXiv:2106.09685; Kalajdzievski 2023,
//! arXiv:2312.03732; Hayou et al. 2024, arXiv:2402.12354; sheet `lora-family`.

use std::sync::Arc;

use anyhow::Result;
use ramekin_core::{Array, Param, ParamId, UserError};
use ramekin_peft::{Kept, Method, PeftAdapter, Targeting, zeros};
use ramekin_registry::part;
use ramekin_slots::{AttachContext, Below, Forward, LinearAdapter, LinearSite, ParamGroup, Sites};
use ramekin_tape::{Value, ops};
use serde_json::Value as Json;

use crate::config;
use crate::low_rank::{LowRank, groups};
use crate::settings::LoraSettings;

part! { adapter / "lora" => PeftAdapter<Lora>,
"low-rank updates of linears, in PEFT's files (rsLoRA and LoRA+ by setting)",
source = "arXiv:2106.09685; sheet lora-family", traits = [Mergeable, IdentityAtStart, NeedsBackboneBackward],
from_peft = PeftAdapter::<Lora>::from_peft }

/// The method.
pub struct Lora(LoraSettings);

impl Method for Lora {
    type Settings = LoraSettings;
    const NAME: &'static str = "lora";
    const PEFT_TYPE: &'static str = "LORA";
    const INIT: &'static str = "init_lora_weights";
    const FOREIGN: &'static [(&'static str, &'static [&'static str])] = config::FOREIGN;

    fn new(settings: LoraSettings) -> Result<Self> {
        settings.check()?;
        Ok(Lora(settings))
    }

    fn reads(config: &Json) -> bool {
        !config::is_dora(config)
    }

    fn targeting(&self) -> Targeting<'_> {
        config::targeting(&self.0)
    }

    fn config(&self) -> Json {
        config::write(&self.0, false)
    }

    fn adapt(
        &self,
        kept: &mut Kept,
        cx: &mut AttachContext<'_>,
        site: &LinearSite,
    ) -> Result<Box<dyn LinearAdapter>> {
        let update = LowRank::new(&self.0, kept, cx, site)?;
        let bias = if self.0.lora_bias {
            let fresh = zeros(cx, &[site.shape.0])?;
            Some(kept.add(cx, Kept::key(site, "lora_B.bias"), fresh)?)
        } else {
            None
        };
        Ok(Box::new(Branch { update, bias }))
    }

    fn groups(&self, kept: &Kept) -> Vec<(ParamId, ParamGroup)> {
        groups(&self.0, kept)
    }
}

/// The branch beside one linear.
struct Branch {
    update: LowRank,
    bias: Option<Arc<Param>>,
}

impl LinearAdapter for Branch {
    fn forward(&self, fx: &Forward, site: &LinearSite, x: &Value, below: &Below<'_>) -> Result<Value> {
        let y = below(x)?;
        let low = self.update.low(fx, &self.update.dropped(fx, site, x)?)?;
        let y = ops::linear_onto(&fx.tape, y, &low, &fx.tape.param(&self.update.b)?)?;
        match &self.bias {
            None => Ok(y),
            Some(bias) => ops::add_row(&fx.tape, &y, &fx.tape.param(bias)?, self.update.scale),
        }
    }

    fn fold(&self, _: &Sites, site: &LinearSite, weight: Array) -> Result<Array> {
        if self.bias.is_some() && site.bias.is_none() {
            return Err(UserError::new(format!(
                "`lora_bias` at `{}` has no bias to be folded into",
                site.path
            ))
            .help("train without `lora_bias`, or serve the adapter unmerged")
            .into());
        }
        self.update.fold(site, weight)
    }

    fn fold_bias(&self, _: &LinearSite, bias: Array) -> Result<Array> {
        if let Some(own) = &self.bias {
            let (own, s) = (own.value(), self.update.scale as f32);
            let own = own.view::<f32>()?;
            bias.update(|b: &mut [f32]| ramekin_kernels::elementwise::add_scaled(b, s, &own))?;
        }
        Ok(bias)
    }
}
