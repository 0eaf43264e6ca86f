//! Sites around the blocks: keys and values before every segment, rows before every segment, the way
//! through the blocks, and the whole network from outside; a reducer between every block's attention and MLP.
//!
//! Each has room for one adapter a model. All of them are off where [`crate::Mode::adapters`] is.

use std::cell::RefCell;
use std::ops::Range;
use std::rc::Rc;

use anyhow::{Result, bail};
use ramekin_core::{BadSetting, UserError};
use ramekin_tape::{Value, ops};

use crate::{ActivationPolicy, FlatBatch, Forward, Model, Reducer};

/// Constant keys and values that every query of every segment sees.
pub trait AttentionAdapter {
    /// How many, P. They count in position ids: a segment's first token has position P.
    fn tokens(&self) -> usize;
    /// Keys and values of a layer, `[P, K·D]` each; nobody rotates these keys.
    fn prefix(&self, fx: &Forward, layer: usize) -> Result<(Value, Value)>;
}

/// Virtual tokens before every segment, as rows of the embedding.
pub trait RowAdapter {
    /// How many, P.
    fn tokens(&self) -> usize;
    /// The rows, `[P, d]`.
    fn rows(&self, fx: &Forward) -> Result<Value>;
}

/// Another way through the blocks than one after the other on one stream.
pub trait PathAdapter {
    /// From what comes before the first block to what the final norm is given, `[N, d]` both. `policy` decides
    /// what is kept for backward; there is none where nothing is walked back.
    fn forward(
        &self,
        fx: &Forward,
        model: &Rc<dyn Model>,
        h: Value,
        policy: Option<&dyn ActivationPolicy>,
    ) -> Result<Value>;
}

/// A network beside the backbone, which runs without tape.
pub trait NetworkAdapter {
    /// From all hidden states to what the head is given, `[N, d]`: `states[0]` is the embedding's output,
    /// `states[i]` block i's, the last one after the final norm. They carry no gradient.
    fn forward(&self, fx: &Forward, states: &[Value]) -> Result<Value>;
}

/// What is attached around the blocks.
#[derive(Default)]
pub struct Around {
    prefix: Place<dyn AttentionAdapter>,
    rows: Place<dyn RowAdapter>,
    path: Place<dyn PathAdapter>,
    network: Place<dyn NetworkAdapter>,
    reducer: Place<dyn Reducer>,
}

/// Room for one.
struct Place<T: ?Sized>(RefCell<Option<Rc<T>>>);

impl<T: ?Sized> Default for Place<T> {
    fn default() -> Self {
        Place(RefCell::new(None))
    }
}

impl<T: ?Sized> Place<T> {
    fn get(&self) -> Option<Rc<T>> {
        self.0.borrow().clone()
    }

    fn is_taken(&self) -> bool {
        self.0.borrow().is_some()
    }

    fn fill(&self, what: &str, value: Rc<T>) -> Result<()> {
        if self.is_taken() {
            bail!(
                UserError::new(format!("two parts want to give this model {what}")).help("keep one of them")
            );
        }
        *self.0.borrow_mut() = Some(value);
        Ok(())
    }
}

impl Around {
    /// Attaches keys and values.
    ///
    /// # Errors
    /// If there are some already.
    pub fn attach_prefix(&self, adapter: Rc<dyn AttentionAdapter>) -> Result<()> {
        self.prefix.fill("a prefix of keys and values", adapter)
    }

    /// Attaches virtual tokens.
    ///
    /// # Errors
    /// If there are some already.
    pub fn attach_rows(&self, adapter: Rc<dyn RowAdapter>) -> Result<()> {
        self.rows.fill("virtual tokens", adapter)
    }

    /// Attaches a way through the blocks.
    ///
    /// # Errors
    /// If there is one already.
    pub fn attach_path(&self, adapter: Rc<dyn PathAdapter>) -> Result<()> {
        self.path.fill("a way through its blocks", adapter)
    }

    /// Attaches a network beside the backbone.
    ///
    /// # Errors
    /// If there is one already.
    pub fn attach_network(&self, adapter: Rc<dyn NetworkAdapter>) -> Result<()> {
        self.network.fill("a network beside its backbone", adapter)
    }

