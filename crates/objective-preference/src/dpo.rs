//! Direct preference optimisation.
//!
//! log π(y|x) = Σ over the answer's tokens      Δ = log π − log π_ref      δ = f(Δ_c) − f(Δ_r)
//! L = mean over pairs of a function of δ, Δ_c, Δ_r ([`crate::LossType`])
//!
//! The reference is the base with adapters off, or a second model; it runs first, without gradient. Model
//! and reference run without dropout, so at the start every Δ is exactly 0.
//!
//! Source: Rafailov et al. 2023, arXiv:2305.18290; TRL `DPOTrainer`; WPO: Zhou et al. 2024,
//! arXiv:2406.11827; sheet `objectives`, item 8. Left out: `precompute_ref_log_probs`, `sync_ref_model`.

use std::cell::RefCell;
use std::rc::Rc;

use anyhow::{Result, ensure};
use ramekin_core::{Array, BadSetting};
use ramekin_registry::{Part, part};
use ramekin_slots::{Figure, FlatBatch, Labelled, Loss, ModelRef, Objective, ObjectiveContext, Rows, States};
use ramekin_tape::{Tape, Value, ops};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::dual::Dual;
use crate::losses::{LossType, Pair};

part! { objective / "dpo" => Dpo, "chosen answers more likely than rejected ones, measured against a reference",
source = "arXiv:2305.18290; TRL DPOTrainer; sheet objectives", traits = [NeedsBackboneBackward] }

/// How Δ is seen before the chosen and the rejected one are compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum FDivergence {
    /// Δ itself.
    #[default]
    ReverseKl,
    /// −e^{−Δ}.
    ForwardKl,
    /// log σ(Δ).
    JsDivergence,
    /// e^{(a−1)Δ}/(a−1).
    AlphaDivergence,
}

/// One loss or several.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(untagged, expecting = "expected the name of a loss or a list of names")]
pub enum LossTypes {
    /// One.
    One(LossType),
    /// Several, summed.
    Many(Vec<LossType>),
}

impl LossTypes {
    fn all(&self) -> &[LossType] {
        match self {
            LossTypes::One(one) => std::slice::from_ref(one),
            LossTypes::Many(many) => many,
        }
    }
}

/// Settings of `objective = { kind = "dpo", … }`.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct DpoSettings {
    /// The reference. Default: the base with adapters off.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reference: Option<ModelRef>,
    /// β: how strongly the model is held to the reference; above 0.
    pub beta: f64,
    /// The loss of a pair, or a list of losses that are summed.
    pub loss_type: LossTypes,
    /// Weights of the losses in that list. Default: 1 each.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub loss_weights: Option<Vec<f64>>,
    /// ε of `robust` (below 0.5) and `exo_pair` (above 0).
    pub label_smoothing: f64,
    /// How Δ is seen before the difference is taken.
    pub f_divergence_type: FDivergence,
    /// a of `alpha_divergence`; not 1.
    pub f_alpha_divergence_coef: f64,
    /// Weight of an answer's tokens beyond the length of the shorter one, in [0, 1]. Default: 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ld_alpha: Option<f64>,
    /// WPO: pairs weigh by how likely the model finds them, without gradient and at most 1.
    pub use_weighting: bool,
    /// Whether the model runs without dropout.
    pub disable_dropout: bool,
    /// Labelled rows whose logits exist at once.
    pub chunk_tokens: usize,
}

impl Default for DpoSettings {
    fn default() -> Self {
        DpoSettings {
            reference: None,
            beta: 0.1,
            loss_type: LossTypes::One(LossType::Sigmoid),
            loss_weights: None,
            label_smoothing: 0.0,
            f_divergence_type: FDivergence::default(),
            f_alpha_divergence_coef: 0.5,
            ld_alpha: None,
            use_weighting: false,
            disable_dropout: true,
            chunk_tokens: 256,
        }
    }
}

