//! Importance-aware Sparse Tuning: at each step a sample of the layers' adapters trains.
//!
//! A ~ n_u layers by σ(−I); every T steps, on a batch of its own: N_c sets S_k of n_s layers by σ(I),
//! the adapters of S_k damped by β, L_k the loss;  I_i ← I_i + μ (e^(−L_k) − mean) σ(I_i) (1 − σ(I_i)).
//!
//! Forwards always use every layer at full strength. A frozen layer gets no gradient, decay or moment;
//! its moments wait. On shapes all layers train in the first step and the lowest ones after it, so that
//! a plan sees every layer's state and the deepest backward.
//!
//! Source: Yao et al., Findings of EMNLP 2024; sheet `ist`. Signs are those of the authors' code.

use std::rc::Rc;

use anyhow::{Context, Result, ensure};
use ramekin_core::pattern::layer_of;
use ramekin_core::{Array, BadSetting, Category, Draws};
use ramekin_registry::{Part, part};
use ramekin_slots::{Event, Flow, Hook, HookContext, Sites, StateTensor, Stateful};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::importance::{sample, sigmoid, update};

part! { hook / "ist" => Ist, "trains a sample of the layers' adapters at each step, by learnt importance",
source = "EMNLP 2024 Findings; sheet ist", traits = [StatefulAcrossSteps] }

/// How layers are sampled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Method {
    /// By importance.
    #[default]
    Ist,
    /// Uniformly: the random baseline.
    Rst,
}

/// Settings of `hook = [{ kind = "ist", … }]`.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct IstSettings {
    /// Share of the layers that trains at a step, in (0, 1]; rounded down to whole layers.
    pub active_fraction: f64,
    /// Share of the layers that a candidate damps, in (0, 1); rounded down to whole layers.
    pub suppressed_fraction: f64,
    /// What is left of a damped layer's adapters, in [0, 1).
    pub suppression_factor: f64,
    /// Candidates of an importance loop, at least 2.
    #[serde(alias = "rl_step")]
    pub num_candidates: usize,
    /// Rate at which importance is learnt, above 0.
    #[serde(alias = "rl_lr")]
    pub importance_lr: f64,
    /// Steps between two importance loops, at least 1.
    pub importance_interval: u64,
    /// Rows of an importance loop's batch, at least 1.
    pub importance_batch_size: usize,
    /// Steps between two choices of layers, at least 1.
    pub switch_interval: u64,
    /// "ist", or "rst" for layers drawn uniformly.
    pub method: Method,
}

impl Default for IstSettings {
    fn default() -> Self {
        IstSettings {
            active_fraction: 0.25,
            suppressed_fraction: 0.5,
            suppression_factor: 0.25,
            num_candidates: 3,
            importance_lr: 10.0,
            importance_interval: 10,
            importance_batch_size: 16,
            switch_interval: 1,
            method: Method::Ist,
        }
    }
}

/// A layer's adapters: the parameters and the linears they sit at.
#[derive(Default)]
struct Layer {
    params: Vec<String>,
    linears: Vec<String>,
}

/// The hook.
pub struct Ist {
    settings: IstSettings,
    layers: Vec<Layer>,
    scores: Vec<f64>,
    active: Vec<usize>,
}

impl Part for Ist {
    type Settings = IstSettings;

    fn new(settings: IstSettings) -> Result<Self> {
        let s = &settings;
        let inside = |good: bool, name: &str, value: f64, range: &str| match good {
            true => Ok(()),
            false => Err(BadSetting::new(name, format!("is {value}; it must be {range}"))),
        };
        let (a, d, b) = (s.active_fraction, s.suppressed_fraction, s.suppression_factor);
        inside(a > 0.0 && a <= 1.0, "active_fraction", a, "above 0 and at most 1")?;
        inside(d > 0.0 && d < 1.0, "suppressed_fraction", d, "above 0 and below 1")?;
        inside((0.0..1.0).contains(&b), "suppression_factor", b, "in [0, 1)")?;
        let rate = s.importance_lr;
        inside(rate > 0.0 && rate.is_finite(), "importance_lr", rate, "above 0")?;
        let least =
            |n: u64, name: &str, least: u64| inside(n >= least, name, n as f64, &format!("at least {least}"));
        least(s.num_candidates as u64, "num_candidates", 2)?;
        least(s.importance_interval, "importance_interval", 1)?;
        least(s.importance_batch_size as u64, "importance_batch_size", 1)?;
        least(s.switch_interval, "switch_interval", 1)?;
        Ok(Ist { settings, layers: Vec::new(), scores: Vec::new(), active: Vec::new() })
    }
}

