//! What cannot go together in a training stage, seen before a weight is read.

use anyhow::Result;
use ramekin_core::{BadRecipe, BadSetting};
use ramekin_recipe::{Adapter, Part, Recipe, Stage, TrainStage, TrainableDtype};
use ramekin_registry::Slot;
use ramekin_slots::{Objective, Rows};

use crate::assembly::{Assembly, Attached};
use crate::blueprint::Blueprint;
use crate::parts;

/// Images come with a class each, which the model's own head tells.
///
/// # Errors
/// [`BadRecipe`] if the objective wants other rows.
pub fn objective(s: &TrainStage, assembly: &Assembly, objective: &dyn Objective) -> Result<()> {
    let facts = assembly.model.facts();
    if facts.images.is_none() || objective.rows() == Rows::Tokens {
        return Ok(());
    }
    let words = objective.rows().words();
    let (kind, model) = (&s.objective.kind, &facts.model_type);
    Err(BadRecipe::new(format!("`objective/{kind}` cannot go with `{model}`, a model of images"))
        .at(&s.objective.path, format!("learns from rows with {words}"))
        .help("`sft`, the default, learns the classes of images by the model's own head")
        .into())
}

/// Refuses parts of a stage that make no sense together.
///
/// # Errors
/// [`BadRecipe`] with both places.
pub fn check(index: usize, s: &TrainStage, plan: &Blueprint, assembly: &Assembly) -> Result<()> {
    transforms(s, plan, assembly)?;
    reducers(index, s, plan, assembly)?;
    log(s, plan)?;
    let at = |key: &str| format!("stage.{index}.{key}");
    let Some(placement) = plan.placement.as_ref().filter(|_| assembly.is_streamed()) else { return Ok(()) };
    let estimator = parts::estimator(&s.estimator)?;
    let activation = parts::policy(s)?;
    let visited = parts::placement(placement)?.keeps_changes() && estimator.walks();
    if assembly.trains_what_is_away() && !visited {
        let (what, culprit) = match (&plan.selection, s.adapter.first()) {
            (Some(part), _) => (format!("`selection/{}`", part.kind), part.path.clone()),
            (None, Some(Adapter::New(part))) => (format!("`adapter/{}`", part.kind), part.path.clone()),
            (None, Some(Adapter::Saved { .. })) => ("this adapter".to_owned(), at("adapter.0")),
            (None, None) => ("training weights of the base".to_owned(), at("kind")),
        };
        return Err(trains_away(placement, &culprit, &what).into());
    }
    if estimator.needs_backward() && !activation.recomputes() {
        let (slot, keeps) = s.method.as_ref().map_or(("activation", &s.activation), |part| ("method", part));
        let message = format!("`placement/{}` cannot go with `{slot}/{}`", placement.kind, keeps.kind);
        let found = BadRecipe::new(message)
            .at(&placement.path, "lets a block's weights go after its forward")
            .at(&keeps.path, "keeps them alive until backward");
        return Err(match slot {
            "activation" => found.help("recompute: `activation = { kind = \"checkpoint\" }`"),
            _ => found.help("keep the weights with `placement = { kind = \"resident\" }`"),
        }
        .into());
    }
    Ok(())
}

