//! How far a block moves its tokens.

use anyhow::{Result, ensure};
use ramekin_core::Array;
use ramekin_slots::BlockMetric;

/// Sums over tokens, one a metric of [`BlockMetric::ALL`].
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Moved {
    sums: [f64; 4],
    tokens: u64,
}

impl Moved {
    /// Adds the tokens of one group: states before and after, `[N, d]`.
    ///
    /// # Errors
    /// If a state is not finite.
    pub fn add(&mut self, before: &Array, after: &Array) -> Result<()> {
        if before.is_shape_only() || after.is_shape_only() {
            return Ok(());
        }
        let (n, d) = before.rows();
        let (before, after) = (before.to_f32()?, after.to_f32()?);
        for (h, g) in before.chunks(d.max(1)).zip(after.chunks(d.max(1))) {
            let found = token(h, g);
            ensure!(found.iter().all(|x| x.is_finite()), "a hidden state is not finite");
            self.sums.iter_mut().zip(found).for_each(|(sum, x)| *sum += x);
        }
        self.tokens += n as u64;
        Ok(())
    }

    /// The mean over all tokens.
    pub fn means(&self) -> Vec<(BlockMetric, f64)> {
        BlockMetric::ALL
            .into_iter()
            .zip(self.sums)
            .map(|(m, sum)| (m, sum / self.tokens.max(1) as f64))
            .collect()
    }
}

fn token(h: &[f32], g: &[f32]) -> [f64; 4] {
    let (mut dot, mut hh, mut gg, mut square, mut abs) = (0.0, 0.0, 0.0, 0.0, 0.0);
    for (a, b) in h.iter().zip(g) {
        let (a, b) = (f64::from(*a), f64::from(*b));
        dot += a * b;
        hh += a * a;
        gg += b * b;
        square += (a - b) * (a - b);
        abs += (a - b).abs();
    }
    let norm = (hh * gg).sqrt();
    // The angle to nothing is neither none nor a half turn.
    let cosine = if norm == 0.0 { 0.5 } else { (dot / norm).clamp(-1.0, 1.0) };
    let d = h.len().max(1) as f64;
    [cosine.acos() / std::f64::consts::PI, 1.0 - cosine, square / d, abs / d]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn angles_of_known_turns() {
        let angle = |h: &[f32], g: &[f32]| token(h, g)[0];
        assert_eq!(angle(&[1.0, 0.0], &[0.0, 2.0]), 0.5);
        assert_eq!(angle(&[1.0, 1.0], &[-1.0, -1.0]), 1.0);
        assert_eq!(angle(&[0.0, 0.0], &[1.0, 0.0]), (0.5f64).acos() / std::f64::consts::PI);
        assert_eq!(token(&[1.0, 2.0], &[2.0, 0.0])[2..], [2.5, 1.5]);
    }
}
