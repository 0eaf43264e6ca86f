//! Products with a frozen weight that round.
//!
//! * A bf16 model rounds both sides to bf16, sums in f32, where the machine multiplies bf16. Elsewhere the weight is
//!   widened and nothing is rounded.
//! * A quantizer may have activations rounded to 8 bits in the forward, 32 at a time ([`int8`]): codes are multiplied as
//!   they are where the machine has such products, elsewhere what is rounded is multiplied in f32. The gradient passes
//!   straight through.
//!
//! Numbers in f64 are never rounded.

use std::sync::Arc;

use anyhow::Result;
use ramekin_kernels::bf16::{self, Bf16Rows};
use ramekin_kernels::linear::{self as kernel, WeightRows};
use ramekin_kernels::packed_rows::{self, Activations, Layout};
use ramekin_kernels::{Real, elementwise, int8, scratch, unwritten};

use super::linear::{PackedLinear, Rows};
use super::{Apart, PackedWeight};

/// What the products of a packed weight round.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rounding {
    /// Both sides to bf16: a bf16 model.
    pub bf16: bool,
    /// Activations of the forward to 8 bits.
    pub int8: bool,
}

/// A packed weight whose products round.
pub struct Rounds {
    weight: Arc<dyn PackedWeight>,
    how: Rounding,
}

impl Rounds {
    /// The same weight, its products rounded so.
    pub fn of(weight: Arc<dyn PackedWeight>, how: Rounding) -> Arc<dyn PackedWeight> {
        if how == Rounding::default() { weight } else { Arc::new(Rounds { weight, how }) }
    }
}

impl PackedWeight for Rounds {
    fn shape(&self) -> (usize, usize) {
        self.weight.shape()
    }
    fn bytes(&self) -> u64 {
        self.weight.bytes()
    }
    fn is_shape_only(&self) -> bool {
        self.weight.is_shape_only()
    }
    fn is_absent(&self) -> bool {
        self.weight.is_absent()
    }
    fn apart(&self) -> Option<Apart> {
        let Apart { bulk, bytes, rebuild } = self.weight.apart()?;
        let how = self.how;
        let rebuild = Box::new(move |bulk| rebuild(bulk).map(|weight| Rounds::of(weight, how)));
        Some(Apart { bulk, bytes, rebuild })
    }
    fn rows_f32(&self, first: usize, out: &mut [f32]) {
        self.weight.rows_f32(first, out);
    }
    fn rows_f64(&self, first: usize, out: &mut [f64]) {
        self.weight.rows_f64(first, out);
    }
    fn layout(&self) -> Option<Layout<'_>> {
        self.weight.layout()
    }
    fn activations(&self) -> Activations {
        match self.how {
            Rounding { int8: true, .. } => Activations::Int8,
            Rounding { bf16: true, .. } if bf16::unit().is_some() => Activations::Bf16,
            _ => Activations::F32,
        }
    }
    fn in_bf16(&self, work: &mut dyn FnMut(&dyn Bf16Rows)) -> bool {
        if self.how.bf16 {
            work(&Unpacked(&*self.weight));
        }
        self.how.bf16
    }
}

/// Rows unpacked and rounded.
struct Unpacked<'a>(&'a dyn PackedWeight);

impl Bf16Rows for Unpacked<'_> {
    fn out_features(&self) -> usize {
        self.0.shape().0
    }
    fn in_features(&self) -> usize {
        self.0.shape().1
    }
    fn rows(&self, first: usize, out: &mut [u16]) {
        scratch::with(out.len(), |wide| {
            self.0.rows_f32(first, wide);
            bf16::round_all(wide, out);
        });
    }
}

/// The bits of a dense bf16 weight.
pub(super) struct Bits<'a>(pub &'a [u16], pub (usize, usize));

impl Bf16Rows for Bits<'_> {
    fn out_features(&self) -> usize {
        self.1.0
    }
    fn in_features(&self) -> usize {
        self.1.1
    }
    fn rows(&self, first: usize, out: &mut [u16]) {
        out.copy_from_slice(&self.0[first * self.1.1..][..out.len()]);
    }
    fn as_dense(&self) -> Option<&[u16]> {
        Some(self.0)
    }
}

/// A weight in f32, its rows rounded where they are used.
struct Rounded<'a>(&'a [f32], (usize, usize));

impl Bf16Rows for Rounded<'_> {
    fn out_features(&self) -> usize {
        self.1.0
    }
    fn in_features(&self) -> usize {
        self.1.1
    }
    fn rows(&self, first: usize, out: &mut [u16]) {
        bf16::round_all(&self.0[first * self.1.1..][..out.len()], out);
    }
}

