//! ComPEFT: a task vector as signs and one scale, without any retraining.
//!
//! τ̃ = α·σ·sign(τ) at the ⌊k·d⌋ largest |τ|, else 0        σ = std of all d entries of τ, divisor d − 1
//!
//! All tensors of an expert share one threshold and one scale. `prune` keeps the kept values as they are,
//! `stc` has the scale mean |τ| over the kept ones. The authors' code keeps ties and one entry more; here
//! exactly ⌊k·d⌋ are kept, ties by the lower index, and a density of 1 still leaves signs alone.
//!
//! θ = θ₀ + Σ_t w_t τ̃_t. Each τ̃_t is written to a file of its own, which any merger takes for a model. One
//! adapter alone is compressed as it is: its tensors, counted from `reference`.
//!
//! Source: Yadav et al. 2023, arXiv:2311.13171; sheet `compeft`.

use anyhow::Result;
use ramekin_core::BadSetting;
use ramekin_registry::{Part, part};
use ramekin_slots::{Codec, Held, Judge, Merger, Origin, Piece, Stored, TaskVectors};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value as Json, json};

use crate::choice::OneOrMany;
use crate::lines::Metric;
use crate::select::{self, Kept, Scope};
use crate::within;

part! { merge / "compeft" => Compeft, "compresses task vectors or an adapter to signs and one scale, and merges what is left",
source = "arXiv:2311.13171; sheet compeft", traits = [] }

/// What is kept of the entries that are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// The sign, times α·σ.
    #[default]
    Compeft,
    /// The value.
    Prune,
    /// The sign, times the mean magnitude of the kept entries.
    Stc,
}

/// From where an adapter's numbers are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Reference {
    /// Zeros, as the authors do for LoRA: A and B themselves.
    Zero,
    /// The adapter's initial values, drawn again from its seed.
    LoraStart,
    /// Ones, for (IA)³.
    One,
    /// The base's weights: the adapter is folded in, and the difference of the weights compressed.
    Base,
}

/// How codes are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum CodecChoice {
    /// Gaps between entries, Golomb-coded, and a sign bit each.
    #[default]
    Golomb,
    /// A mask of the positive entries and one of the negative ones: 2 bits a number.
    Bitmask,
    /// Positions of 32 bits.
    Raw,
}

/// Settings of `method = { kind = "compeft", … }`.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct CompeftSettings {
    /// k: share of entries kept, in (0, 1]; a list is searched on held rows, for example 0.05, 0.1, 0.2, 0.3, 0.5. Default: 0.2.
    pub density: OneOrMany,
    /// α: factor of the standard deviation, above 0; a list is searched, for example 0.5, 1, 2, 3, 4, 5, 6, 8, 10. Default: 1.
    #[serde(alias = "replace_factor")]
    pub alpha: OneOrMany,
    /// What is kept: `compeft`, `prune` or `stc`. Default: `compeft`.
    pub mode: Mode,
    /// One threshold and scale for a whole expert, or one a tensor. Default: `global`.
    pub scope: Scope,
    /// From where one adapter's numbers are counted: `zero`, `lora_start`, `one` or `base`. Default: its
    /// start where that is known, else zero, or one for (IA)³; models are always counted from the base.
    pub reference: Option<Reference>,
    /// How codes are written: `golomb`, `bitmask` or `raw`. Default: `golomb`.
    pub codec: CodecChoice,
    /// What searches go by on held rows: `loss` or `exact_match`. Default: `loss`.
    pub validation_metric: Metric,
}

impl Default for CompeftSettings {
    fn default() -> Self {
        CompeftSettings {
            density: OneOrMany::One(0.2),
            alpha: OneOrMany::One(1.0),
            mode: Mode::Compeft,
            scope: Scope::Global,
            reference: None,
            codec: CodecChoice::Golomb,
            validation_metric: Metric::Loss,
        }
    }
}

/// One compressed expert.
#[derive(Clone, Debug)]
struct Expert {
    /// One ranking, or one a tensor.
    kept: Vec<Kept>,
    /// Beside each ranking; none where values are kept.
    scales: Vec<f32>,
    weight: f64,
    density: f64,
}

impl Expert {
    fn ranking(&self, tensor: usize) -> usize {
        if self.kept.len() == 1 { 0 } else { tensor }
    }

    fn value(&self, piece: &Piece<'_>, i: usize, x: f64) -> f64 {
        let r = self.ranking(piece.tensor);
        if x == 0.0 || !self.kept[r].keeps(piece.tensor, piece.start + i, x) {
            return 0.0;
        }
        self.scales.get(r).map_or(f64::from(x as f32), |s| f64::from(*s) * x.signum())
    }
}