/// The objective.
pub struct Dpo(DpoSettings);

const REFERENCE: &str = "reference";

impl Part for Dpo {
    type Settings = DpoSettings;

    fn new(s: DpoSettings) -> Result<Self> {
        s.check()?;
        Ok(Dpo(s))
    }
}

impl DpoSettings {
    fn check(&self) -> Result<(), BadSetting> {
        let refuse = |name: &str, why: String| Err(BadSetting::new(name, why));
        if !(self.beta.is_finite() && self.beta > 0.0) {
            return refuse("beta", format!("is {}; it must be above 0", self.beta));
        }
        let types = self.loss_type.all();
        if types.is_empty() {
            return refuse("loss_type", "is empty; name at least one loss".to_owned());
        }
        if let Some(weights) = &self.loss_weights
            && weights.len() != types.len()
        {
            return refuse(
                "loss_weights",
                format!("has {} weights for {} losses", weights.len(), types.len()),
            );
        }
        let eps = self.label_smoothing;
        if !(0.0..1.0).contains(&eps) {
            return refuse("label_smoothing", format!("is {eps}; it must be in [0, 1)"));
        }
        if types.contains(&LossType::Robust) && eps >= 0.5 {
            return refuse("label_smoothing", format!("is {eps}; with `robust` it must be below 0.5"));
        }
        if types.contains(&LossType::ExoPair) && eps == 0.0 {
            return refuse(
                "label_smoothing",
                "is 0; with `exo_pair` it must be above 0, as 0.001".to_owned(),
            );
        }
        if eps > 0.0 && !types.iter().any(|t| t.smooths()) {
            let name = types[0].name();
            return refuse(
                "label_smoothing",
                format!("is {eps} and has no place in `{name}`; `robust` takes it"),
            );
        }
        let a = self.f_alpha_divergence_coef;
        if !a.is_finite() || a == 1.0 {
            return refuse("f_alpha_divergence_coef", format!("is {a}; it must be a number other than 1"));
        }
        if let Some(ld) = self.ld_alpha.filter(|a| !(0.0..=1.0).contains(a)) {
            return refuse("ld_alpha", format!("is {ld}; it must be in [0, 1]"));
        }
        if self.chunk_tokens == 0 {
            return refuse("chunk_tokens", "is 0; it must be at least 1".to_owned());
        }
        Ok(())
    }
}

/// The answers' tokens: which segment each labelled row belongs to, and how much it counts.
struct Answers {
    owner: Vec<u32>,
    weights: Option<Vec<f64>>,
    tokens: Vec<f64>,
}

impl Answers {
    fn new(flat: &FlatBatch, rows: &[u32], ld_alpha: Option<f64>) -> Self {
        let mut owner = Vec::with_capacity(rows.len());
        let mut place = Vec::with_capacity(rows.len());
        let mut tokens = vec![0.0f64; flat.segments.len()];
        let mut segment = 0;
        for row in rows {
            while segment + 1 < flat.segments.len() && flat.segments[segment].end <= *row as usize {
                segment += 1;
            }
            owner.push(segment as u32);
            place.push(tokens[segment]);
            tokens[segment] += 1.0;
        }
        let weights = ld_alpha.map(|alpha| {
            let shorter =
                |s: u32| tokens[s as usize].min(tokens.get((s ^ 1) as usize).copied().unwrap_or(0.0));
            owner.iter().zip(&place).map(|(s, at)| if *at < shorter(*s) { 1.0 } else { alpha }).collect()
        });
        Answers { owner, weights, tokens }
    }
}

