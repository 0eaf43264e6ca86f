//! `y = x Wᵀ + b`, with a dense weight that may train or a packed one that does not.

use std::ops::Deref;
use std::sync::Arc;

use anyhow::{Result, ensure};
use half::slice::HalfFloatSliceExt as _;
use ramekin_core::{Array, Category, DType, Element, View, meter};
use ramekin_kernels::bf16::Bf16Rows;
use ramekin_kernels::linear::WeightRows;
use ramekin_kernels::packed_rows::{Activations, Layout};
use ramekin_kernels::{elementwise, matmul};

use super::{output, own, rounding, written};
use crate::dispatch;
use crate::tape::{Tape, Value};

/// A frozen weight in a storage of its own, unpacked row by row into a tile.
pub trait PackedWeight: Send + Sync {
    /// `(O, I)`.
    fn shape(&self) -> (usize, usize);
    /// Bytes held.
    fn bytes(&self) -> u64;
    /// Whether there are no numbers behind it, as in a plan.
    fn is_shape_only(&self) -> bool;
    /// Whether the numbers are elsewhere just now.
    fn is_absent(&self) -> bool {
        false
    }
    /// The bulk of the bytes with a way to put the weight together again, for a placement that moves
    /// it about; `None` where this storage does not come apart.
    fn apart(&self) -> Option<Apart> {
        None
    }
    /// Rows `first..` as f32, as many as fit `out` (a multiple of I).
    fn rows_f32(&self, first: usize, out: &mut [f32]);
    /// Rows `first..` as f64.
    fn rows_f64(&self, first: usize, out: &mut [f64]);
    /// Codes and scales as they lie, for kernels that read them in place.
    fn layout(&self) -> Option<Layout<'_>> {
        None
    }
    /// What its products may round activations to.
    fn activations(&self) -> Activations {
        Activations::F32
    }
    /// Calls `work` with the weight in bf16, where its products are to be in bf16; whether it did.
    fn in_bf16(&self, work: &mut dyn FnMut(&dyn Bf16Rows)) -> bool {
        let _ = work;
        false
    }
}

/// Puts a packed weight together again from its bulk.
pub type Rebuild = Box<dyn Fn(Vec<u8>) -> Result<Arc<dyn PackedWeight>>>;

/// A packed weight taken apart.
pub struct Apart {
    /// What moves; empty in a plan.
    pub bulk: Vec<u8>,
    /// Bytes of the bulk, also in a plan.
    pub bytes: u64,
    /// The same weight from its bulk, which is empty in a plan.
    pub rebuild: Rebuild,
}

/// A packed weight as the kernels see it.
pub(super) struct Rows<'a>(pub(super) &'a dyn PackedWeight);

impl WeightRows<f32> for Rows<'_> {
    fn out_features(&self) -> usize {
        self.0.shape().0
    }
    fn in_features(&self) -> usize {
        self.0.shape().1
    }
    fn rows(&self, first: usize, out: &mut [f32]) {
        self.0.rows_f32(first, out);
    }
}

impl WeightRows<f64> for Rows<'_> {
    fn out_features(&self) -> usize {
        self.0.shape().0
    }
    fn in_features(&self) -> usize {
        self.0.shape().1
    }
    fn rows(&self, first: usize, out: &mut [f64]) {
        self.0.rows_f64(first, out);
    }
}

fn out_dims(x: &Array, outputs: usize) -> Vec<usize> {
    let mut dims = x.dims().to_vec();
    if let Some(last) = dims.last_mut() {
        *last = outputs;
    }
    dims
}

fn check(x: &Array, inputs: usize, outputs: usize, bias: Option<&Value>) -> Result<()> {
    let (_, width) = x.rows();
    ensure!(width == inputs, "a linear of {inputs} inputs got {:?}", x.dims());
    if let Some(b) = bias {
        ensure!(b.dims() == [outputs], "a bias {:?} for {outputs} outputs", b.dims());
    }
    Ok(())
}

/// Notes a product of `[n, i]` and `[i, o]`, also where a plan makes none.
fn count(n: usize, o: usize, i: usize) {
    meter::current().work(2 * (n * o * i) as u64);
}

