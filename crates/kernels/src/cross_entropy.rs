//! Cross-entropy of rows of logits against labels, with its gradient in place.
//!
//! p = softmax(z),  nll = −log p_y,  u = −(1/V) Σ_v log p_v
//! loss = ω · [(1 − ε)·nll + ε·u]        ∂loss/∂z_v = ω · [p_v − (1 − ε)·1{v = y} − ε/V]
//!
//! ω = 1, or p_y without gradient for the DFT loss. A row labelled [`IGNORED`] has loss and gradient 0.
//! Sources: label smoothing as in transformers' `LabelSmoother`; DFT: Wu et al. 2025, arXiv:2508.05629.

use crate::Real;
use crate::elementwise::sum_chunk;
use crate::split::{Tasks, rows_per_task};
use crate::wide::wide;

/// The label of a row that takes no part.
pub const IGNORED: i64 = -100;

/// Which loss.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Options {
    /// ε: weight of the uniform part, 0 for plain cross-entropy.
    pub label_smoothing: f64,
    /// Weigh each row by the probability of its label, without gradient.
    pub dft: bool,
}

/// The loss of each row and, with `grad_scale = Some(s)`, `logits` overwritten by s times the gradient
/// of the sum of losses.
///
/// # Panics
/// If `logits` is not `labels.len()` rows of `vocab`, `losses` not one entry a row, or a label neither
/// [`IGNORED`] nor in `0..vocab`.
pub fn forward_backward<T: Real>(
    logits: &mut [T],
    vocab: usize,
    labels: &[i64],
    o: &Options,
    grad_scale: Option<T>,
    losses: &mut [T],
) {
    assert_eq!(logits.len(), labels.len() * vocab, "`logits` must hold {} rows of {vocab}", labels.len());
    assert_eq!(losses.len(), labels.len(), "`losses` must hold one entry a row");
    if vocab == 0 {
        return losses.fill(T::ZERO);
    }
    let rows = rows_per_task(vocab);
    let row = |((z, label), loss): ((&mut [T], &i64), &mut T)| {
        if *label == IGNORED {
            *loss = T::ZERO;
            if grad_scale.is_some() {
                z.fill(T::ZERO);
            }
            return;
        }
        let y = usize::try_from(*label).ok().filter(|y| *y < vocab);
        let y = y.unwrap_or_else(|| panic!("label {label} with a vocabulary of {vocab}"));
        *loss = one_row(z, y, T::from_f64(o.label_smoothing), o.dft, grad_scale);
    };
    if labels.len() <= rows {
        return logits.chunks_exact_mut(vocab).zip(labels).zip(losses).for_each(row);
    }
    logits
        .chunks_mut(rows * vocab)
        .zip(labels.chunks(rows))
        .zip(losses.chunks_mut(rows))
        .each_task(|((z, y), l)| z.chunks_exact_mut(vocab).zip(y).zip(l).for_each(row));
}

fn one_row<T: Real>(z: &mut [T], y: usize, eps: T, dft: bool, grad_scale: Option<T>) -> T {
    let top = maximum(z);
    let v = T::from_f64(z.len() as f64);
    let (zy, mean) = (z[y], if eps == T::ZERO { T::ZERO } else { T::from_f64(sum_chunk(z)) / v });
    // For the gradient the exponentials are kept where the logits were.
    let sum_exp = if grad_scale.is_some() { exponentials(z, top) } else { sum_exp(z, top) };
    let log_sum = sum_exp.ln() + top;
    let nll = log_sum - zy;
    let loss = if eps == T::ZERO { nll } else { (T::ONE - eps) * nll + eps * (log_sum - mean) };
    let weight = if dft { (-nll).exp() } else { T::ONE };
    if let Some(s) = grad_scale {
        let s = s * weight;
        scale_and_lower(z, s / sum_exp, s * eps / v);
        z[y] -= s * (T::ONE - eps);
    }
    loss * weight
}

