//! Products with a frozen weight that round both sides to bf16, sums in f32: what a bf16 model asks for where the
//! machine multiplies bf16. Elsewhere, and for numbers in f64, the weight is widened and nothing is rounded.

use std::sync::Arc;

use ramekin_kernels::bf16::{self, Bf16Rows};
use ramekin_kernels::linear::{self as kernel, WeightRows};
use ramekin_kernels::packed_rows::{self, Layout};
use ramekin_kernels::{Real, elementwise};

use super::linear::Rows;
use super::{Apart, PackedWeight};

/// A packed weight of a bf16 model: unpacked to bf16 and multiplied so.
pub struct InBf16(Arc<dyn PackedWeight>);

impl InBf16 {
    /// The same weight, multiplied in bf16.
    pub fn of(weight: Arc<dyn PackedWeight>) -> Arc<dyn PackedWeight> {
        Arc::new(InBf16(weight))
    }
}

impl PackedWeight for InBf16 {
    fn shape(&self) -> (usize, usize) {
        self.0.shape()
    }
    fn bytes(&self) -> u64 {
        self.0.bytes()
    }
    fn is_shape_only(&self) -> bool {
        self.0.is_shape_only()
    }
    fn is_absent(&self) -> bool {
        self.0.is_absent()
    }
    fn apart(&self) -> Option<Apart> {
        let Apart { bulk, bytes, rebuild } = self.0.apart()?;
        let rebuild = Box::new(move |bulk| rebuild(bulk).map(InBf16::of));
        Some(Apart { bulk, bytes, rebuild })
    }
    fn rows_f32(&self, first: usize, out: &mut [f32]) {
        self.0.rows_f32(first, out);
    }
    fn rows_f64(&self, first: usize, out: &mut [f64]) {
        self.0.rows_f64(first, out);
    }
    fn layout(&self) -> Option<Layout<'_>> {
        self.0.layout()
    }
    fn rounds(&self) -> bool {
        true
    }
    fn in_bf16(&self, work: &mut dyn FnMut(&dyn Bf16Rows)) -> bool {
        work(&Unpacked(&*self.0));
        true
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
        let mut wide = vec![0.0; out.len()];
        self.0.rows_f32(first, &mut wide);
        bf16::round_all(&wide, out);
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

/// `y = x wᵀ + b`, `n` rows.
pub(super) fn forward<T: Real>(x: &[T], n: usize, w: &dyn PackedWeight, bias: Option<&[T]>, y: &mut [T])
where
    for<'a> Rows<'a>: WeightRows<T>,
{
    if let (Some(x), Some(to)) = (T::as_f32(x), T::as_f32_mut(y))
        && (in_place(x, n, w, to)
            || bf16::unit().is_some() && w.in_bf16(&mut |w| bf16::forward(x, n, w, None, to)))
    {
        if let Some(bias) = bias {
            elementwise::add_bias(y, bias);
        }
        return;
    }
    kernel::forward(x, n, &Rows(w), bias, y);
}

/// A few rows times codes as they lie; whether there is such a way.
fn in_place(x: &[f32], n: usize, w: &dyn PackedWeight, y: &mut [f32]) -> bool {
    let narrow = w.rounds() && bf16::unit().is_some();
    n <= packed_rows::FEW_ROWS && w.layout().is_some_and(|w| packed_rows::forward(x, n, &w, narrow, y))
}

/// `gx = g w`, `n` rows.
pub(super) fn backward_input<T: Real>(g: &[T], n: usize, w: &dyn PackedWeight, gx: &mut [T])
where
    for<'a> Rows<'a>: WeightRows<T>,
{
    if bf16::unit().is_some()
        && let (Some(g), Some(to)) = (T::as_f32(g), T::as_f32_mut(gx))
        && w.in_bf16(&mut |w| bf16::backward_input(g, n, w, false, to))
    {
        return;
    }
    kernel::backward_input(g, n, &Rows(w), false, gx);
}

/// `y = x r(w)ᵀ` for a weight in f32, where the machine multiplies bf16; whether it did.
pub(super) fn rounded_forward<T: Real>(
    x: &[T],
    n: usize,
    w: &[T],
    shape: (usize, usize),
    y: &mut [T],
) -> bool {
    let (Some(x), Some(w), Some(y)) = (T::as_f32(x), T::as_f32(w), T::as_f32_mut(y)) else { return false };
    bits(w).is_some_and(|w| {
        bf16::forward(x, n, &Bits(&w, shape), None, y);
        true
    })
}

/// `gx = g r(w)` for a weight in f32, where the machine multiplies bf16; whether it did.
pub(super) fn rounded_backward_input<T: Real>(
    g: &[T],
    n: usize,
    w: &[T],
    shape: (usize, usize),
    gx: &mut [T],
) -> bool {
    let (Some(g), Some(w), Some(gx)) = (T::as_f32(g), T::as_f32(w), T::as_f32_mut(gx)) else { return false };
    bits(w).is_some_and(|w| {
        bf16::backward_input(g, n, &Bits(&w, shape), false, gx);
        true
    })
}

/// The weight rounded, where the machine multiplies bf16.
fn bits(w: &[f32]) -> Option<Vec<u16>> {
    bf16::unit()?;
    let mut bits = vec![0; w.len()];
    bf16::round_all(w, &mut bits);
    Some(bits)
}
