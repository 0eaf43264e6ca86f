//! PYRA: token merging with two generators a block that re-weight the tokens about to be merged.
//!
//! S, D: the tokens that go and their partners, both times the patches they stand for; r of them an image
//! G = ν(S + D)      w = 2σ(aᵀG), one a channel      t = 2σ(G b) − 1, one a token
//! S′ = S + t ⊙ S ⊙ w; then as `tome`: x ← (Σ D + Σ S′) / Σ s
//!
//! ν is a layer norm, a ∈ ℝʳ uniform within ±1 (kaiming-uniform of a column), b ∈ ℝᵈ zero: at the start S′ = S, and it
//! is `tome` bit for bit. What t ⊙ S ⊙ w adds is merged apart from the plain tokens, which is the same sum.
//!
//! The last block merges and has no generator: behind its attention no token reaches the class token any more, so one
//! there would change nothing and get no gradient.
//!
//! The generators act on activations and stay beside a model whose LoRA has been folded in. The published runs trained
//! them at the main rate: set `pyra_lr` to that for theirs.
//!
//! Source: Xiong et al. 2024, arXiv:2403.09192 (THU-MIG/PYRA); sheet `pyra`.

use std::rc::Rc;
use std::sync::Arc;

use anyhow::{Context, Result};
use ramekin_core::{Array, BadSetting, Category, Param, ParamId};
use ramekin_peft::{Kept, own_fields, settings, whole_config};
use ramekin_registry::{AnyPart, Part, part};
use ramekin_slots::{
    Adapter, AdapterFile, AttachContext, Forward, Keys, ParamGroup, Reduced, Reducer, WeightSource,
};
use ramekin_tape::ops::{self, MergePlan};
use ramekin_tape::{Value, dispatch};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use crate::matched::{Matched, Rule};
use crate::schedule::{Schedule, check_protected};
use crate::tome::{STAYS, blocks};

part! { reducer / "pyra" => Pyra, "token merging that learns to re-weight what is merged",
source = "arXiv:2403.09192; sheet pyra", traits = [ChangesTokenCount, NeedsBackboneBackward],
from_peft = Pyra::from_peft }

/// What the layer norm adds to the variance.
const EPS: f64 = 1e-5;

/// Settings of `reducer = [{ kind = "pyra", … }]`.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct PyraSettings {
    /// Tokens that go in each block, as a list; `low` and `high` are published ones for 197 tokens.
    pub schedule: Schedule,
    /// Whether attention counts a token as often as it stands for patches.
    pub prop_attn: bool,
    /// Leading tokens that never go: 1 (class), or 2 with a distillation token.
    pub protected: usize,
    /// Whether there are generators; false is plain `tome`.
    pub pyra: bool,
    /// Learning rate of the generators, whatever the optimizer's own is; they do not decay.
    pub pyra_lr: f64,
}

impl Default for PyraSettings {
    fn default() -> Self {
        PyraSettings {
            schedule: Schedule::default(),
            prop_attn: true,
            protected: 1,
            pyra: true,
            pyra_lr: 1e-4,
        }
    }
}

/// The part; without parameters until attached.
pub struct Pyra {
    settings: PyraSettings,
    kept: Kept,
}

impl Part for Pyra {
    type Settings = PyraSettings;

    fn new(settings: PyraSettings) -> Result<Self> {
        check_protected(settings.protected)?;
        let lr = settings.pyra_lr;
        BadSetting::unless(lr.is_finite() && lr > 0.0, "pyra_lr", lr, "a number above 0")?;
        Ok(Pyra { settings, kept: Kept::default() })
    }
}

/// a, b and the norm of one block.
struct Generator {
    a: Arc<Param>,
    b: Arc<Param>,
    norm: (Arc<Param>, Arc<Param>),
}

impl Pyra {
    /// The part that a saved config describes, if it is this one's.
    pub fn from_peft(config: &Json) -> Option<Result<AnyPart>> {
        (config["peft_type"].as_str() == Some("PYRA")).then(|| {
            let own = own_fields(config, "pyra", &[])?;
            Ok(AnyPart::Reducer(Box::new(Pyra::new(settings(&own)?)?)))
        })
    }

    fn generator(&mut self, cx: &mut AttachContext<'_>, block: usize, r: usize) -> Result<Generator> {
        let d = cx.facts.hidden_size;
        let key = |tail: &str| format!("pyra.{block}.{tail}");
        let stream = cx.rng.named(&format!("{}/init", cx.owner), &key("a"));
        let shape_only = cx.shape_only;
        let made = |dims: &[usize], fill: &dyn Fn(&mut [f32])| {
            Array::build::<f32>(dims, shape_only, Category::Workspace, |out| {
                fill(out);
                Ok(())
            })
        };
        let mut add = |tail, value| self.kept.add(cx, key(tail), value);
        Ok(Generator {
            a: add("a", made(&[r, 1], &|out| stream.fill_uniform(0, -1.0, 1.0, out))?)?,
            b: add("b", made(&[1, d], &|out| out.fill(0.0))?)?,
            norm: (
                add("norm.weight", made(&[d], &|out| out.fill(1.0))?)?,
                add("norm.bias", made(&[d], &|out| out.fill(0.0))?)?,
            ),
        })
    }
}

