//! Ternary vectors as two bit masks, and arithmetic on them word by word.
//!
//! ⟨a, b⟩ = s_a·s_b·(pc(a⁺∧b⁺) + pc(a⁻∧b⁻) − pc(a⁺∧b⁻) − pc(a⁻∧b⁺)), pc = number of ones
//!
//! Source: sheet `compeft`, rule 7.

/// A vector of −s, 0 and s.
#[derive(Clone, Debug, PartialEq)]
pub struct Ternary {
    plus: Vec<u64>,
    minus: Vec<u64>,
    /// s.
    pub scale: f64,
}

impl Ternary {
    /// The signs of these numbers, times `scale`.
    pub fn new(signs: impl IntoIterator<Item = f64>, scale: f64) -> Self {
        let (mut plus, mut minus) = (Vec::new(), Vec::new());
        for (i, x) in signs.into_iter().enumerate() {
            if i % 64 == 0 {
                plus.push(0);
                minus.push(0);
            }
            let mask = if x > 0.0 { &mut plus } else { &mut minus };
            mask[i / 64] |= u64::from(x != 0.0) << (i % 64);
        }
        Ternary { plus, minus, scale }
    }

    /// How many numbers are not zero.
    pub fn count(&self) -> u64 {
        self.plus.iter().zip(&self.minus).map(|(p, m)| u64::from(p.count_ones() + m.count_ones())).sum()
    }

    /// The number at an index.
    pub fn at(&self, i: usize) -> f64 {
        let bit = |mask: &[u64]| f64::from((mask[i / 64] >> (i % 64) & 1) as u8);
        self.scale * (bit(&self.plus) - bit(&self.minus))
    }

    /// How many entries have the same sign in both, and how many opposite ones.
    fn agreement(&self, other: &Ternary) -> (f64, f64) {
        let (mut same, mut opposite) = (0u64, 0u64);
        let words = self.plus.iter().zip(&self.minus).zip(other.plus.iter().zip(&other.minus));
        for ((ap, am), (bp, bm)) in words {
            same += u64::from((ap & bp).count_ones() + (am & bm).count_ones());
            opposite += u64::from((ap & bm).count_ones() + (am & bp).count_ones());
        }
        (same as f64, opposite as f64)
    }

    /// ⟨a, b⟩.
    pub fn dot(&self, other: &Ternary) -> f64 {
        let (same, opposite) = self.agreement(other);
        self.scale * other.scale * (same - opposite)
    }

    /// Σ |a − b|.
    pub fn l1_distance(&self, other: &Ternary) -> f64 {
        let (same, opposite) = self.agreement(other);
        let both = same + opposite;
        let (a, b) = (self.scale.abs(), other.scale.abs());
        let flipped = (self.scale < 0.0) != (other.scale < 0.0);
        let (same, opposite) = if flipped { (opposite, same) } else { (same, opposite) };
        (self.count() as f64 - both) * a
            + (other.count() as f64 - both) * b
            + same * (a - b).abs()
            + opposite * (a + b)
    }

    /// Adds the numbers to `out`.
    pub fn add_to(&self, out: &mut [f64]) {
        for (word, out) in out.chunks_mut(64).enumerate() {
            let (mut plus, mut minus) = (self.plus[word], self.minus[word]);
            while plus != 0 {
                out[plus.trailing_zeros() as usize] += self.scale;
                plus &= plus - 1;
            }
            while minus != 0 {
                out[minus.trailing_zeros() as usize] -= self.scale;
                minus &= minus - 1;
            }
        }
    }
}
