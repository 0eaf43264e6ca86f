//! The settings of `meft`.

use ramekin_core::{BadSetting, DType};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What F and G of a layer are; `Ad` is an adapter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Variant {
    /// F is the block with Ad beside its MLP, G an Ad alone; streams are switched.
    #[default]
    Meft1,
    /// F is an Ad alone, G the block with Ad beside its MLP; streams are switched.
    Meft2,
    /// F is the block's attention with Ad behind it, G its MLP with Ad beside it.
    Meft3,
}

impl Variant {
    /// λ and β where nothing is set.
    fn factors(self) -> [f64; 2] {
        match self {
            Variant::Meft1 => [0.1, 1.0],
            Variant::Meft2 => [1.0, 0.1],
            Variant::Meft3 => [0.1, 0.1],
        }
    }
}

/// How often the streams are kept exactly.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(untagged)]
pub enum Every {
    /// Every so many layers; 0 never.
    Layers(usize),
    /// `"auto"`: as often as rounding asks for.
    Named(String),
}

/// Settings of `method = { kind = "meft", … }`.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct MeftSettings {
    /// `meft1`, `meft2` or `meft3`.
    pub variant: Variant,
    /// Factor of the first stream, not 0 where layers are undone; absent is 0.1, with `meft2` 1.
    #[serde(alias = "x1_factor")]
    pub lambda: Option<f64>,
    /// Factor of the second stream, not 0 where layers are undone; absent is 0.1, with `meft1` 1.
    #[serde(alias = "x2_factor")]
    pub beta: Option<f64>,
    /// Width of the adapters, at least 1.
    pub adapter_bottleneck_dim: usize,
    /// A layer norm before the adapters that stand alone.
    pub layernorm_in_adapter: bool,
    /// Spread of the adapters' weights at the start, above 0; biases begin at 0.
    pub init_std: f64,
    /// Share of the adapters' inner numbers dropped in training, in [0, 1).
    pub dropout: f64,
    /// Layers that are undone in backward, from the lowest; what is above them is kept. Absent is all.
    pub num_rev_layers: Option<usize>,
    /// The undone layers are the uppermost ones instead, and those below are the base's own, without adapters.
    pub freeze_irreversible_layers: bool,
    /// Layers from one exact copy of both streams to the next, where undoing begins anew; 0 keeps none, "auto"
    /// as many as rounding asks for.
    pub checkpoint_every: Every,
    /// For a look: measures how far reconstructed inputs are from the true ones (`drift` in `metrics.jsonl`), for
    /// which it keeps those of all layers.
    pub report_drift: bool,
}

impl Default for MeftSettings {
    fn default() -> Self {
        MeftSettings {
            variant: Variant::Meft1,
            lambda: None,
            beta: None,
            adapter_bottleneck_dim: 8,
            layernorm_in_adapter: false,
            init_std: 0.02,
            dropout: 0.0,
            num_rev_layers: None,
            freeze_irreversible_layers: false,
            checkpoint_every: Every::Named("auto".to_owned()),
            report_drift: false,
        }
    }
}

impl MeftSettings {
    /// λ and β.
    pub fn factors(&self) -> [f64; 2] {
        let [lambda, beta] = self.variant.factors();
        [self.lambda.unwrap_or(lambda), self.beta.unwrap_or(beta)]
    }

    /// How much rounding grows a layer when it is undone.
    pub(crate) fn growth(&self) -> f64 {
        let [lambda, beta] = self.factors();
        1.2 / (lambda * beta).abs()
    }

    /// Layers from one exact copy to the next in numbers of this type; 0 for none.
    pub(crate) fn every(&self, dtype: DType) -> usize {
        match self.checkpoint_every {
            Every::Layers(every) => every,
            Every::Named(_) if self.growth() <= 1.2 => 0,
            Every::Named(_) => ((1e-3 / roundoff(dtype)).ln() / self.growth().ln()).floor().max(1.0) as usize,
        }
    }

    /// Refuses values that make no sense for any model.
    pub(crate) fn check(&self) -> Result<(), BadSetting> {
        for (name, factor) in ["lambda", "beta"].into_iter().zip(self.factors()) {
            BadSetting::unless(factor.is_finite(), name, factor, "a finite number")?;
            let undone = self.num_rev_layers != Some(0);
            let allowed = "another number where layers are undone; 0 goes with `num_rev_layers = 0`";
            BadSetting::unless(factor != 0.0 || !undone, name, factor, allowed)?;
        }
        let width = self.adapter_bottleneck_dim;
        BadSetting::unless(width > 0, "adapter_bottleneck_dim", width, "at least 1")?;
        let std = self.init_std;
        BadSetting::unless(std > 0.0 && std.is_finite(), "init_std", std, "a number above 0")?;
        BadSetting::unless((0.0..1.0).contains(&self.dropout), "dropout", self.dropout, "in [0, 1)")?;
        if self.layernorm_in_adapter && self.variant == Variant::Meft3 {
            let why = "is true; `meft3` has no adapter that stands alone, leave it out";
            return Err(BadSetting::new("layernorm_in_adapter", why));
        }
        if self.freeze_irreversible_layers && self.num_rev_layers.is_none_or(|layers| layers == 0) {
            let why = "is true; it needs `num_rev_layers`, the number of layers above the frozen ones";
            return Err(BadSetting::new("freeze_irreversible_layers", why));
        }
        match &self.checkpoint_every {
            Every::Named(name) if name != "auto" => Err(BadSetting::new(
                "checkpoint_every",
                format!("is {name:?}; it must be a number or \"auto\""),
            )),
            _ => Ok(()),
        }
    }

    /// Refuses values that make no sense for a model of this many layers.
    pub(crate) fn check_layers(&self, layers: usize) -> Result<(), BadSetting> {
        let allowed = format!("at most {layers}, the number of layers");
        if let Some(undone) = self.num_rev_layers {
            BadSetting::unless(undone <= layers, "num_rev_layers", undone, &allowed)?;
        }
        if let Every::Layers(every) = self.checkpoint_every {
            BadSetting::unless(
                every <= layers,
                "checkpoint_every",
                every,
                &format!("{allowed}, or \"auto\""),
            )?;
        }
        Ok(())
    }
}

/// Unit roundoff.
pub(crate) fn roundoff(dtype: DType) -> f64 {
    match dtype {
        DType::F64 => 2f64.powi(-53),
        DType::F16 => 2f64.powi(-11),
        DType::BF16 => 2f64.powi(-8),
        _ => 2f64.powi(-24),
    }
}
