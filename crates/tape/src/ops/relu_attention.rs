//! Attention by rectified scores over their sum, plus the identity.

use std::ops::Range;
use std::rc::Rc;

use anyhow::{Result, ensure};
use ramekin_core::Array;
use ramekin_kernels::relu_attention as kernel;

use super::output;
use crate::dispatch;
use crate::tape::{SavedKind, Tape, Value};

/// `y_i = Σ_j w_ij v_j + v_i`, `w_ij = relu(q_i·k_j) / (Σ_j relu(q_i·k_j) + eps)`, each segment for itself;
/// `q`, `k` `[N, d]`, `v` `[N, e]`. Keeps q, k and v; scores are computed again in backward.
pub fn relu_attention(
    tape: &Tape,
    q: &Value,
    k: &Value,
    v: &Value,
    segments: &Rc<Vec<Range<usize>>>,
    causal: bool,
    eps: f64,
) -> Result<Value> {
    let (qa, ka, va) = (q.array(), k.array(), v.array());
    let ((n, d), (m, e)) = (qa.rows(), va.rows());
    ensure!(qa.dims() == ka.dims() && n == m, "{:?}, {:?} and {:?}", qa.dims(), ka.dims(), va.dims());
    let ordered = segments.windows(2).all(|w| w[0].end <= w[1].start);
    ensure!(ordered && segments.iter().all(|s| s.end <= n), "segments {segments:?} of {n} rows");
    let shape = kernel::Shape { width: d, values: e, causal, eps };
    let y = dispatch!(qa, T => output::<T>(va.dims(), &[qa, ka, va], |out| {
        kernel::forward(&qa.view::<T>()?, &ka.view::<T>()?, &va.view::<T>()?, segments, &shape, out);
        Ok(())
    }))?;
    tape.record(&[q, k, v], y, || {
        let q = tape.save(qa, SavedKind::Input)?;
        let k = tape.save(ka, SavedKind::Input)?;
        let v = tape.save(va, SavedKind::Input)?;
        let segments = segments.clone();
        Ok(Box::new(move |g: Array| {
            let (q, k, v) = (q.get()?, k.get()?, v.get()?);
            let real = !g.is_shape_only();
            dispatch!(g, T => {
                let sized = |a: &Array| vec![0.0 as T; if real { a.len() } else { 0 }];
                let (mut gq, mut gk, mut gv) = (sized(&q), sized(&k), sized(&v));
                if real {
                    kernel::backward(
                        &g.view::<T>()?, &q.view::<T>()?, &k.view::<T>()?, &v.view::<T>()?,
                        &segments, &shape, &mut gq, &mut gk, &mut gv,
                    );
                }
                Ok(vec![super::flow(&q, gq, real)?, super::flow(&k, gk, real)?, super::flow(&v, gv, real)?])
            })
        }))
    })
}