/// Subsets of `k` among `n`, counted up to `enough`.
fn subsets(n: usize, k: usize, enough: usize) -> usize {
    let mut count = 1usize;
    for i in 0..k.min(n - k) {
        count = count.saturating_mul(n - i) / (i + 1);
        if count >= enough {
            return enough;
        }
    }
    count
}

impl Ist {
    /// Scores of the layers; a larger one is a less important layer.
    pub fn scores(&self) -> &[f64] {
        &self.scores
    }

    /// The layers that train at this step.
    pub fn active(&self) -> &[usize] {
        &self.active
    }

    /// Layers that train at a step, and that a candidate damps.
    fn counts(&self, layers: usize) -> Result<(usize, usize), BadSetting> {
        let s = &self.settings;
        let part = |share: f64| (share * layers as f64 + 1e-9).floor() as usize;
        let (active, damped) = (part(s.active_fraction), part(s.suppressed_fraction));
        let none = |name: &str, share: f64| {
            let least = (1.0 / layers as f64 * 1e4).ceil() / 1e4;
            BadSetting::new(
                name,
                format!("is {share}, which is less than one of {layers} layers; it must be at least {least}"),
            )
        };
        if active == 0 {
            return Err(none("active_fraction", s.active_fraction));
        }
        if s.method == Method::Ist {
            if damped == 0 {
                return Err(none("suppressed_fraction", s.suppressed_fraction));
            }
            let there = subsets(layers, damped, s.num_candidates);
            if there < s.num_candidates {
                let why = format!(
                    "is {}, and there are only {there} sets of {damped} among {layers} layers; it must be at most that",
                    s.num_candidates
                );
                return Err(BadSetting::new("num_candidates", why));
            }
        }
        Ok((active, damped))
    }

    /// Finds each layer's adapters, once.
    fn survey(&mut self, cx: &HookContext<'_>) -> Result<()> {
        if !self.layers.is_empty() {
            return Ok(());
        }
        let count = cx.facts.blocks;
        self.counts(count)?;
        let mut layers: Vec<Layer> = (0..count).map(|_| Layer::default()).collect();
        for param in cx.ledger.trainable() {
            if let Some(layer) = layer_of(param.name()).filter(|l| *l < count) {
                layers[layer].params.push(param.name().to_owned());
            }
        }
        for site in cx.sites.linears().iter().filter(|s| s.adapter_count() > 0 && !s.is_head) {
            if let Some(layer) = layer_of(&site.path).filter(|l| *l < count) {
                layers[layer].linears.push(site.path.clone());
            }
        }
        let bare = layers.iter().position(|l| l.params.is_empty() || l.linears.is_empty());
        if let Some(layer) = bare {
            let why = format!(
                "damps and samples the adapters of every layer, and layer {layer} has none that trains; attach one \
                 to linears of all layers: `adapter = [{{ kind = \"lora\", … }}]`"
            );
            return Err(BadSetting::new("kind", why).against("adapter").into());
        }
        if self.scores.is_empty() {
            self.scores = vec![0.0; count];
        }
        let sound = self.scores.len() == count && self.active.iter().all(|l| *l < count);
        ensure!(sound, "the saved importance is of another number of layers than {count}");
        let s = &self.settings;
        if s.method == Method::Ist && s.importance_interval >= cx.total {
            ramekin_core::say!(
                "  warning: `importance_interval` is {}, and the stage has {} steps: importance is never learnt",
                s.importance_interval,
                cx.total
            );
        }
        self.layers = layers;
        Ok(())
    }

    fn choose(&mut self, cx: &mut HookContext<'_>) -> Result<()> {
        self.survey(cx)?;
        let s = &self.settings;
        let (count, damped) = self.counts(self.layers.len())?;
        let shape_only =
            cx.ledger.entries().iter().filter_map(|e| e.param.as_ref()).any(|p| p.value().is_shape_only());
        if shape_only {
            if s.method == Method::Ist {
                cx.probe.loss("ist", 0, s.importance_batch_size)?;
            }
            self.active = if cx.step == 0 { (0..self.layers.len()).collect() } else { (0..count).collect() };
            return self.apply(cx);
        }
        if s.method == Method::Ist && cx.step > 0 && cx.step.is_multiple_of(s.importance_interval) {
            self.learn(cx, damped)?;
        }
        if cx.step.is_multiple_of(self.settings.switch_interval) || self.active.is_empty() {
            let weights: Vec<f64> = self.scores.iter().map(|i| sigmoid(-i)).collect();
            let mut draws = Draws::new(cx.rng.stream("ist/active", cx.step));
            self.active = sample(&weights, count, &mut draws);
        }
        self.apply(cx)
    }

