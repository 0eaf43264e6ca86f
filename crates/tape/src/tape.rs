//! The tape: nodes in order of creation, walked back once.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use ramekin_core::{Array, Category, Param, ParamId};

use crate::ops;
use crate::sink::GradSink;

/// Turns the gradient of an output into one gradient per parent; `None` where
/// a parent has no use for it.
pub type Backward = Box<dyn FnOnce(Array) -> Result<Vec<Option<Array>>>>;

/// As [`Backward`], for operations that can add to a gradient which is there already: `so_far(i)` hands over what has
/// come to parent i, and then the gradient returned for it is to hold that too.
pub type BackwardOnto =
    Box<dyn FnOnce(Array, &mut dyn FnMut(usize) -> Option<Array>) -> Result<Vec<Option<Array>>>>;

/// What a saved tensor is to its operation, for hooks that treat kinds differently.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SavedKind {
    /// An operand of a product or of an elementwise operation.
    Input,
    /// The operation's own result.
    Output,
    /// A small by-product, such as row norms.
    Statistic,
}

/// Decides what happens to a tensor between forward and backward.
pub trait SavedHook {
    /// Takes the tensor and returns a way to get it back.
    fn pack(&self, array: Array, kind: SavedKind) -> Result<Box<dyn FnOnce() -> Result<Array>>>;
}

/// A handle to what forward kept.
pub struct Saved(SavedState);

enum SavedState {
    Kept(Array),
    Hooked(Box<dyn FnOnce() -> Result<Array>>),
    Again(Rc<Again>),
}

/// A result that is cheap to make again from what its operation keeps anyway: nobody else keeps it.
struct Again {
    make: Box<dyn Fn() -> Result<Array>>,
    /// For the others that want it, as long as there are some.
    made: RefCell<Option<Array>>,
}

impl Again {
    fn get(&self) -> Result<Array> {
        let made = self.made.borrow().clone();
        if let Some(array) = made {
            return Ok(array);
        }
        let array = (self.make)()?;
        *self.made.borrow_mut() = Some(array.clone());
        Ok(array)
    }
}

impl Saved {
    /// The tensor again.
    pub fn get(self) -> Result<Array> {
        match self.0 {
            SavedState::Kept(array) => Ok(array),
            SavedState::Hooked(unpack) => unpack(),
            SavedState::Again(again) => again.get(),
        }
    }
}

/// An array that may have a node on a tape.
#[derive(Clone)]
pub struct Value {
    array: Array,
    node: Option<usize>,
    again: Option<Rc<Again>>,
}

impl Value {
    fn new(array: Array, node: Option<usize>) -> Self {
        Value { array, node, again: None }
    }

    /// A value that nothing upstream trains.
    pub fn constant(array: Array) -> Self {
        Value::new(array, None)
    }

    /// The numbers.
    pub fn array(&self) -> &Array {
        &self.array
    }

    /// Gives up the node.
    pub fn into_array(self) -> Array {
        self.array
    }

    /// The same numbers, with no gradient beyond this point.
    pub fn detach(&self) -> Value {
        Value::constant(self.array.clone())
    }

    /// The numbers and the node apart, for operations that write in place.
    pub(crate) fn split(self) -> (Array, Option<usize>) {
        (self.array, self.node)
    }

    pub(crate) fn node(&self) -> Option<usize> {
        self.node
    }

    /// Dimensions, outermost first.
    pub fn dims(&self) -> &[usize] {
        self.array.dims()
    }

    /// Whether a gradient flows through this value.
    pub fn is_tracked(&self) -> bool {
        self.node.is_some()
    }
}

enum Kind {
    Param(Arc<Param>),
    Input,
    Op { parents: Vec<Option<usize>>, backward: BackwardOnto },
}

#[derive(Clone, Copy, PartialEq)]
enum Mode {
    Record,
    /// Remembers which trainable parameters were used, records nothing.
    Watch,
    Off,
}

struct Inner {
    nodes: RefCell<Vec<Option<Kind>>>,
    params: RefCell<HashMap<ParamId, (Arc<Param>, usize)>>,
    order: RefCell<Vec<Arc<Param>>>,
    hooks: RefCell<Vec<Rc<dyn SavedHook>>>,
    view: RefCell<Option<ParamView>>,
    /// What the view made last: a head that takes its rows in chunks asks for one table again and again.
    shown: RefCell<Option<(ParamId, Array)>>,
    mode: Cell<Mode>,
}

/// What a forward sees in the place of a trainable parameter.
pub type ParamView = Rc<dyn Fn(&Arc<Param>) -> Result<Array>>;

