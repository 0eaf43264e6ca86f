//! Objectives: what a training step makes smaller, and what it may run for that.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use anyhow::{Context, Result};
use ramekin_core::{Array, Ledger, Param, Rng};
use ramekin_tape::{Tape, Value, ops};
use serde_json::{Map, Value as Json};

use crate::{FlatBatch, Forward, Mode, Model, ModelFacts, ModelRef, Sites, Words};

/// What an objective's rows are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Rows {
    /// Tokens, some of which are to be predicted.
    #[default]
    Tokens,
    /// Segments 2i and 2i + 1 are an answer that was chosen and one that was rejected.
    Pairs,
    /// Each segment has numbers of its own to predict: a class, classes or values.
    Targets,
}

impl Rows {
    /// What such rows have, for messages.
    pub fn words(self) -> &'static str {
        match self {
            Rows::Tokens => "text to predict",
            Rows::Pairs => "`chosen` and `rejected`",
            Rows::Targets => "`text` and `label`",
        }
    }
}

/// A change of the embedded tokens before the first block: `[N, d]` to the same shape.
pub type OnEmbedding<'a> = dyn Fn(&Forward, Value) -> Result<Value> + 'a;

/// A model that can be run: the one in work, or another that a part named.
pub trait Runner {
    /// Its sizes.
    fn facts(&self) -> &ModelFacts;
    /// Embedding, blocks and final norm.
    ///
    /// # Errors
    /// Faults of the forward, such as an id beyond the vocabulary.
    fn run(&self, tape: &Tape, batch: &FlatBatch, mode: Mode, on: Option<&OnEmbedding<'_>>)
    -> Result<States>;
}

/// A forward up to the head.
pub struct States {
    /// The forward.
    pub fx: Forward,
    /// Hidden states after the final norm, `[N, d]`.
    pub hidden: Value,
    /// The model that was run.
    pub model: Rc<dyn Model>,
}

impl States {
    /// The rows of hidden states that have a label, with their numbers and labels.
    pub fn labelled(&self, labels: &[i64]) -> Result<Labelled> {
        let rows: Vec<u32> = (0..labels.len() as u32).filter(|i| labels[*i as usize] != -100).collect();
        let targets = rows.iter().map(|i| labels[*i as usize]).collect();
        let rows = Rc::new(rows);
        let hidden = if rows.len() == labels.len() {
            self.hidden.clone()
        } else {
            ops::select_rows(&self.fx.tape, &self.hidden, &rows)?
        };
        Ok(Labelled { hidden, rows, targets })
    }

    /// The head, to be used on rows of the hidden states. It holds no tape, so it may live in a node of one.
    pub fn head(&self) -> Head {
        Head { model: self.model.clone(), fx: self.fx.on(&Tape::off()) }
    }
}

/// Rows of hidden states that have a label.
pub struct Labelled {
    /// The rows, `[n, d]`.
    pub hidden: Value,
    /// Which tokens of the batch they are.
    pub rows: Rc<Vec<u32>>,
    /// Their labels.
    pub targets: Vec<i64>,
}

/// A model's head for rows of hidden states.
#[derive(Clone)]
pub struct Head {
    model: Rc<dyn Model>,
    fx: Forward,
}

impl Head {
    /// Logits `[n, V]` of rows `[n, d]`.
    pub fn logits(&self, tape: &Tape, rows: &Value) -> Result<Value> {
        self.model.head(&self.fx.on(tape), rows)
    }
}

/// What an objective is given for one micro-batch.
pub struct ObjectiveContext<'a> {
    /// Where the loss is recorded.
    pub tape: &'a Tape,
    /// Training or not, and the address of its randomness.
    pub mode: Mode,
    /// The tokens.
    pub flat: &'a FlatBatch,
    /// The id to predict at each token, −100 for none.
    pub labels: &'a [i64],
    /// The numbers to predict of each segment; empty where rows have none.
    pub targets: &'a [Vec<f32>],
    /// [`Objective::counts`] summed over the micro-batches of the step.
    pub totals: &'a [f64],
    /// The model in work.
    pub model: &'a dyn Runner,
    /// The models that [`Objective::models`] named.
    pub others: BTreeMap<String, &'a dyn Runner>,
}

impl ObjectiveContext<'_> {
    /// The model in work over the batch, as the step runs it.
    pub fn forward(&self) -> Result<States> {
        self.forward_with(None)
    }

    /// The same with a change of the embedded tokens.
    pub fn forward_with(&self, on: Option<&OnEmbedding<'_>>) -> Result<States> {
        self.model.run(self.tape, self.flat, self.mode, on)
    }

    /// The model in work without dropout and the like.
    pub fn forward_plain(&self) -> Result<States> {
        self.model.run(self.tape, self.flat, Mode { training: false, ..self.mode }, None)
    }

    /// The model in work with adapters off and nothing recorded: the base, bit for bit.
    pub fn base(&self) -> Result<States> {
        let mode = Mode { training: false, adapters: false, ..self.mode };
        self.model.run(&Tape::off(), self.flat, mode, None)
    }

    /// Another model over the batch, without dropout and with nothing recorded.
    ///
    /// # Errors
    /// If no such model was named.
    pub fn other(&self, name: &str) -> Result<States> {
        let runner = self.others.get(name).with_context(|| format!("no model `{name}` was loaded"))?;
        runner.run(&Tape::off(), self.flat, Mode { training: false, ..self.mode }, None)
    }

    /// 1 over entry `i` of the step's totals, by which a mean's summands are scaled.
    pub fn scale(&self, i: usize) -> f64 {
        1.0 / self.totals.get(i).copied().unwrap_or(0.0).max(1.0)
    }
}

