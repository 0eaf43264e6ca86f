//! Rows that become one.

use std::rc::Rc;

use anyhow::{Result, ensure};
use ramekin_core::Array;
use ramekin_kernels::merge_rows as kernel;

use super::output;
use crate::dispatch;
use crate::tape::{Tape, Value};

/// What goes where, and how often it counts; see [`merge_rows`].
#[derive(Clone, Debug)]
pub struct MergePlan {
    /// For each row of the input its row of the output.
    pub to: Rc<Vec<u32>>,
    /// For each row of the input how often it counts.
    pub times: Rc<Vec<u32>>,
    /// For each row of the output what its sum is divided by.
    pub totals: Rc<Vec<u32>>,
}

impl MergePlan {
    fn for_kernel(&self) -> kernel::Merge<'_> {
        kernel::Merge { to: &self.to, times: &self.times, totals: &self.totals }
    }
}

/// `y_o = (1/total_o) Σ times_i x_i` over the rows i of `x` `[N, d]` that go to o. Keeps the plan.
pub fn merge_rows(tape: &Tape, x: &Value, plan: &MergePlan) -> Result<Value> {
    let xa = x.array();
    let (n, d) = xa.rows();
    ensure!(n == plan.to.len(), "a plan for {} rows of {n}", plan.to.len());
    let y = dispatch!(xa, T => output::<T>(&[plan.totals.len(), d], &[xa], |out| {
        kernel::forward(&xa.view::<T>()?, d, plan.for_kernel(), out);
        Ok(())
    }))?;
    tape.record(&[x], y, || {
        let plan = plan.clone();
        Ok(Box::new(move |g: Array| {
            let gx = dispatch!(g, T => output::<T>(&[n, d], &[&g], |out| {
                kernel::backward(&g.view::<T>()?, d, plan.for_kernel(), out);
                Ok(())
            }))?;
            Ok(vec![Some(gx)])
        }))
    })
}
