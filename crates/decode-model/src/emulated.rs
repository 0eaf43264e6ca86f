//! Emulated fine-tuning: a large model as if it had been tuned, by what tuning did to small ones.
//!
//! log p(·) = log softmax( z_N + Σ_k λ_k (lp_k − lp_ref) )      lp = log softmax of a small model's logits
//!
//! z_N are the logits of the model in work (`base`), lp_k those of tuned models, lp_ref of what these were
//! tuned from. With `delta_top_p` below 1 the sum is kept on the nucleus of the tuned models alone and is 0
//! elsewhere. With `draft_tokens` a tuned model drafts and the fused distribution verifies.
//!
//! Source: Mitchell et al. 2023, arXiv:2310.12962; sheet `emulated-tuning`.

use anyhow::{Result, ensure};
use ramekin_core::BadSetting;
use ramekin_kernels::sampling::{Filters, log_softmax, nucleus};
use ramekin_registry::{Part, part};
use ramekin_slots::{Decoder, ModelRef, Session, Words};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::round::{Choice, Drafts, last_rows, run};
use crate::speculative::check_sampling;
use crate::tracked::Tracked;

part! { decode / "emulated-tuning" => EmulatedTuning, "a large model as if it had been tuned, by the change that tuning made to a small one",
source = "arXiv:2310.12962; sheet emulated-tuning", traits = [] }

/// What the models are given in the place of the prompt; `{prompt}` stands for it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Prompts {
    /// To the tuned models, such as their chat's frame. Default: the prompt.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tuned: Option<String>,
    /// To the model that they were tuned from. Default: the prompt.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tuned_base: Option<String>,
}

/// Settings of `decode = { kind = "emulated-tuning", … }`; the stage's model is the large `base`.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct EmulatedTuningSettings {
    /// The tuned models; at least one is needed.
    pub tuned: Vec<ModelRef>,
    /// What they were tuned from. Default: the stage's model, whose own behaviour is then re-weighted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tuned_base: Option<ModelRef>,
    /// λ: the weight of each tuned model; beyond [0, 1] it extrapolates.
    pub weights: Vec<f64>,
    /// Share of the tuned models' probability on which the change is kept, in (0, 1]; 0.95 is cautious.
    pub delta_top_p: f64,
    /// Tokens that a tuned model drafts a round; 0 is off.
    pub draft_tokens: usize,
    /// Which of several tuned models drafts, from 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drafter: Option<usize>,
    /// Fused logits are divided by it; 0 takes the most probable token.
    pub temperature: f64,
    /// Keeps the most probable tokens whose sum just reaches this share; 1 is off.
    pub top_p: f64,
    /// What the small models are given in the place of the prompt.
    pub prompts: Prompts,
}

impl Default for EmulatedTuningSettings {
    fn default() -> Self {
        EmulatedTuningSettings {
            tuned: Vec::new(),
            tuned_base: None,
            weights: vec![1.0],
            delta_top_p: 1.0,
            draft_tokens: 0,
            drafter: None,
            temperature: 1.0,
            top_p: 1.0,
            prompts: Prompts::default(),
        }
    }
}

/// The rule by which logits are fused.
#[derive(Clone, Debug)]
pub struct Fusion {
    /// λ of each tuned model.
    pub weights: Vec<f64>,
    /// Share of the tuned models' probability on which the change is kept.
    pub delta_top_p: f64,
}