impl Adapter for Pyra {
    fn attach(&mut self, cx: &mut AttachContext<'_>) -> Result<Vec<String>> {
        let s = self.settings.clone();
        let schedule = s.schedule.of(cx.facts, s.protected, "pyra")?;
        let names = blocks(&schedule);
        let mut generators = Vec::new();
        for (block, r) in schedule.iter().enumerate() {
            let some = s.pyra && *r > 0 && block + 1 < cx.facts.blocks;
            generators.push(if some { Some(self.generator(cx, block, *r)?) } else { None });
        }
        let rule = Rule { schedule, protected: s.protected, counts: s.prop_attn };
        cx.sites.around().attach_reducer(Rc::new(Reactivating { rule, generators }))?;
        Ok(names)
    }

    fn load(&mut self, source: &mut dyn WeightSource) -> Result<()> {
        self.kept.load(source, |_| false)
    }

    fn file(&self, base: &str) -> Result<AdapterFile> {
        Ok(AdapterFile {
            config: whole_config(serde_json::to_value(&self.settings)?, "PYRA", base),
            tensors: self.kept.tensors().map(|(key, p)| (key.to_owned(), p.value())).collect(),
            extra: Json::Null,
        })
    }

    fn params(&self) -> Vec<(String, Arc<Param>)> {
        self.kept.params().map(|(key, p)| (key.to_owned(), p.clone())).collect()
    }

    fn groups(&self, lr: f64) -> Vec<(ParamId, ParamGroup)> {
        let lr_scale = if lr > 0.0 { self.settings.pyra_lr / lr } else { 1.0 };
        self.kept.params().map(|(_, p)| (p.id(), ParamGroup { lr_scale, decay: false })).collect()
    }

    fn unmergeable(&self) -> Option<String> {
        Some(STAYS.to_owned())
    }
}

/// The reducer in place.
struct Reactivating {
    rule: Rule,
    generators: Vec<Option<Generator>>,
}

impl Generator {
    /// What is added to the tokens that go, `[images·r, d]`.
    fn added(&self, fx: &Forward, h: &Value, matched: &Matched) -> Result<Value> {
        let (tape, plan) = (&fx.tape, &matched.plan);
        let weighed = |rows: Vec<u32>| -> Result<Value> {
            let times: Vec<u32> = rows.iter().map(|i| plan.times[*i as usize]).collect();
            let x = ops::select_rows(tape, h, &Rc::new(rows))?;
            ops::mul_column(tape, &x, &Value::constant(numbers(h.array(), &times)?))
        };
        let s = weighed(matched.pairs.iter().map(|(from, _)| *from).collect())?;
        let d = weighed(matched.pairs.iter().map(|(_, into)| *into).collect())?;
        let (w, b) = (tape.param(&self.norm.0)?, tape.param(&self.norm.1)?);
        let g = ops::layer_norm(tape, &ops::add(tape, &s, &d)?, &w, &b, EPS)?;
        drop(d);
        ops::reactivate(tape, &s, &g, &tape.param(&self.a)?, &tape.param(&self.b)?)
    }
}

/// Whole numbers in the type of `like`; shape-only in a plan.
fn numbers(like: &Array, values: &[u32]) -> Result<Array> {
    dispatch!(like, T => Array::build::<T>(&[values.len(), 1], like.is_shape_only(), Category::Workspace, |out| {
        out.iter_mut().zip(values).for_each(|(x, n)| *x = f64::from(*n) as T);
        Ok(())
    }))
}

impl Reducer for Reactivating {
    fn schedule(&self) -> &[usize] {
        &self.rule.schedule
    }

    fn counts(&self) -> bool {
        self.rule.counts
    }

    fn reduce(&self, fx: &Forward, block: usize, h: &Value, keys: &Keys<'_>) -> Result<Reduced> {
        let matched = Matched::of(fx, &self.rule, block, keys)?;
        let mut merged = matched.mean(fx, h)?;
        if let Some(generator) = self.generators.get(block).context("a block without a schedule")? {
            let added = generator.added(fx, h, &matched)?;
            let to = matched.pairs.iter().map(|(_, into)| matched.plan.to[*into as usize]).collect();
            let once = Rc::new(vec![1; matched.pairs.len()]);
            let plan = MergePlan { to: Rc::new(to), times: once, totals: matched.plan.totals.clone() };
            merged = ops::add(&fx.tape, &merged, &ops::merge_rows(&fx.tape, &added, &plan)?)?;
        }
        Ok(Reduced { h: merged, rows: matched.plan.to.to_vec() })
    }
}
