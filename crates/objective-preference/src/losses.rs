//! The loss of a pair, by TRL's names.
//!
//! Δ log π/π_ref of an answer, δ the chosen's less the rejected's (after the f-divergence), n tokens, β, ε:
//!
//! | name | loss |
//! |---|---|
//! | `sigmoid` | −log σ(βδ) |
//! | `robust` | [−(1−ε) log σ(βδ) + ε log σ(−βδ)] / (1−2ε) |
//! | `hinge` | max(0, 1−βδ) |
//! | `ipo` | (Δ_c/n_c − Δ_r/n_r − 1/(2β))² |
//! | `exo_pair` | σ(βδ)(log σ(βδ) − log(1−ε)) + σ(−βδ)(log σ(−βδ) − log ε) |
//! | `nca_pair` | −log σ(βΔ_c) − ½ log σ(−βΔ_c) − ½ log σ(−βΔ_r) |
//! | `bco_pair` | −log σ(βΔ_c) − log σ(−βΔ_r) |
//! | `sppo_hard` | (Δ_c − ½/β)² + (Δ_r + ½/β)² |
//! | `apo_zero` | 1 − σ(βΔ_c) + σ(βΔ_r) |
//! | `apo_down` | σ(βΔ_c) + 1 − σ(βδ) |
//! | `sigmoid_norm` | −log σ(β(Δ_c/n_c − Δ_r/n_r)) |
//! | `discopop` | (1−m)(−log σ(βδ)) + m e^{−βδ}, m = σ(βδ/τ), τ = 0.05 |
//! | `sft` | cross-entropy of the chosen answer, over its tokens |

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::dual::Dual;

/// Which loss.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LossType {
    /// DPO's own: −log σ(βδ).
    #[default]
    Sigmoid,
    /// For labels of which a share ε is wrong.
    Robust,
    /// A margin of 1/β.
    Hinge,
    /// Towards a gap of 1/(2β) a token.
    Ipo,
    /// The reverse Kullback-Leibler divergence from the smoothed preference.
    ExoPair,
    /// Each answer against the reference.
    NcaPair,
    /// Each answer classified.
    BcoPair,
    /// Towards ±1/(2β).
    SppoHard,
    /// Chosen up, rejected down.
    ApoZero,
    /// Both down, the rejected more.
    ApoDown,
    /// `sigmoid` a token.
    SigmoidNorm,
    /// A blend found by search.
    Discopop,
    /// Cross-entropy of the chosen answer.
    Sft,
}

/// A pair: Δ of both, δ, and the tokens of both.
pub(crate) struct Pair {
    pub chosen: Dual,
    pub rejected: Dual,
    pub delta: Dual,
    pub tokens: [f64; 2],
}

/// DiscoPOP's τ.
const TAU: f64 = 0.05;

impl LossType {
    /// The name in recipes.
    pub fn name(self) -> String {
        serde_json::to_value(self).ok().and_then(|v| v.as_str().map(str::to_owned)).unwrap_or_default()
    }

    /// Whether ε has a place in it.
    pub(crate) fn smooths(self) -> bool {
        matches!(self, LossType::Robust | LossType::ExoPair)
    }

    /// The loss of one pair; `sft` is no function of a pair and gives 0 here.
    pub(crate) fn of(self, p: &Pair, beta: f64, eps: f64) -> Dual {
        let z = p.delta * beta;
        let (c, r) = (p.chosen * beta, p.rejected * beta);
        let per_token = || p.chosen * (1.0 / p.tokens[0]) - p.rejected * (1.0 / p.tokens[1]);
        match self {
            LossType::Sigmoid => -z.log_sigmoid(),
            LossType::Robust => {
                (z.log_sigmoid() * -(1.0 - eps) + (-z).log_sigmoid() * eps) * (1.0 / (1.0 - 2.0 * eps))
            }
            LossType::Hinge => (-z + 1.0).hinge(),
            LossType::Ipo => (per_token() - 0.5 / beta).square(),
            LossType::ExoPair => {
                z.sigmoid() * (z.log_sigmoid() - (1.0 - eps).ln())
                    + (-z).sigmoid() * ((-z).log_sigmoid() - eps.ln())
            }
            LossType::NcaPair => -c.log_sigmoid() - (-c).log_sigmoid() * 0.5 - (-r).log_sigmoid() * 0.5,
            LossType::BcoPair => -c.log_sigmoid() - (-r).log_sigmoid(),
            LossType::SppoHard => (p.chosen - 0.5 / beta).square() + (p.rejected + 0.5 / beta).square(),
            LossType::ApoZero => -c.sigmoid() + 1.0 + r.sigmoid(),
            LossType::ApoDown => c.sigmoid() + 1.0 - z.sigmoid(),
            LossType::SigmoidNorm => -(per_token() * beta).log_sigmoid(),
            LossType::Discopop => {
                let m = (z * (1.0 / TAU)).sigmoid();
                (-m + 1.0) * -z.log_sigmoid() + m * (-z).exp()
            }
            LossType::Sft => Dual::constant(0.0),
        }
    }

    #[cfg(test)]
    pub(crate) const ALL: [LossType; 13] = [
        LossType::Sigmoid,
        LossType::Robust,
        LossType::Hinge,
        LossType::Ipo,
        LossType::ExoPair,
        LossType::NcaPair,
        LossType::BcoPair,
        LossType::SppoHard,
        LossType::ApoZero,
        LossType::ApoDown,
        LossType::SigmoidNorm,
        LossType::Discopop,
        LossType::Sft,
    ];
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(kind: LossType, c: f64, r: f64) -> Dual {
        let (chosen, rejected) = (Dual::variable(c, 0), Dual::variable(r, 1));
        kind.of(&Pair { chosen, rejected, delta: chosen - rejected, tokens: [3.0, 5.0] }, 0.4, 0.2)
    }

    #[test]
    fn slopes_are_the_slopes() {
        for kind in LossType::ALL {
            for (c, r) in [(0.7, -0.4), (-1.3, 0.9), (0.0, 0.3)] {
                let h = 1e-6;
                let by_c = (at(kind, c + h, r).value - at(kind, c - h, r).value) / (2.0 * h);
                let by_r = (at(kind, c, r + h).value - at(kind, c, r - h).value) / (2.0 * h);
                let found = at(kind, c, r).slopes;
                assert!(
                    (found[0] - by_c).abs() < 1e-7 && (found[1] - by_r).abs() < 1e-7,
                    "{kind:?}: {found:?}"
                );
            }
        }
    }

    #[test]
    fn at_the_reference() {
        let sigmoid = at(LossType::Sigmoid, 0.0, 0.0);
        assert!((sigmoid.value - 2f64.ln()).abs() < 1e-15);
        assert!((sigmoid.slopes[0] + 0.2).abs() < 1e-15 && (sigmoid.slopes[1] - 0.2).abs() < 1e-15);
        assert!((at(LossType::Ipo, 0.0, 0.0).value - 1.0 / (4.0 * 0.16)).abs() < 1e-12);
        assert!((at(LossType::ApoZero, 0.0, 0.0).value - 1.0).abs() < 1e-15);
        assert!((at(LossType::BcoPair, 0.0, 0.0).value - 2.0 * 2f64.ln()).abs() < 1e-15);
    }

    #[test]
    fn far_away_nothing_overflows() {
        for kind in LossType::ALL {
            for x in [-800.0, 800.0] {
                let found = at(kind, x, -x);
                let fine = found.value.is_finite() && found.slopes.iter().all(|s| s.is_finite());
                assert!(fine || kind == LossType::Discopop, "{kind:?} at {x}: {found:?}");
            }
        }
    }
}
