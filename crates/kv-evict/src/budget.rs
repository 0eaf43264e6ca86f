//! Who may keep how much: budgets by layer and by head.

use ramekin_lanes::top;

/// PyramidKV: entries before the window that each layer keeps of a prompt of n tokens, w of them the window.
///
/// b_min = ⌊B/β⌋, b_max = 2B − b_min (at most n − w, then b_min = 2B − b_max), falling in a line from the
/// first layer to the last; the mean over layers is B. A prompt of fewer than 2B tokens gives every layer B.
/// With `exact` the line is rounded so that the sum is layers·B; without, each step is floored as released.
pub fn by_layer(layers: usize, budget: usize, beta: usize, n: usize, w: usize, exact: bool) -> Vec<usize> {
    let before = n.saturating_sub(w);
    if layers < 2 || n < 2 * budget {
        return vec![budget.min(before); layers];
    }
    let mut least = budget / beta.max(1);
    let mut most = 2 * budget - least;
    if most >= before {
        most = before;
        least = (2 * budget).saturating_sub(most).min(most);
    }
    let (span, gaps) = (most - least, layers - 1);
    if !exact {
        return (0..layers).map(|l| most - l * (span / gaps)).collect();
    }
    // most − l·span/gaps, floored, with its remainder in parts of `gaps`.
    let line = |l: usize| (most * gaps - l * span).div_euclid(gaps);
    let rest = |l: usize| (most * gaps - l * span).rem_euclid(gaps);
    let mut all: Vec<usize> = (0..layers).map(line).collect();
    let missing = (layers * (most + least) / 2).saturating_sub(all.iter().sum());
    let mut order: Vec<usize> = (0..layers).collect();
    order.sort_by_key(|l| (std::cmp::Reverse(rest(*l)), *l));
    order.into_iter().take(missing).for_each(|l| all[l] += 1);
    all
}

/// AdaKV: how many of the `heads·budget` largest scores of all heads fall to each.
pub fn by_head(scores: &[Vec<f32>], budget: usize) -> Vec<usize> {
    let flat: Vec<f32> = scores.iter().flatten().copied().collect();
    let width = scores.first().map_or(1, Vec::len).max(1);
    let mut counts = vec![0; scores.len()];
    top(&flat, scores.len() * budget).into_iter().for_each(|i| counts[i / width] += 1);
    counts
}
