//! The primitive that both methods stand on: which tokens go where, and their mean.

use std::rc::Rc;

use anyhow::Result;
use ramekin_kernels::matching::bipartite;
use ramekin_slots::{Forward, Keys};
use ramekin_tape::ops::{self, MergePlan};
use ramekin_tape::{Value, dispatch};

/// Tokens that go in each block, and the leading ones that never do.
#[derive(Clone, Debug)]
pub struct Rule {
    /// By block.
    pub schedule: Vec<usize>,
    /// 1 for a class token, 2 with a distillation token.
    pub protected: usize,
    /// Whether attention counts a token as often as it stands for patches.
    pub counts: bool,
}

/// Which tokens of a block go, to which others, and where all stand then.
pub struct Matched {
    /// Rows that go and the rows that take them in, an image after the other, the most alike first.
    pub pairs: Vec<(u32, u32)>,
    /// Every token's row afterwards, what it counts, and the sums of those counts.
    pub plan: MergePlan,
}

impl Matched {
    /// Matches the tokens of `fx.batch` by `keys`, without gradient. In a plan any tokens do.
    ///
    /// # Errors
    /// If the keys cannot be read.
    pub fn of(fx: &Forward, rule: &Rule, block: usize, keys: &Keys<'_>) -> Result<Self> {
        let (array, r) = (keys.array, rule.schedule[block]);
        let (n, width) = array.rows();
        let find =
            |k: &[f32]| bipartite(k, keys.heads, width / keys.heads, &fx.batch.segments, r, rule.protected);
        let pairs = if array.is_shape_only() {
            find(&vec![0.0; n * width])
        } else {
            dispatch!(array, T => {
                let k = array.view::<T>()?;
                Ok::<_, anyhow::Error>(
                    bipartite(&k, keys.heads, width / keys.heads, &fx.batch.segments, r, rule.protected),
                )
            })?
        };
        let mut into: Vec<Option<u32>> = vec![None; n];
        pairs.iter().for_each(|(from, to)| into[*from as usize] = Some(*to));
        // First what is left of the even places in order, then the odd ones.
        let (mut to, mut next) = (vec![0u32; n], 0);
        for s in fx.batch.segments.iter() {
            for i in s.clone().step_by(2).chain((s.start + 1..s.end).step_by(2)) {
                if into[i].is_none() {
                    to[i] = next;
                    next += 1;
                }
            }
        }
        for (from, into) in &pairs {
            to[*from as usize] = to[*into as usize];
        }
        let times = fx.counts();
        let mut totals = vec![0; next as usize];
        to.iter().zip(times.iter()).for_each(|(row, count)| totals[*row as usize] += count);
        Ok(Matched { pairs, plan: MergePlan { to: Rc::new(to), times, totals: Rc::new(totals) } })
    }

    /// Each row's mean over the patches that it stands for.
    ///
    /// # Errors
    /// Faults of the operation.
    pub fn mean(&self, fx: &Forward, h: &Value) -> Result<Value> {
        ops::merge_rows(&fx.tape, h, &self.plan)
    }
}