/// A recording of one forward. Clones share it.
#[derive(Clone)]
pub struct Tape(Rc<Inner>);

impl Default for Tape {
    fn default() -> Self {
        Self::new()
    }
}

impl Tape {
    fn with_mode(mode: Mode) -> Self {
        Tape(Rc::new(Inner {
            nodes: RefCell::default(),
            params: RefCell::default(),
            order: RefCell::default(),
            hooks: RefCell::default(),
            view: RefCell::default(),
            shown: RefCell::default(),
            mode: Cell::new(mode),
        }))
    }

    /// A tape that records what trainable parameters reach.
    pub fn new() -> Self {
        Self::with_mode(Mode::Record)
    }

    /// A tape that records nothing: inference.
    pub fn off() -> Self {
        Self::with_mode(Mode::Off)
    }

    /// A tape that records nothing and on which every trainable parameter shows what `view` makes of it:
    /// a perturbed copy, say, that lives until another parameter is used.
    pub fn viewing(view: ParamView) -> Self {
        let tape = Self::off();
        *tape.0.view.borrow_mut() = Some(view);
        tape
    }

    /// A tape that records nothing but remembers the trainable parameters used.
    pub(crate) fn watching() -> Self {
        Self::with_mode(Mode::Watch)
    }

    /// A fresh recording tape with this one's hooks.
    pub(crate) fn sibling(&self) -> Self {
        let tape = Self::new();
        tape.0.hooks.borrow_mut().clone_from(&self.0.hooks.borrow());
        tape
    }

    /// Whether anything can be recorded here.
    pub fn is_recording(&self) -> bool {
        self.0.mode.get() == Mode::Record
    }

    /// How many nodes there are.
    pub fn len(&self) -> usize {
        self.0.nodes.borrow().len()
    }

