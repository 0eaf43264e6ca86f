//! The k largest magnitudes of vectors that do not fit in memory.
//!
//! Magnitudes are ranked by their bits, 21 a pass: three passes over the models, whatever their size,
//! and one more only where the k-th magnitude is there several times and some of them must go.

use anyhow::Result;
use ramekin_slots::{MergedTensor, Piece, TaskVectors};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

const BITS: u32 = 21;
const BINS: usize = 1 << BITS;

/// Bytes of the tables of a selection over this many tasks.
pub fn table_bytes(tasks: usize) -> u64 {
    (tasks * BINS * size_of::<u64>()) as u64
}

/// Which entries of one task vector are kept.
#[derive(Clone, Debug, PartialEq)]
pub struct Kept {
    /// The smallest magnitude that is kept, as bits.
    least: u64,
    /// Tensor and index of the last entry of that magnitude that is kept.
    last: (usize, usize),
    /// How many entries are kept.
    pub count: u64,
}

impl Kept {
    /// Every entry.
    pub fn all(count: u64) -> Self {
        Kept { least: 0, last: (usize::MAX, usize::MAX), count }
    }

    /// No entry.
    pub fn none() -> Self {
        Kept { least: u64::MAX, last: (0, 0), count: 0 }
    }

    /// Whether the number at this index of a tensor is kept.
    pub fn keeps(&self, tensor: usize, index: usize, x: f64) -> bool {
        let bits = magnitude(x);
        bits > self.least || bits == self.least && (tensor, index) <= self.last
    }
}

/// Order of magnitudes as order of integers.
fn magnitude(x: f64) -> u64 {
    x.abs().to_bits()
}

/// Among which entries the largest are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// All of a task vector together, as in the papers.
    #[default]
    Global,
    /// Each tensor for itself, as in mergekit.
    PerTensor,
}

/// For each task and each ranking, the `⌊share·d⌋` largest magnitudes; ties go to the lower index.
///
/// Returns `[task][ranking]`: one ranking, or one a tensor.
pub fn largest(vectors: &dyn TaskVectors, share: f64, scope: Scope) -> Result<Vec<Vec<Kept>>> {
    let groups: Vec<Vec<usize>> = match scope {
        Scope::Global => vec![(0..vectors.tensors().len()).collect()],
        Scope::PerTensor => (0..vectors.tensors().len()).map(|t| vec![t]).collect(),
    };
    let mut kept = vec![Vec::new(); vectors.count()];
    for group in groups {
        for (task, found) in kept.iter_mut().zip(among(vectors, &group, share)?) {
            task.push(found);
        }
    }
    Ok(kept)
}

/// How many of `d` entries a share is; products such as 0.29·100 do not lose one by rounding.
pub fn count(share: f64, d: u64) -> u64 {
    ((share * d as f64 * (1.0 + 1e-12)).floor() as u64).min(d)
}

fn among(vectors: &dyn TaskVectors, group: &[usize], share: f64) -> Result<Vec<Kept>> {
    let tensors = vectors.tensors();
    let d: u64 = group.iter().map(|t| MergedTensor::len(&tensors[*t]) as u64).sum();
    let k = count(share, d);
    let tasks = vectors.count();
    if k == d {
        return Ok(vec![Kept::all(d); tasks]);
    }
    if k == 0 {
        return Ok(vec![Kept::none(); tasks]);
    }
    // What is known of the k-th magnitude's bits, and how many entries with these bits are wanted.
    let (mut prefix, mut wanted, mut there) = (vec![0u64; tasks], vec![k; tasks], vec![d; tasks]);
    for pass in 0..3u32 {
        let shift = BITS * (2 - pass);
        let mut bins = vec![vec![0u64; BINS]; tasks];
        each(vectors, group, &mut |piece| {
            for ((delta, bins), prefix) in piece.deltas.iter().zip(&mut bins).zip(&prefix) {
                for bits in delta.iter().map(|x| magnitude(*x)) {
                    if pass == 0 || bits >> (shift + BITS) == *prefix {
                        bins[(bits >> shift) as usize & (BINS - 1)] += 1;
                    }
                }
            }
            Ok(())
        })?;
        for (task, bins) in bins.iter().enumerate() {
            let mut bin = BINS - 1;
            while bins[bin] < wanted[task] {
                wanted[task] -= bins[bin];
                bin -= 1;
            }
            there[task] = bins[bin];
            prefix[task] = prefix[task] << BITS | bin as u64;
        }
    }
    let mut kept: Vec<Kept> =
        prefix.iter().map(|least| Kept { least: *least, last: (usize::MAX, usize::MAX), count: k }).collect();
    if there != wanted {
        let mut left = wanted.clone();
        each(vectors, group, &mut |piece| {
            for (task, delta) in piece.deltas.iter().enumerate() {
                for (i, x) in delta.iter().enumerate() {
                    if left[task] > 0 && magnitude(*x) == kept[task].least {
                        left[task] -= 1;
                        kept[task].last = (piece.tensor, piece.start + i);
                    }
                }
            }
            Ok(())
        })?;
    }
    Ok(kept)
}

fn each(
    vectors: &dyn TaskVectors,
    group: &[usize],
    f: &mut dyn FnMut(&Piece<'_>) -> Result<()>,
) -> Result<()> {
    group.iter().try_for_each(|tensor| vectors.pieces_of(*tensor, f))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::InMemory;

    fn brute(x: &[f64], k: usize) -> Vec<bool> {
        let mut order: Vec<usize> = (0..x.len()).collect();
        order.sort_by(|a, b| x[*b].abs().total_cmp(&x[*a].abs()).then(a.cmp(b)));
        let mut kept = vec![false; x.len()];
        order[..k].iter().for_each(|i| kept[*i] = true);
        kept
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(48) })]

        #[test]
        fn as_sorting_would_choose(
            x in prop::collection::vec(prop_oneof![(-3i32..3).prop_map(f64::from), -1e6f64..1e6], 1..300),
            share in 0.0f64..=1.0, cut in 0usize..300,
        ) {
            let cut = cut % (x.len() + 1);
            let vectors = InMemory::new(&[("a", cut), ("b", x.len() - cut)], &vec![0.0; x.len()], std::slice::from_ref(&x));
            let kept = &largest(&vectors, share, Scope::Global).unwrap()[0][0];
            let k = count(share, x.len() as u64) as usize;
            let found: Vec<bool> = x.iter().enumerate().map(|(i, v)| {
                let (tensor, index) = if i < cut { (0, i) } else { (1, i - cut) };
                kept.keeps(tensor, index, *v)
            }).collect();
            prop_assert_eq!(found, brute(&x, k));
        }
    }
}