/// Refuses what a stage names, or stands on, beside a method that brings one itself.
///
/// # Errors
/// [`BadRecipe`] with both places.
pub fn method(s: &TrainStage, plan: &Blueprint) -> Result<()> {
    let Some(method) = &s.method else { return Ok(()) };
    let taken = parts::installed(method)?.taken();
    let title = |other: &str| format!("`method/{}` cannot go with {other}", method.kind);
    if taken.contains(&Slot::Adapter) {
        let own = "brings an adapter of its own";
        match (s.adapter.first(), plan.adapters.first()) {
            (Some(Adapter::New(part)), _) => {
                return Err(BadRecipe::new(title(&format!("`adapter/{}`", part.kind)))
                    .at(&part.path, "is attached beside it")
                    .at(&method.path, own)
                    .help("keep one of the two")
                    .into());
            }
            (Some(Adapter::Saved { path, .. }), _) => {
                return Err(BadRecipe::new(title("this adapter"))
                    .at(path, "is attached beside it")
                    .at(&method.path, own)
                    .help("keep one of the two")
                    .into());
            }
            (None, Some(_)) => {
                return Err(BadRecipe::new(title("the adapter that the stage before leaves"))
                    .at(&method.path, own)
                    .help(
                        "fold that adapter in with a `merge` stage between, or name the stage's own `model`",
                    )
                    .into());
            }
            (None, None) => {}
        }
    }
    // `keep` is there where nothing is written.
    if taken.contains(&Slot::Activation) && s.activation.kind != "keep" {
        return Err(BadRecipe::new(title(&format!("`activation/{}`", s.activation.kind)))
            .at(&s.activation.path, "decides what the blocks keep for backward")
            .at(&method.path, "decides that itself")
            .help("leave `activation` out")
            .into());
    }
    Ok(())
}

/// Refuses weights that train in bf16 beside what handles them as f32.
///
/// # Errors
/// [`BadRecipe`] with both places.
pub fn trainable_dtype(index: usize, s: &TrainStage, plan: &Blueprint) -> Result<()> {
    if s.trainable_dtype != Some(TrainableDtype::Bf16) {
        return Ok(());
    }
    let key = format!("stage.{index}.trainable_dtype");
    let refuse = |what: &str, at: &str, why: &str| {
        let error = BadRecipe::new(format!("`trainable_dtype = \"bf16\"` cannot go with {what}"));
        let error = error.at(&key, "holds matrices of the base that train in bf16").at(at, why);
        Err(error.help("leave `trainable_dtype` out").into())
    };
    let estimator = &s.estimator;
    if let Some(why) = parts::estimator(estimator)?.wants_f32() {
        return refuse(&format!("`estimator/{}`", estimator.kind), &estimator.path, why);
    }
    if let Some(part) = s.selection.as_ref().or(s.method.as_ref()) {
        return refuse(&format!("`{}`", part.kind), &part.path, "changes weights in f32");
    }
    if !plan.trains_base() {
        let adapter = match s.adapter.first() {
            Some(Adapter::New(part)) => part.path.clone(),
            _ => format!("stage.{index}.adapter.0"),
        };
        return refuse("an adapter", &adapter, "trains in the base's stead, in f32");
    }
    for part in &s.hook {
        if parts::hook(part)?.ever_handles_weights() {
            return refuse(&format!("`hook/{}`", part.kind), &part.path, "handles weights in f32");
        }
    }
    Ok(())
}

/// A model has one way to give its blocks fewer tokens.
///
/// # Errors
/// [`BadRecipe`] with both places.
pub fn one_reducer(s: &TrainStage) -> Result<()> {
    let [first, second, ..] = &s.reducer[..] else { return Ok(()) };
    Err(BadRecipe::new(format!("`reducer/{}` cannot go with `reducer/{}`", first.kind, second.kind))
        .at(&first.path, "gives the blocks fewer tokens")
        .at(&second.path, "does so too")
        .help("keep one of them")
        .into())
}

/// Refuses, before anything runs, to merge what a stage before leaves and no merger can add.
///
/// # Errors
/// [`BadRecipe`] with both places; wrong settings.
pub fn merges(recipe: &Recipe) -> Result<()> {
    for stage in &recipe.stage {
        let Stage::Merge(merge) = stage else { continue };
        for from in merge.models.iter().filter_map(|input| input.stage) {
            let Some(Stage::Train(train)) = recipe.stage.get(from as usize) else { continue };
            let objective = parts::objective(&train.objective)?;
            if train.adapter.is_empty() && objective.file().class.is_some() {
                let (a, b) = (&merge.method.kind, &train.objective.kind);
                return Err(BadRecipe::new(format!("`merge/{a}` cannot go with `objective/{b}`"))
                    .at(&merge.method.path, "adds differences to the base's own tensors")
                    .at(&train.objective.path, "leaves a model with a new head, which the base has not")
                    .help(format!("train an adapter in stage {from}, whose head is kept apart"))
                    .into());
            }
        }
    }
    Ok(())
}

