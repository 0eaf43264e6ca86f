//! Two streams through layers that can be undone: `y1 = λ x1 + F(x2)`, `y2 = β x2 + G(y1)`.
//!
//! Forward keeps the last pair alone; backward takes each layer's input out of its output,
//! `x2 = (y2 − G(y1)) / β`, `x1 = (y1 − F(x2)) / λ`, with F and G run once more on the way.
//! Rounding grows by about 1/λ or 1/β a layer, so the pair may be kept exactly every so many layers.
//!
//! Source: Gomez et al. 2017, arXiv:1707.04585; with factors Liao et al. 2023, arXiv:2306.00477.

use std::cell::RefCell;
use std::collections::HashMap;
use std::ops::Range;
use std::rc::Rc;

use anyhow::{Context, Result, ensure};
use ramekin_core::{Array, Category};

use crate::ops;
use crate::sink::GradStore;
use crate::tape::{Saved, SavedKind, Tape, Value};

/// The two streams, same shape.
pub type Streams = [Value; 2];

/// F, G, λ and β of layers that can be run again: same input, same output, so randomness is by address.
pub trait Coupling {
    /// F of this layer.
    fn f(&self, tape: &Tape, layer: usize, x2: &Value) -> Result<Value>;
    /// G of this layer.
    fn g(&self, tape: &Tape, layer: usize, y1: &Value) -> Result<Value>;
    /// λ and β.
    fn factors(&self) -> [f64; 2];
    /// Whether y2 is the first stream of the next layer.
    fn switched(&self) -> bool;
}

/// How layers are undone.
pub struct Reversal {
    /// Which layers.
    pub layers: Range<usize>,
    /// The input of every n-th layer is kept, from the first one on; 0 keeps none.
    pub every: usize,
    /// Told of each layer, the last one first, how far its reconstructed input is from the true one at most.
    /// Keeps every layer's input for that.
    pub drift: Option<Rc<dyn Fn(usize, f64)>>,
}

/// `y1 = λ x1 + f(x2)`, `y2 = β x2 + g(y1)`, switched where the layers are.
pub fn couple(
    tape: &Tape,
    net: &dyn Coupling,
    [x1, x2]: Streams,
    f: impl FnOnce(&Value) -> Result<Value>,
    g: impl FnOnce(&Value) -> Result<Value>,
) -> Result<Streams> {
    let [lambda, beta] = net.factors();
    let sum = |x: Value, factor: f64, y: Value| {
        let x = if factor == 1.0 { x } else { ops::scale(tape, &x, factor)? };
        ops::add(tape, &x, &y)
    };
    let y1 = sum(x1, lambda, f(&x2)?)?;
    let y2 = sum(x2, beta, g(&y1)?)?;
    Ok(switch(net, [y1, y2]))
}

/// From y1, y2 to the next layer's streams, and back.
fn switch<T>(net: &dyn Coupling, [a, b]: [T; 2]) -> [T; 2] {
    if net.switched() { [b, a] } else { [a, b] }
}

/// `(y − part) / factor`
fn undone(y: Array, part: Array, factor: f64) -> Result<Array> {
    let off = Tape::off();
    let minus = ops::scale(&off, &Value::constant(part), -1.0)?;
    let rest = ops::add(&off, &Value::constant(y), &minus)?.into_array();
    if factor == 1.0 { Ok(rest) } else { ops::scale_in_place(rest, 1.0 / factor) }
}

/// The largest |a − b|; 0 of shapes.
fn largest_difference(a: &Array, b: &Array) -> Result<f64> {
    if a.is_shape_only() || b.is_shape_only() {
        return Ok(0.0);
    }
    let (a, b) = (a.to_f64()?, b.to_f64()?);
    // A NaN stays.
    Ok(a.iter().zip(b).map(|(x, y)| (x - y).abs()).fold(0.0, |m, d| if d <= m { m } else { d }))
}

