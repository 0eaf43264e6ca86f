//! How far a student's distribution is from a teacher's, row by row, with its gradient in place.
//!
//! P = softmax(z_T / τ), Q = softmax(z_S / τ), M = βP + (1 − β)Q
//!
//! | kind | D | ∂D/∂z_S · τ |
//! |---|---|---|
//! | forward | Σ P log(P/Q) | Q − P |
//! | reverse | Σ Q log(Q/P) | Q ⊙ (log(Q/P) − D) |
//! | β | Σ β P log(P/M) + (1 − β) Q log(Q/M) | Q ⊙ (g − Σ Q g), g = (1 − β) log(Q/M) |
//!
//! Sums run in f64. Source: Hinton et al. 2015, arXiv:1503.02531; Agarwal et al. 2023, arXiv:2306.13649.

use crate::Real;
use crate::split::{Tasks, rows_per_task};

/// Which divergence.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Divergence {
    /// KL(P ‖ Q): the student covers what the teacher does.
    Forward,
    /// KL(Q ‖ P): the student keeps to what the teacher does.
    Reverse,
    /// Generalised Jensen–Shannon with this β, in (0, 1).
    Jsd(f64),
}

/// The divergence of each row and, with `grad_scale = Some(s)`, `student` overwritten by s times the
/// gradient of the sum with respect to its logits.
///
/// # Panics
/// If `student` and `teacher` are not `losses.len()` rows of `vocab`.
pub fn forward_backward<T: Real>(
    student: &mut [T],
    teacher: &[T],
    vocab: usize,
    temperature: f64,
    kind: Divergence,
    grad_scale: Option<f64>,
    losses: &mut [f64],
) {
    assert_eq!(student.len(), losses.len() * vocab, "`student` must hold {} rows of {vocab}", losses.len());
    assert_eq!(teacher.len(), student.len(), "`teacher` must have as many numbers as `student`");
    if vocab == 0 {
        return losses.fill(0.0);
    }
    let rows = rows_per_task(vocab);
    student
        .chunks_mut(rows * vocab)
        .zip(teacher.chunks(rows * vocab))
        .zip(losses.chunks_mut(rows))
        .each_task(|((s, t), losses)| {
            let mut log_p = vec![T::ZERO; vocab];
            for ((s, t), loss) in s.chunks_exact_mut(vocab).zip(t.chunks_exact(vocab)).zip(losses) {
                log_p.copy_from_slice(t);
                *loss = one_row(s, &mut log_p, temperature, kind, grad_scale);
            }
        });
}

/// z ← log softmax(z / τ).
fn log_softmax<T: Real>(z: &mut [T], temperature: f64) {
    let inverse = T::from_f64(1.0 / temperature);
    let mut top = T::NEG_INFINITY;
    for x in z.iter_mut() {
        *x *= inverse;
        top = top.max(*x);
    }
    let sum: f64 = z.iter().map(|x| (*x - top).exp().to_f64()).sum();
    let lse = T::from_f64(sum.ln()) + top;
    z.iter_mut().for_each(|x| *x -= lse);
}