fn column_sums(g: &Array, outputs: usize) -> Result<Array> {
    dispatch!(g, T => output::<T>(&[outputs], &[g], |out| {
        elementwise::column_sums(&g.view::<T>()?, outputs, out);
        Ok(())
    }))
}

/// The flow to a bias: none where there is no bias, an empty one where it is frozen.
fn bias_flow(tracked: Option<bool>, g: &Array, outputs: usize) -> Result<Option<Option<Array>>> {
    tracked.map(|t| t.then(|| column_sums(g, outputs)).transpose()).transpose()
}

/// The flow to the input of a linear, added to what has come there so far.
struct InputFlow {
    /// Rows, outputs and inputs.
    shape: (usize, usize, usize),
    dims: Vec<usize>,
    shape_only: bool,
}

impl InputFlow {
    fn of(x: &Array, outputs: usize, shape_only: bool) -> Self {
        let (n, i) = x.rows();
        InputFlow { shape: (n, outputs, i), dims: x.dims().to_vec(), shape_only }
    }

    /// `fill` writes a gradient or, where it is told so, adds to one.
    fn make<T: Element>(
        &self,
        so_far: Option<Array>,
        fill: impl FnOnce(&mut [T], bool) -> Result<()>,
    ) -> Result<Array> {
        let (n, o, i) = self.shape;
        count(n, o, i);
        let Some(sum) = so_far else {
            return Array::written(&self.dims, self.shape_only, Category::Workspace, |out| fill(out, false));
        };
        let sum = own(sum)?;
        if !self.shape_only {
            sum.update(|out: &mut [T]| fill(out, true))??;
        }
        Ok(sum)
    }

    fn dense(&self, g: &Array, w: &Array, rounds: bool, so_far: Option<Array>) -> Result<Array> {
        let (n, o, i) = self.shape;
        dispatch!(g, T => self.make::<T>(so_far, |out, onto| {
            let (g, w) = (g.view::<T>()?, w.view::<T>()?);
            if !(rounds && rounding::rounded_backward_input(&g, n, &w, (o, i), onto, out)) {
                matmul::nn(n, o, i, 1.0 as T, &g, &w, onto, out);
            }
            Ok(())
        }))
    }

    fn packed(&self, g: &Array, w: &dyn PackedWeight, so_far: Option<Array>) -> Result<Array> {
        let n = self.shape.0;
        dispatch!(g, T => self.make::<T>(so_far, |out, onto| {
            rounding::backward_input(&g.view::<T>()?, n, w, onto, out);
            Ok(())
        }))
    }
}

fn weight_flow(g: &Array, x: &Array, n: usize, o: usize, i: usize) -> Result<Array> {
    count(n, o, i);
    dispatch!(g, T => written::<T>(&[o, i], &[g, x], |out| {
        matmul::tn(n, o, i, 1.0 as T, &g.view::<T>()?, &x.view::<T>()?, false, out);
        Ok(())
    }))
}

/// `x` `[…, I]`, `w` `[O, I]`, `bias` `[O]` → `[…, O]`. Keeps `x` only if `w`
/// trains, `w` only if `x` is tracked; a frozen `w` costs no product of its own.
/// A frozen `w` in f16 is widened tile by tile, one in bf16 multiplied as such where the machine does that.
pub fn linear(tape: &Tape, x: &Value, w: &Value, bias: Option<&Value>) -> Result<Value> {
    dense(tape, x, w, bias, false)
}

/// As [`linear`] with a weight in f32 of a bf16 model, one that trains or did: its products round both sides as those of
/// a weight in bf16 do, so that a fresh copy changes no bit; its own gradient is that of f32.
pub fn linear_rounded(tape: &Tape, x: &Value, w: &Value, bias: Option<&Value>) -> Result<Value> {
    dense(tape, x, w, bias, true)
}