/// The inputs of some layers, by layer.
type Inputs<T> = HashMap<usize, [T; 2]>;

/// What backward needs.
struct Undo {
    net: Rc<dyn Coupling>,
    how: Reversal,
    /// Hooks of the tape that recorded.
    tape: Tape,
    /// Whether something below wants a gradient.
    below: bool,
    exact: Inputs<Saved>,
    truth: Inputs<Array>,
}

impl Tape {
    /// One layer on two streams.
    pub fn coupled(&self, net: &dyn Coupling, layer: usize, streams: Streams) -> Result<Streams> {
        couple(self, net, streams, |x2| net.f(self, layer, x2), |y1| net.g(self, layer, y1))
    }

    /// The layers one after the other; backward undoes them instead of keeping what they saved.
    pub fn reversible(&self, net: &Rc<dyn Coupling>, how: Reversal, streams: Streams) -> Result<Streams> {
        if !self.is_recording() {
            return how.layers.clone().try_fold(streams, |now, layer| self.coupled(&**net, layer, now));
        }
        let watch = Tape::watching();
        let mut now = streams.each_ref().map(Value::detach);
        let (mut exact, mut truth) = (Inputs::new(), Inputs::new());
        for layer in how.layers.clone() {
            let arrays = || now.each_ref().map(|x| x.array().clone());
            if how.every > 0 && (layer - how.layers.start).is_multiple_of(how.every) {
                exact.insert(layer, arrays());
            }
            if how.drift.is_some() {
                truth.insert(layer, arrays());
            }
            now = watch.coupled(&**net, layer, now)?;
        }
        let params = watch.used_params();
        let leaves = params.iter().map(|p| self.param(p)).collect::<Result<Vec<Value>>>()?;
        let parents: Vec<&Value> = streams.iter().chain(&leaves).collect();
        let tracked = streams.each_ref().map(Value::is_tracked);
        let [one, two] = now.map(Value::into_array);
        let second_flow = Rc::new(RefCell::new(None::<Array>));
        let arrived = second_flow.clone();
        // A fresh tape, not this one: a node that held its own tape would never be freed.
        let (net, tape) = (net.clone(), self.sibling());
        let first = self.record(&parents, one.clone(), || {
            let save = |x: &[Array; 2], kind| -> Result<[Saved; 2]> {
                Ok([self.save(&x[0], kind)?, self.save(&x[1], kind)?])
            };
            let last = save(&[one, two.clone()], SavedKind::Output)?;
            let exact = exact.iter().map(|(layer, x)| Ok((*layer, save(x, SavedKind::Input)?)));
            let exact = exact.collect::<Result<_>>()?;
            let undo = Undo { net, how, tape, below: tracked.contains(&true), exact, truth };
            Ok(Box::new(move |flow| {
                let second = arrived.take().context("no gradient of the second stream")?;
                let mut store = GradStore::new();
                let flows = undo.walk(last, [flow, second], &mut store)?;
                let mut flows: Vec<Option<Array>> =
                    flows.into_iter().zip(tracked).map(|(flow, tracked)| flow.filter(|_| tracked)).collect();
                let mut grads = store.take();
                for param in &params {
                    let found = grads.iter().position(|(p, _)| p.id() == param.id());
                    flows.push(found.map(|i| grads.swap_remove(i).1));
                }
                Ok(flows)
            }))
        })?;
        // Its flow waits for the node of the first stream, which is made to be walked whether that is used or not.
        let second = self.record(&[&first], two, || {
            Ok(Box::new(move |flow: Array| {
                let nothing = ops::zeros_like(&flow)?;
                *second_flow.borrow_mut() = Some(flow);
                Ok(vec![Some(nothing)])
            }))
        })?;
        Ok([first, second])
    }
}

