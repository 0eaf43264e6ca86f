//! LiNeS: a model's change scaled by a factor that grows with depth, so that shallow layers stay as they
//! were: old abilities come back, and merged models get less in each other's way.
//!
//! θ = θ₀ + λ_l·τ, λ_l = α + β·l/(B−1); without LiNeS θ₀ + λ·τ
//!
//! * one model: β = 1 − α; α is searched on {1, 0.9, …, 0} for the largest w·target + control on held rows
//! * several: τ from a merger, α = (1/T)·‖Σ τ_t‖₁ / ‖τ‖₁ (1/T for task arithmetic), β searched
//!
//! Source: Wang et al. 2025, arXiv:2410.17146; sheet `lines`.

use anyhow::Result;
use ramekin_core::BadSetting;
use ramekin_registry::{Part, part};
use ramekin_slots::{Held, Judge, Merger, Piece, TaskVectors};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value as Json, json};

use crate::choice::OneOrMany;
use crate::consensus::Consensus;
use crate::depth::{Depth, OutsideScale};
use crate::search::{self, Goal};
use crate::select::{self, Scope};
use crate::soup::Soup;
use crate::ties::{Aggregate, Vote};
use crate::{norms, within};

part! { merge / "lines" => Lines, "scales a model's change, or several models' merged one, by a factor that grows with depth",
source = "arXiv:2410.17146; sheet lines", traits = [] }

/// What the models are to each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// One model: its change is undone in the shallow layers.
    Single,
    /// Models of different tasks.
    Multi,
    /// Models of one task.
    Soup,
    /// Models of different rewards, Σ w_r τ_r with Σ w_r = 1, or one model on the way from its base.
    Interpolate,
}

/// How several changes become one, before any factor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum MergerKind {
    /// Σ w_t τ_t.
    #[default]
    TaskArithmetic,
    /// Σ w_t τ_t / Σ w_t.
    Average,
    /// Trimmed, with elected signs.
    Ties,
    /// Σ w_t τ_t where enough tasks use the entry.
    Consensus,
    /// The mean of all models.
    SoupUniform,
    /// The mean of the models that help.
    SoupGreedy,
}

/// α: a number, or `"auto"`.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(untagged)]
pub enum Alpha {
    /// This factor, or one of these.
    Given(OneOrMany),
    /// By rule.
    Rule(AlphaRule),
}

/// The word for α by rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum AlphaRule {
    /// Several models: the ratio of norms. One: searched on 1, 0.9, …, 0.
    Auto,
}

/// Settings of `method = { kind = "lines", … }`.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct LinesSettings {
    /// `single`, `multi`, `soup` or `interpolate`. Default: `single` for one model, else `multi`.
    pub mode: Option<Mode>,
    /// How several changes become one. Default: `task_arithmetic`.
    pub merger: MergerKind,
    /// Whether the factor grows with depth; false multiplies by `lambda` everywhere. Default: true.
    pub apply_lines: bool,
    /// The first block's factor, at least 0; a list is searched. Default: `auto`.
    pub alpha: Alpha,
    /// What the last block's factor is larger by; a list is searched. Default: 1 − alpha for one model,
    /// else searched on 0.1, 0.2, …, 1 (1.5 for `ties`).
    pub beta: Option<OneOrMany>,
    /// Factor of the whole change without LiNeS; a list is searched. Default: 1.
    pub lambda: OneOrMany,
    /// How much the own task counts against the controls in the search for one model, above 0. Default: 2.
    pub target_weight: f64,
    /// Per cent of each task vector that `ties` keeps, in (0, 100]. Default: 20.
    pub ties_keep_percent: f64,
    /// What `ties` makes of the entries that agree. Default: `mean`.
    pub ties_agg: Aggregate,
    /// Tasks that must use an entry, 0 to T + 1. Default: 2.
    pub consensus_k: usize,
    /// λ_t of the masks of `consensus`, searched a task where there are several. Default: 0.2, 0.3, …, 0.6.
    pub tall_lambda: OneOrMany,
    /// Blocks of the model. Default: as many as the tensors' paths name.
    pub num_blocks: Option<usize>,
    /// Path of the stack of blocks, where tensors' paths hold several numbers: "model.layers". Default: read.
    pub block_path: Option<String>,
    /// Factor of tensors outside the blocks: `alpha`, `first` or `last`. Default: `alpha`.
    pub outside_scale: OutsideScale,
    /// What searches go by on held rows: `loss` or `exact_match`. Default: `loss`.
    pub validation_metric: Metric,
}