    /// Lets the active layers train and no other.
    fn apply(&self, cx: &HookContext<'_>) -> Result<()> {
        for (i, layer) in self.layers.iter().enumerate() {
            for name in &layer.params {
                let param = cx.ledger.get(name).and_then(|e| e.param.as_ref());
                let param = param.with_context(|| format!("the parameter `{name}` is gone"))?;
                param.set_trainable(self.active.contains(&i));
            }
        }
        Ok(())
    }

    /// An importance loop: forwards alone, on rows of its own.
    fn learn(&mut self, cx: &mut HookContext<'_>, damped: usize) -> Result<()> {
        let s = &self.settings;
        let weights: Vec<f64> = self.scores.iter().map(|i| sigmoid(*i)).collect();
        let mut draws = Draws::new(cx.rng.stream("ist/suppressed", cx.step));
        let (mut sets, mut losses): (Vec<Vec<usize>>, Vec<f64>) = (Vec::new(), Vec::new());
        while sets.len() < s.num_candidates {
            let mut set = sample(&weights, damped, &mut draws);
            let flat = vec![1.0; weights.len()];
            // Extreme scores would draw the same set for ever.
            for tries in 0.. {
                if !sets.contains(&set) {
                    break;
                }
                set = sample(if tries < 100 { &weights } else { &flat }, damped, &mut draws);
            }
            let damping = self.damp(&cx.sites, &set)?;
            let batch = cx.step / s.importance_interval - 1;
            losses.push(cx.probe.loss("ist", batch, s.importance_batch_size)?);
            drop(damping);
            sets.push(set);
        }
        match update(&self.scores, &sets, &losses, s.importance_lr) {
            Some(scores) => self.scores = scores,
            None => ramekin_core::say!(
                "  warning: a loss of the importance loop before step {} is not finite: importance stays as it is",
                cx.step + 1
            ),
        }
        Ok(())
    }

    /// Damps the adapters of some layers until the result is dropped.
    fn damp(&self, sites: &Rc<Sites>, set: &[usize]) -> Result<Damping> {
        let mut before = Vec::new();
        for path in set.iter().flat_map(|i| &self.layers[*i].linears) {
            before.push((path.clone(), sites.linear(path)?.strength()));
        }
        let damping = Damping { sites: sites.clone(), before };
        for (path, strength) in &damping.before {
            sites.linear(path)?.set_strength(strength * self.settings.suppression_factor);
        }
        Ok(damping)
    }
}

/// Puts strengths back however a loop ends.
struct Damping {
    sites: Rc<Sites>,
    before: Vec<(String, f64)>,
}

impl Drop for Damping {
    fn drop(&mut self) {
        for (path, strength) in &self.before {
            if let Ok(site) = self.sites.linear(path) {
                site.set_strength(*strength);
            }
        }
    }
}

impl Stateful for Ist {
    fn state(&self) -> Result<Vec<StateTensor>> {
        let scores = Array::from_vec(self.scores.clone(), &[self.scores.len()], Category::Workspace)?;
        let active: Vec<u32> = self.active.iter().map(|l| *l as u32).collect();
        let active = Array::from_vec(active, &[self.active.len()], Category::Workspace)?;
        Ok(vec![
            StateTensor { name: "scores".to_owned(), array: scores },
            StateTensor { name: "active".to_owned(), array: active },
        ])
    }

    fn restore(&mut self, get: &mut dyn FnMut(&str) -> Option<Array>) -> Result<()> {
        let mut saved =
            |name: &str| get(name).with_context(|| format!("the checkpoint has no `{name}` of `ist`"));
        self.scores = saved("scores")?.view::<f64>()?.to_vec();
        self.active = saved("active")?.view::<u32>()?.iter().map(|l| *l as usize).collect();
        Ok(())
    }
}

impl Hook for Ist {
    fn on(&mut self, event: Event, cx: &mut HookContext<'_>) -> Result<Flow> {
        match event {
            Event::StepBegin => self.choose(cx)?,
            Event::End if !self.layers.is_empty() => {
                self.active = (0..self.layers.len()).collect();
                self.apply(cx)?;
            }
            _ => {}
        }
        Ok(Flow::Go)
    }

    fn handles_weights(&self, event: Event) -> bool {
        matches!(event, Event::StepBegin | Event::End)
    }
}
