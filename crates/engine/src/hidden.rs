//! The model from ids to the states that its head reads, with whatever is attached around the blocks.

use std::rc::Rc;

use anyhow::Result;
use ramekin_slots::{ActivationPolicy, Block, Forward, Model, NetworkAdapter, OnEmbedding};
use ramekin_tape::{Tape, Value};

use crate::cache::check_positions;

/// Embedding, blocks under the activation policy, final norm: `[N, d]`. Virtual tokens that an adapter
/// puts before the segments run along and are left out of the result.
pub fn hidden(model: &Rc<dyn Model>, fx: &Forward, policy: Option<&dyn ActivationPolicy>) -> Result<Value> {
    hidden_with(model, fx, policy, None)
}

/// [`hidden`] with a change of the embedded tokens.
pub fn hidden_with(
    model: &Rc<dyn Model>,
    fx: &Forward,
    policy: Option<&dyn ActivationPolicy>,
    on: Option<&OnEmbedding<'_>>,
) -> Result<Value> {
    check_positions(&**model, fx)?;
    let network = fx.sites.around().network().filter(|_| fx.mode.adapters);
    let plain = if network.is_some() { fx.on(&Tape::off()) } else { fx.clone() };
    let mut h = model.embed(&plain)?;
    if let Some(on) = on {
        h = on(&plain, h)?;
    }
    if let Some(network) = network {
        return beside(model, fx, h, &*network);
    }
    match fx.longer(&h)? {
        None => blocks(model, fx, h, policy),
        Some(longer) => {
            drop(h);
            let y = blocks(model, &longer.fx, longer.h.clone(), policy)?;
            longer.real(&y)
        }
    }
}

fn blocks(
    model: &Rc<dyn Model>,
    fx: &Forward,
    mut h: Value,
    policy: Option<&dyn ActivationPolicy>,
) -> Result<Value> {
    if let Some(path) = fx.sites.around().path().filter(|_| fx.mode.adapters) {
        let h = path.forward(fx, model, h, policy)?;
        return model.final_norm(fx, &h);
    }
    let mut fx = fx.clone();
    for i in 0..model.facts().blocks {
        h = match policy {
            None => model.block(i, &fx, &h)?,
            Some(policy) => {
                let model = model.clone();
                let block: Block = Rc::new(move |fx, x| model.block(i, fx, x));
                policy.run(&fx, i, block, &h)?
            }
        };
        // Fewer tokens, where a reducer has left some out.
        fx = fx.after(i).unwrap_or(fx);
    }
    let y = model.final_norm(&fx, &h)?;
    drop(h);
    fx.spread(y)
}

/// The backbone without tape, its states to the network beside it.
fn beside(model: &Rc<dyn Model>, fx: &Forward, h: Value, network: &dyn NetworkAdapter) -> Result<Value> {
    let plain = fx.on(&Tape::off());
    let mut states = vec![h];
    let blocks = model.facts().blocks;
    for i in 0..blocks {
        let h = model.block(i, &plain, &states[i])?;
        states.push(if i + 1 == blocks { model.final_norm(&plain, &h)? } else { h });
    }
    network.forward(fx, &states)
}