/// What a search on held rows goes by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// e^(−loss): the mean probability of a right token.
    #[default]
    Loss,
    /// Share of right answers.
    ExactMatch,
}

impl Metric {
    /// As judges know it.
    pub fn name(self) -> &'static str {
        match self {
            Metric::Loss => "loss",
            Metric::ExactMatch => "exact_match",
        }
    }
}

impl Default for LinesSettings {
    fn default() -> Self {
        LinesSettings {
            mode: None,
            merger: MergerKind::TaskArithmetic,
            apply_lines: true,
            alpha: Alpha::Rule(AlphaRule::Auto),
            beta: None,
            lambda: OneOrMany::One(1.0),
            target_weight: 2.0,
            ties_keep_percent: 20.0,
            ties_agg: Aggregate::Mean,
            consensus_k: 2,
            tall_lambda: OneOrMany::Many(vec![0.2, 0.3, 0.4, 0.5, 0.6]),
            num_blocks: None,
            block_path: None,
            outside_scale: OutsideScale::Alpha,
            validation_metric: Metric::Loss,
        }
    }
}

/// How the merged vector's entries are found.
#[derive(Clone, Debug)]
pub(crate) enum Source {
    Sum(Vec<f64>),
    Ties(Vote),
    Consensus(Vec<f64>, Consensus),
    Soup(Soup),
}

impl Source {
    pub(crate) fn entry(&self, piece: &Piece<'_>, i: usize) -> f64 {
        match self {
            Source::Sum(weights) => sum(piece, weights, i),
            Source::Ties(vote) => vote.merged(piece, i),
            Source::Consensus(weights, consensus) => consensus.masked(piece, i, sum(piece, weights, i)),
            Source::Soup(soup) => soup.entry(piece, i),
        }
    }
}

fn sum(piece: &Piece<'_>, weights: &[f64], i: usize) -> f64 {
    piece.deltas.iter().zip(weights).map(|(d, w)| w * d[i]).sum()
}

/// Factors of one candidate: α, β with LiNeS, λ, 0 without.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Factors {
    /// The first block's factor.
    pub alpha: f64,
    /// What the last block's is larger by.
    pub beta: f64,
}

/// The method.
pub struct Lines {
    settings: LinesSettings,
    source: Source,
    depth: Depth,
    factors: Factors,
}

impl Part for Lines {
    type Settings = LinesSettings;

    fn new(s: LinesSettings) -> Result<Self> {
        if let Alpha::Given(alpha) = &s.alpha {
            listed("alpha", &alpha.values(), |a| a >= 0.0, "at least 0")?;
        }
        if let Some(beta) = &s.beta {
            listed("beta", &beta.values(), |_| true, "a finite number")?;
        }
        listed("lambda", &s.lambda.values(), |_| true, "a finite number")?;
        listed("tall_lambda", &s.tall_lambda.values(), |l| l >= 0.0, "at least 0")?;
        within("target_weight", s.target_weight, s.target_weight > 0.0, "above 0")?;
        let keep = s.ties_keep_percent;
        within("ties_keep_percent", keep, keep > 0.0 && keep <= 100.0, "in (0, 100]")?;
        if let Some(n) = s.num_blocks.filter(|n| *n < 2) {
            let why = format!("is {n}; a factor by depth needs at least 2 blocks");
            return Err(BadSetting::new("num_blocks", why).into());
        }
        let soup = matches!(s.merger, MergerKind::SoupUniform | MergerKind::SoupGreedy);
        if s.mode == Some(Mode::Soup) && !soup {
            let why = "must be `soup_uniform` or `soup_greedy` with `mode = \"soup\"`";
            return Err(BadSetting::new("merger", why).into());
        }
        let factors = Factors { alpha: 0.0, beta: 0.0 };
        Ok(Lines { settings: s, source: Source::Sum(Vec::new()), depth: Depth::default(), factors })
    }
}

