//! Up to eight rows: dot products with the rows of `w` as they lie, bound by reading them.

use super::{Bf16Rows, FEW_ROWS};
use crate::split::{Shared, tasks};

/// Rows of `w` of one task.
const TASK: usize = 64;

/// `y[m×n] = x[m×k] · wᵀ`, m at most [`FEW_ROWS`]; `x` in bits.
pub fn forward(x: &[u16], m: usize, w: &dyn Bf16Rows, y: &mut [f32]) {
    let (n, k) = (w.out_features(), w.in_features());
    let out = Shared::new(y);
    tasks(n.div_ceil(TASK), |t| {
        let (first, last) = (t * TASK, n.min((t + 1) * TASK));
        let mut own = Vec::new();
        let rows = match w.as_dense() {
            Some(all) => &all[first * k..last * k],
            None => {
                own.resize((last - first) * k, 0);
                w.rows(first, &mut own);
                &own[..]
            }
        };
        for j in first..last {
            let mut dots = [0.0; FEW_ROWS];
            products(x, &rows[(j - first) * k..][..k], &mut dots[..m]);
            for (i, d) in dots[..m].iter().enumerate() {
                // SAFETY: each task owns its columns of every row of y.
                unsafe { *out.at(i * n + j) = *d };
            }
        }
    });
}

/// The dot product of each row of `x` with `w`; a row's bits do not depend on the rows beside it.
fn products(x: &[u16], w: &[u16], out: &mut [f32]) {
    debug_assert_eq!(x.len(), w.len() * out.len());
    #[cfg(target_arch = "x86_64")]
    if super::unit().is_some() {
        let mut done = 0;
        while done < out.len() {
            let x = &x[done * w.len()..];
            let left = &mut out[done..];
            // SAFETY: the unit's features were seen; as many rows as are asked for are left.
            done += unsafe {
                match left.len() {
                    8.. => take::<8>(x, w, left),
                    4.. => take::<4>(x, w, left),
                    _ => take::<1>(x, w, left),
                }
            };
        }
        return;
    }
    for (x, out) in x.chunks_exact(w.len().max(1)).zip(out) {
        *out = x.iter().zip(w).map(|(x, w)| super::widen(*x) * super::widen(*w)).sum();
    }
}

/// # Safety
/// As for the dot products; `x` holds M rows at least.
#[cfg(target_arch = "x86_64")]
unsafe fn take<const M: usize>(x: &[u16], w: &[u16], out: &mut [f32]) -> usize {
    // SAFETY: the caller's promise.
    out[..M].copy_from_slice(&unsafe { super::avx512::dots::<M>(x.as_ptr(), w) });
    M
}