fn dense(tape: &Tape, x: &Value, w: &Value, bias: Option<&Value>, rounds: bool) -> Result<Value> {
    if matches!(w.array().dtype(), DType::BF16 | DType::F16) {
        ensure!(!w.is_tracked(), "a weight in {:?} cannot train; hold it in f32", w.array().dtype());
        let half: Arc<dyn PackedWeight> = Arc::new(HalfWeight::new(w.array().clone()));
        return linear_packed(tape, x, &half, bias);
    }
    let (xa, wa) = (x.array(), w.array());
    ensure!(wa.dims().len() == 2, "a weight {:?}", wa.dims());
    let (o, i) = (wa.dims()[0], wa.dims()[1]);
    check(xa, i, o, bias)?;
    let (n, _) = xa.rows();
    count(n, o, i);
    let y = dispatch!(xa, T => written::<T>(&out_dims(xa, o), &[xa, wa], |out| {
        let (x, w) = (xa.view::<T>()?, wa.view::<T>()?);
        if !(rounds && rounding::rounded_forward(&x, n, &w, (o, i), out)) {
            matmul::nt(n, o, i, 1.0 as T, &x, &w, false, out);
        }
        if let Some(b) = bias {
            elementwise::add_bias(out, &b.array().view::<T>()?);
        }
        Ok(())
    }))?;
    let parents: Vec<_> = [x, w].into_iter().chain(bias).map(Value::node).collect();
    tape.record_onto(&parents, y, || {
        let for_w = w.is_tracked().then(|| tape.keep(x)).transpose()?;
        let weight = x.is_tracked().then(|| wa.clone());
        let bias_tracked = bias.map(Value::is_tracked);
        let flow = InputFlow::of(xa, o, xa.is_shape_only() || wa.is_shape_only());
        Ok(Box::new(move |g, so_far| {
            let gx = weight.map(|w| flow.dense(&g, &w, rounds, so_far(0))).transpose()?;
            let gw = for_w.map(|x| weight_flow(&g, &x.get()?, n, o, i)).transpose()?;
            let mut flows = vec![gx, gw];
            flows.extend(bias_flow(bias_tracked, &g, o)?);
            Ok(flows)
        }))
    })
}

/// `y + x wᵀ`, written into `y`'s own bytes where nobody else holds them: the
/// thin second product of a low-rank branch. `x` `[…, I]`, `w` `[O, I]`, `y` `[…, O]`.
pub fn linear_onto(tape: &Tape, y: Value, x: &Value, w: &Value) -> Result<Value> {
    let (xa, wa) = (x.array().clone(), w.array().clone());
    let (o, i) = (wa.dims()[0], wa.dims()[1]);
    check(&xa, i, o, None)?;
    ensure!(y.array().rows().1 == o, "{:?} cannot take {o} outputs", y.dims());
    let (n, _) = xa.rows();
    count(n, o, i);
    let (sum, before) = y.split();
    let sum = own(sum)?;
    if !sum.is_shape_only() {
        dispatch!(sum, T => {
            let (x, w) = (xa.view::<T>()?, wa.view::<T>()?);
            sum.update(|out: &mut [T]| matmul::nt(n, o, i, 1.0 as T, &x, &w, true, out))
        })?;
    }
    tape.record_onto(&[before, x.node(), w.node()], sum, || {
        let for_w = w.is_tracked().then(|| tape.keep(x)).transpose()?;
        let weight = x.is_tracked().then(|| wa.clone());
        let flow = InputFlow::of(&xa, o, xa.is_shape_only() || wa.is_shape_only());
        Ok(Box::new(move |g, so_far| {
            let gx = weight.map(|w| flow.dense(&g, &w, false, so_far(1))).transpose()?;
            let gw = for_w.map(|x| weight_flow(&g, &x.get()?, n, o, i)).transpose()?;
            Ok(vec![Some(g), gx, gw])
        }))
    })
}