/// The method.
pub struct Compeft {
    settings: CompeftSettings,
    experts: Vec<Expert>,
}

impl Part for Compeft {
    type Settings = CompeftSettings;

    fn new(s: CompeftSettings) -> Result<Self> {
        for (name, choice) in [("density", &s.density), ("alpha", &s.alpha)] {
            if choice.values().is_empty() {
                return Err(BadSetting::new(name, "is an empty list; give at least one value").into());
            }
        }
        for k in s.density.values() {
            within("density", k, k > 0.0 && k <= 1.0, "in (0, 1]")?;
        }
        for a in s.alpha.values() {
            within("alpha", a, a > 0.0, "above 0")?;
        }
        if s.mode != Mode::Compeft && s.alpha != OneOrMany::One(1.0) {
            let why = "is read only with `mode = \"compeft\"`, whose scale it multiplies";
            return Err(BadSetting::new("alpha", why).into());
        }
        Ok(Compeft { settings: s, experts: Vec::new() })
    }
}

/// Standard deviation of each task's entries, `[task][ranking]`.
fn deviations(vectors: &dyn TaskVectors, scope: Scope) -> Result<Vec<Vec<f64>>> {
    let rankings = if scope == Scope::Global { 1 } else { vectors.tensors().len() };
    let mut sums = vec![vec![(0.0, 0.0, 0.0); rankings]; vectors.count()];
    vectors.pieces(&mut |piece| {
        let r = if rankings == 1 { 0 } else { piece.tensor };
        for (sums, delta) in sums.iter_mut().zip(piece.deltas) {
            let (n, sum, squares) = &mut sums[r];
            *n += delta.len() as f64;
            *sum += delta.iter().sum::<f64>();
            *squares += delta.iter().map(|x| x * x).sum::<f64>();
        }
        Ok(())
    })?;
    let deviation = |(n, sum, squares): (f64, f64, f64)| {
        if n < 2.0 { sum.abs() } else { ((squares - sum * sum / n).max(0.0) / (n - 1.0)).sqrt() }
    };
    Ok(sums.into_iter().map(|s| s.into_iter().map(deviation).collect()).collect())
}

/// Mean magnitude of each task's kept entries.
fn means(vectors: &dyn TaskVectors, kept: &[Vec<Kept>]) -> Result<Vec<Vec<f64>>> {
    let mut sums: Vec<Vec<f64>> = kept.iter().map(|k| vec![0.0; k.len()]).collect();
    vectors.pieces(&mut |piece| {
        for ((delta, kept), sums) in piece.deltas.iter().zip(kept).zip(&mut sums) {
            let r = if kept.len() == 1 { 0 } else { piece.tensor };
            let there = |(i, x): (usize, &f64)| {
                if kept[r].keeps(piece.tensor, piece.start + i, *x) { x.abs() } else { 0.0 }
            };
            sums[r] += delta.iter().enumerate().map(there).sum::<f64>();
        }
        Ok(())
    })?;
    for (sums, kept) in sums.iter_mut().zip(kept) {
        sums.iter_mut().zip(kept).for_each(|(sum, kept)| *sum /= kept.count.max(1) as f64);
    }
    Ok(sums)
}

impl Compeft {
    /// The experts at one density, for each α.
    fn at_density(&self, vectors: &dyn TaskVectors, k: f64, sigma: &[Vec<f64>]) -> Result<Vec<Vec<Expert>>> {
        let s = &self.settings;
        let kept = select::largest(vectors, k, s.scope)?;
        if let Some(t) = kept.iter().position(|k| k.iter().all(|k| k.count == 0)) {
            let why = format!(
                "is {k}, which keeps nothing of the {} numbers of `{}`",
                vectors.numbers(),
                vectors.label(t)
            );
            return Err(BadSetting::new("density", why).into());
        }
        let bases = match s.mode {
            Mode::Compeft => sigma.to_vec(),
            Mode::Stc => means(vectors, &kept)?,
            Mode::Prune => vec![Vec::new(); vectors.count()],
        };
        let expert = |t: usize, alpha: f64| Expert {
            kept: kept[t].clone(),
            scales: bases[t].iter().map(|b| (alpha * b) as f32).collect(),
            weight: vectors.weight(t),
            density: k,
        };
        Ok(s.alpha.values().iter().map(|a| (0..vectors.count()).map(|t| expert(t, *a)).collect()).collect())
    }
}

