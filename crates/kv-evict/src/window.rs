//! What the end of a prompt looks at: votes of its last queries on everything before them.
//!
//! c_j = Σ_{i ∈ window} A_ij for each query head;  brought together over the query heads of a key head;
//! then pooled over m neighbours (stride 1, same length): the mean with zeros beyond the edges, always
//! divided by m, or the maximum.
//!
//! Source: Li et al. 2024 (SnapKV), arXiv:2404.14469.

use anyhow::Result;
use ramekin_core::BadSetting;
use ramekin_lanes::{Prompt, top};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How neighbours' votes are brought together.
#[derive(Clone, Copy, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Pooling {
    /// Their mean, with zeros beyond the edges.
    Avg,
    /// The largest of them.
    Max,
}

/// How the votes of query heads that share a key head are brought together.
#[derive(Clone, Copy, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum GqaReduce {
    /// Their mean.
    Mean,
    /// The largest of them.
    Max,
    /// Not at all: keys and values are stored for each query head, as the released code does.
    None,
}

/// The voters and how their votes count.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Window {
    pub size: usize,
    pub kernel: usize,
    pub pooling: Pooling,
    pub reduce: GqaReduce,
}

impl Window {
    /// Refuses sizes that make no sense; `names` are those of capacity, window and kernel.
    pub fn check(&self, capacity: usize, names: [&str; 3]) -> Result<()> {
        let [capacity_name, window_name, kernel_name] = names;
        if self.size == 0 {
            return Err(BadSetting::new(window_name, "is 0; it must be at least 1").into());
        }
        if self.size >= capacity {
            return Err(BadSetting::new(
                window_name,
                format!("is {}; it must be below `{capacity_name}`, {capacity}", self.size),
            )
            .into());
        }
        if self.kernel.is_multiple_of(2) {
            let message = format!("is {}; it must be odd", self.kernel);
            return Err(BadSetting::new(kernel_name, message).into());
        }
        Ok(())
    }

    /// Lanes of a layer.
    pub fn lanes(&self, prompt: &Prompt<'_>) -> usize {
        if self.reduce == GqaReduce::None { prompt.heads } else { prompt.kv_heads }
    }

    /// Pooled votes of each lane on the entries before the window.
    pub fn scores(&self, prompt: &Prompt<'_>) -> Vec<Vec<f32>> {
        let lanes = self.lanes(prompt);
        let group = (prompt.heads / lanes) as f32;
        let before = prompt.len - self.size;
        let votes = match self.reduce {
            GqaReduce::Max => prompt.votes_by_lane(lanes, f32::max),
            _ => prompt.votes_by_lane(lanes, |a, b| a + b),
        };
        votes
            .into_iter()
            .map(|mut row| {
                row.truncate(before);
                if self.reduce == GqaReduce::Mean {
                    row.iter_mut().for_each(|x| *x /= group);
                }
                pool(&row, self.kernel, self.pooling)
            })
            .collect()
    }

    /// Each lane's `budgets` best entries before the window, and the window.
    pub fn select(&self, scores: &[Vec<f32>], budgets: &[usize], len: usize) -> Vec<Vec<usize>> {
        let one = |(scores, budget): (&Vec<f32>, &usize)| {
            let mut kept = top(scores, *budget);
            kept.extend(len - self.size..len);
            kept
        };
        scores.iter().zip(budgets).map(one).collect()
    }
}

/// Pools over `kernel` neighbours, an odd number.
pub(crate) fn pool(x: &[f32], kernel: usize, pooling: Pooling) -> Vec<f32> {
    let reach = kernel / 2;
    let near = |j: usize| &x[j.saturating_sub(reach)..(j + reach + 1).min(x.len())];
    match pooling {
        Pooling::Avg => (0..x.len()).map(|j| near(j).iter().sum::<f32>() / kernel as f32).collect(),
        Pooling::Max => {
            (0..x.len()).map(|j| near(j).iter().copied().fold(f32::NEG_INFINITY, f32::max)).collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pools_as_padded() {
        let x = [3.0, 0.0, 0.0, 9.0, 6.0];
        assert_eq!(pool(&x, 3, Pooling::Avg), [1.0, 1.0, 3.0, 5.0, 5.0]);
        assert_eq!(pool(&x, 3, Pooling::Max), [3.0, 3.0, 9.0, 9.0, 9.0]);
        assert_eq!(pool(&x, 1, Pooling::Max), x);
    }
}
