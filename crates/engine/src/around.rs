//! What parts do around the blocks, and which of it cannot go together.

use anyhow::Result;
use ramekin_core::BadRecipe;
use ramekin_recipe::Part;
use ramekin_slots::{ModelFacts, Sites};

use crate::assembly::{Assembly, Attached};
use crate::blueprint::Blueprint;

/// What is there around a model's blocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Around {
    /// Keys and values, or tokens, before every sequence.
    pub longer: bool,
    /// A network beside the backbone.
    pub network: bool,
    /// Fewer tokens from block to block.
    pub reducer: bool,
}

impl Around {
    /// Of these sites.
    pub fn of(sites: &Sites) -> Self {
        let around = sites.around();
        Around {
            longer: around.tokens() > 0,
            network: around.network().is_some(),
            reducer: around.reducer().is_some(),
        }
    }

    /// What is here and was not there.
    #[must_use]
    pub fn without(self, other: Around) -> Self {
        Around {
            longer: self.longer && !other.longer,
            network: self.network && !other.network,
            reducer: self.reducer && !other.reducer,
        }
    }
}

/// Refuses what cannot go together.
///
/// # Errors
/// Both places.
pub fn check(assembly: &Assembly) -> Result<()> {
    network(assembly)?;
    reducer(assembly)?;
    images(assembly)
}

/// Beside a network that runs without tape nothing inside the backbone can train.
fn network(assembly: &Assembly) -> Result<()> {
    if assembly.sites.around().network().is_none() {
        return Ok(());
    }
    let beside: Vec<&Attached> = assembly.adapters.iter().filter(|a| a.adapter.runs_beside()).collect();
    let ledger = assembly.ledger.borrow();
    let of_network = |owner: &str| beside.iter().any(|a| a.entered == owner);
    let inside = ledger.entries().iter().find(|e| e.is_trainable() && !of_network(&e.owner));
    let (Some(entry), Some(network)) = (inside, beside.first()) else { return Ok(()) };
    let other = assembly.adapters.iter().find(|a| a.entered == entry.owner);
    let other = other.map_or_else(|| entry.owner.clone(), label);
    Err(BadRecipe::new(format!("`{}` cannot go with `{other}`", label(network)))
        .at(&network.owner, "runs the backbone without tape")
        .at(&entry.owner, format!("trains `{}`, which would get no gradient", entry.name))
        .help("keep one of the two")
        .into())
}

/// `adapter/lora`.
fn label(attached: &Attached) -> String {
    let slot = if attached.around.reducer { "reducer" } else { "adapter" };
    format!("{slot}/{}", attached.kind)
}

/// Merged tokens have no places any more that a window could go by.
///
/// # Errors
/// Both places, where the stage itself says what a token sees.
pub fn check_attention(plan: &Blueprint, reducer: &Part, facts: &ModelFacts) -> Result<()> {
    let Some(attention) = &plan.attention else { return Ok(()) };
    if facts.causal || facts.reach.iter().all(|r| r.limit().is_none()) {
        return Ok(());
    }
    let message = format!("`reducer/{}` cannot go with `attention/{}`", reducer.kind, attention.kind);
    Err(BadRecipe::new(message)
        .at(&reducer.path, "merges tokens that all see each other")
        .at(&attention.path, "lets a token see some by their places, which merged ones have not")
        .help("keep one of the two")
        .into())
}

/// Tokens that become fewer must be those of the sequences, and nobody else may want all of them.
fn reducer(assembly: &Assembly) -> Result<()> {
    let Some(reducer) = assembly.adapters.iter().find(|a| a.around.reducer) else { return Ok(()) };
    for other in &assembly.adapters {
        let why = match other.around {
            Around { longer: true, .. } => "puts tokens of its own among them, which would be merged too",
            Around { network: true, .. } => "wants the states of all tokens behind every block",
            _ => continue,
        };
        return Err(rivals(reducer, "leaves fewer tokens from block to block", other, why));
    }
    Ok(())
}

/// An image's tokens have places of their own, the class token the first.
fn images(assembly: &Assembly) -> Result<()> {
    let facts = assembly.model.facts();
    let longer = assembly.adapters.iter().find(|a| a.around.longer);
    let Some(adapter) = longer.filter(|_| facts.images.is_some()) else { return Ok(()) };
    Err(BadRecipe::new(format!(
        "`{}` cannot go with `{}`, a model of images",
        label(adapter),
        facts.model_type
    ))
    .at(&adapter.owner, "puts tokens of its own before those of an image, which have no other places")
    .into())
}

fn rivals(one: &Attached, does: &str, other: &Attached, why: &str) -> anyhow::Error {
    BadRecipe::new(format!("`{}` cannot go with `{}`", label(one), label(other)))
        .at(&one.owner, does)
        .at(&other.owner, why)
        .help("keep one of the two")
        .into()
}
