//! Means over segments.

use std::ops::Range;
use std::rc::Rc;

use anyhow::{Result, ensure};
use ramekin_core::Array;
use ramekin_kernels::segment_mean as kernel;

use super::output;
use crate::dispatch;
use crate::tape::{Tape, Value};

/// The mean of each segment's rows of `x` `[N, d]` at each of its rows, or with `prefix` the mean of the
/// rows up to it. Keeps the segments.
pub fn segment_mean(tape: &Tape, x: &Value, segments: &Rc<Vec<Range<usize>>>, prefix: bool) -> Result<Value> {
    let xa = x.array();
    let (n, d) = xa.rows();
    ensure!(segments.iter().all(|s| s.end <= n), "segments {segments:?} of {n} rows");
    let y = dispatch!(xa, T => output::<T>(xa.dims(), &[xa], |out| {
        kernel::forward(&xa.view::<T>()?, d, segments, prefix, out);
        Ok(())
    }))?;
    tape.record(&[x], y, || {
        let segments = segments.clone();
        Ok(Box::new(move |g: Array| {
            let gx = dispatch!(g, T => output::<T>(g.dims(), &[&g], |out| {
                kernel::backward(&g.view::<T>()?, d, &segments, prefix, out);
                Ok(())
            }))?;
            Ok(vec![Some(gx)])
        }))
    })
}
