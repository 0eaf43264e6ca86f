//! UniPT: a small network that reads all hidden states of a backbone without tape.
//!
//! `u_i = LN(W_i f_i + b_i)`, q = u_N; `m_i = (W + I) u_i`, W the rows of `relu(q u_iᵀ)` over their sums;
//! `a = softmax_i(w_g·(q̄ ⊙ ū_i) + b_g)`, `m = Σ a_i m_i`; `y = Up(relu(q + φ(m)))`
//!
//! f_0 is the embedding's output, f_N that of the final norm; y goes to the head in f_N's place. With
//! `output = "residual"`: `u_i = W_i relu(f_i) + b_i`, all states are targets, `y = f_N + Up(relu(m))`.
//! For models that predict the next token keys after a token are hidden and means run over the prefix.
//! b_g cancels in the softmax: it is in the file and does not train.
//!
//! Source: Diao et al. 2024, arXiv:2308.14316; sheet `unipt`. The causal form is this project's.

use std::rc::Rc;
use std::sync::Arc;

use anyhow::{Context, Result};
use ramekin_core::{Array, BadSetting, Category, Param};
use ramekin_peft::{Kept, own_fields, settings, whole_config};
use ramekin_registry::{AnyPart, Part, part};
use ramekin_slots::{Adapter, AdapterFile, AttachContext, WeightSource};
use serde_json::Value as Json;

use crate::settings::{Output, Phi, UniptSettings};
use crate::side::{Pair, Side};

part! { adapter / "unipt" => Unipt, "a network beside the backbone, which runs without tape",
source = "arXiv:2308.14316; sheet unipt", traits = [], from_peft = Unipt::from_peft }

/// The adapter; empty until attached.
pub struct Unipt {
    settings: UniptSettings,
    kept: Kept,
    side: Option<Rc<Side>>,
}

impl Part for Unipt {
    type Settings = UniptSettings;

    fn new(settings: UniptSettings) -> Result<Self> {
        settings.check()?;
        Ok(Unipt { settings, kept: Kept::default(), side: None })
    }
}

/// Makes named parameters.
struct Maker<'a, 'b> {
    kept: &'a mut Kept,
    cx: &'a mut AttachContext<'b>,
}

impl Maker<'_, '_> {
    fn value(&self, key: &str, dims: &[usize], bound: f64) -> Result<Array> {
        let stream = self.cx.rng.named(&format!("{}/init", self.cx.owner), key);
        Array::build::<f32>(dims, self.cx.shape_only, Category::Workspace, |out| {
            stream.fill_uniform(0, -bound, bound, out);
            Ok(())
        })
    }

    /// Uniform within 1/√inputs.
    fn linear(&mut self, name: &str, inputs: usize, outputs: usize) -> Result<Pair> {
        let bound = 1.0 / (inputs.max(1) as f64).sqrt();
        let (weight, bias) = (format!("unipt.{name}.weight"), format!("unipt.{name}.bias"));
        let (w, b) = (self.value(&weight, &[outputs, inputs], bound)?, self.value(&bias, &[outputs], bound)?);
        let w = self.kept.add(self.cx, weight, w)?;
        let b = if name == "gate" {
            self.kept.add_buffer(self.cx, &bias, b)?
        } else {
            self.kept.add(self.cx, bias, b)?
        };
        Ok(Pair(w, b))
    }

    fn norm(&mut self, name: &str, width: usize) -> Result<Pair> {
        let filled = |x: f32| {
            Array::build::<f32>(&[width], self.cx.shape_only, Category::Workspace, |out| {
                out.fill(x);
                Ok(())
            })
        };
        let (one, zero) = (filled(1.0)?, filled(0.0)?);
        let w = self.kept.add(self.cx, format!("unipt.{name}.weight"), one)?;
        Ok(Pair(w, self.kept.add(self.cx, format!("unipt.{name}.bias"), zero)?))
    }
}

impl Unipt {
    /// The part that a saved config describes, if it is this one's.
    pub fn from_peft(config: &Json) -> Option<Result<AnyPart>> {
        (config["peft_type"].as_str() == Some("UNIPT")).then(|| {
            let own = own_fields(config, "unipt", &[])?;
            Ok(AnyPart::Adapter(Box::new(Unipt::new(settings(&own)?)?)))
        })
    }

    /// The network in place, for those who have hidden states of their own.
    ///
    /// # Errors
    /// If it is not attached.
    pub fn side(&self) -> Result<Rc<Side>> {
        self.side.clone().context("not attached")
    }
}

impl Adapter for Unipt {
    fn attach(&mut self, cx: &mut AttachContext<'_>) -> Result<Vec<String>> {
        let (s, wide, last) = (self.settings.clone(), cx.facts.hidden_size, cx.facts.blocks);
        if s.reduction > wide {
            let why = format!("is {}; the model is {wide} wide, which leaves nothing", s.reduction);
            return Err(BadSetting::new("reduction", why).into());
        }
        if cx.facts.causal && !s.causal {
            let why = "is false; this model predicts the next token and would see it, set it to true";
            return Err(BadSetting::new("causal", why).into());
        }
        let states = s.states(last)?;
        let (narrow, residual) = (wide / s.reduction, s.output == Output::Residual);
        let mut make = Maker { kept: &mut self.kept, cx };
        let (mut down, mut norms, mut phi) = (Vec::new(), Vec::new(), Vec::new());
        for i in &states {
            down.push(make.linear(&format!("down.{i}"), wide, narrow)?);
            if !residual {
                norms.push(make.norm(&format!("norm.{i}"), narrow)?);
            }
        }
        if !residual {
            match s.phi {
                Phi::Linear => phi.push(make.linear("phi.0", narrow, narrow)?),
                Phi::Mlp => {
                    phi.push(make.linear("phi.0", narrow, wide)?);
                    phi.push(make.linear("phi.1", wide, narrow)?);
                }
            }
            phi.push(make.norm("phi.norm", narrow)?);
        }
        let gate = make.linear("gate", narrow, 1)?;
        let up = make.linear("up", narrow, wide)?;
        let names = states.iter().map(|i| format!("state {i}")).collect();
        let side = Rc::new(Side { settings: s, states, down, norms, gate, phi, up });
        cx.sites.around().attach_network(side.clone())?;
        self.side = Some(side);
        Ok(names)
    }

    fn load(&mut self, source: &mut dyn WeightSource) -> Result<()> {
        self.kept.load(source, |_| false)
    }

    fn file(&self, base: &str) -> Result<AdapterFile> {
        Ok(AdapterFile {
            config: whole_config(serde_json::to_value(&self.settings)?, "UNIPT", base),
            tensors: self.kept.tensors().map(|(key, p)| (key.to_owned(), p.value())).collect(),
            extra: Json::Null,
        })
    }

    fn params(&self) -> Vec<(String, Arc<Param>)> {
        self.kept.params().map(|(key, p)| (key.to_owned(), p.clone())).collect()
    }

    fn runs_beside(&self) -> bool {
        true
    }

    fn unmergeable(&self) -> Option<String> {
        Some("a network beside the model has no place in its weights; serve the adapter unmerged".to_owned())
    }
}