fn listed(name: &str, values: &[f64], good: impl Fn(f64) -> bool, allowed: &str) -> Result<(), BadSetting> {
    if values.is_empty() {
        return Err(BadSetting::new(name, "is an empty list; give at least one value"));
    }
    values.iter().try_for_each(|x| within(name, *x, good(*x), allowed))
}

impl Lines {
    fn mode(&self, vectors: &dyn TaskVectors) -> Result<Mode> {
        let count = vectors.count();
        let mode = self.settings.mode.unwrap_or(if count == 1 { Mode::Single } else { Mode::Multi });
        let wrong = match mode {
            Mode::Single if count != 1 => Some(format!("is `single`, and there are {count} models")),
            Mode::Multi if count < 2 => {
                Some("is `multi`, which needs at least 2 models; there is 1".to_owned())
            }
            Mode::Interpolate if count > 1 => {
                let sum: f64 = (0..count).map(|t| vectors.weight(t)).sum();
                let off = (sum - 1.0).abs() > 1e-6;
                off.then(|| format!("is `interpolate`, whose weights must sum to 1; they sum to {sum}"))
            }
            _ => None,
        };
        wrong.map_or(Ok(mode), |why| Err(BadSetting::new("mode", why).into()))
    }

    fn source(&self, vectors: &dyn TaskVectors, judge: &mut dyn Judge) -> Result<(Source, Json)> {
        let s = &self.settings;
        let weights: Vec<f64> = (0..vectors.count()).map(|t| vectors.weight(t)).collect();
        let total: f64 = weights.iter().sum();
        Ok(match s.merger {
            MergerKind::TaskArithmetic => (Source::Sum(weights), Json::Null),
            MergerKind::Average => (Source::Sum(weights.iter().map(|w| w / total).collect()), Json::Null),
            MergerKind::Ties => {
                let vote = Vote::new(vectors, s.ties_keep_percent / 100.0, Scope::Global, s.ties_agg);
                let vote = vote.map_err(renamed)?;
                let report = magnitude_masks(vectors, judge, s.validation_metric.name(), &vote)?;
                (Source::Ties(vote), report)
            }
            MergerKind::Consensus => {
                let grid = s.tall_lambda.values();
                let metric = s.validation_metric.name();
                let merged = |piece: &Piece<'_>, i: usize| sum(piece, &weights, i);
                let (consensus, report) =
                    Consensus::new(vectors, judge, metric, &grid, s.consensus_k, &merged)?;
                (Source::Consensus(weights.clone(), consensus), report)
            }
            MergerKind::SoupUniform => (Source::Soup(Soup::uniform(vectors)), Json::Null),
            MergerKind::SoupGreedy => {
                let soup = Soup::greedy(vectors, judge, s.validation_metric.name())?;
                let members: Vec<String> = soup.members.iter().map(|t| vectors.label(*t)).collect();
                (Source::Soup(soup), json!(members))
            }
        })
    }

    /// (1/T)·‖Σ τ_t‖₁ / ‖τ‖₁.
    fn auto_alpha(&self, vectors: &dyn TaskVectors) -> Result<f64> {
        let (mut sums, mut merged) = (0.0, 0.0);
        vectors.pieces(&mut |piece| {
            for i in 0..piece.base.len() {
                sums += piece.deltas.iter().map(|d| d[i]).sum::<f64>().abs();
                merged += self.source.entry(piece, i).abs();
            }
            Ok(())
        })?;
        if merged == 0.0 {
            let why =
                "is `auto`, a ratio to the merged change's norm, which is 0: the models equal their base";
            return Err(BadSetting::new("alpha", why).into());
        }
        Ok(sums / merged / vectors.count() as f64)
    }

    fn write(&self, f: Factors, piece: &Piece<'_>, out: &mut [f64]) {
        let factor = if self.settings.apply_lines {
            self.depth.factor(piece.tensor, f.alpha, f.beta, self.settings.outside_scale)
        } else {
            f.alpha
        };
        for (i, (o, base)) in out.iter_mut().zip(piece.base).enumerate() {
            *o = if factor == 0.0 { *base } else { base + factor * self.source.entry(piece, i) };
        }
    }

