//! The activation policy: layers on two streams are undone in backward, everything else is kept.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::ops::Range;
use std::rc::Rc;

use anyhow::Result;
use ramekin_core::{BadSetting, DType};
use ramekin_slots::{ActivationPolicy, Block, Forward, run_coupled};
use ramekin_tape::{Coupling, Reversal, Streams, Value};

use crate::settings::{MeftSettings, roundoff};

/// Rounding that gradients can do with, relative to the streams.
const BEARABLE: f64 = 1e-3;

/// Largest |reconstructed − true| of each layer's inputs since it was last asked for.
type Drifts = Rc<RefCell<BTreeMap<usize, f64>>>;

/// The policy.
pub struct Reversible {
    settings: MeftSettings,
    drifts: Drifts,
    warned: Cell<bool>,
}

impl Reversible {
    /// The policy of these settings.
    pub fn new(settings: &MeftSettings) -> Self {
        Reversible { settings: settings.clone(), drifts: Drifts::default(), warned: Cell::new(false) }
    }

    /// Where `report_drift` leaves each layer's figure: largest |reconstructed − true| so far.
    pub fn drifts(&self) -> Rc<RefCell<BTreeMap<usize, f64>>> {
        self.drifts.clone()
    }

    /// What rounding becomes, relative to the streams, where `layers` are undone in numbers of this type.
    pub fn expected(&self, layers: usize, dtype: DType) -> f64 {
        let run = match self.settings.every(dtype) {
            0 => layers,
            // The input of every n-th layer is kept.
            every => layers.min(every) - 1,
        };
        roundoff(dtype) * self.settings.growth().powi(run as i32)
    }

    /// Says once that gradients will be worth nothing.
    fn warn(&self, layers: usize, streams: &Streams) {
        let array = streams[0].array();
        let expected = self.expected(layers, array.dtype());
        if expected <= BEARABLE || array.is_shape_only() || self.warned.replace(true) {
            return;
        }
        ramekin_core::say!(
            "  warning: undoing {layers} layers turns rounding into errors of about {expected:.0e} of their inputs, \
             which gradients cannot do with; set `checkpoint_every` to \"auto\" or to {}",
            MeftSettings {
                checkpoint_every: MeftSettings::default().checkpoint_every,
                ..self.settings.clone()
            }
            .every(array.dtype())
        );
    }
}

impl ActivationPolicy for Reversible {
    fn recomputes(&self) -> bool {
        self.settings.num_rev_layers.is_none() || self.settings.freeze_irreversible_layers
    }

    fn run(&self, fx: &Forward, _index: usize, block: Block, x: &Value) -> Result<Value> {
        block(fx, x)
    }

    fn run_streams(
        &self,
        fx: &Forward,
        net: &Rc<dyn Coupling>,
        layers: Range<usize>,
        streams: Streams,
    ) -> Result<Streams> {
        let undone = self.settings.num_rev_layers.unwrap_or(layers.len()).min(layers.len());
        let (from, middle) = (layers.start, layers.start + undone);
        let mut streams = streams;
        if fx.tape.is_recording() && undone > 0 {
            let dtype = streams[0].array().dtype();
            if self.settings.every(dtype) == 0 && matches!(dtype, DType::BF16 | DType::F16) {
                let why = format!("is 0; it must be above 0 where streams are {dtype:?}, or \"auto\"");
                return Err(BadSetting::new("checkpoint_every", why).into());
            }
            self.warn(undone, &streams);
            let every = self.settings.every(dtype);
            let drifts = self.drifts.clone();
            let tell: Rc<dyn Fn(usize, f64)> = Rc::new(move |layer, off| {
                let mut all = drifts.borrow_mut();
                let most = all.entry(layer).or_insert(0.0);
                // A NaN stays.
                *most = if off <= *most { *most } else { off };
            });
            let drift = self.settings.report_drift.then_some(tell);
            streams = fx.tape.reversible(net, Reversal { layers: from..middle, every, drift }, streams)?;
        } else {
            streams = run_coupled(fx, net, from..middle, streams, &|_, block, x| block(fx, x))?;
        }
        run_coupled(fx, net, middle..layers.end, streams, &|_, block, x| block(fx, x))
    }

    /// `drift`: how far reconstructed inputs were from the true ones at most; without exact copies that is at
    /// the embedding.
    fn figures(&self) -> Vec<(&'static str, f64)> {
        // A NaN stays.
        let most = self.drifts.take().into_values().reduce(|m, off| if off <= m { m } else { off });
        most.map(|off| ("drift", off)).into_iter().collect()
    }
}
