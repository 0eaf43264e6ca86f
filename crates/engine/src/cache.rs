//! A cache with room for what adapters put before the sequences.

use std::cell::RefCell;
use std::rc::Rc;

use anyhow::Result;
use ramekin_core::UserError;
use ramekin_slots::{Forward, KvCache, KvPolicy, KvShape, Model};

use crate::assembly::Assembly;

/// Room for sequences.
#[derive(Clone, Copy, Debug)]
pub struct Room {
    /// How many sequences.
    pub sequences: usize,
    /// Tokens of the longest prompt.
    pub prompt: usize,
    /// Tokens of a sequence at most, prompt included.
    pub capacity: usize,
    /// Newest tokens that may be taken back.
    pub rollback: usize,
}

/// An empty cache for this model. `None` where an adapter needs all hidden states, so that every step
/// runs the whole sequence again.
///
/// # Errors
/// If the policy does not suit the model or these lengths.
pub fn cache(
    assembly: &Assembly,
    kv: &dyn KvPolicy,
    adapters: bool,
    room: Room,
) -> Result<Option<Rc<RefCell<dyn KvCache>>>> {
    let facts = assembly.model.facts();
    let around = assembly.sites.around();
    if adapters && around.network().is_some() {
        return Ok(None);
    }
    let rows = if adapters { around.tokens() - around.prefix_tokens() } else { 0 };
    let shape = KvShape::new(facts, room.sequences, room.prompt + rows, room.capacity + rows)
        .with_rollback(room.rollback);
    kv.check(facts, shape)?;
    kv.cache(shape).map(Some)
}

/// Refuses tokens that virtual ones push beyond what the model knows.
pub(crate) fn check_positions(model: &dyn Model, fx: &Forward) -> Result<()> {
    let around = fx.sites.around();
    let virtual_tokens = if fx.mode.adapters { around.tokens() } else { 0 };
    if virtual_tokens == 0 {
        return Ok(());
    }
    let rows = virtual_tokens - around.prefix_tokens();
    let last = fx.batch.positions.iter().max().map_or(0, |p| *p as usize + rows + 1);
    let known = model.facts().max_position_embeddings;
    if last > known {
        return Err(UserError::new(format!(
            "a sequence of {} tokens with {virtual_tokens} virtual ones before it needs {last} positions; the model knows {known}",
            last - virtual_tokens
        ))
        .help("shorten it, or set a smaller `num_virtual_tokens`")
        .into());
    }
    Ok(())
}
