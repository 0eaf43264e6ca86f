//! Cross-entropy over logits.

use anyhow::{Result, ensure};
use ramekin_core::{Array, Category};
use ramekin_kernels::cross_entropy as kernel;

use super::scalar_like;
use crate::dispatch;
use crate::tape::{SavedKind, Tape, Value};

/// How the loss of a token is formed.
#[derive(Clone, Copy, Debug, Default)]
pub struct CrossEntropy {
    /// ε: share of the target spread evenly over the vocabulary.
    pub label_smoothing: f64,
    /// Weights each token's loss by its probability, without gradient.
    pub dft: bool,
}

/// `scale · Σ loss_t` over rows with a label (−100 = none), as a scalar.
/// `logits` `[N, V]` are consumed: their gradient is formed in forward, in
/// their place, and kept.
///
/// # Errors
/// If a label is not −100 and not below V.
pub fn cross_entropy(
    tape: &Tape,
    logits: Value,
    labels: &[i64],
    scale: f64,
    options: CrossEntropy,
) -> Result<Value> {
    let (n, v) = logits.array().rows();
    ensure!(labels.len() == n, "{} labels for {n} rows of logits", labels.len());
    if let Some(bad) = labels.iter().find(|l| **l != -100 && (**l < 0 || **l >= v as i64)) {
        anyhow::bail!("label {bad} is beyond the vocabulary of {v}");
    }
    let options = kernel::Options { label_smoothing: options.label_smoothing, dft: options.dft };
    let want_grad = tape.is_recording() && logits.is_tracked();
    let array = logits.array();
    let total = if array.is_shape_only() {
        0.0
    } else {
        dispatch!(array, T => {
            let mut losses = vec![0.0 as T; n];
            array.update(|z: &mut [T]| {
                kernel::forward_backward(z, v, labels, &options, want_grad.then_some(scale as T), &mut losses);
            })?;
            Ok(ramekin_kernels::elementwise::sum(&losses) * scale)
        })?
    };
    let loss = scalar_like(array, total)?;
    tape.record(&[&logits], loss, || {
        let grad = tape.save(array, SavedKind::Output)?;
        Ok(Box::new(move |g: Array| {
            let factor = if g.is_shape_only() { 1.0 } else { g.scalar()? };
            let grad = grad.get()?;
            grad.recategorise(Category::Workspace);
            Ok(vec![Some(super::scale_in_place(grad, factor)?)])
        }))
    })
}
