//! How fresh parameters begin.

use anyhow::Result;
use ramekin_core::{Array, Category};
use ramekin_slots::AttachContext;

/// Uniform in ±1/√m for `[n, m]` (Kaiming with a = √5), drawn by the tensor's name in the file.
///
/// # Errors
/// If memory is short.
pub fn kaiming(cx: &AttachContext<'_>, key: &str, dims: [usize; 2]) -> Result<Array> {
    let stream = cx.rng.named(&format!("{}/init", cx.owner), key);
    let bound = 1.0 / (dims[1].max(1) as f64).sqrt();
    Array::build::<f32>(&dims, cx.shape_only, Category::Workspace, |out| {
        stream.fill_uniform(0, -bound, bound, out);
        Ok(())
    })
}

/// Zeros.
///
/// # Errors
/// If memory is short.
pub fn zeros(cx: &AttachContext<'_>, dims: &[usize]) -> Result<Array> {
    Array::build::<f32>(dims, cx.shape_only, Category::Workspace, |_| Ok(()))
}
