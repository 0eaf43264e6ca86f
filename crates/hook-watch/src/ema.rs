//! Exponential moving average of what trains.
//!
//! s ← s + (1 − d)·(θ − s) after each update;  d = min(decay, (1 + t)/(10 + t)) with warm-up
//!
//! Frozen entries stay as they are to the bit. The average takes the place of the weights by exchange,
//! so that they come back to the bit.
//!
//! Source: Polyak & Juditsky 1992; the warm-up is that of TensorFlow's `ExponentialMovingAverage`.

use anyhow::Result;
use ramekin_core::{Array, BadSetting};
use ramekin_registry::{Part, part};
use ramekin_slots::{Event, Flow, Hook, HookContext, StateTensor, Stateful};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::shadow::Shadow;

part! { hook / "ema" => Ema, "a moving average of the weights, measured and saved in their place",
source = "Polyak & Juditsky 1992", traits = [StatefulAcrossSteps] }

/// Settings of `hook = [{ kind = "ema", … }]`.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct EmaSettings {
    /// Share of the average that stays at an update, in [0, 1).
    pub decay: f64,
    /// Begins with smaller decays, (1 + t)/(10 + t) after t updates, so that the start is soon forgotten.
    pub warmup: bool,
    /// Updates between two averagings, at least 1.
    pub every: u64,
    /// Measurements and samples between the steps are of the average.
    pub evaluate: bool,
    /// The stage ends with the average: it is measured and saved.
    pub save: bool,
}

impl Default for EmaSettings {
    fn default() -> Self {
        EmaSettings { decay: 0.999, warmup: true, every: 1, evaluate: true, save: true }
    }
}

/// The hook.
pub struct Ema {
    settings: EmaSettings,
    shadow: Shadow,
}

impl Part for Ema {
    type Settings = EmaSettings;

    fn new(settings: EmaSettings) -> Result<Self> {
        let d = settings.decay;
        if !(0.0..1.0).contains(&d) {
            return Err(BadSetting::new("decay", format!("is {d}; it must be in [0, 1)")).into());
        }
        if settings.every == 0 {
            return Err(BadSetting::new("every", "is 0; it must be at least 1").into());
        }
        if !settings.evaluate && !settings.save {
            let why = "is false and so is `evaluate`: the average would be of no use; leave the hook out";
            return Err(BadSetting::new("save", why).into());
        }
        Ok(Ema { settings, shadow: Shadow::default() })
    }
}

impl Ema {
    /// Averaging number `t`, from 1.
    fn decay(&self, t: u64) -> f64 {
        let t = t as f64;
        let early = if self.settings.warmup { (1.0 + t) / (10.0 + t) } else { 1.0 };
        self.settings.decay.min(early)
    }

    fn average(&mut self, cx: &HookContext<'_>) -> Result<()> {
        let toward = (1.0 - self.decay(cx.step / self.settings.every)) as f32;
        for (array, param) in self.shadow.pairs(cx.ledger)? {
            let value = param.value();
            if !array.is_shape_only() {
                let value = value.view::<f32>()?;
                array.update(|s: &mut [f32]| {
                    s.iter_mut().zip(&*value).for_each(|(s, v)| *s += toward * (v - *s));
                })?;
            }
        }
        Ok(())
    }
}

impl Stateful for Ema {
    fn state(&self) -> Result<Vec<StateTensor>> {
        self.shadow.state()
    }

    fn restore(&mut self, get: &mut dyn FnMut(&str) -> Option<Array>) -> Result<()> {
        self.shadow.restore(get)
    }
}

impl Hook for Ema {
    fn on(&mut self, event: Event, cx: &mut HookContext<'_>) -> Result<Flow> {
        match event {
            Event::StepBegin => self.shadow.grow(cx.ledger)?,
            Event::AfterUpdate if cx.step.is_multiple_of(self.settings.every) => self.average(cx)?,
            Event::BeforeEval | Event::AfterEval if self.settings.evaluate => self.shadow.swap(cx.ledger)?,
            Event::End if self.settings.save => self.shadow.swap(cx.ledger)?,
            _ => {}
        }
        Ok(Flow::Go)
    }

    fn handles_weights(&self, event: Event) -> bool {
        event != Event::Begin
    }
}
