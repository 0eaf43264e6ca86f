//! The way through the blocks on two streams, and what F and G are in it.

use std::rc::Rc;

use anyhow::Result;
use ramekin_slots::{ActivationPolicy, Forward, Half, Model, ModuleAdapter, PathAdapter};
use ramekin_tape::{Coupling, Tape, Value, ops};

use crate::net::Net;
use crate::settings::Variant;

/// An adapter beside a module, or behind it.
pub(crate) struct AtModule {
    pub net: Net,
    /// Reads the module's output instead of its input.
    pub behind: bool,
}

impl ModuleAdapter for AtModule {
    fn forward(&self, fx: &Forward, _path: &str, x: Option<&Value>, y: Value) -> Result<Value> {
        let read = x.filter(|_| !self.behind).unwrap_or(&y);
        let more = self.net.forward(fx, read)?;
        ops::add(&fx.tape, &y, &more)
    }
}

/// What the layers are.
pub(crate) struct Layers {
    pub variant: Variant,
    pub factors: [f64; 2],
    /// The first layer on two streams; those below are the base's own.
    pub first: usize,
    pub count: usize,
    /// The adapters that stand alone, from the first layer on; none in `meft3`.
    pub alone: Vec<Net>,
}

/// The way through them.
pub(crate) struct TwoStreams(pub Rc<Layers>);

impl PathAdapter for TwoStreams {
    fn forward(
        &self,
        fx: &Forward,
        model: &Rc<dyn Model>,
        mut h: Value,
        policy: Option<&dyn ActivationPolicy>,
    ) -> Result<Value> {
        let layers = &self.0;
        for i in 0..layers.first {
            h = model.block(i, fx, &h)?;
        }
        // Without the tape in work, which will own what runs again in backward.
        let outer = fx.on(&Tape::off());
        let net: Rc<dyn Coupling> = Rc::new(Bound { layers: layers.clone(), model: model.clone(), outer });
        let streams = [h.clone(), h];
        let range = layers.first..layers.count;
        let [x1, x2] = match policy {
            Some(policy) => policy.run_streams(fx, &net, range, streams)?,
            None => range.into_iter().try_fold(streams, |now, layer| fx.tape.coupled(&*net, layer, now))?,
        };
        ops::scale(&fx.tape, &ops::add(&fx.tape, &x1, &x2)?, 0.5)
    }
}

/// The layers of one forward.
struct Bound {
    layers: Rc<Layers>,
    model: Rc<dyn Model>,
    outer: Forward,
}

impl Bound {
    fn alone(&self, fx: &Forward, layer: usize, x: &Value) -> Result<Value> {
        self.layers.alone[layer - self.layers.first].forward(fx, x)
    }
}

impl Coupling for Bound {
    fn f(&self, tape: &Tape, layer: usize, x2: &Value) -> Result<Value> {
        let fx = self.outer.on(tape);
        match self.layers.variant {
            Variant::Meft1 => self.model.block(layer, &fx, x2),
            Variant::Meft2 => self.alone(&fx, layer, x2),
            Variant::Meft3 => self.model.half(layer, Half::Attention, &fx, x2),
        }
    }

    fn g(&self, tape: &Tape, layer: usize, y1: &Value) -> Result<Value> {
        let fx = self.outer.on(tape);
        match self.layers.variant {
            Variant::Meft1 => self.alone(&fx, layer, y1),
            Variant::Meft2 => self.model.block(layer, &fx, y1),
            Variant::Meft3 => self.model.half(layer, Half::Mlp, &fx, y1),
        }
    }

    fn factors(&self) -> [f64; 2] {
        self.layers.factors
    }

    fn switched(&self) -> bool {
        self.layers.variant != Variant::Meft3
    }
}