impl Fusion {
    /// Fused logits, not normalised, from logits of the base, of each tuned model and of their base.
    pub fn fuse(&self, base: &[f64], tuned: &[&[f64]], tuned_base: &[f64]) -> Vec<f64> {
        let reference = log_softmax(tuned_base.iter().copied());
        let mut delta = vec![0.0; base.len()];
        let mut blend = vec![0.0; base.len()];
        for (lambda, z) in self.weights.iter().zip(tuned) {
            for ((d, b), (lp, r)) in
                delta.iter_mut().zip(&mut blend).zip(log_softmax(z.iter().copied()).iter().zip(&reference))
            {
                // Equal impossibilities differ by nothing.
                let change = if lp == r { 0.0 } else { lp - r };
                if *lambda != 0.0 {
                    *d += lambda * change;
                }
                *b += lp.exp();
            }
        }
        if self.delta_top_p < 1.0 {
            let sum: f64 = blend.iter().sum();
            let mut ranked: Vec<(u32, f64)> =
                blend.iter().enumerate().map(|(i, p)| (i as u32, p / sum)).collect();
            ranked.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
            for (id, _) in &ranked[nucleus(&ranked, self.delta_top_p)..] {
                delta[*id as usize] = 0.0;
            }
        }
        base.iter().zip(delta).map(|(z, d)| z + d).collect()
    }
}

/// The decoder.
pub struct EmulatedTuning(EmulatedTuningSettings);

const BASE: &str = "tuned_base";

fn tuned_name(i: usize) -> String {
    format!("tuned.{i}")
}

impl Part for EmulatedTuning {
    type Settings = EmulatedTuningSettings;

    fn new(s: EmulatedTuningSettings) -> Result<Self> {
        let refuse = |name: &str, why: String| -> Result<Self> { Err(BadSetting::new(name, why).into()) };
        if !(s.delta_top_p > 0.0 && s.delta_top_p <= 1.0) {
            return refuse("delta_top_p", format!("is {}; it must be in (0, 1]", s.delta_top_p));
        }
        if !s.tuned.is_empty() && s.weights.len() != s.tuned.len() {
            let (w, t) = (s.weights.len(), s.tuned.len());
            return refuse(
                "weights",
                format!("has {w} numbers for {t} models of `tuned`; give one for each"),
            );
        }
        if let Some(bad) = s.weights.iter().find(|w| !w.is_finite()) {
            return refuse("weights", format!("holds {bad}; each must be a finite number"));
        }
        if s.draft_tokens > 0 && s.tuned.len() > 1 && s.drafter.is_none() {
            let why = format!(
                "is needed: `draft_tokens` is {} and there are {} tuned models",
                s.draft_tokens,
                s.tuned.len()
            );
            return refuse("drafter", why);
        }
        if let Some(d) = s.drafter.filter(|d| *d >= s.tuned.len().max(1)) {
            return refuse(
                "drafter",
                format!("is {d}; there are {} tuned models, numbered from 0", s.tuned.len()),
            );
        }
        check_sampling(s.temperature, s.top_p, 0.0)?;
        for (name, text) in [("tuned", &s.prompts.tuned), ("tuned_base", &s.prompts.tuned_base)] {
            if let Some(text) = text.as_ref().filter(|t| t.matches("{prompt}").count() != 1) {
                let why = format!("is `{text}`; it must hold `{{prompt}}` once");
                return refuse(&format!("prompts.{name}"), why);
            }
        }
        Ok(EmulatedTuning(s))
    }
}

