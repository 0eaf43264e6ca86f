//! How much each block keeps, and how much of a recovery's rank it gets.
//!
//! s_l = 1/(1 + e^(−a·T·(I_l − mean I)))      ρ_l = (1−p)·s_l / mean s
//!
//! Where that keeps more than everything of some block, all s_l are drawn towards their mean until the
//! largest ρ is just below 1. The mean of ρ is 1 − p always.

/// The share of channels that each block keeps, from its mean importance a token.
///
/// `p` is the share that goes in all, `a` how much importance counts, `temperature` T its unit.
pub fn keep_ratios(importance: &[f64], p: f64, a: f64, temperature: f64) -> Vec<f64> {
    let s = weights(importance, a, temperature);
    let mean = s.iter().sum::<f64>() / s.len().max(1) as f64;
    let most = s.iter().fold(0.0f64, |m, x| m.max(*x));
    let keep = 1.0 - p;
    if s.iter().all(|x| *x == s[0]) {
        return vec![keep; s.len()];
    }
    if keep * most / mean < 1.0 {
        return s.iter().map(|x| keep * (x / mean)).collect();
    }
    let pull = mean * (1.0 / keep - 1.0) / (most - mean) / 1.05;
    s.iter().map(|x| keep * ((mean + (x - mean) * pull) / mean)).collect()
}

/// The sigmoid of each block's importance against the mean.
pub fn weights(importance: &[f64], a: f64, temperature: f64) -> Vec<f64> {
    let mean = importance.iter().sum::<f64>() / importance.len().max(1) as f64;
    importance.iter().map(|i| 1.0 / (1.0 + (-a * temperature * (i - mean)).exp())).collect()
}

/// Whole ranks, at least 1, in proportion to `weights` and `mean`·L in all; what rounding leaves over goes
/// to, or comes from, the largest remainders.
pub fn ranks(weights: &[f64], mean: usize) -> Vec<usize> {
    let total = mean * weights.len();
    let sum: f64 = weights.iter().sum();
    let wanted: Vec<f64> = weights.iter().map(|w| total as f64 * w / sum).collect();
    let mut ranks: Vec<usize> = wanted.iter().map(|w| (w.round() as usize).max(1)).collect();
    while ranks.iter().sum::<usize>() != total {
        let more = ranks.iter().sum::<usize>() < total;
        let left =
            |l: &usize| if more { wanted[*l] - ranks[*l] as f64 } else { ranks[*l] as f64 - wanted[*l] };
        let open = (0..ranks.len()).filter(|l| more || ranks[*l] > 1);
        let Some(l) = open.max_by(|a, b| left(a).total_cmp(&left(b)).then(b.cmp(a))) else { break };
        ranks[l] = if more { ranks[l] + 1 } else { ranks[l] - 1 };
    }
    ranks
}
