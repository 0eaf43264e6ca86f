//! The four curves.

use anyhow::Result;
use ramekin_core::BadSetting;
use ramekin_registry::{Part, part};
use ramekin_slots::Schedule;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

part! { schedule / "constant" => Constant, "the rate stays as it is, after warm-up",
source = "transformers get_constant_schedule_with_warmup", traits = [] }
part! { schedule / "linear" => Linear, "the rate falls in a straight line",
source = "transformers get_linear_schedule_with_warmup", traits = [] }
part! { schedule / "cosine" => Cosine, "the rate falls along half a cosine",
source = "arXiv:1608.03983", traits = [] }
part! { schedule / "wsd" => Wsd, "warm-up, stable, then a short decay",
source = "arXiv:2404.06395", traits = [] }

/// Warm-up, as a number of steps or a share of all.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Warmup {
    steps: Option<u64>,
    ratio: f64,
}

impl Warmup {
    fn check(self) -> Result<Self> {
        if !(0.0..1.0).contains(&self.ratio) {
            return Err(
                BadSetting::new("warmup_ratio", format!("is {}; it must be in [0, 1)", self.ratio)).into()
            );
        }
        if self.steps.is_some() && self.ratio > 0.0 {
            return Err(
                BadSetting::new("warmup_ratio", "cannot stand beside `warmup_steps`; keep one").into()
            );
        }
        Ok(self)
    }

    fn length(self, total: u64) -> u64 {
        self.steps.unwrap_or((self.ratio * total as f64).ceil() as u64)
    }

    /// The warm-up's factor, or how far along the rest is, in [0, 1].
    fn split(self, step: u64, total: u64) -> Result<f64, f64> {
        let length = self.length(total);
        if step < length {
            return Err(step as f64 / length.max(1) as f64);
        }
        Ok(((step - length) as f64 / total.saturating_sub(length).max(1) as f64).min(1.0))
    }
}

fn check_share(name: &str, value: f64) -> Result<()> {
    if !(0.0..=1.0).contains(&value) {
        return Err(BadSetting::new(name, format!("is {value}; it must be in [0, 1]")).into());
    }
    Ok(())
}

/// Settings of `schedule = { kind = "constant", … }`.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ConstantSettings {
    /// Steps of linear warm-up from 0.
    pub warmup_steps: Option<u64>,
    /// Warm-up as a share of all steps.
    pub warmup_ratio: f64,
}

/// Settings of `schedule = { kind = "linear" or "cosine", … }`.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct FallSettings {
    /// Steps of linear warm-up from 0.
    pub warmup_steps: Option<u64>,
    /// Warm-up as a share of all steps.
    pub warmup_ratio: f64,
    /// Where the fall ends, as a share of the rate.
    pub min_ratio: f64,
}

/// Settings of `schedule = { kind = "wsd", … }`.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct WsdSettings {
    /// Steps of linear warm-up from 0.
    pub warmup_steps: Option<u64>,
    /// Warm-up as a share of all steps.
    pub warmup_ratio: f64,
    /// Share of all steps that decays, at the end.
    pub decay_ratio: f64,
    /// Where the decay ends, as a share of the rate.
    pub min_ratio: f64,
}

impl Default for WsdSettings {
    fn default() -> Self {
        WsdSettings { warmup_steps: None, warmup_ratio: 0.0, decay_ratio: 0.1, min_ratio: 0.0 }
    }
}

/// Warm-up, then 1.
pub struct Constant(Warmup);

impl Part for Constant {
    type Settings = ConstantSettings;

    fn new(s: ConstantSettings) -> Result<Self> {
        Ok(Constant(Warmup { steps: s.warmup_steps, ratio: s.warmup_ratio }.check()?))
    }
}

impl Schedule for Constant {
    fn factor(&self, step: u64, total: u64) -> f64 {
        self.0.split(step, total).map_or_else(|warm| warm, |_| 1.0)
    }
}

macro_rules! falling {
    ($name:ident, $doc:literal, $progress:ident => $share:expr) => {
        #[doc = $doc]
        pub struct $name {
            warmup: Warmup,
            min_ratio: f64,
        }

        impl Part for $name {
            type Settings = FallSettings;

            fn new(s: FallSettings) -> Result<Self> {
                check_share("min_ratio", s.min_ratio)?;
                let warmup = Warmup { steps: s.warmup_steps, ratio: s.warmup_ratio }.check()?;
                Ok($name { warmup, min_ratio: s.min_ratio })
            }
        }

        impl Schedule for $name {
            fn factor(&self, step: u64, total: u64) -> f64 {
                let rest = |$progress: f64| self.min_ratio + (1.0 - self.min_ratio) * $share;
                self.warmup.split(step, total).map_or_else(|warm| warm, rest)
            }
        }
    };
}

falling!(Linear, "Warm-up, then a straight fall.", p => 1.0 - p);
falling!(Cosine, "Warm-up, then half a cosine.", p => 0.5 * (1.0 + (std::f64::consts::PI * p).cos()));

/// Warm-up, stable, decay.
pub struct Wsd {
    warmup: Warmup,
    decay_ratio: f64,
    min_ratio: f64,
}

impl Part for Wsd {
    type Settings = WsdSettings;

    fn new(s: WsdSettings) -> Result<Self> {
        check_share("decay_ratio", s.decay_ratio)?;
        check_share("min_ratio", s.min_ratio)?;
        let warmup = Warmup { steps: s.warmup_steps, ratio: s.warmup_ratio }.check()?;
        Ok(Wsd { warmup, decay_ratio: s.decay_ratio, min_ratio: s.min_ratio })
    }
}

impl Schedule for Wsd {
    fn factor(&self, step: u64, total: u64) -> f64 {
        if let Err(warm) = self.warmup.split(step, total) {
            return warm;
        }
        let decay = (self.decay_ratio * total as f64).round().max(1.0);
        let left = total.saturating_sub(step) as f64;
        if left > decay { 1.0 } else { self.min_ratio + (1.0 - self.min_ratio) * left / decay }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn curves_pass_their_points() {
        let fall = FallSettings { warmup_steps: Some(10), ..Default::default() };
        let linear = Linear::new(fall.clone()).unwrap();
        let cosine = Cosine::new(FallSettings { min_ratio: 0.1, ..fall }).unwrap();
        let near = |a: f64, b: f64| assert!((a - b).abs() < 1e-12, "{a} {b}");
        near(linear.factor(0, 110), 0.0);
        near(linear.factor(5, 110), 0.5);
        near(linear.factor(10, 110), 1.0);
        near(linear.factor(60, 110), 0.5);
        near(cosine.factor(60, 110), 0.55);
        near(cosine.factor(110, 110), 0.1);
        let wsd = Wsd::new(WsdSettings { decay_ratio: 0.2, ..Default::default() }).unwrap();
        near(wsd.factor(50, 100), 1.0);
        near(wsd.factor(90, 100), 0.5);
        let constant = Constant::new(ConstantSettings { warmup_ratio: 0.1, ..Default::default() }).unwrap();
        near(constant.factor(5, 100), 0.5);
        near(constant.factor(99, 100), 1.0);
    }

    #[test]
    fn refuses_both_warmups() {
        let s = ConstantSettings { warmup_steps: Some(1), warmup_ratio: 0.1 };
        assert!(Constant::new(s).is_err());
        assert!(Linear::new(FallSettings { min_ratio: 2.0, ..Default::default() }).is_err());
    }
}
