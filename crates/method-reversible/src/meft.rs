//! MEFT: adapters make a two-stream network of a frozen model, which backward undoes layer by layer.
//!
//! `x1 = x2 = h_0`; a layer `y1 = λ x1 + F(x2)`, `y2 = β x2 + G(y1)`; `h = (x1 + x2) / 2` after the last one
//!
//! | variant | F | G | next x1, x2 | λ, β |
//! |---|---|---|---|---|
//! | `meft1` | block, Ad beside its MLP | Ad | y2, y1 | 0.1, 1 |
//! | `meft2` | Ad | block, Ad beside its MLP | y2, y1 | 1, 0.1 |
//! | `meft3` | attention with residual, Ad behind it | MLP with residual, Ad beside it | y1, y2 | 0.1, 0.1 |
//!
//! With small adapters and the vanishing factor at 0 the output is the mean of the model's last two states.
//! What training keeps of the layers is the last pair of streams, and a copy every `checkpoint_every` layers.
//!
//! Source: Liao et al. 2023, arXiv:2306.00477; sheet `meft`. The exact copies are this project's.

use std::rc::Rc;
use std::sync::Arc;

use anyhow::Result;
use ramekin_core::{Param, UserError};
use ramekin_peft::{Kept, own_fields, settings, whole_config};
use ramekin_registry::{AnyPart, Part, part};
use ramekin_slots::{Adapter, AdapterFile, AttachContext, Builder, Method, ModuleSite, WeightSource};
use serde_json::Value as Json;

use crate::net::Net;
use crate::policy::Reversible;
use crate::settings::{MeftSettings, Variant};
use crate::streams::{AtModule, Layers, TwoStreams};

part! { method / "meft" => Meft, "adapters that make the model reversible, so that training keeps nothing of its layers",
source = "arXiv:2306.00477; sheet meft", traits = [NeedsBackboneBackward, OwnsActivations],
from_peft = MeftAdapter::from_peft }

/// The method.
pub struct Meft(MeftSettings);

impl Part for Meft {
    type Settings = MeftSettings;

    fn new(settings: MeftSettings) -> Result<Self> {
        settings.check()?;
        Ok(Meft(settings))
    }
}

impl Method for Meft {
    fn install(&self, builder: &mut Builder) -> Result<()> {
        builder.adapters.push(Box::new(MeftAdapter::new(self.0.clone())));
        builder.activation = Some(Box::new(Reversible::new(&self.0)));
        Ok(())
    }
}

/// The adapters with their streams; empty until attached.
pub struct MeftAdapter {
    settings: MeftSettings,
    kept: Kept,
}

impl MeftAdapter {
    fn new(settings: MeftSettings) -> Self {
        MeftAdapter { settings, kept: Kept::default() }
    }

    /// The part that a saved config describes, if it is this one's.
    pub fn from_peft(config: &Json) -> Option<Result<AnyPart>> {
        (config["peft_type"].as_str() == Some("MEFT")).then(|| {
            let own: MeftSettings = settings(&own_fields(config, "meft", &[])?)?;
            own.check()?;
            Ok(AnyPart::Adapter(Box::new(MeftAdapter::new(own))))
        })
    }
}

impl Adapter for MeftAdapter {
    fn attach(&mut self, cx: &mut AttachContext<'_>) -> Result<Vec<String>> {
        let (s, facts) = (self.settings.clone(), cx.facts);
        let count = facts.blocks;
        s.check_layers(count)?;
        if facts.halves.len() != count {
            let kind = &facts.model_type;
            return Err(UserError::new(format!(
                "blocks of `{kind}` are not attention, then MLP: `meft` has no place"
            ))
            .into());
        }
        let sites = cx.sites.clone();
        let first = match s.num_rev_layers {
            Some(undone) if s.freeze_irreversible_layers => count - undone,
            _ => 0,
        };
        let (mut alone, mut found) = (Vec::new(), Vec::new());
        for halves in &facts.halves[first..] {
            let block = halves.mlp.rsplit_once('.').map_or("", |(block, _)| block).to_owned();
            let mut make =
                |name: &str, norm| Net::new(&s, &mut self.kept, cx, &format!("{block}.{name}"), norm);
            let mut attach = |path: &str, net: Net, behind: bool| -> Result<()> {
                module(&sites, path)?.attach(Rc::new(AtModule { net, behind }));
                found.push(path.to_owned());
                Ok(())
            };
            if s.variant == Variant::Meft3 {
                attach(&halves.attention, make("attn_adapter", false)?, true)?;
            } else {
                alone.push(make("rev_adapter", s.layernorm_in_adapter)?);
            }
            attach(&halves.mlp, make("ffn_adapter", false)?, false)?;
        }
        let layers = Layers { variant: s.variant, factors: s.factors(), first, count, alone };
        cx.sites.around().attach_path(Rc::new(TwoStreams(Rc::new(layers))))?;
        Ok(found)
    }

    fn load(&mut self, source: &mut dyn WeightSource) -> Result<()> {
        self.kept.load(source, |_| false)
    }

    fn file(&self, base: &str) -> Result<AdapterFile> {
        let [lambda, beta] = self.settings.factors().map(Some);
        let settings = MeftSettings { lambda, beta, ..self.settings.clone() };
        Ok(AdapterFile {
            config: whole_config(serde_json::to_value(settings)?, "MEFT", base),
            tensors: self.kept.tensors().map(|(key, p)| (key.to_owned(), p.value())).collect(),
            extra: Json::Null,
        })
    }

    fn params(&self) -> Vec<(String, Arc<Param>)> {
        self.kept.params().map(|(key, p)| (key.to_owned(), p.clone())).collect()
    }

    fn unmergeable(&self) -> Option<String> {
        Some(
            "two streams run through its layers, for which a plain model has no place; serve it unmerged"
                .to_owned(),
        )
    }
}

fn module<'a>(sites: &'a ramekin_slots::Sites, path: &str) -> Result<&'a ModuleSite> {
    sites.module(path).ok_or_else(|| UserError::new(format!("the model has no module `{path}`")).into())
}
