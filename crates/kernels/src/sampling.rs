//! From logits to the tokens that may be drawn, with their probabilities.
//!
//! The order of the filters is transformers': temperature, top-k, top-p, min-p.

/// Which tokens may be drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Filters {
    /// Logits are divided by it; above 0.
    pub temperature: f64,
    /// Keeps this many of the most probable tokens; 0 is off.
    pub top_k: usize,
    /// Keeps the most probable tokens whose sum just reaches this share; 1 is off.
    pub top_p: f64,
    /// Keeps tokens of at least this share of the best one's probability; 0 is off.
    pub min_p: f64,
}

impl Default for Filters {
    fn default() -> Self {
        Filters { temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0 }
    }
}

impl Filters {
    /// The tokens that pass with their probabilities, most probable first (the lower id among equals),
    /// summing to 1.
    pub fn candidates(&self, logits: impl Iterator<Item = f64>) -> Vec<(u32, f64)> {
        let mut ranked: Vec<(u32, f64)> =
            logits.enumerate().map(|(i, z)| (i as u32, z / self.temperature)).collect();
        ranked.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        if self.top_k > 0 {
            ranked.truncate(self.top_k);
        }
        let top = ranked.first().map_or(0.0, |c| c.1);
        for c in &mut ranked {
            c.1 = (c.1 - top).exp();
        }
        normalise(&mut ranked);
        if self.top_p < 1.0 {
            ranked.truncate(nucleus(&ranked, self.top_p));
            normalise(&mut ranked);
        }
        if self.min_p > 0.0 {
            let least = ranked.first().map_or(0.0, |c| c.1) * self.min_p;
            ranked.retain(|c| c.1 >= least);
            normalise(&mut ranked);
        }
        ranked
    }

    /// The probability of every token, `[V]`.
    pub fn distribution(&self, logits: impl ExactSizeIterator<Item = f64>) -> Vec<f64> {
        let mut p = vec![0.0; logits.len()];
        for (id, x) in self.candidates(logits) {
            p[id as usize] = x;
        }
        p
    }
}

/// How many of these, most probable first, just reach the share `p`; at least one.
pub fn nucleus(ranked: &[(u32, f64)], p: f64) -> usize {
    let mut before = 0.0;
    let keep = ranked.iter().take_while(|c| {
        let take = before < p;
        before += c.1;
        take
    });
    keep.count().max(1)
}

fn normalise(candidates: &mut [(u32, f64)]) {
    let sum: f64 = candidates.iter().map(|c| c.1).sum();
    for c in candidates {
        c.1 /= sum;
    }
}

/// Index of the largest number, the first among equals.
pub fn largest<T: PartialOrd>(x: &[T]) -> usize {
    (0..x.len()).fold(0, |best, i| if x[i] > x[best] { i } else { best })
}

/// The index that `u` in [0, 1) falls on under weights that sum to `total`.
pub fn pick(weights: &[f64], total: f64, u: f64) -> usize {
    let mut left = u * total;
    let mut last = 0;
    for (i, w) in weights.iter().enumerate().filter(|(_, w)| **w > 0.0) {
        left -= w;
        last = i;
        if left < 0.0 {
            return i;
        }
    }
    last
}

/// log softmax in f64.
pub fn log_softmax(logits: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut z: Vec<f64> = logits.collect();
    let top = z.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let lse = top + z.iter().map(|x| (x - top).exp()).sum::<f64>().ln();
    z.iter_mut().for_each(|x| *x -= lse);
    z
}

/// Verdict on a drafted token in speculative sampling.
///
/// The draft came from `q`; it stays with probability min(1, p/q), and what replaces it comes from
/// max(0, p − q): together that is `p` exactly. Source: Leviathan et al. 2022, arXiv:2211.17192.
pub fn accept(p: &[f64], q: &[f64], drafted: usize, stream: &mut dyn FnMut() -> f64) -> Option<usize> {
    if stream() * q[drafted] < p[drafted] {
        return None;
    }
    let rest: Vec<f64> = p.iter().zip(q).map(|(p, q)| (p - q).max(0.0)).collect();
    let total: f64 = rest.iter().sum();
    // Rounding alone may leave nothing where the two are equal.
    if total > 0.0 { Some(pick(&rest, total, stream())) } else { Some(pick(p, p.iter().sum(), stream())) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::philox::Stream;

    #[test]
    fn accepted_drafts_have_the_target_distribution() {
        let (p, q) = ([0.1, 0.2, 0.3, 0.4], [0.4, 0.3, 0.2, 0.1]);
        let draws = Stream::new(3, 0);
        let mut at = 0;
        let mut next = || {
            at += 1;
            draws.uniform_at(at)
        };
        let mut counts = [0.0; 4];
        let n = 200_000;
        for _ in 0..n {
            let drafted = pick(&q, 1.0, next());
            let found = accept(&p, &q, drafted, &mut next).unwrap_or(drafted);
            counts[found] += 1.0;
        }
        for (c, p) in counts.iter().zip(p) {
            let error = (p * (1.0 - p) / f64::from(n)).sqrt();
            assert!((c / f64::from(n) - p).abs() < 4.0 * error, "{counts:?}");
        }
    }

    #[test]
    fn equal_distributions_accept_everything() {
        let p = Filters { top_p: 0.9, ..Filters::default() }.distribution([0.3, 1.0, -2.0].into_iter());
        for drafted in 0..2 {
            assert_eq!(accept(&p, &p, drafted, &mut || 1.0 - f64::EPSILON), None);
        }
    }

    #[test]
    fn distributions_and_logs_agree() {
        let z = [0.5, -1.0, 2.0, 2.0];
        let p = Filters::default().distribution(z.into_iter());
        for (p, lp) in p.iter().zip(log_softmax(z.into_iter())) {
            assert!((p.ln() - lp).abs() < 1e-12);
        }
        assert_eq!(largest(&z), 2);
        let kept = Filters { top_p: 0.8, ..Filters::default() }.distribution(z.into_iter());
        assert_eq!(kept.iter().filter(|p| **p > 0.0).count(), 2);
    }
}