    /// The candidates of the search, the one that wins a tie first.
    fn candidates(&self, mode: Mode, vectors: &dyn TaskVectors) -> Result<Vec<Factors>> {
        let s = &self.settings;
        if !s.apply_lines {
            return Ok(s.lambda.values().into_iter().map(|alpha| Factors { alpha, beta: 0.0 }).collect());
        }
        let single = matches!(mode, Mode::Single) || vectors.count() == 1;
        let alphas = match &s.alpha {
            Alpha::Given(given) => given.values(),
            Alpha::Rule(_) if single => search::tenths(10).rev().collect(),
            Alpha::Rule(_) => vec![self.auto_alpha(vectors)?],
        };
        let last = if s.merger == MergerKind::Ties { 15 } else { 10 };
        let mut all = Vec::new();
        for alpha in alphas {
            let betas = match &s.beta {
                Some(beta) => beta.values(),
                None if single => vec![1.0 - alpha],
                None => search::tenths(last).skip(1).collect(),
            };
            all.extend(betas.into_iter().map(|beta| Factors { alpha, beta }));
        }
        Ok(all)
    }
}

/// How good θ₀ + m_t·τ is on each task's held rows, m_t the entries that the task's trimming keeps.
fn magnitude_masks(
    vectors: &dyn TaskVectors,
    judge: &mut dyn Judge,
    metric: &str,
    vote: &Vote,
) -> Result<Json> {
    let mut report = Vec::new();
    for held in judge.held() {
        let Held::Task(task) = held else { continue };
        let score = judge.score(held, metric, &|piece, out| {
            for (i, (o, base)) in out.iter_mut().zip(piece.base).enumerate() {
                *o = base + if vote.keeps(piece, task, i) { vote.merged(piece, i) } else { 0.0 };
            }
            Ok(())
        })?;
        report.push(json!({ "task": vectors.label(task), "magnitude_mask": score }));
    }
    Ok(Json::Array(report))
}

/// `ties` calls it density; here it is a percentage.
fn renamed(e: anyhow::Error) -> anyhow::Error {
    match e.downcast::<BadSetting>() {
        Ok(bad) => BadSetting::new("ties_keep_percent", bad.message).into(),
        Err(e) => e,
    }
}

impl Merger for Lines {
    fn table_bytes(&self, tasks: usize) -> u64 {
        if self.settings.merger == MergerKind::Ties { select::table_bytes(tasks) } else { 0 }
    }

    fn prepare(&mut self, vectors: &dyn TaskVectors, judge: &mut dyn Judge) -> Result<Json> {
        let mode = self.mode(vectors)?;
        if let Some(t) = norms(vectors)?.iter().position(|n| *n == 0.0) {
            let why = format!("has nothing to scale: `{}` equals the base", vectors.label(t));
            return Err(BadSetting::new("kind", why).into());
        }
        if self.settings.apply_lines {
            self.depth = Depth::read(vectors, self.settings.block_path.as_deref(), self.settings.num_blocks)?;
        }
        let (source, report) = self.source(vectors, judge)?;
        self.source = source;
        let candidates = self.candidates(mode, vectors)?;
        let metric = self.settings.validation_metric.name();
        let goal = match mode {
            Mode::Single => Goal::Single { target_weight: self.settings.target_weight },
            _ => Goal::Tasks,
        };
        let write = |at: usize, piece: &Piece<'_>, out: &mut [f64]| self.write(candidates[at], piece, out);
        let names: Vec<String> = candidates.iter().map(|f| format!("{f:?}")).collect();
        let setting = if !self.settings.apply_lines {
            "lambda"
        } else if self.settings.beta.is_none() && mode != Mode::Single {
            "beta"
        } else {
            "alpha"
        };
        let (best, scores) = search::best(vectors, judge, metric, setting, names.len(), &goal, &write)?;
        self.factors = candidates[best];
        let Factors { alpha, beta } = self.factors;
        Ok(json!({
            "mode": mode, "alpha": alpha, "beta": beta, "blocks": self.depth.blocks(), "merger": report,
            "search": candidates.iter().zip(scores).map(|(f, s)| json!([f.alpha, f.beta, s])).collect::<Vec<_>>(),
        }))
    }

    fn merge(&self, piece: &Piece<'_>, out: &mut [f64]) -> Result<()> {
        self.write(self.factors, piece, out);
        Ok(())
    }
}
