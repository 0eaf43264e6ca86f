//! Physical surgery: channels of MLPs that are cut out of a model's tensors and its config, while it is written.
//!
//! Rows of `up` and `gate` (and their biases) and columns of `down` go; what is left is dense. Blocks of one
//! width need nothing but another `intermediate_size`. Where widths differ, they lie beside `config.json`,
//! and public loaders cannot read the model, or narrower blocks are filled up with channels of zeros, which
//! change nothing of what the model computes.

use std::collections::HashMap;

use anyhow::{Context, Result, ensure};
use ramekin_core::{Array, BadSetting, Category};
use ramekin_slots::{MlpSite, Model};
use serde_json::{Value as Json, json};

/// The channels of one block that stay, in their order.
pub type Kept = Vec<usize>;

/// What is cut.
pub struct Surgery {
    /// Channels that stay, a block.
    kept: Vec<Kept>,
    /// Width in the files, a block.
    widths: Vec<usize>,
    /// Block and side of every tensor that is cut.
    tensors: HashMap<String, (usize, Side)>,
}

#[derive(Clone, Copy, PartialEq)]
enum Side {
    /// Channels are rows, or entries of a vector.
    Rows,
    /// Channels are columns.
    Columns,
}

/// The MLP of every block.
///
/// # Errors
/// [`BadSetting`] of the pruner's `kind` if a block has none that channels can be cut from.
pub fn mlps(model: &dyn Model) -> Result<Vec<MlpSite>> {
    (0..model.facts().blocks)
        .map(|block| {
            model.mlp(block).ok_or_else(|| {
                let kind = &model.facts().model_type;
                let why =
                    format!("cuts channels of MLPs, and block {block} of this `{kind}` has none to be cut");
                BadSetting::new("kind", why).into()
            })
        })
        .collect()
}

impl Surgery {
    /// Keeps these channels; `pad` fills blocks up to the widest.
    ///
    /// # Errors
    /// If there is not one list a block.
    pub fn new(mlps: &[MlpSite], kept: Vec<Kept>, pad: bool) -> Result<Self> {
        ensure!(mlps.len() == kept.len(), "{} blocks and {} lists of channels", mlps.len(), kept.len());
        let widest = kept.iter().map(Vec::len).max().unwrap_or(0);
        let widths = kept.iter().map(|k| if pad { widest } else { k.len() }).collect();
        let mut tensors = HashMap::new();
        for (block, mlp) in mlps.iter().enumerate() {
            for path in std::iter::once(&mlp.up).chain(&mlp.gate) {
                tensors.insert(format!("{path}.weight"), (block, Side::Rows));
                tensors.insert(format!("{path}.bias"), (block, Side::Rows));
            }
            tensors.insert(format!("{}.weight", mlp.down), (block, Side::Columns));
        }
        Ok(Surgery { kept, widths, tensors })
    }

    /// Whether blocks have different widths in the files.
    pub fn is_uneven(&self) -> bool {
        self.widths.iter().any(|w| *w != self.widths[0])
    }

    /// A tensor's shape after the cut.
    pub fn dims(&self, name: &str, dims: &[usize]) -> Vec<usize> {
        let mut dims = dims.to_vec();
        if let Some((block, side)) = self.tensors.get(name) {
            let axis = if *side == Side::Rows { 0 } else { 1 };
            dims[axis] = self.widths[*block];
        }
        dims
    }

    /// A tensor after the cut, f32 where it is cut.
    ///
    /// # Errors
    /// If the tensor has not the shape of what is cut.
    pub fn cut(&self, name: &str, array: Array) -> Result<Array> {
        let Some((block, side)) = self.tensors.get(name) else { return Ok(array) };
        let (kept, dims) = (&self.kept[*block], self.dims(name, array.dims()));
        let old = array.dims().to_vec();
        let from = array.to_f32()?;
        let width = *old.last().context("a tensor without dimensions")?;
        let channels = old[if *side == Side::Rows { 0 } else { 1 }];
        ensure!(kept.iter().all(|c| *c < channels), "`{name}` has {channels} channels only");
        Array::build::<f32>(&dims, false, Category::Workspace, |out| {
            match side {
                Side::Rows => {
                    let row = if old.len() == 1 { 1 } else { width };
                    for (to, channel) in out.chunks_mut(row).zip(kept) {
                        to.copy_from_slice(&from[channel * row..(channel + 1) * row]);
                    }
                }
                Side::Columns => {
                    for (to, row) in out.chunks_mut(dims[1].max(1)).zip(from.chunks(width.max(1))) {
                        for (to, channel) in to.iter_mut().zip(kept) {
                            *to = row[*channel];
                        }
                    }
                }
            }
            Ok(())
        })
    }

    /// The config after the cut.
    pub fn config(&self, config: &Json) -> Json {
        let mut config = config.clone();
        config["intermediate_size"] = json!(self.widths.iter().max());
        if let Some(map) = config.as_object_mut() {
            map.shift_remove("intermediate_sizes");
            if self.is_uneven() {
                map.insert("intermediate_sizes".to_owned(), json!(self.widths));
            }
        }
        config
    }
}

/// The `count` highest scores, in order of their channels; ties go to the lower channel.
pub fn highest(scores: &[f64], count: usize) -> Kept {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]).then(a.cmp(b)));
    order.truncate(count);
    order.sort_unstable();
    order
}
