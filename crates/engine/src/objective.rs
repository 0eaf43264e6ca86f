//! An objective in its place: its own parameters, the models it compares with, and its runs.

use std::cell::RefCell;
use std::collections::BTreeMap;

use anyhow::Result;
use ramekin_core::{BadRecipe, BadSetting, Rng};
use ramekin_data::Dataset;
use ramekin_recipe::{Adapter, Dtype, Part};
use ramekin_slots::{
    ActivationPolicy, FlatBatch, Forward, Loss, Mode, ModelFacts, ModelRef, Objective, ObjectiveAttach,
    ObjectiveContext, OnEmbedding, Rows, Runner, States, Words,
};
use ramekin_tape::Tape;

use crate::assembly::Assembly;
use crate::blame;
use crate::blueprint::Blueprint;
use crate::generation::Text;
use crate::hidden::hidden_with;
use crate::run::plain_model;
use crate::step::LabelledBatch;

/// Puts an objective in place on a model: loads the models that it names beside it, and lets it add its
/// parameters. `place` is where it stands in the recipe.
///
/// # Errors
/// A model that cannot be loaded or has another vocabulary; a base that trains and is compared with.
pub fn join(
    assembly: &mut Assembly,
    plan: &Blueprint,
    objective: &mut dyn Objective,
    place: &str,
    training: bool,
) -> Result<()> {
    let shape_only = assembly.is_shape_only();
    if let Some(setting) = objective.compares_with_base().filter(|_| training)
        && base_trains(plan, assembly)
    {
        let way_out = format!("add an `adapter`, or name another model: `{setting} = {{ source = \"…\" }}`");
        let message =
            "the objective compares with the base, adapters off, and this stage trains the base itself";
        return Err(match plan.selection.as_ref().filter(|_| !place.is_empty()) {
            Some(part) => BadRecipe::new(message)
                .at(place, "compares with the base as it was")
                .at(&part.path, format!("`selection/{}` changes it", part.kind))
                .help(way_out)
                .into(),
            None => blame::at(place, message.to_owned(), way_out, None),
        });
    }
    let others = objective.models().into_iter().map(|(name, model)| (name.to_owned(), model));
    companions(assembly, plan, others.collect(), place)?;
    let mut ledger = assembly.ledger.borrow_mut();
    let words = assembly.tokenizer.as_deref().map(Text);
    objective.attach(&mut ObjectiveAttach {
        ledger: &mut ledger,
        sites: assembly.sites.clone(),
        facts: assembly.model.facts(),
        words: words.as_ref().map(|w| w as &dyn Words),
        rng: Rng::new(plan.seed),
        shape_only,
        training,
        saved: &|name| assembly.left_over(name, shape_only),
    })
}

fn base_trains(plan: &Blueprint, assembly: &Assembly) -> bool {
    let sites = &assembly.sites;
    let trains = |name: &String| sites.param(name).is_ok_and(|p| p.base().is_trainable());
    plan.trains_base() || sites.param_names().iter().any(trains)
}

/// Loads models beside the one in work, under their names.
///
/// # Errors
/// One that cannot be loaded, or whose vocabulary is another.
pub fn companions(
    assembly: &mut Assembly,
    plan: &Blueprint,
    wanted: Vec<(String, ModelRef)>,
    place: &str,
) -> Result<()> {
    let shape_only = assembly.is_shape_only();
    for (name, model) in wanted {
        let mut stands_on = beside(plan, &model, &name, place)?;
        if shape_only && model.adapter.as_ref().is_some_and(|a| !plan.base_dir.join(a).exists()) {
            stands_on.adapters.clear(); // a stage before makes it: the plan bills the bare model
        }
        let other = stands_on.assemble(shape_only)?;
        same_vocabulary(assembly, &other, &name, place)?;
        assembly.read += other.read;
        assembly.companions.insert(name, other);
    }
    Ok(())
}

/// What a model that a setting names stands on.
pub fn beside(plan: &Blueprint, model: &ModelRef, setting: &str, place: &str) -> Result<Blueprint> {
    let dtype = match model.dtype.as_deref() {
        None => None,
        Some("f32") => Some(Dtype::F32),
        Some("bf16") => Some(Dtype::Bf16),
        Some("f16") => Some(Dtype::F16),
        Some(other) => {
            let why = format!("is `{other}`; it is `f32`, `bf16` or `f16`");
            return Err(BadSetting::new(format!("{setting}.dtype"), why).of(place).into());
        }
    };
    let mut choice = plain_model(&model.source);
    choice.dtype = dtype;
    choice.revision.clone_from(&model.revision);
    if !place.is_empty() {
        choice.path = format!("{place}.{setting}");
    }
    let adapter = |folder: &String| Adapter::Saved { folder: folder.clone(), path: String::new() };
    Ok(Blueprint {
        quantizer: model.quantizer.as_deref().map(Part::of),
        adapters: model.adapter.iter().map(adapter).collect(),
        base_dir: plan.base_dir.clone(),
        seed: plan.seed,
        ..Blueprint::new(choice)
    })
}