impl Merger for Compeft {
    fn adapter_origin(&self) -> Option<Origin> {
        Some(match self.settings.reference {
            None => Origin::Known,
            Some(Reference::Zero) => Origin::Zero,
            Some(Reference::LoraStart) => Origin::Start,
            Some(Reference::One) => Origin::One,
            Some(Reference::Base) => return None,
        })
    }

    fn table_bytes(&self, tasks: usize) -> u64 {
        select::table_bytes(tasks)
    }

    fn prepare(&mut self, vectors: &dyn TaskVectors, judge: &mut dyn Judge) -> Result<Json> {
        let s = &self.settings;
        let sigma = deviations(vectors, s.scope)?;
        if let Some(t) = sigma.iter().position(|s| s.iter().all(|s| *s == 0.0)) {
            let why = format!(
                "has nothing to compress: all numbers of `{}` changed alike or not at all",
                vectors.label(t)
            );
            return Err(BadSetting::new("kind", why).into());
        }
        let mut densities = s.density.values();
        densities.sort_by(f64::total_cmp);
        let alphas = s.alpha.values();
        let choices = densities.len() * alphas.len();
        let held = judge.held();
        let mut best: Vec<Option<(f64, f64, Expert)>> = vec![None; vectors.count()];
        let mut tried = Vec::new();
        for k in densities {
            for (alpha, experts) in alphas.iter().zip(self.at_density(vectors, k, &sigma)?) {
                for (t, expert) in experts.into_iter().enumerate() {
                    let mut score = 0.0;
                    if choices > 1 {
                        if !held.contains(&Held::Task(t)) {
                            let name = if s.density.values().len() > 1 { "density" } else { "alpha" };
                            let why = format!(
                                "has several values to choose from; give `{}` its held rows as `data`, or write one value",
                                vectors.label(t)
                            );
                            return Err(BadSetting::new(name, why).into());
                        }
                        score = judge.score(Held::Task(t), s.validation_metric.name(), &|piece, out| {
                            for (i, (o, base)) in out.iter_mut().zip(piece.base).enumerate() {
                                *o = base + expert.value(piece, i, piece.deltas[t][i]);
                            }
                            Ok(())
                        })?;
                        tried.push(json!([vectors.label(t), k, alpha, score]));
                    }
                    if best[t].as_ref().is_none_or(|(before, _, _)| score > *before) {
                        best[t] = Some((score, *alpha, expert));
                    }
                }
            }
        }
        let chosen: Vec<(f64, f64, Expert)> = best.into_iter().flatten().collect();
        let report = chosen.iter().enumerate().map(|(t, (_, alpha, e))| {
            let kept: u64 = e.kept.iter().map(|k| k.count).sum();
            json!({ "task": vectors.label(t), "density": e.density, "alpha": alpha, "kept": kept,
                "numbers": vectors.numbers(), "sigma": sigma[t], "scale": e.scales })
        });
        let report = json!({ "experts": report.collect::<Vec<_>>(), "search": tried });
        self.experts = chosen.into_iter().map(|(_, _, e)| e).collect();
        Ok(report)
    }

    fn merge(&self, piece: &Piece<'_>, out: &mut [f64]) -> Result<()> {
        out.copy_from_slice(piece.base);
        for (delta, expert) in piece.deltas.iter().zip(&self.experts) {
            for (i, (o, x)) in out.iter_mut().zip(delta).enumerate() {
                *o += expert.weight * expert.value(piece, i, *x);
            }
        }
        Ok(())
    }

    fn stored(&self) -> Option<&dyn Stored> {
        Some(self)
    }
}

impl Stored for Compeft {
    fn codec(&self) -> Codec {
        match self.settings.codec {
            CodecChoice::Golomb => Codec::Golomb,
            CodecChoice::Bitmask => Codec::Bitmask,
            CodecChoice::Raw => Codec::Raw,
        }
    }

    fn density(&self, task: usize) -> f64 {
        self.experts[task].density
    }

    fn scale(&self, task: usize, tensor: usize) -> Option<f32> {
        let expert = &self.experts[task];
        expert.scales.get(expert.ranking(tensor)).copied()
    }

    fn values(&self, task: usize, piece: &Piece<'_>, out: &mut [f64]) -> Result<()> {
        for (i, (o, x)) in out.iter_mut().zip(&piece.deltas[task]).enumerate() {
            *o = self.experts[task].value(piece, i, *x);
        }
        Ok(())
    }
}