/// A figure beside the loss: the mean over the step is `Σ sum / Σ count`.
#[derive(Clone, Debug, PartialEq)]
pub struct Figure {
    /// Its name in `metrics.jsonl`.
    pub name: &'static str,
    /// Sum over this micro-batch.
    pub sum: f64,
    /// How many it is the sum of.
    pub count: f64,
}

/// What an objective makes of a micro-batch.
pub struct Loss {
    /// This micro-batch's share of the step's loss, a scalar.
    pub value: Value,
    /// What else it saw.
    pub figures: Vec<Figure>,
    /// Predicted and wanted class of every row, where [`Objective::predicts`].
    pub predictions: Vec<(i64, i64)>,
}

impl From<Value> for Loss {
    fn from(value: Value) -> Self {
        Loss { value, figures: Vec::new(), predictions: Vec::new() }
    }
}

/// What an objective may use to put parameters of its own in place.
pub struct ObjectiveAttach<'a> {
    /// Where its parameters are entered.
    pub ledger: &'a mut Ledger,
    /// The model's sites.
    pub sites: Rc<Sites>,
    /// The model's sizes.
    pub facts: &'a ModelFacts,
    /// The model's tokenizer, where it has one.
    pub words: Option<&'a dyn Words>,
    /// The run's randomness.
    pub rng: Rng,
    /// Parameters get shapes only.
    pub shape_only: bool,
    /// Whether the parameters train; not in an evaluation.
    pub training: bool,
    /// Finds a tensor by its name in a model's files that a saved model or adapter brought along.
    pub saved: &'a dyn Fn(&str) -> Result<Option<Array>>,
}

/// What an objective leaves in files beside an adapter, or in a model of its own.
#[derive(Default)]
pub struct ObjectiveFile {
    /// Parameters by their names in a model's files.
    pub params: Vec<(String, Arc<Param>)>,
    /// Keys that `adapter_config.json` gets.
    pub adapter_config: Map<String, Json>,
    /// Keys that a whole model's `config.json` gets.
    pub model_config: Map<String, Json>,
    /// Ending of the model's class, as `ForSequenceClassification`; it takes the place of `ForCausalLM`.
    pub class: Option<&'static str>,
}

/// A loss, its rows, the models it compares with and the parameters it adds.
pub trait Objective {
    /// What its rows are.
    fn rows(&self) -> Rows {
        Rows::Tokens
    }

    /// Further models that it runs, by the setting that names each.
    fn models(&self) -> Vec<(&'static str, ModelRef)> {
        Vec::new()
    }

    /// Where it compares with the base, adapters off, so that nothing of the base may train: the setting
    /// that would name another model instead.
    fn compares_with_base(&self) -> Option<&'static str> {
        None
    }

    /// The figure that evaluations call `accuracy`, if it gives one.
    fn accuracy(&self) -> Option<&'static str> {
        None
    }

    /// Whether [`Loss::predictions`] are its own; otherwise they are the tokens with the largest logits.
    fn predicts(&self) -> bool {
        self.rows() != Rows::Tokens
    }

    /// Holds the numbers that a segment is to give against the settings.
    ///
    /// # Errors
    /// What is wrong with them, in words that follow "the label of row n".
    fn check_target(&self, _target: &[f32]) -> Result<(), String> {
        Ok(())
    }

    /// Whether the loss is a mean cross-entropy of tokens, whose exponential is the perplexity.
    fn is_cross_entropy(&self) -> bool {
        false
    }

    /// Puts its own parameters in place, once, before the first step.
    ///
    /// # Errors
    /// [`ramekin_core::BadSetting`] if a setting does not fit the model.
    fn attach(&mut self, _cx: &mut ObjectiveAttach<'_>) -> Result<()> {
        Ok(())
    }

    /// What it leaves in files.
    fn file(&self) -> ObjectiveFile {
        ObjectiveFile::default()
    }

    /// What the step's means are over: for each mean, how many of its summands are in this batch. The
    /// first counts what a step needs at least one of.
    fn counts(&self, flat: &FlatBatch, labels: &[i64]) -> Vec<f64> {
        let _ = flat;
        vec![labelled_tokens(labels) as f64]
    }

    /// This micro-batch's share of the step's loss.
    ///
    /// # Errors
    /// Faults of the forward; targets that make no sense.
    fn loss(&self, cx: &ObjectiveContext<'_>) -> Result<Loss>;
}

/// Tokens with a label.
pub fn labelled_tokens(labels: &[i64]) -> usize {
    labels.iter().filter(|l| **l != -100).count()
}
