//! Half Fine-Tuning: each round trains a random half of every layer's matrices and freezes the other.
//!
//! θ = θ₀ + M Δθ, M diagonal of 0 and 1, drawn from (seed, round); a stage is a round.
//! Half-Reset trains everything and puts the unselected matrices back to θ₀ at the end.
//!
//! Source: Hui et al., ACL 2025; sheet `hft`.

use std::collections::HashMap;

use anyhow::{Context, Result, ensure};
use ramekin_core::{Array, BadSetting, Category, Rng};
use ramekin_registry::{Part, part};
use ramekin_slots::{
    AttachContext, LinearBase, RoundContext, Selection, SelectionFile, Sites, StateTensor, Stateful,
    read_text, text,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::choice::{Choice, NormPolicy, Strategy};

part! { selection / "hft" => Hft, "trains a random half of each layer's matrices, another half each round",
source = "ACL 2025; sheet hft", traits = [NeedsBackboneBackward, IdentityAtStart] }

/// When the half is drawn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Resample {
    /// Anew for each round.
    #[default]
    PerRound,
    /// Once, the same for all rounds.
    Fixed,
}

/// What is done with the half.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// The other half is frozen.
    #[default]
    Finetune,
    /// Everything trains, and the other half is put back at the end.
    HalfReset,
}

/// Settings of `selection = { kind = "hft", … }`.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct HftSettings {
    /// What is balanced: "category", "layer" or "model".
    pub strategy: Strategy,
    /// Share of the matrices that trains, in (0, 1).
    #[serde(alias = "p")]
    pub ratio: f64,
    /// Seed of the draws. Default: the recipe's.
    pub seed: Option<u64>,
    /// Number of the round. Default: the stage's number in the recipe.
    pub round: Option<u64>,
    /// When the half is drawn: "per_round" or "fixed".
    pub resample: Resample,
    /// Whether input embeddings train.
    pub train_embeddings: bool,
    /// Whether the output head trains.
    pub train_lm_head: bool,
    /// Which norms train: "half", "all" or "none".
    pub norm_policy: NormPolicy,
    /// "finetune" freezes the other half, "half_reset" trains it too and puts it back at the end.
    pub mode: Mode,
    /// Names of a layer's attention matrices.
    pub attention_modules: Vec<String>,
    /// Names of a layer's feed-forward matrices.
    pub mlp_modules: Vec<String>,
}

impl Default for HftSettings {
    fn default() -> Self {
        let list = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect();
        HftSettings {
            strategy: Strategy::Category,
            ratio: 0.5,
            seed: None,
            round: None,
            resample: Resample::PerRound,
            train_embeddings: true,
            train_lm_head: true,
            norm_policy: NormPolicy::Half,
            mode: Mode::Finetune,
            attention_modules: list(&["q_proj", "k_proj", "v_proj", "o_proj", "out_proj"]),
            mlp_modules: list(&["gate_proj", "up_proj", "down_proj", "fc1", "fc2"]),
        }
    }
}

/// The selection; empty until attached.
pub struct Hft {
    settings: HftSettings,
    round: u64,
    choice: Option<Choice>,
    /// Half-Reset: the unselected tensors as they were.
    start: HashMap<String, Array>,
}

impl Part for Hft {
    type Settings = HftSettings;

    fn new(settings: HftSettings) -> Result<Self> {
        let p = settings.ratio;
        if !(p > 0.0 && p < 1.0) {
            let why = format!("is {p}; it must be above 0 and below 1 (`full` trains everything)");
            return Err(BadSetting::new("ratio", why).into());
        }
        Ok(Hft { settings, round: 0, choice: None, start: HashMap::new() })
    }
}

impl Hft {
    /// What was chosen, once attached.
    pub fn choice(&self) -> Option<&Choice> {
        self.choice.as_ref()
    }