/// `y = x wᵀ + b`, `n` rows.
pub(super) fn forward<T: Real>(x: &[T], n: usize, w: &dyn PackedWeight, bias: Option<&[T]>, y: &mut [T])
where
    for<'a> Rows<'a>: WeightRows<T>,
{
    if let (Some(x), Some(to)) = (T::as_f32(x), T::as_f32_mut(y)) {
        let done = as_it_lies(x, n, w, to)
            || match w.activations() {
                Activations::Int8 => {
                    kernel::forward(&int8::rounded(x, w.shape().1), n, &Rows(w), None, to);
                    true
                }
                _ => bf16::unit().is_some() && w.in_bf16(&mut |w| bf16::forward(x, n, w, None, to)),
            };
        if done {
            if let Some(bias) = bias {
                elementwise::add_bias(y, bias);
            }
            return;
        }
    }
    kernel::forward(x, n, &Rows(w), bias, y);
}

/// Rows times codes as they lie; whether there is such a way.
fn as_it_lies(x: &[f32], n: usize, w: &dyn PackedWeight, y: &mut [f32]) -> bool {
    let Some(layout) = w.layout() else { return false };
    match (w.activations(), &layout) {
        (Activations::Int8, Layout::Grid(grid)) if n > packed_rows::FEW_ROWS => int8::forward(x, n, grid, y),
        (activations, layout) => {
            n <= packed_rows::FEW_ROWS && packed_rows::forward(x, n, layout, activations, y)
        }
    }
}

/// `y = x wᵀ + b` for each of some weights of one `x` of a few rows, as they lie; `None` where they cannot share it.
pub(super) fn forward_each(x: &[f32], n: usize, ws: &[PackedLinear]) -> Result<Option<Vec<Vec<f32>>>> {
    let Some((first, _)) = ws.first() else { return Ok(None) };
    let (activations, inputs) = (first.activations(), first.shape().1);
    let alike = ws.iter().all(|(w, _)| w.activations() == activations && w.shape().1 == inputs);
    if !alike || n > packed_rows::FEW_ROWS || x.len() != n * inputs {
        return Ok(None);
    }
    let layouts: Option<Vec<Layout<'_>>> = ws.iter().map(|(w, _)| w.layout()).collect();
    let Some(layouts) = layouts else { return Ok(None) };
    let mut ys: Vec<Vec<f32>> = ws.iter().map(|(w, _)| unwritten(n * w.shape().0)).collect();
    let mut to: Vec<&mut [f32]> = ys.iter_mut().map(Vec::as_mut_slice).collect();
    if !packed_rows::forward_each(x, n, &layouts, activations, &mut to) {
        return Ok(None);
    }
    for (y, (_, bias)) in ys.iter_mut().zip(ws) {
        if let Some(bias) = bias {
            elementwise::add_bias(y, &bias.array().view::<f32>()?);
        }
    }
    Ok(Some(ys))
}

/// `gx (+)= g w`, `n` rows.
pub(super) fn backward_input<T: Real>(g: &[T], n: usize, w: &dyn PackedWeight, accumulate: bool, gx: &mut [T])
where
    for<'a> Rows<'a>: WeightRows<T>,
{
    if bf16::unit().is_some()
        && let (Some(g), Some(to)) = (T::as_f32(g), T::as_f32_mut(gx))
        && w.in_bf16(&mut |w| bf16::backward_input(g, n, w, accumulate, to))
    {
        return;
    }
    kernel::backward_input(g, n, &Rows(w), accumulate, gx);
}

/// A weight in f32 to be rounded where it is multiplied, on a machine that multiplies bf16.
fn rounded<T: Real>(w: &[T], shape: (usize, usize)) -> Option<Rounded<'_>> {
    bf16::unit()?;
    Some(Rounded(T::as_f32(w)?, shape))
}

/// `y = x r(w)ᵀ` for a weight in f32; whether there is such a way.
pub(super) fn rounded_forward<T: Real>(
    x: &[T],
    n: usize,
    w: &[T],
    shape: (usize, usize),
    y: &mut [T],
) -> bool {
    let (Some(x), Some(w), Some(y)) = (T::as_f32(x), rounded(w, shape), T::as_f32_mut(y)) else {
        return false;
    };
    bf16::forward(x, n, &w, None, y);
    true
}

/// `gx (+)= g r(w)` for a weight in f32; whether there is such a way.
pub(super) fn rounded_backward_input<T: Real>(
    g: &[T],
    n: usize,
    w: &[T],
    shape: (usize, usize),
    accumulate: bool,
    gx: &mut [T],
) -> bool {
    let (Some(g), Some(w), Some(gx)) = (T::as_f32(g), rounded(w, shape), T::as_f32_mut(gx)) else {
        return false;
    };
    bf16::backward_input(g, n, &w, accumulate, gx);
    true
}
