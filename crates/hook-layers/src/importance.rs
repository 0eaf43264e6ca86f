//! Scores of layers: how sets are drawn by them, and how they are learnt.

use ramekin_core::Draws;

/// The logistic function.
pub fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// `count` places without replacement, each draw with probability proportional to the weights that are
/// left; ascending.
pub fn sample(weights: &[f64], count: usize, draws: &mut Draws) -> Vec<usize> {
    let mut left: Vec<usize> = (0..weights.len()).collect();
    let mut chosen = Vec::with_capacity(count);
    while chosen.len() < count && !left.is_empty() {
        let sum: f64 = left.iter().map(|i| weights[*i]).sum();
        let mut u = draws.uniform() * sum;
        let at = left.iter().position(|i| {
            u -= weights[*i];
            u < 0.0
        });
        // Rounding, or weights that are all 0, may leave none: then the last one.
        chosen.push(left.remove(at.unwrap_or(left.len() - 1)));
    }
    chosen.sort_unstable();
    chosen
}

/// The scores after a loop: I_i + μ Σ_k∋i (r_k − r̄)·p_i·(1 − p_i), r_k = e^(−L_k), p_i = σ(I_i).
/// `None` where a loss is not finite.
///
/// A larger score is a *less* important layer: its suppression helped.
pub fn update(scores: &[f64], sets: &[Vec<usize>], losses: &[f64], rate: f64) -> Option<Vec<f64>> {
    if losses.iter().any(|l| !l.is_finite()) {
        return None;
    }
    let rewards: Vec<f64> = losses.iter().map(|l| (-l).exp()).collect();
    let mean = rewards.iter().sum::<f64>() / rewards.len().max(1) as f64;
    let mut new = scores.to_vec();
    for (set, reward) in sets.iter().zip(rewards) {
        for i in set {
            let p = sigmoid(scores[*i]);
            new[*i] += rate * (reward - mean) * p * (1.0 - p);
        }
    }
    Some(new)
}