    fn check(&self, cx: &AttachContext<'_>, choice: &Choice) -> Result<(), BadSetting> {
        let s = &self.settings;
        if cx.facts.tie_word_embeddings && s.train_embeddings != s.train_lm_head {
            let why = format!(
                "is {}, and embeddings and head of this model are one table; set it as `train_embeddings`",
                s.train_lm_head
            );
            return Err(BadSetting::new("train_lm_head", why));
        }
        let packed = |l: &&ramekin_slots::LinearSite| matches!(l.base(), LinearBase::Packed(_));
        let Some(first) = cx.sites.linears().iter().find(packed) else { return Ok(()) };
        if s.resample == Resample::PerRound {
            let why = format!(
                "is \"per_round\", and `{}` is held packed: another round would train it; set \"fixed\", or leave the quantizer out",
                first.path
            );
            return Err(BadSetting::new("resample", why).against("quantizer"));
        }
        let wanted = |l: &ramekin_slots::LinearSite| {
            s.mode == Mode::HalfReset || choice.trained.contains(&format!("{}.weight", l.path))
        };
        let named: Vec<&str> =
            cx.sites.linears().iter().filter(packed).filter(|l| wanted(l)).map(|l| l.path.as_str()).collect();
        if named.is_empty() {
            return Ok(());
        }
        let why = format!(
            "chooses {}, held packed by the quantizer; name these in its `modules_to_not_convert`",
            named.join(", ")
        );
        Err(BadSetting::new("seed", why).against("quantizer"))
    }
}

/// Half-Reset: puts every tensor of the layers that `choice` leaves out back to what it was in `start`.
///
/// # Errors
/// If a tensor is missing there or has another shape.
pub fn reset(sites: &Sites, start: &HashMap<String, Array>, choice: &Choice) -> Result<()> {
    for name in choice.block.difference(&choice.trained) {
        let value = sites.param(name)?.base().value();
        let old = start.get(name).with_context(|| format!("the start has no tensor `{name}`"))?;
        ensure!(
            old.dims() == value.dims(),
            "`{name}` is {:?} at the start and {:?} now: Half-Reset needs two states of one model",
            old.dims(),
            value.dims()
        );
        if !value.is_shape_only() {
            let old = old.view::<f32>()?;
            value.update(|x: &mut [f32]| x.copy_from_slice(&old))?;
        }
    }
    Ok(())
}

fn copy_of(array: &Array) -> Result<Array> {
    Array::build::<f32>(array.dims(), array.is_shape_only(), Category::Weights, |out| {
        out.copy_from_slice(&array.view::<f32>()?);
        Ok(())
    })
}

impl Stateful for Hft {
    fn state(&self) -> Result<Vec<StateTensor>> {
        Ok(vec![text("trained", &names(self.choice.as_ref()).join("\n"))?])
    }

    fn restore(&mut self, get: &mut dyn FnMut(&str) -> Option<Array>) -> Result<()> {
        let saved = read_text(&get("trained").context("the checkpoint does not say which half it trained")?)?;
        ensure!(
            saved == names(self.choice.as_ref()).join("\n"),
            "the checkpoint stems from another round: it trained another half of the matrices"
        );
        Ok(())
    }
}

fn names(choice: Option<&Choice>) -> Vec<String> {
    choice.map(|c| c.trained.iter().cloned().collect()).unwrap_or_default()
}

impl Selection for Hft {
    fn attach(&mut self, cx: &mut AttachContext<'_>) -> Result<Vec<String>> {
        let s = &self.settings;
        self.round = match s.resample {
            Resample::Fixed => 0,
            Resample::PerRound => s.round.unwrap_or(cx.stage as u64),
        };
        let rng = s.seed.map_or(cx.rng, Rng::new);
        let sites = cx.sites.clone();
        let choice = Choice::draw(s, &sites, cx.facts, rng, self.round)?;
        self.check(cx, &choice)?;
        let mut wanted = choice.trained.clone();
        if s.mode == Mode::HalfReset {
            wanted.extend(choice.block.iter().cloned());
        }
        if wanted.is_empty() {
            return Err(BadSetting::new("ratio", "is so small that nothing trains").into());
        }
        for name in &wanted {
            cx.train(name)?;
            if !choice.trained.contains(name) {
                self.start.insert(name.clone(), copy_of(&sites.param(name)?.base().value())?);
            }
        }
        self.choice = Some(choice);
        Ok(wanted.into_iter().collect())
    }

    fn finish(&mut self, cx: &mut RoundContext<'_>) -> Result<()> {
        match (&self.choice, self.settings.mode) {
            (Some(choice), Mode::HalfReset) => reset(&cx.sites, &self.start, choice),
            _ => Ok(()),
        }
    }

    fn file(&self) -> Result<Option<SelectionFile>> {
        let config = json!({
            "kind": "hft",
            "round": self.round,
            "seed": self.settings.seed,
            "settings": self.settings,
            "trained": names(self.choice.as_ref()),
        });
        Ok(Some(SelectionFile { config, tensors: Vec::new(), differences: Vec::new() }))
    }
}
