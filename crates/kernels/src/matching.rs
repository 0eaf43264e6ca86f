//! Which tokens are most like others: bipartite soft matching.
//!
//! m_i = mean over heads of k_i, scaled to length 1; A the even places of a segment, B the odd ones
//! best_i = max_j m_i·m_j and the first j that has it, for i ∈ A, j ∈ B
//!
//! The `pairs` tokens of A with the largest best score go, each to its partner. The token at place 0 (the
//! class token) is in A and never goes; with two protected tokens the one at place 1 is nobody's partner.
//! Equal scores go by place. Cost: 2·|A|·|B|·head_dim operations a segment.
//!
//! Source: Bolya et al. 2023, arXiv:2210.09461.

use std::ops::Range;

use crate::Real;
use crate::matmul;
use crate::split::partials;

/// For each segment in turn its `pairs` rows that go and the rows they go to, the most alike first.
///
/// * `keys`: rows×heads×head_dim
///
/// # Panics
/// If a segment reaches past the rows, or has too few tokens for so many pairs: at most
/// (tokens − protected) / 2.
pub fn bipartite<T: Real>(
    keys: &[T],
    heads: usize,
    head_dim: usize,
    segments: &[Range<usize>],
    pairs: usize,
    protected: usize,
) -> Vec<(u32, u32)> {
    let width = heads * head_dim;
    for s in segments {
        assert!(s.end * width <= keys.len(), "{s:?} reaches past the keys");
        assert!(2 * pairs + protected <= s.len(), "{pairs} pairs of {} tokens", s.len());
    }
    let each = partials(segments.len(), |i| one(keys, heads, head_dim, &segments[i], pairs, protected));
    each.concat()
}

fn one<T: Real>(
    keys: &[T],
    heads: usize,
    head_dim: usize,
    segment: &Range<usize>,
    pairs: usize,
    protected: usize,
) -> Vec<(u32, u32)> {
    let places = |first: usize| (first..segment.len()).step_by(2).map(|p| segment.start + p);
    let (a, b): (Vec<usize>, Vec<usize>) = (places(0).collect(), places(1).collect());
    let metric = |rows: &[usize]| -> Vec<T> {
        let mut all = vec![T::ZERO; rows.len() * head_dim];
        for (m, row) in all.chunks_exact_mut(head_dim).zip(rows) {
            let at = row * heads * head_dim;
            for key in keys[at..at + heads * head_dim].chunks_exact(head_dim) {
                m.iter_mut().zip(key).for_each(|(m, k)| *m += *k);
            }
            let length = m.iter().map(|x| *x * *x).sum::<T>().sqrt();
            if length > T::ZERO {
                m.iter_mut().for_each(|x| *x /= length);
            }
        }
        all
    };
    let mut scores = vec![T::ZERO; a.len() * b.len()];
    matmul::nt(a.len(), b.len(), head_dim, T::ONE, &metric(&a), &metric(&b), false, &mut scores);
    let partners = protected.saturating_sub(1); // the first of B that may be one
    let mut found: Vec<(T, usize, usize)> = Vec::with_capacity(a.len());
    for i in 1..a.len() {
        let row = &scores[i * b.len()..(i + 1) * b.len()];
        let mut best = (T::NEG_INFINITY, partners);
        for (j, score) in row.iter().enumerate().skip(partners) {
            if *score > best.0 {
                best = (*score, j);
            }
        }
        found.push((best.0, i, best.1));
    }
    found.sort_by(|x, y| y.0.to_f64().total_cmp(&x.0.to_f64()).then(x.1.cmp(&y.1)));
    found[..pairs].iter().map(|(_, i, j)| (a[*i] as u32, b[*j] as u32)).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::normal;

    /// Every pair's cosine written down.
    fn cosine(keys: &[f64], heads: usize, d: usize, i: usize, j: usize) -> f64 {
        let mean = |row: usize| -> Vec<f64> {
            (0..d).map(|c| (0..heads).map(|h| keys[(row * heads + h) * d + c]).sum::<f64>()).collect()
        };
        let dot = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| x * y).sum::<f64>();
        let (x, y) = (mean(i), mean(j));
        dot(&x, &y) / (dot(&x, &x) * dot(&y, &y)).sqrt()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]
        #[test]
        fn the_most_alike_go(
            tokens in 4usize..40, share in 0usize..100, protected in 1usize..3, heads in 1usize..4, seed: u64,
        ) {
            let (d, from) = (6, 3); // rows of nobody before the segment
            let pairs = (tokens - protected) / 2 * share / 99;
            let keys = normal::<f64>(seed, (from + tokens) * heads * d);
            let segment = from..from + tokens;
            let found = bipartite(&keys, heads, d, std::slice::from_ref(&segment), pairs, protected);
            prop_assert_eq!(found.len(), pairs);
            let b: Vec<usize> = (from + 1..from + tokens).step_by(2).skip(protected - 1).collect();
            let best = |i: usize| b.iter().map(|j| cosine(&keys, heads, d, i, *j)).fold(f64::MIN, f64::max);
            let mut all: Vec<(f64, u32)> = (from + 2..from + tokens).step_by(2).map(|i| (best(i), i as u32)).collect();
            all.sort_by(|x, y| y.0.total_cmp(&x.0));
            for (n, (i, j)) in found.iter().enumerate() {
                prop_assert_eq!(*i, all[n].1);
                prop_assert!((cosine(&keys, heads, d, *i as usize, *j as usize) - all[n].0).abs() < 1e-12);
            }
        }
    }

    #[test]
    fn equal_scores_go_by_place() {
        let keys = vec![1f32; 9 * 4];
        let ends = 9;
        let whole = 0..ends;
        let one = std::slice::from_ref(&whole);
        assert_eq!(bipartite(&keys, 2, 2, one, 3, 1), [(2, 1), (4, 1), (6, 1)]);
        assert_eq!(bipartite(&keys, 2, 2, one, 3, 2), [(2, 3), (4, 3), (6, 3)]);
        assert!(bipartite(&[0f32; 36], 2, 2, one, 0, 1).is_empty());
    }
}