    /// Attaches what makes the tokens fewer.
    ///
    /// # Errors
    /// If there is something already.
    pub fn attach_reducer(&self, reducer: Rc<dyn Reducer>) -> Result<()> {
        self.reducer.fill("fewer tokens", reducer)
    }

    /// What makes the tokens fewer.
    pub fn reducer(&self) -> Option<Rc<dyn Reducer>> {
        self.reducer.get()
    }

    /// The keys and values.
    pub fn prefix(&self) -> Option<Rc<dyn AttentionAdapter>> {
        self.prefix.get()
    }

    /// The virtual tokens.
    pub fn rows(&self) -> Option<Rc<dyn RowAdapter>> {
        self.rows.get()
    }

    /// The way through the blocks.
    pub fn path(&self) -> Option<Rc<dyn PathAdapter>> {
        self.path.get()
    }

    /// The network beside the backbone.
    pub fn network(&self) -> Option<Rc<dyn NetworkAdapter>> {
        self.network.get()
    }

    /// Entries that a cache holds of the prefix of keys and values.
    pub fn prefix_tokens(&self) -> usize {
        self.prefix().map_or(0, |p| p.tokens())
    }

    /// Positions that are taken before the first real token.
    pub fn tokens(&self) -> usize {
        self.prefix_tokens() + self.rows().map_or(0, |r| r.tokens())
    }
}

/// Refuses `num_virtual_tokens` that leave no position for a real token.
///
/// # Errors
/// [`BadSetting`] of that name.
pub fn check_virtual_tokens(tokens: usize, positions: usize) -> Result<(), BadSetting> {
    let setting = "num_virtual_tokens";
    if tokens == 0 {
        return Err(BadSetting::new(setting, "is 0; it must be at least 1"));
    }
    if tokens >= positions {
        let why =
            format!("is {tokens}; the model knows {positions} positions, which leaves none for a prompt");
        return Err(BadSetting::new(setting, why));
    }
    Ok(())
}

/// Segments with virtual tokens before those that begin in this forward.
pub struct Longer {
    /// The forward over the longer batch.
    pub fx: Forward,
    /// Its first rows.
    pub h: Value,
    real: Rc<Vec<u32>>,
}

impl Longer {
    /// `h` are the embedded tokens of `fx`. `None` where nothing is attached.
    pub(crate) fn of(fx: &Forward, h: &Value) -> Result<Option<Self>> {
        let Some(adapter) = fx.sites.around().rows().filter(|_| fx.mode.adapters) else { return Ok(None) };
        let p = adapter.tokens();
        let batch = &fx.batch;
        let (mut ids, mut positions, mut segments) = (Vec::new(), Vec::new(), Vec::new());
        let (mut real, mut pieces) = (Vec::new(), Vec::new());
        for (i, range) in batch.segments.iter().enumerate() {
            let begins = !range.is_empty() && fx.begins(i);
            let from = ids.len();
            if begins {
                let first = batch.positions[range.start];
                ids.extend(std::iter::repeat_n(0, p));
                positions.extend(first..first + p as u32);
            }
            real.extend((ids.len()..ids.len() + range.len()).map(|r| r as u32));
            ids.extend_from_slice(&batch.ids[range.clone()]);
            positions.extend(batch.positions[range.clone()].iter().map(|at| at + p as u32));
            segments.push(from..ids.len());
            pieces.push((begins, range.clone()));
        }
        let batch = FlatBatch {
            ids: Rc::new(ids),
            positions: Rc::new(positions),
            segments: Rc::new(segments),
            images: batch.images.clone(),
        };
        let h = match pieces.iter().any(|(begins, _)| *begins) {
            true => ops::prepend(&fx.tape, &adapter.rows(fx)?, h, &Rc::new(pieces))?,
            false => h.clone(),
        };
        Ok(Some(Longer { fx: fx.over(batch), h, real: Rc::new(real) }))
    }

    /// The rows of real tokens among the outputs.
    pub fn real(&self, y: &Value) -> Result<Value> {
        if self.real.len() == y.array().rows().0 {
            return Ok(y.clone());
        }
        ops::select_rows(&self.fx.tape, y, &self.real)
    }
}

/// Ranges of keys when P constant ones come before each segment's own.
pub(crate) fn pieces(segments: &[Range<usize>]) -> Rc<Vec<(bool, Range<usize>)>> {
    Rc::new(segments.iter().map(|s| (true, s.clone())).collect())
}