wide! {
    fn maximum[T: Real](z: &[T]) -> T {
        let (chunks, rest) = z.as_chunks::<32>();
        let mut acc = [T::NEG_INFINITY; 32];
        for c in chunks {
            for l in 0..32 {
                acc[l] = acc[l].max(c[l]);
            }
        }
        acc.iter().chain(rest).fold(T::NEG_INFINITY, |a, x| a.max(*x))
    }

    fn sum_exp[T: Real](z: &[T], top: T) -> T {
        let (chunks, rest) = z.as_chunks::<32>();
        let mut acc = [T::ZERO; 32];
        for c in chunks {
            for l in 0..32 {
                acc[l] += (c[l] - top).exp();
            }
        }
        let mut sum = T::ZERO;
        for a in acc {
            sum += a;
        }
        for x in rest {
            sum += (*x - top).exp();
        }
        sum
    }

    /// z ← exp(z − top); returns the sum, of the same bits as [`sum_exp`].
    fn exponentials[T: Real](z: &mut [T], top: T) -> T {
        let (chunks, rest) = z.as_chunks_mut::<32>();
        let mut acc = [T::ZERO; 32];
        for c in chunks {
            for l in 0..32 {
                c[l] = (c[l] - top).exp();
                acc[l] += c[l];
            }
        }
        let mut sum = T::ZERO;
        for a in acc {
            sum += a;
        }
        for x in rest {
            *x = (*x - top).exp();
            sum += *x;
        }
        sum
    }

    /// z ← s · z − less
    fn scale_and_lower[T: Real](z: &mut [T], s: T, less: T) {
        for z in z {
            *z = *z * s - less;
        }
    }
}

/// The same written down directly.
pub mod reference {
    use super::{IGNORED, Options};
    use crate::Real;

