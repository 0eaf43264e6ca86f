//! One adapter: `Ad(x) = W_up drop(f(W_down norm(x) + b_down)) + b_up`, f the model's activation.
//!
//! W_down `[r, D]`, W_up `[D, r]`; the norm is there only where it was asked for. Nothing is added to x.

use std::sync::Arc;

use anyhow::Result;
use ramekin_core::{Array, Category, Param};
use ramekin_peft::{Kept, zeros};
use ramekin_slots::{AttachContext, Forward};
use ramekin_tape::Value;
use ramekin_tape::ops::{self, Activation};

use crate::settings::MeftSettings;

/// A weight with its bias.
type Pair = (Arc<Param>, Arc<Param>);

/// The parameters in place.
pub(crate) struct Net {
    /// Path below the model, by which dropout is drawn.
    path: String,
    norm: Option<Pair>,
    down: Pair,
    up: Pair,
    activation: Activation,
    dropout: f64,
}

impl Net {
    /// An adapter of rows of the model's width.
    pub fn new(
        s: &MeftSettings,
        kept: &mut Kept,
        cx: &mut AttachContext<'_>,
        path: &str,
        norm: bool,
    ) -> Result<Self> {
        let (wide, narrow) = (cx.facts.hidden_size, s.adapter_bottleneck_dim);
        let key = |tail: &str| format!("base_model.model.{path}.{tail}");
        let mut linear = |name: &str, dims: [usize; 2]| -> Result<Pair> {
            let weight = normal(cx, &key(&format!("{name}.weight")), &dims, s.init_std)?;
            let bias = zeros(cx, &dims[..1])?;
            let weight = kept.add(cx, key(&format!("{name}.weight")), weight)?;
            Ok((weight, kept.add(cx, key(&format!("{name}.bias")), bias)?))
        };
        let (down, up) = (linear("dense1", [narrow, wide])?, linear("dense2", [wide, narrow])?);
        let norm = norm
            .then(|| {
                let one = Array::build::<f32>(&[wide], cx.shape_only, Category::Workspace, |out| {
                    out.fill(1.0);
                    Ok(())
                })?;
                let zero = zeros(cx, &[wide])?;
                let weight = kept.add(cx, key("LayerNorm.weight"), one)?;
                Ok::<_, anyhow::Error>((weight, kept.add(cx, key("LayerNorm.bias"), zero)?))
            })
            .transpose()?;
        let (path, activation) = (path.to_owned(), cx.facts.activation);
        Ok(Net { path, norm, down, up, activation, dropout: s.dropout })
    }

    /// `Ad(x)`
    pub fn forward(&self, fx: &Forward, x: &Value) -> Result<Value> {
        let tape = &fx.tape;
        let linear = |x: &Value, (weight, bias): &Pair| {
            ops::linear(tape, x, &tape.param(weight)?, Some(&tape.param(bias)?))
        };
        let normed = match &self.norm {
            Some((weight, bias)) => {
                Some(ops::layer_norm(tape, x, &tape.param(weight)?, &tape.param(bias)?, 1e-5)?)
            }
            None => None,
        };
        let low = linear(normed.as_ref().unwrap_or(x), &self.down)?;
        let low = ops::activation(tape, &low, self.activation)?;
        let p = if fx.mode.training { self.dropout } else { 0.0 };
        linear(&ops::dropout(tape, &low, p, fx.stream("dropout", &self.path))?, &self.up)
    }
}

fn normal(cx: &AttachContext<'_>, key: &str, dims: &[usize], std: f64) -> Result<Array> {
    let stream = cx.rng.named(&format!("{}/init", cx.owner), key);
    Array::build::<f32>(dims, cx.shape_only, Category::Workspace, |out| {
        stream.fill_normal(0, std, out);
        Ok(())
    })
}
