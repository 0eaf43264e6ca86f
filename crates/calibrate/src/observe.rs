//! Observers of linears' inputs.

use std::cell::RefCell;
use std::rc::Rc;

use anyhow::Result;
use ramekin_core::Array;
use ramekin_slots::{Below, Forward, LinearAdapter, LinearSite, Sites};
use ramekin_tape::Value;

/// Looks at what a linear is given.
pub trait Observer {
    /// The input `[N, I]` of one group of sequences; never a shape alone.
    fn see(&mut self, x: &Array) -> Result<()>;
}

/// A linear and who looks at it.
pub struct Watch {
    /// Module path.
    pub path: String,
    /// The observer.
    pub observer: Rc<RefCell<dyn Observer>>,
}

/// Σ x² of every input channel over all tokens.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct InputSquares {
    /// One sum a channel.
    pub sums: Vec<f64>,
}

impl Observer for InputSquares {
    fn see(&mut self, x: &Array) -> Result<()> {
        let (_, width) = x.rows();
        self.sums.resize(width, 0.0);
        for row in x.to_f32()?.chunks(width.max(1)) {
            for (sum, x) in self.sums.iter_mut().zip(row) {
                *sum += f64::from(*x) * f64::from(*x);
            }
        }
        Ok(())
    }
}

/// An observer in the place of an adapter: the output passes through.
struct Looking(Rc<RefCell<dyn Observer>>);

impl LinearAdapter for Looking {
    fn forward(&self, _: &Forward, _: &LinearSite, x: &Value, below: &Below<'_>) -> Result<Value> {
        if !x.array().is_shape_only() {
            self.0.borrow_mut().see(x.array())?;
        }
        below(x)
    }

    fn fold(&self, _: &Sites, _: &LinearSite, weight: Array) -> Result<Array> {
        Ok(weight)
    }
}

/// Observers on their linears; dropping it takes them off again.
pub(crate) struct Hung<'a>(Vec<&'a LinearSite>);

impl Drop for Hung<'_> {
    fn drop(&mut self) {
        self.0.iter().for_each(|site| site.detach_last());
    }
}

/// Hangs each observer behind whatever is at its linear.
pub(crate) fn hang<'a>(sites: &'a Sites, watched: &[Watch]) -> Result<Hung<'a>> {
    let mut hung = Hung(Vec::new());
    for watch in watched {
        let site = sites.linear(&watch.path)?;
        site.attach(Box::new(Looking(watch.observer.clone())));
        hung.0.push(site);
    }
    Ok(hung)
}
