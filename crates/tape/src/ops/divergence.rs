//! How far a student's distribution is from a teacher's, over logits.

use anyhow::{Result, ensure};
use ramekin_core::{Array, Category};
use ramekin_kernels::divergence as kernel;
pub use ramekin_kernels::divergence::Divergence;

use super::scalar_like;
use crate::dispatch;
use crate::tape::{SavedKind, Tape, Value};

/// `scale · Σ_t D(teacher_t, student_t)` over rows of logits `[N, V]` at a temperature, as a scalar.
/// The teacher gets no gradient; `student` is consumed: its gradient is formed in forward, in its
/// place, and kept.
///
/// # Errors
/// If the shapes differ.
pub fn divergence(
    tape: &Tape,
    student: Value,
    teacher: &Array,
    temperature: f64,
    kind: Divergence,
    scale: f64,
) -> Result<Value> {
    let array = student.array();
    ensure!(array.dims() == teacher.dims(), "logits {:?} and {:?}", array.dims(), teacher.dims());
    let (n, v) = array.rows();
    let want_grad = tape.is_recording() && student.is_tracked();
    let total = if array.is_shape_only() || teacher.is_shape_only() {
        0.0
    } else {
        dispatch!(array, T => {
            let mut losses = vec![0.0; n];
            let teacher = teacher.view::<T>()?;
            array.update(|z: &mut [T]| {
                kernel::forward_backward(z, &teacher, v, temperature, kind, want_grad.then_some(scale), &mut losses);
            })?;
            Ok(losses.iter().sum::<f64>() * scale)
        })?
    };
    let loss = scalar_like(array, total)?;
    tape.record(&[&student], loss, || {
        let grad = tape.save(array, SavedKind::Output)?;
        Ok(Box::new(move |g: Array| {
            let factor = if g.is_shape_only() { 1.0 } else { g.scalar()? };
            let grad = grad.get()?;
            grad.recategorise(Category::Workspace);
            Ok(vec![Some(super::scale_in_place(grad, factor)?)])
        }))
    })
}