/// log Σ_v p_v² of each row of logits.
fn log_collisions(logits: &Array) -> Result<Vec<f64>> {
    let (n, v) = logits.rows();
    if logits.is_shape_only() {
        return Ok(vec![0.0; n]);
    }
    let numbers = logits.to_f64()?;
    let row = |z: &[f64]| {
        let top = z.iter().copied().fold(f64::MIN, f64::max);
        let (mut one, mut two) = (0.0, 0.0);
        for z in z {
            let e = (z - top).exp();
            one += e;
            two += e * e;
        }
        two.ln() - 2.0 * one.ln()
    };
    Ok(numbers.chunks(v.max(1)).map(row).collect())
}

/// Log-probabilities of the labelled tokens, `[n, 1]`; with their log Σ p² where these are wanted.
fn log_probs(
    tape: &Tape,
    pass: &States,
    found: Labelled,
    chunk: usize,
    wanted: bool,
) -> Result<(Value, Vec<f64>)> {
    let head = pass.head();
    let collisions = Rc::new(RefCell::new(vec![0.0; if wanted { found.targets.len() } else { 0 }]));
    let (beside, targets) = (collisions.clone(), found.targets);
    let lp = tape.chunked_rows(
        &found.hidden,
        chunk,
        Rc::new(move |tape, part, range| {
            let logits = head.logits(tape, part)?;
            if wanted {
                beside.borrow_mut()[range.clone()].copy_from_slice(&log_collisions(logits.array())?);
            }
            ops::log_probs(tape, logits, &targets[range])
        }),
    )?;
    let collisions = collisions.borrow().clone();
    Ok((lp, collisions))
}

impl Dpo {
    fn compared(&self, delta: Dual) -> Dual {
        let a = self.0.f_alpha_divergence_coef;
        match self.0.f_divergence_type {
            FDivergence::ReverseKl => delta,
            FDivergence::ForwardKl => -(-delta).exp(),
            FDivergence::JsDivergence => delta.log_sigmoid(),
            FDivergence::AlphaDivergence => (delta * (a - 1.0)).exp() * (1.0 / (a - 1.0)),
        }
    }

    /// The losses of a pair, weighted and summed.
    fn pair(&self, policy: &[f64], reference: &[f64], tokens: &[f64]) -> (Dual, [f64; 2]) {
        let chosen = Dual::variable(policy[0] - reference[0], 0);
        let rejected = Dual::variable(policy[1] - reference[1], 1);
        let delta = self.compared(chosen) - self.compared(rejected);
        let pair = Pair { chosen, rejected, delta, tokens: [tokens[0], tokens[1]] };
        let sum = self.weighted_types().fold(Dual::constant(0.0), |sum, (kind, w)| {
            sum + kind.of(&pair, self.0.beta, self.0.label_smoothing) * w
        });
        (sum, [self.0.beta * chosen.value, self.0.beta * rejected.value])
    }

    fn weighted_types(&self) -> impl Iterator<Item = (LossType, f64)> {
        let weight = |i| self.0.loss_weights.as_ref().map_or(1.0, |w: &Vec<f64>| w[i]);
        self.0.loss_type.all().iter().enumerate().map(move |(i, kind)| (*kind, weight(i)))
    }

    /// WPO's weight of a pair.
    fn likelihood(lp: &[f64], collisions: &[f64], a: &Answers, pair: usize) -> f64 {
        let mean = |s: usize| {
            let rows = (0..lp.len()).filter(|r| a.owner[*r] as usize == s);
            rows.map(|r| lp[r] - collisions[r]).sum::<f64>() / a.tokens[s].max(1.0)
        };
        (mean(2 * pair) + mean(2 * pair + 1)).exp().min(1.0)
    }
}

impl Objective for Dpo {
    fn rows(&self) -> Rows {
        Rows::Pairs
    }

    fn models(&self) -> Vec<(&'static str, ModelRef)> {
        self.0.reference.iter().map(|m| (REFERENCE, m.clone())).collect()
    }