fn one_row<T: Real>(
    s: &mut [T],
    log_p: &mut [T],
    temperature: f64,
    kind: Divergence,
    scale: Option<f64>,
) -> f64 {
    log_softmax(s, temperature);
    log_softmax(log_p, temperature);
    let step = scale.map(|s| s / temperature);
    match kind {
        Divergence::Forward => {
            let mut d = 0.0;
            for (q, p) in s.iter_mut().zip(log_p.iter()) {
                let prob = p.exp();
                if prob > T::ZERO {
                    d += prob.to_f64() * (*p - *q).to_f64();
                }
                if let Some(step) = step {
                    *q = T::from_f64(step * (q.exp() - prob).to_f64());
                }
            }
            d
        }
        Divergence::Reverse => {
            let d: f64 = s.iter().zip(log_p.iter()).map(|(q, p)| weighted(*q, *q - *p)).sum();
            if let Some(step) = step {
                for (q, p) in s.iter_mut().zip(log_p.iter()) {
                    let log_ratio = *q - *p;
                    *q = T::from_f64(step * (weighted(*q, log_ratio) - q.exp().to_f64() * d));
                }
            }
            d
        }
        Divergence::Jsd(beta) => {
            let (mut d, mut flow) = (0.0, 0.0);
            for (q, p) in s.iter().zip(log_p.iter_mut()) {
                let log_m = mixture(*p, *q, beta);
                d += beta * weighted(*p, *p - log_m) + (1.0 - beta) * weighted(*q, *q - log_m);
                // From here on g is where log P was.
                *p = T::from_f64(1.0 - beta) * (*q - log_m);
                flow += weighted(*q, *p);
            }
            if let Some(step) = step {
                for (q, g) in s.iter_mut().zip(log_p.iter()) {
                    *q = T::from_f64(step * (weighted(*q, *g) - q.exp().to_f64() * flow));
                }
            }
            d
        }
    }
}

/// exp(log)·x, and 0 where the probability is 0.
fn weighted<T: Real>(log: T, x: T) -> f64 {
    let p = log.exp();
    if p > T::ZERO { p.to_f64() * x.to_f64() } else { 0.0 }
}

/// log(β eᵖ + (1 − β) e𐞥).
fn mixture<T: Real>(p: T, q: T, beta: f64) -> T {
    let (p, q) = (p + T::from_f64(beta.ln()), q + T::from_f64((1.0 - beta).ln()));
    let top = p.max(q);
    if top == T::NEG_INFINITY {
        return top;
    }
    top + ((p - top).exp() + (q - top).exp()).ln()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::philox::Stream;

    fn numbers(id: u64, n: usize) -> Vec<f64> {
        let mut z = vec![0.0; n];
        Stream::new(4, id).fill_normal(0, 1.5, &mut z);
        z
    }

    fn of(student: &[f64], teacher: &[f64], kind: Divergence) -> f64 {
        let mut losses = vec![0.0; 3];
        forward_backward(&mut student.to_vec(), teacher, 7, 1.7, kind, None, &mut losses);
        losses.iter().sum()
    }

    #[test]
    fn gradients_are_the_slopes() {
        let (student, teacher) = (numbers(0, 21), numbers(1, 21));
        for kind in [Divergence::Forward, Divergence::Reverse, Divergence::Jsd(0.3)] {
            let (mut grad, mut losses) = (student.clone(), vec![0.0; 3]);
            forward_backward(&mut grad, &teacher, 7, 1.7, kind, Some(2.0), &mut losses);
            assert!(losses.iter().all(|l| *l > 0.0), "{kind:?}: {losses:?}");
            for i in 0..21 {
                let at = |h: f64| {
                    let mut z = student.clone();
                    z[i] += h;
                    of(&z, &teacher, kind)
                };
                let slope = 2.0 * (at(1e-5) - at(-1e-5)) / 2e-5;
                assert!((slope - grad[i]).abs() < 1e-8, "{kind:?} at {i}: {slope} and {}", grad[i]);
            }
        }
    }

    #[test]
    fn nothing_between_equals_and_no_nan_from_impossible_tokens() {
        let mut z: Vec<f32> = numbers(0, 21).iter().map(|x| *x as f32).collect();
        z[3] = -1e30;
        for kind in [Divergence::Forward, Divergence::Reverse, Divergence::Jsd(0.5)] {
            let (mut grad, mut losses) = (z.clone(), vec![1.0; 3]);
            forward_backward(&mut grad, &z, 7, 2.0, kind, Some(1.0), &mut losses);
            let tiny = if matches!(kind, Divergence::Jsd(_)) { 1e-6 } else { 0.0 };
            assert!(losses.iter().all(|l| l.abs() <= tiny), "{kind:?}: {losses:?}");
            assert!(grad.iter().all(|g| f64::from(g.abs()) <= tiny), "{kind:?}: {grad:?}");
        }
    }
}