fn same_vocabulary(one: &Assembly, other: &Assembly, setting: &str, place: &str) -> Result<()> {
    let (a, b) = (one.model.facts().vocab_size, other.model.facts().vocab_size);
    let differ = |why: String| -> Result<()> {
        let label = "both must be given the same tokens".to_owned();
        let at = if place.is_empty() { String::new() } else { format!("{place}.{setting}.source") };
        Err(blame::at(&at, format!("`{setting}` is a model with another vocabulary: {why}"), label, None))
    };
    if a != b {
        let kinds = [one, other].map(|m| &m.model.facts().model_type);
        let apart = if kinds[0] == kinds[1] {
            String::new()
        } else {
            format!("; one is a `{}`, the other a `{}`", kinds[1], kinds[0])
        };
        return differ(format!("`{}` has {b} entries, `{}` has {a}{apart}", other.label, one.label));
    }
    let (Some(x), Some(y)) = (&one.tokenizer, &other.tokenizer) else { return Ok(()) };
    let size = x.vocab_size().max(y.vocab_size()) as u32;
    match (0..size).find(|id| x.token(*id) != y.token(*id)) {
        None => Ok(()),
        Some(id) => {
            let word = |t: &ramekin_data::Tokenizer| t.token(id).unwrap_or_default();
            differ(format!(
                "token {id} is `{}` in `{}` and `{}` in `{}`",
                word(y),
                other.label,
                word(x),
                one.label
            ))
        }
    }
}

/// A model that an objective or a decoder runs.
pub struct Run<'a> {
    assembly: &'a Assembly,
    activation: Option<&'a dyn ActivationPolicy>,
}

impl<'a> Run<'a> {
    /// A model as it is in an evaluation.
    pub fn new(assembly: &'a Assembly) -> Self {
        Run { assembly, activation: None }
    }
}

impl Runner for Run<'_> {
    fn facts(&self) -> &ModelFacts {
        self.assembly.model.facts()
    }

    fn run(
        &self,
        tape: &Tape,
        batch: &FlatBatch,
        mode: Mode,
        on: Option<&OnEmbedding<'_>>,
    ) -> Result<States> {
        let fx = Forward::new(tape.clone(), self.assembly.sites.clone(), batch.clone(), mode);
        let hidden = hidden_with(&self.assembly.model, &fx, self.activation, on)?;
        Ok(States { fx, hidden, model: self.assembly.model.clone() })
    }
}

/// An objective's share of a step's loss in one micro-batch.
pub fn loss(
    objective: &dyn Objective,
    assembly: &Assembly,
    activation: Option<&dyn ActivationPolicy>,
    batch: &LabelledBatch,
    totals: &[f64],
    tape: &Tape,
    mode: Mode,
) -> Result<Loss> {
    loss_of(objective, assembly, &Run { assembly, activation }, batch, totals, tape, mode)
}

/// As [`loss`], the model in work being run by `model`.
pub fn loss_of(
    objective: &dyn Objective,
    assembly: &Assembly,
    model: &dyn Runner,
    batch: &LabelledBatch,
    totals: &[f64],
    tape: &Tape,
    mode: Mode,
) -> Result<Loss> {
    let others: Vec<(&String, Run<'_>)> =
        assembly.companions.iter().map(|(n, a)| (n, Run { assembly: a, activation: None })).collect();
    let others: BTreeMap<String, &dyn Runner> =
        others.iter().map(|(n, run)| ((*n).clone(), run as &dyn Runner)).collect();
    let loss = objective.loss(&ObjectiveContext {
        tape,
        mode,
        flat: &batch.flat,
        labels: &batch.labels,
        targets: &batch.targets,
        totals,
        model,
        others,
    });
    blame::part(loss, || format!("stage.{}.objective", assembly.stage()))
}

/// [`Objective::counts`] over the micro-batches of a step.
pub fn totals(objective: &dyn Objective, batches: &[LabelledBatch]) -> Vec<f64> {
    let mut totals = Vec::new();
    for b in batches {
        add_counts(&mut totals, objective.counts(&b.flat, &b.labels));
    }
    totals
}

/// Adds a micro-batch's counts to those of the ones before it.
pub fn add_counts(totals: &mut Vec<f64>, counts: Vec<f64>) {
    totals.resize(counts.len().max(totals.len()), 0.0);
    totals.iter_mut().zip(counts).for_each(|(t, c)| *t += c);
}

/// Sums of figures by name, in order of their first appearance.
#[derive(Default)]
pub struct Figures(RefCell<Vec<ramekin_slots::Figure>>);

impl Figures {
    /// Adds a micro-batch's.
    pub fn add(&self, figures: Vec<ramekin_slots::Figure>) {
        let mut all = self.0.borrow_mut();
        for f in figures {
            match all.iter_mut().find(|x| x.name == f.name) {
                Some(x) => (x.sum, x.count) = (x.sum + f.sum, x.count + f.count),
                None => all.push(f),
            }
        }
    }

    /// The mean of each.
    pub fn means(&self) -> Vec<(&'static str, f64)> {
        self.0.borrow().iter().map(|f| (f.name, f.sum / f.count.max(1.0))).collect()
    }

    /// One mean.
    pub fn mean(&self, name: &str) -> Option<f64> {
        self.means().into_iter().find(|(n, _)| *n == name).map(|(_, x)| x)
    }
}

/// Holds every row's label against the objective.
///
/// # Errors
/// The first that does not fit, at the data's place in the recipe.
pub fn check_targets(data: &Dataset, objective: &dyn Objective, part: &Part) -> Result<()> {
    if objective.rows() != Rows::Targets {
        return Ok(());
    }
    for (i, example) in data.examples.iter().enumerate() {
        if let Err(why) = objective.check_target(&example.target) {
            let message = format!("the label of example {} of `{}` {why}", i + 1, data.name);
            return Err(blame::at(
                &part.path,
                message,
                "labels that the objective cannot learn".to_owned(),
                None,
            ));
        }
    }
    Ok(())
}
