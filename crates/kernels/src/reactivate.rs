//! Two vectors that weigh tokens by channel and by row (PYRA's re-activation).
//!
//! For each image's r rows s_i, given n_i:
//! u = Σ_i a_i n_i, w = 2σ(u) one a channel     v_i = n_i·b, t_i = 2σ(v_i) − 1 one a row     y_i = t_i w ⊙ s_i
//! gs_i = t_i w ⊙ g_i      gu = w(1 − w/2) ⊙ Σ_i t_i g_i ⊙ s_i      gv_i = (1 − t_i²)/2 · Σ_c w_c g_ic s_ic
//! gn_i = a_i gu + gv_i b      ga_i = Σ_images gu·n_i      gb = Σ_images Σ_i gv_i n_i
//!
//! Source: Xiong et al. 2024, arXiv:2403.09192; sheet `pyra`, item 4.

use crate::Real;
use crate::split::partials;

/// The two weights of every image.
#[derive(Clone, Debug, PartialEq)]
pub struct Weights<T> {
    /// w, images×d.
    pub channels: Vec<T>,
    /// t, images×r.
    pub rows: Vec<T>,
}

/// How many images, rows of each, and channels.
fn sizes<T>(n: &[T], a: &[T], b: &[T]) -> (usize, usize, usize) {
    let (r, d) = (a.len(), b.len());
    assert!(r > 0 && d > 0 && n.len().is_multiple_of(r * d), "images of {r} rows of {d}");
    (n.len() / (r * d), r, d)
}

fn dot<T: Real>(x: &[T], y: &[T]) -> T {
    x.iter().zip(y).map(|(x, y)| *x * *y).sum()
}

/// The weights from `n` (images×r×d), `a` (r) and `b` (d).
///
/// # Panics
/// If the slices do not fit; so do the others.
pub fn weights<T: Real>(n: &[T], a: &[T], b: &[T]) -> Weights<T> {
    let (_, r, d) = sizes(n, a, b);
    let two = T::ONE + T::ONE;
    let mut all = Weights { channels: Vec::new(), rows: Vec::new() };
    for n in n.chunks_exact(r * d) {
        let mut u = vec![T::ZERO; d];
        for (n, a) in n.chunks_exact(d).zip(a) {
            u.iter_mut().zip(n).for_each(|(u, n)| *u += *a * *n);
            all.rows.push(two * dot(n, b).sigmoid() - T::ONE);
        }
        all.channels.extend(u.into_iter().map(|u| two * u.sigmoid()));
    }
    all
}

/// `y` is overwritten; `s` and `n` are as long.
pub fn forward<T: Real>(s: &[T], n: &[T], a: &[T], b: &[T], y: &mut [T]) {
    let (images, r, d) = sizes(n, a, b);
    assert_eq!([s.len(), y.len()], [n.len(); 2], "slices must be equally long");
    let one = |i: usize| {
        let at = i * r * d..(i + 1) * r * d;
        let w = weights(&n[at.clone()], a, b);
        let rows = s[at].chunks_exact(d).zip(&w.rows);
        rows.flat_map(|(s, t)| s.iter().zip(&w.channels).map(|(s, c)| *s * *c * *t)).collect::<Vec<_>>()
    };
    for (y, part) in y.chunks_exact_mut(r * d).zip(partials(images, one)) {
        y.copy_from_slice(&part);
    }
}

