//! What cannot go together in a training stage, seen before a weight is read.

use anyhow::Result;
use ramekin_core::{BadRecipe, BadSetting};
use ramekin_recipe::{Adapter, TrainStage};

use crate::assembly::{Assembly, Blueprint};
use crate::parts;

/// Refuses parts of a stage that make no sense together.
///
/// # Errors
/// [`BadRecipe`] with both places.
pub fn check(index: usize, s: &TrainStage, plan: &Blueprint, assembly: &Assembly) -> Result<()> {
    transforms(s, plan, assembly)?;
    let at = |key: &str| format!("stage.{index}.{key}");
    let Some(placement) = plan.placement.as_ref().filter(|_| assembly.is_streamed()) else { return Ok(()) };
    let estimator = parts::estimator(&s.estimator)?;
    let activation = parts::activation(&s.activation)?;
    let title = |other: &str| format!("`placement/{}` cannot go with {other}", placement.kind);
    if assembly.trains_what_is_away() {
        let culprit = match (&plan.selection, s.adapter.is_empty()) {
            (Some(part), _) => part.path.clone(),
            (None, false) => at("adapter.0"),
            (None, true) => at("kind"),
        };
        return Err(BadRecipe::new(title("training weights of the base"))
            .at(&placement.path, "keeps the blocks' weights elsewhere, as they were loaded")
            .at(culprit, "changes some of them")
            .help("train an adapter, or keep the weights with `placement = { kind = \"resident\" }`")
            .into());
    }
    if estimator.needs_backward() && !activation.recomputes() {
        return Err(BadRecipe::new(title(&format!("`activation/{}`", s.activation.kind)))
            .at(&placement.path, "lets a block's weights go after its forward")
            .at(&s.activation.path, "keeps them alive until backward")
            .help("recompute: `activation = { kind = \"checkpoint\" }`")
            .into());
    }
    Ok(())
}

/// Transforms look at what trains; a refusal also names who decides that.
fn transforms(s: &TrainStage, plan: &Blueprint, assembly: &Assembly) -> Result<()> {
    let params = assembly.trainable();
    for part in &s.gradient {
        let Err(error) = parts::gradient(part)?.check(&params) else { continue };
        let trains = plan.selection.as_ref().map(|p| ("selection", p)).or_else(|| {
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