    /// Loss of one row and its gradient.
    pub fn row<T: Real>(z: &[T], label: i64, o: &Options) -> (T, Vec<T>) {
        if label == IGNORED {
            return (T::ZERO, vec![T::ZERO; z.len()]);
        }
        let y = label as usize;
        let eps = T::from_f64(o.label_smoothing);
        let v = T::from_f64(z.len() as f64);
        let top = z.iter().fold(T::NEG_INFINITY, |a, x| a.max(*x));
        let total: T = z.iter().map(|x| (*x - top).exp()).sum();
        let log_p = |x: T| x - top - total.ln();
        let uniform = -z.iter().map(|x| log_p(*x)).sum::<T>() / v;
        let weight = if o.dft { log_p(z[y]).exp() } else { T::ONE };
        let loss = weight * ((T::ONE - eps) * -log_p(z[y]) + eps * uniform);
        let hot = |i: usize| if i == y { T::ONE - eps } else { T::ZERO };
        let grad = z.iter().enumerate().map(|(i, x)| weight * (log_p(*x).exp() - hot(i) - eps / v));
        (loss, grad.collect())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::{assert_gradient, assert_same_for_threads, normal, wide};

    fn run<T: Real>(z: &[T], vocab: usize, labels: &[i64], o: &Options) -> (Vec<T>, Vec<T>) {
        let (mut grad, mut losses) = (z.to_vec(), vec![T::ZERO; labels.len()]);
        forward_backward(&mut grad, vocab, labels, o, Some(T::ONE), &mut losses);
        (losses, grad)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn equals_the_reference(
            rows in 0usize..30, vocab in 1usize..200, scale in 0.1f32..30.0, eps in 0.0f64..0.5, dft: bool,
        ) {
            let o = Options { label_smoothing: if eps < 0.1 { 0.0 } else { eps }, dft };
            let z: Vec<f32> = normal::<f32>(1, rows * vocab).iter().map(|z| z * scale).collect();
            let labels: Vec<i64> = (0..rows).map(|r| if r % 3 == 2 { IGNORED } else { (r * 7 % vocab) as i64 }).collect();
            let (losses, grad) = run(&z, vocab, &labels, &o);
            let want: Vec<_> = wide(&z).chunks(vocab).zip(&labels).map(|(z, y)| reference::row(z, *y, &o)).collect();
            // A loss is a difference of logits and the logarithm of a sum over the vocabulary.
            let largest = f64::from(z.iter().fold(1.0f32, |a, z| a.max(z.abs())));
            let rounding = 1e-6 * largest.max((vocab as f64).ln());
            for (l, w) in losses.iter().zip(&want) {
                // DFT's weight exp(−nll) is off by nll's rounding, relatively, and the loss with it.
                let rounding = if dft { rounding * w.0.max(1.0) } else { rounding };
                prop_assert!((*l as f64 - w.0).abs() <= rounding, "loss {l}, not {}", w.0);
            }
            let want: Vec<f64> = want.into_iter().flat_map(|w| w.1).collect();
            for (g, w) in grad.iter().zip(&want) {
                prop_assert!((*g as f64 - w).abs() < 3e-6, "gradient {g}, not {w}");
            }
        }
    }

    #[test]
    fn the_gradient_is_the_gradient() {
        let vocab = 17;
        let z = normal::<f64>(1, 3 * vocab);
        let labels = [4, IGNORED, 16];
        for eps in [0.0, 0.2] {
            let o = Options { label_smoothing: eps, dft: false };
            let (_, grad) = run(&z, vocab, &labels, &o);
            assert_gradient(&z, &grad, |z| run(z, vocab, &labels, &o).0.iter().sum());
            // The weight of the DFT loss is held still.
            let o = Options { label_smoothing: eps, dft: true };
            let (_, grad) = run(&z, vocab, &labels, &o);
            let (nll, _) = run(&z, vocab, &labels, &Options::default());
            let plain = Options { label_smoothing: eps, dft: false };
            assert_gradient(&z, &grad, |z| {
                run(z, vocab, &labels, &plain).0.iter().zip(&nll).map(|(l, n)| l * (-n).exp()).sum()
            });
        }
    }

    #[test]
    fn ignored_rows_are_exactly_zero_even_when_bad() {
        let mut z = vec![f32::NAN, f32::INFINITY, 1.0, 0.5, 0.5, 0.5];
        let mut losses = [f32::NAN; 2];
        forward_backward(&mut z, 3, &[IGNORED, 0], &Options::default(), Some(2.0), &mut losses);
        assert_eq!(losses[0], 0.0);
        assert_eq!(z[..3], [0.0; 3]);
        assert!((losses[1] - 3f32.ln()).abs() < 1e-6);
        assert!((z[3] + 4.0 / 3.0).abs() < 1e-6); // scaled by 2
    }

    #[test]
    fn without_a_scale_logits_stay() {
        let z = normal::<f32>(1, 40);
        let (mut same, mut losses) = (z.clone(), [0.0; 4]);
        forward_backward(&mut same, 10, &[1, 2, 3, 4], &Options::default(), None, &mut losses);
        assert_eq!(same, z);
        assert_eq!(losses[..], run(&z, 10, &[1, 2, 3, 4], &Options::default()).0[..]);
    }

    #[test]
    fn large_logits_do_not_overflow_and_masked_ones_get_nothing() {
        let (losses, grad) = run(&[1e4f32, 0.0, f32::NEG_INFINITY], 3, &[0], &Options::default());
        assert_eq!(losses, [0.0]);
        assert_eq!(grad, [0.0; 3]);
    }

    #[test]
    #[should_panic(expected = "label 3 with a vocabulary of 3")]
    fn a_label_past_the_vocabulary_panics() {
        run(&[0.0f32; 3], 3, &[3], &Options::default());
    }

    #[test]
    fn threads_do_not_change_a_bit() {
        let (rows, vocab) = (64, 1000);
        let z = normal::<f32>(1, rows * vocab);
        let labels: Vec<i64> = (0..rows as i64).collect();
        let o = Options { label_smoothing: 0.1, dft: false };
        assert_same_for_threads(|| {
            let (losses, grad) = run(&z, vocab, &labels, &o);
            [losses, grad].concat()
        });
    }
}