/// As [`linear`] with a packed weight: multiplied tile by tile, never unpacked
/// as a whole, and nothing kept for it.
pub fn linear_packed(
    tape: &Tape,
    x: &Value,
    w: &Arc<dyn PackedWeight>,
    bias: Option<&Value>,
) -> Result<Value> {
    let xa = x.array();
    let (o, i) = w.shape();
    check(xa, i, o, bias)?;
    ensure!(!w.is_absent(), "a packed weight [{o}, {i}] is not in memory: its block was not asked for");
    let (n, _) = xa.rows();
    count(n, o, i);
    let shape_only = w.is_shape_only() || xa.is_shape_only();
    let y = dispatch!(xa, T => Array::written::<T>(&out_dims(xa, o), shape_only, Category::Workspace, |out| {
        let bias: Option<View<'_, T>> = bias.map(|b| b.array().view::<T>()).transpose()?;
        rounding::forward(&xa.view::<T>()?, n, &**w, bias.as_deref(), out);
        Ok(())
    }))?;
    let parents: Vec<_> = std::iter::once(x).chain(bias).map(Value::node).collect();
    tape.record_onto(&parents, y, || {
        let weight = x.is_tracked().then(|| w.clone());
        let bias_tracked = bias.map(Value::is_tracked);
        let flow = InputFlow::of(xa, o, shape_only);
        Ok(Box::new(move |g, so_far| {
            let gx = weight.map(|w| flow.packed(&g, &*w, so_far(0))).transpose()?;
            let mut flows = vec![gx];
            flows.extend(bias_flow(bias_tracked, &g, o)?);
            Ok(flows)
        }))
    })
}

/// A packed weight with, perhaps, its bias.
pub type PackedLinear = (Arc<dyn PackedWeight>, Option<Value>);

/// [`linear_packed`] with each of some weights: together, to the same bits, where a few rows that nothing is walked back
/// to meet weights that can share them.
pub fn linears_packed(tape: &Tape, x: &Value, ws: &[PackedLinear]) -> Result<Vec<Value>> {
    let xa = x.array();
    let tracked = x.is_tracked() || ws.iter().any(|(_, b)| b.as_ref().is_some_and(Value::is_tracked));
    let real = |w: &dyn PackedWeight| !(w.is_shape_only() || w.is_absent());
    let simple =
        !tracked && !xa.is_shape_only() && xa.dtype() == DType::F32 && ws.iter().all(|(w, _)| real(&**w));
    if simple && let Some(ys) = rounding::forward_each(&xa.view::<f32>()?, xa.rows().0, ws)? {
        return ys
            .into_iter()
            .zip(ws)
            .map(|(y, (w, bias))| {
                let (o, i) = w.shape();
                check(xa, i, o, bias.as_ref())?;
                count(xa.rows().0, o, i);
                Ok(Value::constant(Array::from_vec(y, &out_dims(xa, o), Category::Workspace)?))
            })
            .collect();
    }
    ws.iter().map(|(w, bias)| linear_packed(tape, x, w, bias.as_ref())).collect()
}

/// A dense bf16 or f16 weight, widened on the way.
pub(super) struct HalfWeight(Array);

impl HalfWeight {
    pub(super) fn new(w: Array) -> Self {
        HalfWeight(w)
    }

    fn widen<T: From<f32>>(&self, first: usize, out: &mut [T]) {
        let start = first * self.shape().1;
        if let Ok(w) = self.0.view::<half::bf16>() {
            copy(w.deref(), start, out);
        } else if let Ok(w) = self.0.view::<half::f16>() {
            copy(w.deref(), start, out);
        }
    }
}

fn copy<H: Element + Into<f32>, T: From<f32>>(w: &[H], start: usize, out: &mut [T]) {
    for (o, n) in out.iter_mut().zip(&w[start..]) {
        *o = T::from((*n).into());
    }
}

impl PackedWeight for HalfWeight {
    fn shape(&self) -> (usize, usize) {
        (self.0.dims()[0], self.0.dims()[1])
    }
    fn bytes(&self) -> u64 {
        self.0.bytes()
    }
    fn is_shape_only(&self) -> bool {
        self.0.is_shape_only()
    }
    fn rows_f32(&self, first: usize, out: &mut [f32]) {
        self.widen(first, out);
    }
    fn rows_f64(&self, first: usize, out: &mut [f64]) {
        self.widen(first, out);
    }
    fn in_bf16(&self, work: &mut dyn FnMut(&dyn Bf16Rows)) -> bool {
        let Ok(w) = self.0.view::<half::bf16>() else { return false };
        work(&rounding::Bits(w.deref().reinterpret_cast(), self.shape()));
        true
    }
}