/// Gradients of [`forward`] by `s`, `n`, `a` and `b`.
pub fn backward<T: Real>(g: &[T], s: &[T], n: &[T], a: &[T], b: &[T]) -> [Vec<T>; 4] {
    let (images, r, d) = sizes(n, a, b);
    assert_eq!([s.len(), g.len()], [n.len(); 2], "slices must be equally long");
    let half = T::from_f64(0.5);
    let one = |i: usize| {
        let at = i * r * d..(i + 1) * r * d;
        let (g, s, n) = (&g[at.clone()], &s[at.clone()], &n[at]);
        let w = weights(n, a, b);
        let (mut gs, mut gn) = (vec![T::ZERO; r * d], vec![T::ZERO; r * d]);
        let (mut gu, mut gv) = (vec![T::ZERO; d], vec![T::ZERO; r]);
        for (k, (gv, t)) in gv.iter_mut().zip(&w.rows).enumerate() {
            for (c, at) in (k * d..(k + 1) * d).enumerate() {
                let product = g[at] * s[at];
                gs[at] = g[at] * w.channels[c] * *t;
                gu[c] += product * *t;
                *gv += product * w.channels[c];
            }
            *gv *= (T::ONE - *t * *t) * half;
        }
        gu.iter_mut().zip(&w.channels).for_each(|(gu, w)| *gu *= *w * (T::ONE - *w * half));
        let (mut ga, mut gb) = (vec![T::ZERO; r], vec![T::ZERO; d]);
        for (k, (gn, n)) in gn.chunks_exact_mut(d).zip(n.chunks_exact(d)).enumerate() {
            ga[k] = dot(&gu, n);
            for c in 0..d {
                gn[c] = a[k] * gu[c] + gv[k] * b[c];
                gb[c] += gv[k] * n[c];
            }
        }
        [gs, gn, ga, gb]
    };
    let mut all =
        [Vec::with_capacity(s.len()), Vec::with_capacity(s.len()), vec![T::ZERO; r], vec![T::ZERO; d]];
    for [gs, gn, ga, gb] in partials(images, one) {
        all[0].extend(gs);
        all[1].extend(gn);
        all[2].iter_mut().zip(ga).for_each(|(x, y)| *x += y);
        all[3].iter_mut().zip(gb).for_each(|(x, y)| *x += y);
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_gradient, assert_same_for_threads, normal, weighted};

    #[test]
    fn backward_is_the_gradient() {
        let (r, d) = (3, 5);
        let (s, n) = (normal::<f64>(1, 2 * r * d), normal::<f64>(2, 2 * r * d));
        let (a, b, g) = (normal::<f64>(3, r), normal::<f64>(4, d), normal::<f64>(5, 2 * r * d));
        let loss = |s: &[f64], n: &[f64], a: &[f64], b: &[f64]| {
            let mut y = vec![f64::NAN; s.len()];
            forward(s, n, a, b, &mut y);
            weighted(&g, &y)
        };
        let [gs, gn, ga, gb] = backward(&g, &s, &n, &a, &b);
        assert_gradient(&s, &gs, |s| loss(s, &n, &a, &b));
        assert_gradient(&n, &gn, |n| loss(&s, n, &a, &b));
        assert_gradient(&a, &ga, |a| loss(&s, &n, a, &b));
        assert_gradient(&b, &gb, |b| loss(&s, &n, &a, b));
    }

    #[test]
    fn without_a_row_weight_nothing_is_added_and_a_gets_no_gradient() {
        let (s, n, a) = (normal::<f32>(1, 24), normal::<f32>(2, 24), normal::<f32>(3, 3));
        let mut y = vec![1.0f32; 24];
        forward(&s, &n, &a, &[0.0; 4], &mut y);
        assert!(y.iter().all(|y| *y == 0.0));
        let [gs, _, ga, gb] = backward(&normal::<f32>(4, 24), &s, &n, &a, &[0.0; 4]);
        assert!(gs.iter().chain(&ga).all(|x| *x == 0.0) && gb.iter().all(|x| *x != 0.0));
    }

    #[test]
    fn threads_do_not_change_a_bit() {
        let (s, n) = (normal::<f32>(1, 9 * 7 * 16), normal::<f32>(2, 9 * 7 * 16));
        let (a, b) = (normal::<f32>(3, 7), normal::<f32>(4, 16));
        assert_same_for_threads(|| backward(&s, &s, &n, &a, &b).concat());
    }
}
