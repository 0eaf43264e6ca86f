//! Pruning: channels of a model's MLPs that go, chosen from what a calibration pass saw.

use anyhow::Result;
use ramekin_core::Array;
use serde_json::Value as Json;

/// The linears of a gated MLP, by module path; the width is that of `up` and `gate`'s outputs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MlpSite {
    /// `[m, d]`.
    pub up: String,
    /// `[m, d]`; `None` for an MLP of two matrices.
    pub gate: Option<String>,
    /// `[d, m]`.
    pub down: String,
}

/// What a calibration pass saw of one block.
#[derive(Clone, Debug, Default)]
pub struct BlockStatistics {
    /// How far the block moves its input, a token's mean, by each metric of [`BlockMetric`].
    pub moved: Vec<(BlockMetric, f64)>,
    /// Of every input channel of `down`: √(Σ x²/samples), x the input over all tokens.
    pub norms: Vec<f64>,
}

/// How far a block moves its input h to h′, a token's mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BlockMetric {
    /// arccos(h·h′ / ‖h‖‖h′‖) / π.
    Angular,
    /// 1 − h·h′ / ‖h‖‖h′‖.
    Cosine,
    /// Mean of (h − h′)².
    Mse,
    /// Mean of |h − h′|.
    Mae,
}

impl BlockMetric {
    /// Every metric, in the order of [`BlockStatistics::moved`].
    pub const ALL: [BlockMetric; 4] =
        [BlockMetric::Angular, BlockMetric::Cosine, BlockMetric::Mse, BlockMetric::Mae];
}

/// The weights of an MLP that is looked at, f32.
pub struct MlpWeights {
    /// `[m, d]`.
    pub up: Array,
    /// `[m, d]`.
    pub gate: Option<Array>,
    /// `[d, m]`.
    pub down: Array,
}

/// Chooses the channels that stay.
pub trait Pruner {
    /// How many channels of each block stay, from what all blocks did and how wide they are.
    ///
    /// # Errors
    /// [`ramekin_core::BadSetting`] where a block would keep none.
    fn widths(&mut self, blocks: &[BlockStatistics], widths: &[usize]) -> Result<Vec<usize>>;
    /// A score of each channel of a block; the highest stay.
    fn scores(&self, block: &BlockStatistics, weights: &MlpWeights) -> Result<Vec<f64>>;
    /// Figures to report and to keep with the model; after [`Pruner::widths`].
    fn report(&self) -> Json;
}