impl Undo {
    /// From the last pair and its gradients down to the first layer's; parameters' gradients go to the store.
    fn walk(
        mut self,
        last: [Saved; 2],
        flows: [Array; 2],
        store: &mut GradStore,
    ) -> Result<[Option<Array>; 2]> {
        let [a, b] = last;
        let (mut streams, mut flows) = ([a.get()?, b.get()?], flows.map(Some));
        let layers = self.how.layers.clone();
        for layer in layers.clone().rev() {
            let exact = self.exact.remove(&layer).map(|[a, b]| Ok::<_, anyhow::Error>([a.get()?, b.get()?]));
            let wanted = self.below || layer > layers.start;
            let rebuilt = self.undo(layer, streams, &mut flows, exact.transpose()?, wanted, store)?;
            if let (Some(tell), Some(truth)) = (&self.how.drift, self.truth.remove(&layer)) {
                let off = [0, 1].map(|i| largest_difference(&rebuilt[i], &truth[i]));
                let [a, b] = off;
                tell(layer, a?.max(b?));
            }
            streams = rebuilt;
        }
        let flows = flows.map(|flow| flow.filter(|_| self.below));
        flows.iter().flatten().for_each(|flow| flow.recategorise(Category::Workspace));
        Ok(flows)
    }

    /// One layer's input and its gradients, in the place of its output and theirs.
    fn undo(
        &self,
        layer: usize,
        streams: [Array; 2],
        flows: &mut [Option<Array>; 2],
        exact: Option<[Array; 2]>,
        wanted: bool,
        store: &mut GradStore,
    ) -> Result<[Array; 2]> {
        let net = &*self.net;
        let [lambda, beta] = net.factors();
        let [y1, y2] = switch(net, streams);
        let [d1, d2] = switch(net, std::mem::take(flows));
        let (mut d1, d2) = (d1.context("no gradient of y1")?, d2.context("no gradient of y2")?);
        // Nothing needs the first stream's input where the walk ends, nor the second's where it is kept.
        let ends = !wanted && self.how.drift.is_none();
        let (g, back) = self.through(&y1, true, d2.clone(), store, |tape, y1| net.g(tape, layer, y1))?;
        if let Some(back) = back {
            ops::accumulate(&mut d1, back)?;
        }
        let (x1, x2) = match exact {
            Some([x1, x2]) => (Some(x1), x2),
            None => {
                ensure!(beta != 0.0, "a layer with β = 0 cannot be undone");
                (None, undone(y2, g, beta)?)
            }
        };
        let (f, back) = self.through(&x2, wanted, d1.clone(), store, |tape, x2| net.f(tape, layer, x2))?;
        let x1 = match x1 {
            Some(x1) => x1,
            None if ends => y1,
            None => {
                ensure!(lambda != 0.0, "a layer with λ = 0 cannot be undone");
                undone(y1, f, lambda)?
            }
        };
        if wanted {
            let off = Tape::off();
            let times = |x: Array, s: f64| match s == 1.0 {
                true => Ok(x),
                false => ops::scale(&off, &Value::constant(x), s).map(Value::into_array),
            };
            let mut d = [times(d1, lambda)?, times(d2, beta)?];
            if let Some(back) = back {
                ops::accumulate(&mut d[1], back)?;
            }
            *flows = d.map(Some);
        }
        Ok([x1, x2])
    }

    /// One of the functions and the gradient of its input, where that is wanted.
    fn through(
        &self,
        x: &Array,
        wanted: bool,
        flow: Array,
        store: &mut GradStore,
        run: impl FnOnce(&Tape, &Value) -> Result<Value>,
    ) -> Result<(Array, Option<Array>)> {
        let tape = self.tape.sibling();
        let leaf = if wanted { tape.input(x.clone()) } else { Value::constant(x.clone()) };
        let y = run(&tape, &leaf)?;
        let back = tape.backward(&y, flow, &[leaf], store)?.pop().flatten();
        Ok((y.into_array(), back))
    }
}
