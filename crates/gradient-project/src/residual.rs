//! Fira: the part of the gradient outside GaLore's subspace, scaled as the optimizer scales the inside.
//!
//! S = G − inside · back(R)                      inside = 1: orthogonal to the subspace
//! S_v ← S_v · ‖N_v‖ / (‖R_v‖ + 1e-8)            one factor a vector v along the side that is not compressed:
//!                                               a row of a right projection, a column of a left one
//! limiter: l = max(‖S‖ / (q + 1e-8), γ) / γ;  S ← S / l;  q ← ‖S‖        (q = ‖S‖ at a weight's first step)
//!
//! Source: Chen et al. 2024, arXiv:2410.01623. The released code has `inside = scale`.

use anyhow::Result;
use ramekin_core::Array;
use ramekin_kernels::elementwise;
use ramekin_slots::ParamState;

use crate::galore::{Shape, Side};

/// What is kept of the outside.
pub(crate) struct Residual {
    pub shape: Shape,
    /// Share of the inside that is taken off.
    pub inside: f64,
    /// The largest growth of the norm from step to step.
    pub gamma: f64,
}

impl Residual {
    /// `out ← S` from the gradient, its projection R and the direction N on it; `out` is zeros before.
    pub fn add(
        &self,
        state: &ParamState,
        limiter: &Array,
        grad: &[f32],
        projected: &[f32],
        direction: &[f32],
        out: &mut [f32],
    ) -> Result<()> {
        let Shape { n, r, side, .. } = self.shape;
        out.copy_from_slice(grad);
        self.shape.up(state, -self.inside, projected, out)?;
        if side == Side::Right {
            let pairs = direction.chunks(r).zip(projected.chunks(r));
            for (row, (n, r)) in out.chunks_mut(self.shape.n).zip(pairs) {
                let factor = norm(n.iter()) / (norm(r.iter()) + 1e-8);
                row.iter_mut().for_each(|x| *x *= factor as f32);
            }
        } else {
            let column = |x: &[f32], j: usize| norm(x[j..].iter().step_by(n));
            let factors: Vec<f32> =
                (0..n).map(|j| (column(direction, j) / (column(projected, j) + 1e-8)) as f32).collect();
            for row in out.chunks_mut(n) {
                row.iter_mut().zip(&factors).for_each(|(x, f)| *x *= f);
            }
        }
        self.limit(state.steps() == 1, limiter, out)
    }

    fn limit(&self, first: bool, limiter: &Array, out: &mut [f32]) -> Result<()> {
        let now = elementwise::sum_of_squares(out).sqrt();
        limiter.update(|q: &mut [f64]| {
            let excess = if first { 1.0 } else { (now / (q[0] + 1e-8)).max(self.gamma) / self.gamma };
            q[0] = now / excess;
            if excess != 1.0 {
                elementwise::scale_assign(out, (1.0 / excess) as f32);
            }
        })
    }
}

fn norm<'a>(x: impl Iterator<Item = &'a f32>) -> f64 {
    x.map(|x| f64::from(*x) * f64::from(*x)).sum::<f64>().sqrt()
}
