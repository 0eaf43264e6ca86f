//! Models: an embedding, a list of blocks, a norm and a head.

use std::rc::Rc;

use anyhow::{Result, bail};
use ramekin_core::UserError;
use ramekin_tape::Value;
use ramekin_tape::ops::{Activation, Reach};
use serde_json::Value as Json;

use crate::{Forward, ImageFacts, Loader, MlpSite};

/// What other parts may know of a model.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub struct ModelFacts {
    pub model_type: String,
    /// Outputs of the head: tokens, or classes of a model that reads images.
    pub vocab_size: usize,
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub blocks: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    /// Positions that the model was trained on.
    pub max_position_embeddings: usize,
    pub tie_word_embeddings: bool,
    /// Whether a token sees only what came before it, and predicts the next.
    pub causal: bool,
    /// What the tokens of each block's attention see of those before them.
    pub reach: Vec<Reach>,
    /// What an image is made into by a model that reads images; its class is told at an image's first token.
    pub images: Option<ImageFacts>,
    /// The function inside the blocks' MLPs.
    pub activation: Activation,
    /// The modules in each block that is attention, then MLP, each with its residual; empty for other blocks.
    pub halves: Vec<Halves>,
}

/// Paths of a block's two modules.
#[derive(Clone, Debug)]
pub struct Halves {
    /// Attention, its norm and residual not included.
    pub attention: String,
    /// MLP, likewise.
    pub mlp: String,
}

/// One half of a block, its norm and residual included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Half {
    /// The first.
    Attention,
    /// The second.
    Mlp,
}

/// A model of tokens in blocks. Rows are tokens of a [`crate::FlatBatch`].
pub trait Model {
    /// Its sizes.
    fn facts(&self) -> &ModelFacts;
    /// Ids, or images, to `[N, d]`.
    fn embed(&self, fx: &Forward) -> Result<Value>;
    /// Block `index` on `[N, d]`.
    fn block(&self, index: usize, fx: &Forward, x: &Value) -> Result<Value>;
    /// One half of block `index` on `[N, d]`, where [`ModelFacts::halves`] has it.
    ///
    /// # Errors
    /// If blocks of this model have no halves.
    fn half(&self, index: usize, half: Half, fx: &Forward, x: &Value) -> Result<Value> {
        let _ = (half, fx, x);
        bail!("block {index} of `{}` is not attention, then MLP", self.facts().model_type)
    }
    /// The norm before the head, on `[N, d]`.
    fn final_norm(&self, fx: &Forward, x: &Value) -> Result<Value>;
    /// The linears of a block's MLP; `None` where it has none that channels can be cut from.
    fn mlp(&self, _block: usize) -> Option<MlpSite> {
        None
    }
    /// `[N, d]` to logits `[N, V]`.
    fn head(&self, fx: &Forward, x: &Value) -> Result<Value>;
}

/// An architecture: reads its `config.json` and builds the model.
pub trait ModelFamily {
    /// Sizes, from the config alone.
    ///
    /// # Errors
    /// What is missing, contradictory or not supported in the config.
    fn facts(&self, config: &Json) -> Result<ModelFacts>;
    /// Loads every tensor through the loader.
    fn build(&self, config: &Json, loader: &mut Loader<'_>) -> Result<Rc<dyn Model>>;
    /// Changes the config so that these linears have biases. Returns every linear that has one then.
    ///
    /// # Errors
    /// If this architecture has no place for one of them.
    fn add_biases(&self, config: &mut Json, linears: &[String]) -> Result<Vec<String>> {
        let _ = config;
        let first = linears.first().map_or("a linear", String::as_str);
        Err(no_bias(first))
    }
}

/// The refusal of a bias.
pub fn no_bias(path: &str) -> anyhow::Error {
    UserError::new(format!(
        "folding in what is attached gives `{path}` a bias, for which this architecture has no place"
    ))
    .help("leave that module out, or serve the adapter unmerged")
    .into()
}
