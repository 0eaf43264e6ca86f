//! Early stopping: training ends when a figure on held rows has not improved for a while.
//!
//! An evaluation improves if it is better than the best so far by more than `min_delta`; after
//! `patience` evaluations in a row that do not, training ends.
//!
//! Source: Prechelt 1998, "Early stopping — but when?".

use anyhow::{Context, Result, ensure};
use ramekin_core::{Array, BadSetting, Category, UserError};
use ramekin_registry::{Part, part};
use ramekin_slots::{Event, Flow, Hook, HookContext, StateTensor, Stateful};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::shadow::Shadow;

part! { hook / "early-stop" => EarlyStop, "ends training when a figure on held rows stops improving",
source = "Prechelt 1998", traits = [StatefulAcrossSteps] }

/// Whether a figure shall be small or large.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Goal {
    /// Small.
    #[default]
    Min,
    /// Large.
    Max,
}

/// Settings of `hook = [{ kind = "early-stop", … }]`.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct EarlyStopSettings {
    /// The figure: one of the stage's `eval.metrics`.
    pub metric: String,
    /// Whether it shall be small, "min", or large, "max".
    pub mode: Goal,
    /// Evaluations in a row without improvement after which training ends, at least 1.
    pub patience: u64,
    /// What counts as an improvement: more than this, in the figure's own unit.
    pub min_delta: f64,
    /// Ends with the weights of the best evaluation; they are kept in memory until then.
    pub restore_best: bool,
}

impl Default for EarlyStopSettings {
    fn default() -> Self {
        EarlyStopSettings {
            metric: "loss".to_owned(),
            mode: Goal::Min,
            patience: 3,
            min_delta: 0.0,
            restore_best: false,
        }
    }
}

/// The hook.
pub struct EarlyStop {
    settings: EarlyStopSettings,
    best: Option<f64>,
    since: u64,
    weights: Shadow,
}

impl Part for EarlyStop {
    type Settings = EarlyStopSettings;

    fn new(settings: EarlyStopSettings) -> Result<Self> {
        if settings.patience == 0 {
            return Err(BadSetting::new("patience", "is 0; it must be at least 1").into());
        }
        let d = settings.min_delta;
        if !(d.is_finite() && d >= 0.0) {
            return Err(
                BadSetting::new("min_delta", format!("is {d}; it must be a number of at least 0")).into()
            );
        }
        Ok(EarlyStop { settings, best: None, since: 0, weights: Shadow::default() })
    }
}

impl EarlyStop {
    fn improves(&self, figure: f64) -> bool {
        let Some(best) = self.best else { return true };
        match self.settings.mode {
            Goal::Min => figure < best - self.settings.min_delta,
            Goal::Max => figure > best + self.settings.min_delta,
        }
    }

    fn judge(&mut self, cx: &HookContext<'_>) -> Result<Flow> {
        let name = &self.settings.metric;
        let Some(figure) = cx.figures.get(name).and_then(serde_json::Value::as_f64) else {
            let known: Vec<String> = cx.figures.keys().map(|k| format!("`{k}`")).collect();
            let message =
                format!("`early-stop` goes by `{name}`, and the stage measures {}", known.join(", "));
            return Err(UserError::new(message).help("add it to the stage's `eval.metrics`").into());
        };
        if figure.is_finite() && self.improves(figure) {
            (self.best, self.since) = (Some(figure), 0);
            if self.settings.restore_best {
                self.weights.retake(cx.ledger)?;
            }
            return Ok(Flow::Go);
        }
        self.since += 1;
        if self.since < self.settings.patience {
            return Ok(Flow::Go);
        }
        let best = self.best.map_or_else(|| "none".to_owned(), |b| format!("{b:.4}"));
        Ok(Flow::Stop(format!("`{name}` has not improved for {} evaluations (best: {best})", self.since)))
    }
}

impl Stateful for EarlyStop {
    fn state(&self) -> Result<Vec<StateTensor>> {
        let figures = vec![self.best.unwrap_or(f64::NAN), self.since as f64];
        let array = Array::from_vec(figures, &[2], Category::Workspace)?;
        let mut all = vec![StateTensor { name: "figures".to_owned(), array }];
        all.extend(self.weights.state()?);
        Ok(all)
    }

    fn restore(&mut self, get: &mut dyn FnMut(&str) -> Option<Array>) -> Result<()> {
        let figures = get("figures").context("the checkpoint has no figures of `early-stop`")?;
        let figures = figures.view::<f64>()?;
        ensure!(figures.len() == 2, "the checkpoint's figures of `early-stop` are {}, not 2", figures.len());
        self.best = Some(figures[0]).filter(|b| !b.is_nan());
        self.since = figures[1] as u64;
        self.weights.restore(get)
    }
}

impl Hook for EarlyStop {
    fn on(&mut self, event: Event, cx: &mut HookContext<'_>) -> Result<Flow> {
        match event {
            Event::AfterEval if !cx.figures.is_empty() => return self.judge(cx),
            // From the first step on, so that a plan sees them.
            Event::StepBegin if self.settings.restore_best => self.weights.grow(cx.ledger)?,
            Event::End if self.settings.restore_best && self.best.is_some() => {
                self.weights.swap(cx.ledger)?
            }
            _ => {}
        }
        Ok(Flow::Go)
    }

    fn handles_weights(&self, event: Event) -> bool {
        self.settings.restore_best && matches!(event, Event::AfterEval | Event::StepBegin | Event::End)
    }

    fn needs_eval(&self) -> bool {
        true
    }
}