    /// Whether nothing was recorded.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn push(&self, kind: Kind) -> usize {
        let mut nodes = self.0.nodes.borrow_mut();
        nodes.push(Some(kind));
        nodes.len() - 1
    }

    /// A parameter's value: a leaf if it trains, else a constant. Using one
    /// parameter several times gives one leaf, so its gradients sum.
    ///
    /// # Errors
    /// Those of the view of a [`Tape::viewing`].
    pub fn param(&self, param: &Arc<Param>) -> Result<Value> {
        if let Some(view) = self.0.view.borrow().as_ref().filter(|_| param.is_trainable()) {
            let mut shown = self.0.shown.borrow_mut();
            if let Some((_, array)) = shown.take_if(|(id, _)| *id != param.id()) {
                drop(array); // before there is another
            }
            let (_, array) = match &mut *shown {
                Some(same) => same,
                none => none.insert((param.id(), view(param)?)),
            };
            return Ok(Value::constant(array.clone()));
        }
        let array = param.value();
        if !param.is_trainable() || self.0.mode.get() == Mode::Off {
            return Ok(Value::constant(array));
        }
        let mut params = self.0.params.borrow_mut();
        if let Some((_, node)) = params.get(&param.id()) {
            let node = self.is_recording().then_some(*node);
            return Ok(Value::new(array, node));
        }
        let node = if self.is_recording() { self.push(Kind::Param(param.clone())) } else { usize::MAX };
        params.insert(param.id(), (param.clone(), node));
        self.0.order.borrow_mut().push(param.clone());
        Ok(Value::new(array, self.is_recording().then_some(node)))
    }

    /// A leaf whose gradient [`Tape::backward`] returns.
    pub fn input(&self, array: Array) -> Value {
        let node = self.is_recording().then(|| self.push(Kind::Input));
        Value::new(array, node)
    }

    /// The trainable parameters used so far, in order of first use.
    pub(crate) fn used_params(&self) -> Vec<Arc<Param>> {
        self.0.order.borrow().clone()
    }

    /// Records an operation. `backward` is built only if a gradient can flow:
    /// it is there that an operation saves what it needs.
    pub fn record(
        &self,
        parents: &[&Value],
        output: Array,
        backward: impl FnOnce() -> Result<Backward>,
    ) -> Result<Value> {
        let nodes: Vec<Option<usize>> = parents.iter().map(|p| p.node).collect();
        self.record_nodes(&nodes, output, backward)
    }

    /// [`Tape::record`] with the parents' nodes alone.
    pub(crate) fn record_nodes(
        &self,
        parents: &[Option<usize>],
        output: Array,
        backward: impl FnOnce() -> Result<Backward>,
    ) -> Result<Value> {
        self.record_onto(parents, output, || {
            let backward = backward()?;
            Ok(Box::new(move |g, _| backward(g)))
        })
    }

    /// As [`Tape::record_nodes`] with a `backward` that may add to gradients.
    pub(crate) fn record_onto(
        &self,
        parents: &[Option<usize>],
        output: Array,
        backward: impl FnOnce() -> Result<BackwardOnto>,
    ) -> Result<Value> {
        if !self.is_recording() || parents.iter().all(Option::is_none) {
            return Ok(Value::constant(output));
        }
        let backward = backward()?;
        let parents = parents.to_vec();
        let node = self.push(Kind::Op { parents, backward });
        Ok(Value::new(output, Some(node)))
    }

    /// Keeps a tensor for backward, through the innermost hook.
    pub fn save(&self, array: &Array, kind: SavedKind) -> Result<Saved> {
        let hook = self.0.hooks.borrow().last().cloned();
        Ok(Saved(match hook {
            Some(hook) => SavedState::Hooked(hook.pack(array.clone(), kind)?),
            None => {
                array.claim(Category::Activations);
                SavedState::Kept(array.clone())
            }
        }))
    }

    /// Keeps an operand for backward as [`Tape::save`] does, or the way to make it again where its operation has said one.
    pub fn keep(&self, operand: &Value) -> Result<Saved> {
        match &operand.again {
            Some(again) if self.0.hooks.borrow().is_empty() => Ok(Saved(SavedState::Again(again.clone()))),
            _ => self.save(&operand.array, SavedKind::Input),
        }
    }

    /// Says how a recorded result is made again from arrays that its own operation has saved, so that those who need it
    /// in backward need not keep it. Where saved tensors go through a hook they may be elsewhere: then it is kept.
    pub(crate) fn made_again(&self, result: Value, make: impl Fn() -> Result<Array> + 'static) -> Value {
        if !result.is_tracked() || !self.0.hooks.borrow().is_empty() {
            return result;
        }
        let again = Again { make: Box::new(make), made: RefCell::new(None) };
        Value { again: Some(Rc::new(again)), ..result }
    }

    /// Runs `f` with every saved tensor going through `hook`.
    pub fn with_hook<R>(&self, hook: Rc<dyn SavedHook>, f: impl FnOnce() -> Result<R>) -> Result<R> {
        self.0.hooks.borrow_mut().push(hook);
        let result = f();
        self.0.hooks.borrow_mut().pop();
        result
    }

    /// Walks back from `output` with gradient `seed` (its shape). Each
    /// parameter's gradient goes to `sink` when the walk passes its first use;
    /// nodes are freed as they are passed. Returns the gradients of `inputs`.
    pub fn backward(
        &self,
        output: &Value,
        seed: Array,
        inputs: &[Value],
        sink: &mut dyn GradSink,
    ) -> Result<Vec<Option<Array>>> {
        let mut results: Vec<Option<Array>> = inputs.iter().map(|_| None).collect();
        let Some(last) = output.node else { return Ok(results) };
        ensure!(seed.dims() == output.dims(), "seed {:?} for {:?}", seed.dims(), output.dims());
        let mut grads: HashMap<usize, Array> = HashMap::from([(last, seed)]);
        for index in (0..=last).rev() {
            let kind = self.0.nodes.borrow_mut()[index].take();
            let Some(grad) = grads.remove(&index) else { continue };
            match kind.context("a tape is walked back only once")? {
                Kind::Param(param) => sink.ready(&param, grad)?,
                Kind::Input => {
                    if let Some(i) = inputs.iter().position(|v| v.node == Some(index)) {
                        results[i] = Some(grad);
                    }
                }
                Kind::Op { parents, backward } => {
                    let flows = backward(grad, &mut |i| grads.remove(&parents[i]?))?;
                    ensure!(
                        flows.len() == parents.len(),
                        "{} gradients for {} parents",
                        flows.len(),
                        parents.len()
                    );
                    for (parent, flow) in parents.into_iter().zip(flows) {
                        let (Some(parent), Some(flow)) = (parent, flow) else { continue };
                        match grads.get_mut(&parent) {
                            Some(sum) => ops::accumulate(sum, flow)?,
                            None => {
                                grads.insert(parent, flow);
                            }
                        }
                    }
                }
            }
        }
        Ok(results)
    }

    /// [`Tape::backward`] from a scalar with gradient 1.
    pub fn backward_scalar(&self, loss: &Value, sink: &mut dyn GradSink) -> Result<()> {
        let seed = ops::ones_like(loss.array())?;
        self.backward(loss, seed, &[], sink).map(drop)
    }
}
