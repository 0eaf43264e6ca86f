//! A scale and a shift for each channel.

use anyhow::{Result, ensure};
use ramekin_core::Array;
use ramekin_kernels::scale_shift as kernel;

use super::output;
use crate::dispatch;
use crate::tape::{SavedKind, Tape, Value};

/// Where the channels of a feature are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Channels {
    /// `[…, C]`
    Last,
    /// `[B, C, …]`
    Second,
}

impl Channels {
    /// The product of the axes behind the channels.
    fn inner(self, dims: &[usize], channels: usize) -> Result<usize> {
        let (axis, inner) = match self {
            Channels::Last => (dims.last(), 1),
            Channels::Second => (dims.get(1), dims.iter().skip(2).product()),
        };
        ensure!(axis == Some(&channels), "{channels} channels for a feature {dims:?} ({self:?})");
        Ok(inner)
    }
}

/// `y = x ⊙ gamma + beta` by channel; `gamma` and `beta` `[C]`. Keeps `x` only if `gamma` is tracked.
pub fn scale_shift(tape: &Tape, x: &Value, gamma: &Value, beta: &Value, channels: Channels) -> Result<Value> {
    let (xa, sa, ta) = (x.array(), gamma.array(), beta.array());
    let inner = channels.inner(xa.dims(), sa.len())?;
    ensure!(sa.dims() == ta.dims(), "a scale {:?} with a shift {:?}", sa.dims(), ta.dims());
    let y = dispatch!(xa, T => output::<T>(xa.dims(), &[xa, sa, ta], |out| {
        kernel::forward(&xa.view::<T>()?, &sa.view::<T>()?, &ta.view::<T>()?, inner, out);
        Ok(())
    }))?;
    tape.record(&[x, gamma, beta], y, || {
        let for_scale = gamma.is_tracked().then(|| tape.save(xa, SavedKind::Input)).transpose()?;
        let (scale, pair) = (sa.clone(), sa.dims().to_vec());
        let (for_x, for_shift) = (x.is_tracked(), beta.is_tracked());
        Ok(Box::new(move |g: Array| {
            let saved = for_scale.map(|s| s.get()).transpose()?;
            let shape_only = g.is_shape_only();
            dispatch!(g, T => {
                let gx = for_x
                    .then(|| output::<T>(g.dims(), &[&g, &scale], |out| {
                        kernel::input_gradient(&g.view::<T>()?, &scale.view::<T>()?, inner, out);
                        Ok(())
                    }))
                    .transpose()?;
                let n = pair.iter().product();
                let (mut gs, mut gt) = (vec![0.0 as T; n], vec![0.0 as T; n]);
                if !shape_only && (saved.is_some() || for_shift) {
                    let x = saved.as_ref().map(|x| x.view::<T>()).transpose()?;
                    kernel::sums(&g.view::<T>()?, x.as_deref(), inner, &mut gs, &mut gt);
                }
                let made = |want: bool, v: Vec<T>| {
                    want.then(|| output::<T>(&pair, &[&g], |out| {
                        out.copy_from_slice(&v);
                        Ok(())
                    }))
                    .transpose()
                };
                Ok(vec![gx, made(saved.is_some(), gs)?, made(for_shift, gt)?])
            })
        }))
    })
}
