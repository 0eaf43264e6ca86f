//! The settings of `unipt`.

use anyhow::Result;
use ramekin_core::BadSetting;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Which hidden states are read.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(untagged)]
pub enum Layers {
    /// `"all"`
    Named(String),
    /// Numbers: 0 is the embedding's output, i that of block i; the last one must be among them.
    List(Vec<usize>),
}

/// What the mixture goes through before it joins the last state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Phi {
    /// Linear(d, d) and a layer norm.
    #[default]
    Linear,
    /// Linear(d, D), ReLU, Linear(D, d) and a layer norm.
    Mlp,
}

/// What becomes of the backbone's own output.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Output {
    /// The side network's takes its place.
    #[default]
    Replace,
    /// The side network's is added to it.
    Residual,
}

/// How a state's tokens are pooled for the confidences.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Pool {
    /// Mean over the sequence.
    #[default]
    MaskedMean,
    /// The first token.
    First,
    /// At each token the mean up to it.
    PrefixMean,
}

/// Settings of `adapter = [{ kind = "unipt", … }]`.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct UniptSettings {
    /// The side network is this many times narrower than the model, from 1 to the model's width.
    pub reduction: usize,
    /// Hidden states to read: "all", or a list of numbers with the last state among them.
    pub layers: Layers,
    /// `linear` or `mlp`.
    pub phi: Phi,
    /// `replace` or `residual`.
    pub output: Output,
    /// `masked_mean`, `first` or `prefix_mean`; a causal model cannot have the first of these.
    pub pool: Pool,
    /// Added to the sum of a row's scores, above 0.
    pub l1_eps: f64,
    /// Keys after a token are hidden from it; a model that predicts the next token needs this.
    pub causal: bool,
}

impl Default for UniptSettings {
    fn default() -> Self {
        UniptSettings {
            reduction: 2,
            layers: Layers::Named("all".to_owned()),
            phi: Phi::Linear,
            output: Output::Replace,
            pool: Pool::MaskedMean,
            l1_eps: 1e-8,
            causal: false,
        }
    }
}

impl UniptSettings {
    /// Refuses values that make no sense for any model.
    pub(crate) fn check(&self) -> Result<(), BadSetting> {
        if self.reduction == 0 {
            return Err(BadSetting::new("reduction", "is 0; it must be at least 1"));
        }
        if !(self.l1_eps > 0.0 && self.l1_eps.is_finite()) {
            return Err(BadSetting::new("l1_eps", format!("is {}; it must be above 0", self.l1_eps)));
        }
        if self.output == Output::Residual && self.phi == Phi::Mlp {
            let why = "is \"mlp\"; with `output = \"residual\"` there is no phi, leave it out";
            return Err(BadSetting::new("phi", why));
        }
        if self.causal && self.pool == Pool::MaskedMean {
            let why =
                "is \"masked_mean\", which sees later tokens; with `causal` use \"prefix_mean\" or \"first\"";
            return Err(BadSetting::new("pool", why));
        }
        match &self.layers {
            Layers::Named(name) if name != "all" => Err(BadSetting::new(
                "layers",
                format!("is {name:?}; it must be \"all\" or a list of numbers"),
            )),
            _ => Ok(()),
        }
    }

    /// The states to read, rising, of a model whose last one is number `last`.
    pub(crate) fn states(&self, last: usize) -> Result<Vec<usize>, BadSetting> {
        let Layers::List(list) = &self.layers else { return Ok((0..=last).collect()) };
        let mut list = list.clone();
        list.sort_unstable();
        list.dedup();
        if let Some(beyond) = list.iter().find(|i| **i > last) {
            let why = format!("names {beyond}; this model has states 0 to {last}");
            return Err(BadSetting::new("layers", why));
        }
        if list.len() < 2 || list.last() != Some(&last) {
            let why = format!("must name at least two states, the last one ({last}) among them");
            return Err(BadSetting::new("layers", why));
        }
        Ok(list)
    }
}
