//! The other slots of a training step.

use std::ops::Range;
use std::rc::Rc;

use anyhow::Result;
use ramekin_core::Array;
use ramekin_tape::{Coupling, Streams, Value, couple};

use crate::{Forward, StateTensor};

/// What a part keeps from step to step, saved with every checkpoint. Nothing, by default.
pub trait Stateful {
    /// All state, in a fixed order.
    fn state(&self) -> Result<Vec<StateTensor>> {
        Ok(Vec::new())
    }
    /// Puts saved state back; `get` finds a tensor by name.
    ///
    /// # Errors
    /// If something is missing or does not fit.
    fn restore(&mut self, get: &mut dyn FnMut(&str) -> Option<Array>) -> Result<()> {
        let _ = get;
        Ok(())
    }
}

/// A factor by step.
pub trait Schedule {
    /// Factor of the rate for update `step` (from 0) of `total`.
    fn factor(&self, step: u64, total: u64) -> f64;
}

/// A block that can be run again: same input, same output.
pub type Block = Rc<dyn Fn(&Forward, &Value) -> Result<Value>>;

/// What survives of a block from forward to backward. One policy owns a block.
pub trait ActivationPolicy {
    /// Whether every block runs again in backward, so that nothing holds its weights in between.
    fn recomputes(&self) -> bool {
        false
    }
    /// Runs block `index` on `x`.
    fn run(&self, fx: &Forward, index: usize, block: Block, x: &Value) -> Result<Value>;
    /// Runs layers on two streams; F and G of each are kept, or not, as blocks are.
    fn run_streams(
        &self,
        fx: &Forward,
        net: &Rc<dyn Coupling>,
        layers: Range<usize>,
        streams: Streams,
    ) -> Result<Streams> {
        run_coupled(fx, net, layers, streams, &|index, block, x| self.run(fx, index, block, x))
    }
    /// What was seen since this was last asked, for the step's figures.
    fn figures(&self) -> Vec<(&'static str, f64)> {
        Vec::new()
    }
}

/// Runs layers on two streams with F and G as blocks that `run` is given.
pub fn run_coupled(
    fx: &Forward,
    net: &Rc<dyn Coupling>,
    layers: Range<usize>,
    streams: Streams,
    run: &dyn Fn(usize, Block, &Value) -> Result<Value>,
) -> Result<Streams> {
    layers.into_iter().try_fold(streams, |now, layer| {
        let (f, g) = (net.clone(), net.clone());
        let f: Block = Rc::new(move |fx, x| f.f(&fx.tape, layer, x));
        let g: Block = Rc::new(move |fx, x| g.g(&fx.tape, layer, x));
        couple(&fx.tape, &**net, now, |x2| run(layer, f, x2), |y1| run(layer, g, y1))
    })
}