impl EmulatedTuning {
    /// Fused logits of the last `keep` tokens of every active line; `None` where there are only shapes.
    fn fused(
        &self,
        session: &mut Session<'_>,
        drafts: &Drafts,
        active: &[bool],
        keep: usize,
        drafter: Option<usize>,
    ) -> Result<Option<Vec<Vec<Vec<f64>>>>> {
        let s = &self.0;
        let fusion = Fusion { weights: s.weights.clone(), delta_top_p: s.delta_top_p };
        let base = Tracked(None).feed(session, &drafts.tokens, active, keep)?;
        let reference = match s.tuned_base {
            Some(_) => Some(Tracked(Some(BASE.to_owned())).feed(session, &drafts.tokens, active, keep)?),
            None => None,
        };
        let mut tuned = Vec::new();
        for k in 0..s.tuned.len() {
            tuned.push(if drafter == Some(k) {
                None // its logits are there already
            } else {
                Some(Tracked(Some(tuned_name(k))).feed(session, &drafts.tokens, active, keep)?)
            });
        }
        if base.array.is_shape_only() {
            return Ok(None);
        }
        let mut all = vec![Vec::new(); active.len()];
        for i in (0..active.len()).filter(|i| active[*i]) {
            let n = drafts.tokens[i].len() + 1;
            let of = |logits: &ramekin_slots::Logits| last_rows(logits, i, n);
            let z = of(&base)?;
            let r = reference.as_ref().map(of).transpose()?;
            let t: Vec<Vec<Vec<f64>>> = tuned
                .iter()
                .map(|l| l.as_ref().map_or_else(|| Ok(drafts.logits[i].clone()), of))
                .collect::<Result<_>>()?;
            ensure!(t.iter().all(|t| t.len() == z.len()), "models of a fusion have seen different tokens");
            for at in 0..z.len() {
                let rows: Vec<&[f64]> = t.iter().map(|t| t[at].as_slice()).collect();
                let reference = r.as_ref().map_or(&z[at], |r| &r[at]);
                all[i].push(fusion.fuse(&z[at], &rows, reference));
            }
        }
        Ok(Some(all))
    }
}

impl Decoder for EmulatedTuning {
    fn check(&self) -> Result<()> {
        if self.0.tuned.is_empty() {
            let why = "is empty: name at least one tuned model, as `[{ source = \"…\" }]`";
            return Err(BadSetting::new("tuned", why).into());
        }
        Ok(())
    }

    fn models(&self) -> Vec<(String, ModelRef)> {
        let tuned = self.0.tuned.iter().enumerate().map(|(i, m)| (tuned_name(i), m.clone()));
        tuned.chain(self.0.tuned_base.iter().map(|m| (BASE.to_owned(), m.clone()))).collect()
    }

    fn rollback(&self) -> usize {
        self.0.draft_tokens + usize::from(self.0.draft_tokens > 0)
    }

    fn wrap(&self, model: &str, prompt: &[u32], words: Option<&dyn Words>) -> Result<Vec<u32>> {
        let frame = if model == BASE { &self.0.prompts.tuned_base } else { &self.0.prompts.tuned };
        let Some(frame) = frame else { return Ok(prompt.to_vec()) };
        let Some(words) = words else {
            return Err(BadSetting::new("prompts", "frames text, and the model has no tokenizer").into());
        };
        words.encode(&frame.replace("{prompt}", &words.decode(prompt)?))
    }

    fn decode(&self, session: &mut Session<'_>) -> Result<()> {
        let s = &self.0;
        let filters = Filters { temperature: s.temperature, top_p: s.top_p, ..Filters::default() };
        let choice = Choice { sampling: (s.temperature > 0.0).then_some(filters) };
        if s.draft_tokens > 0 {
            let first = s.drafter.unwrap_or(0);
            let names = self.models().into_iter().map(|(name, _)| Tracked(Some(name)));
            let models: Vec<Tracked> = names.chain([Tracked(None)]).collect();
            let drafter = Tracked(Some(tuned_name(first)));
            let k = s.draft_tokens;
            return run(session, &drafter, k, true, choice, &models, &mut |session, drafts, active| {
                self.fused(session, drafts, active, k + 1, Some(first))
            });
        }
        while !session.is_done() && session.max_new_tokens > 0 {
            let n = session.lines.len();
            let active: Vec<bool> = session.lines.iter().map(|l| !l.done).collect();
            let none = Drafts { tokens: vec![Vec::new(); n], logits: Vec::new() };
            let Some(all) = self.fused(session, &none, &active, 1, None)? else { return Ok(()) };
            for i in (0..n).filter(|i| active[*i]) {
                let step = session.lines[i].ids.len() - session.lines[i].prompt;
                let (id, _) = choice.choose(&all[i][0], &mut session.draws(i, step));
                session.settle(i, id);
            }
        }
        Ok(())
    }
}