    fn compares_with_base(&self) -> Option<&'static str> {
        self.0.reference.is_none().then_some(REFERENCE)
    }

    fn accuracy(&self) -> Option<&'static str> {
        Some("rewards/accuracies")
    }

    /// Pairs, and tokens of chosen answers.
    fn counts(&self, flat: &FlatBatch, labels: &[i64]) -> Vec<f64> {
        let chosen = flat.segments.iter().step_by(2);
        let tokens = chosen.map(|s| ramekin_slots::labelled_tokens(&labels[s.clone()])).sum::<usize>();
        vec![(flat.segments.len() / 2) as f64, tokens as f64]
    }

    fn loss(&self, cx: &ObjectiveContext<'_>) -> Result<Loss> {
        let s = &self.0;
        let pairs = cx.flat.segments.len() / 2;
        let pass = if s.reference.is_some() { cx.other(REFERENCE)? } else { cx.base()? };
        let found = pass.labelled(cx.labels)?;
        let answers = Answers::new(cx.flat, &found.rows, s.ld_alpha);
        let sums = |tape: &Tape, lp: &Value| {
            ops::weighted_sums(tape, lp, &answers.owner, answers.weights.as_deref(), 2 * pairs)
        };
        let off = Tape::off();
        let (lp, _) = log_probs(&off, &pass, found, s.chunk_tokens, false)?;
        let reference = sums(&off, &lp)?;
        drop((pass, lp));

        let pass = if s.disable_dropout { cx.forward_plain()? } else { cx.forward()? };
        let found = pass.labelled(cx.labels)?;
        let (lp, collisions) = log_probs(cx.tape, &pass, found, s.chunk_tokens, s.use_weighting)?;
        drop(pass);
        let policy = sums(cx.tape, &lp)?;
        if policy.array().is_shape_only() {
            let loss = ops::known_slope(cx.tape, &policy, 0.0, Vec::new())?;
            return Ok(loss.into());
        }
        ensure!(
            answers.tokens.iter().all(|n| *n > 0.0),
            "a chosen or rejected answer has no token that counts"
        );
        let (p, r) = (policy.array().to_f64()?, reference.array().to_f64()?);
        let tokens = lp.array().to_f64()?;
        let (scale, mut total, mut slope) = (cx.scale(0), 0.0, Vec::with_capacity(2 * pairs));
        let (mut figures, mut predictions) = ([0.0; 4], Vec::with_capacity(pairs));
        for i in 0..pairs {
            let at = 2 * i..2 * i + 2;
            let (loss, [chosen, rejected]) = self.pair(&p[at.clone()], &r[at.clone()], &answers.tokens[at]);
            let weight =
                if s.use_weighting { Self::likelihood(&tokens, &collisions, &answers, i) } else { 1.0 };
            total += scale * weight * loss.value;
            slope.extend(loss.slopes.map(|s| scale * weight * s));
            predictions.push((i64::from(chosen > rejected), 1));
            let right = f64::from(u8::from(chosen > rejected));
            for (sum, x) in figures.iter_mut().zip([chosen, rejected, chosen - rejected, right]) {
                *sum += x;
            }
        }
        let mut value = ops::known_slope(cx.tape, &policy, total, slope)?;
        let sft: f64 = self.weighted_types().filter(|(k, _)| *k == LossType::Sft).map(|(_, w)| w).sum();
        if sft != 0.0 {
            let is_chosen = |owner: &u32| owner.is_multiple_of(2);
            let scale = -sft * cx.scale(1);
            let slope: Vec<f64> =
                answers.owner.iter().map(|o| if is_chosen(o) { scale } else { 0.0 }).collect();
            let total = tokens.iter().zip(&slope).map(|(x, s)| x * s).sum();
            value = ops::add(cx.tape, &value, &ops::known_slope(cx.tape, &lp, total, slope)?)?;
        }
        let names = ["rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies"];
        let figure = |(name, sum)| Figure { name, sum, count: pairs as f64 };
        Ok(Loss { value, figures: names.into_iter().zip(figures).map(figure).collect(), predictions })
    }
}