/// What trains cannot be elsewhere, unless it is visited there.
pub(crate) fn trains_away(placement: &Part, culprit: &str, what: &str) -> BadRecipe {
    let keeps = parts::placement(placement).is_ok_and(|p| p.keeps_changes());
    let (label, help) = match keeps {
        true => (
            "has the blocks' weights in memory only while they are visited",
            "let an estimator visit them: `estimator = { kind = \"zo2\" }`; or train an adapter",
        ),
        false => (
            "keeps the blocks' weights elsewhere, as they were loaded",
            "train an adapter, or keep the weights with `placement = { kind = \"resident\" }`",
        ),
    };
    BadRecipe::new(format!("`placement/{}` cannot go with {what}", placement.kind))
        .at(&placement.path, label)
        .at(culprit, "changes some of them")
        .help(help)
}

/// What a reducer learns is saved as adapters are, and a stage that trains the base leaves a model alone.
fn reducers(index: usize, s: &TrainStage, plan: &Blueprint, assembly: &Assembly) -> Result<()> {
    let learns = |part: &&Part| {
        let of = |a: &&Attached| a.owner == part.path && !a.adapter.params().is_empty();
        assembly.adapters.iter().any(|a| of(&a))
    };
    let Some(part) = s.reducer.iter().find(learns).filter(|_| plan.trains_base()) else { return Ok(()) };
    let (trains, what) = match &plan.selection {
        Some(selection) => (selection.path.clone(), format!("`selection/{}`", selection.kind)),
        None => (format!("stage.{index}.kind"), "training every weight".to_owned()),
    };
    Err(BadRecipe::new(format!("`reducer/{}` cannot go with {what}", part.kind))
        .at(&part.path, "has parameters of its own, which are saved beside an adapter")
        .at(trains, "leaves a model alone")
        .help("train an adapter beside it, or merge with `kind = \"tome\"`, which learns nothing")
        .into())
}

/// A log tells what an estimator did, and nothing of what others did to the weights.
fn log(s: &TrainStage, plan: &Blueprint) -> Result<()> {
    if !parts::estimator(&s.estimator)?.log_only() {
        return Ok(());
    }
    let mut others = plan.selection.iter().map(|part| ("selection", part)).collect::<Vec<_>>();
    for part in &s.hook {
        if parts::hook(part)?.ever_handles_weights() {
            others.push(("hook", part));
        }
    }
    let Some((slot, part)) = others.first() else { return Ok(()) };
    let title =
        format!("`estimator/{}` with `log_only` cannot go with `{slot}/{}`", s.estimator.kind, part.kind);
    Err(BadRecipe::new(title)
        .at(format!("{}.log_only", s.estimator.path), "keeps the estimator's log in the place of weights")
        .at(&part.path, "has a hand in the weights, which the log does not tell")
        .help("leave `log_only` out")
        .into())
}

/// Transforms look at what trains; a refusal also names who decides that.
fn transforms(s: &TrainStage, plan: &Blueprint, assembly: &Assembly) -> Result<()> {
    let params = assembly.trainable();
    for part in &s.gradient {
        let Err(error) = parts::gradient(part)?.check(&params) else { continue };
        let brings = s.method.as_ref().map(|p| ("method", p));
        let trains = plan.selection.as_ref().map(|p| ("selection", p)).or(brings).or_else(|| {
            s.adapter.iter().find_map(|a| match a {
                Adapter::New(p) => Some(("adapter", p)),
                Adapter::Saved { .. } => None,
            })
        });
        let (Some(bad), Some((slot, trains))) = (error.downcast_ref::<BadSetting>(), trains) else {
            return parts::placed(part, Err(error));
        };
        let message = format!("`gradient/{}` cannot go with `{slot}/{}` here", part.kind, trains.kind);
        return Err(BadRecipe::new(message)
            .at(format!("{}.{}", part.path, bad.setting), format!("`{}` {}", bad.setting, bad.message))
            .at(&trains.path, "decides what trains")
            .into());
    }
    Ok(())
}
