//! How much a channel of an MLP matters.
//!
//! W′_ij = |down_ij|·A_j^b
//! score_j = mean_i [ W′_ij/N(W′) + |up_ji|/N(up) + |gate_ji|/N(gate) ] · A_j^c
//!
//! i is a hidden coordinate, j a channel, A_j its activation's norm, and 0/0 counts as 0. The authors' code
//! sums N over i, which makes each mean 1/d and the weights cancel; summed over the channels j instead, each
//! entry is held against the others of its hidden coordinate.

use anyhow::{Result, ensure};
use ramekin_slots::MlpWeights;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What a score is made of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LocalMetric {
    /// All three matrices, `down` with its activation, times the activation.
    #[default]
    ThreeWOneWa,
    /// All three matrices by weight alone, times the activation.
    ThreeWOneA,
    /// `down` with its activation, times the activation.
    OneWa,
    /// The activation alone.
    OneA,
    /// mean_i |down_ij|·A_j, without normalising.
    Wanda,
    /// The norm of `down`'s column.
    Magnitude,
}

/// Over which entries a matrix is summed to normalise it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Normaliser {
    /// Over all channels of a hidden coordinate.
    #[default]
    Relative,
    /// Over all hidden coordinates of a channel, as in the authors' code.
    Released,
}

/// A matrix seen as [hidden coordinate, channel].
struct Seen<'a> {
    numbers: &'a [f32],
    /// Whether rows are hidden coordinates.
    by_hidden: bool,
    d: usize,
    m: usize,
}

impl Seen<'_> {
    fn at(&self, i: usize, j: usize) -> f64 {
        let index = if self.by_hidden { i * self.m + j } else { j * self.d + i };
        f64::from(self.numbers[index].abs())
    }

    /// mean_i of entries over their sums, one a channel; entries are multiplied by `factor[j]` first.
    fn shares(&self, factor: &[f64], normaliser: Normaliser) -> Vec<f64> {
        let entry = |i: usize, j: usize| self.at(i, j) * factor[j];
        let mut shares = vec![0.0; self.m];
        match normaliser {
            Normaliser::Relative => {
                for i in 0..self.d {
                    let sum: f64 = (0..self.m).map(|j| entry(i, j)).sum();
                    if sum > 0.0 {
                        (0..self.m).for_each(|j| shares[j] += entry(i, j) / sum / self.d as f64);
                    }
                }
            }
            Normaliser::Released => {
                for (j, share) in shares.iter_mut().enumerate() {
                    let sum: f64 = (0..self.d).map(|i| entry(i, j)).sum();
                    if sum > 0.0 {
                        *share = (0..self.d).map(|i| entry(i, j) / sum).sum::<f64>() / self.d as f64;
                    }
                }
            }
        }
        shares
    }
}

/// One score a channel; `norms` are the A_j.
///
/// # Errors
/// If sizes do not fit, or a score is not finite.
pub fn score(
    metric: LocalMetric,
    normaliser: Normaliser,
    (b, c): (f64, f64),
    norms: &[f64],
    weights: &MlpWeights,
) -> Result<Vec<f64>> {
    let (d, m) = (weights.down.dims()[0], norms.len());
    ensure!(
        weights.down.dims() == [d, m] && weights.up.dims() == [m, d],
        "an MLP of {m} channels that does not fit"
    );
    let (up, down) = (weights.up.to_f32()?, weights.down.to_f32()?);
    let gate = weights.gate.as_ref().map(ramekin_core::Array::to_f32).transpose()?;
    let down = Seen { numbers: &down, by_hidden: true, d, m };
    let rows = |numbers| Seen { numbers, by_hidden: false, d, m };
    let ones = vec![1.0; m];
    let raised = |e: f64| norms.iter().map(|a| if e == 0.0 { 1.0 } else { a.powf(e) }).collect::<Vec<f64>>();
    let (before, after) = (raised(b), raised(c));
    let mut sums = match metric {
        LocalMetric::ThreeWOneWa | LocalMetric::OneWa => down.shares(&before, normaliser),
        LocalMetric::ThreeWOneA => down.shares(&ones, normaliser),
        LocalMetric::OneA => ones.clone(),
        LocalMetric::Wanda => {
            (0..m).map(|j| (0..d).map(|i| down.at(i, j)).sum::<f64>() / d as f64 * norms[j]).collect()
        }
        LocalMetric::Magnitude => {
            (0..m).map(|j| (0..d).map(|i| down.at(i, j).powi(2)).sum::<f64>().sqrt()).collect()
        }
    };
    if matches!(metric, LocalMetric::ThreeWOneWa | LocalMetric::ThreeWOneA) {
        for matrix in std::iter::once(&up).chain(&gate) {
            let shares = rows(matrix).shares(&ones, normaliser);
            sums.iter_mut().zip(shares).for_each(|(sum, share)| *sum += share);
        }
    }
    if !matches!(metric, LocalMetric::Wanda | LocalMetric::Magnitude) {
        sums.iter_mut().zip(&after).for_each(|(sum, a)| *sum *= a);
    }
    ensure!(sums.iter().all(|s| s.is_finite()), "a channel's score is not finite");
    Ok(sums)
}
