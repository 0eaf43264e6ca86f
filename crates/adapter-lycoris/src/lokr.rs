//! LoKr: the Kronecker product of two small matrices.
//!
//! `y = Wx + b + s·(W₁ ⊗ W₂) x`, s = alpha/r; I = m·n, O = l·k; W₁ `[l, m]`, W₂ `[k, n]`, either of
//! which may be a product of two thin ones. (m, n) and (l, k) come from [`factorization`].
//!
//! ΔW is never formed: with x seen as `[m, n]`, y = W₁ X W₂ᵀ seen as `[l, k]`, so W₂ is applied to
//! the last axis and W₁, after a swap, to the other one. A token costs m·n·k + l·m·k multiplications.
//!
//! Source: Yeh et al. 2023, arXiv:2309.14859; sheet `lora-family`.

use std::sync::Arc;

use anyhow::Result;
use ramekin_core::{Array, BadSetting, Param};
use ramekin_kernels::elementwise;
use ramekin_peft::{Kept, Method, PeftAdapter, Targeting, kaiming, zeros};
use ramekin_registry::part;
use ramekin_slots::{AttachContext, Below, Forward, LinearAdapter, LinearSite, Sites};
use ramekin_tape::{Tape, Value, ops};
use serde_json::{Value as Json, json};

use crate::drops::Drops;
use crate::settings::{FOREIGN, LokrInit, LokrSettings};

part! { adapter / "lokr" => PeftAdapter<Lokr>,
"the Kronecker product of two small matrices as an update, in PEFT's files",
source = "arXiv:2309.14859; sheet lora-family", traits = [Mergeable, IdentityAtStart, NeedsBackboneBackward],
from_peft = PeftAdapter::<Lokr>::from_peft }

/// The method.
pub struct Lokr(LokrSettings);

impl Method for Lokr {
    type Settings = LokrSettings;
    const NAME: &'static str = "lokr";
    const PEFT_TYPE: &'static str = "LOKR";
    const INIT: &'static str = "init_weights";
    const FOREIGN: &'static [(&'static str, &'static [&'static str])] = FOREIGN;

    fn new(settings: LokrSettings) -> Result<Self> {
        settings.check()?;
        if settings.decompose_factor == 0 || settings.decompose_factor < -1 {
            let why = format!("is {}; it must be −1 or at least 1", settings.decompose_factor);
            return Err(BadSetting::new("decompose_factor", why).into());
        }
        if let LokrInit::Named(name) = &settings.init_weights
            && name != "lycoris"
        {
            let why = format!("is {name:?}; this adapter knows true, false and \"lycoris\"");
            return Err(BadSetting::new("init_weights", why).into());
        }
        Ok(Lokr(settings))
    }

    fn targeting(&self) -> Targeting<'_> {
        self.0.targeting()
    }

    fn config(&self) -> Json {
        let mut config = self.0.shared_config();
        config["decompose_both"] = json!(self.0.decompose_both);
        config["decompose_factor"] = json!(self.0.decompose_factor);
        config["init_weights"] = json!(self.0.init_weights);
        config["rank_dropout_scale"] = json!(self.0.rank_dropout_scale);
        config
    }

    fn adapt(
        &self,
        kept: &mut Kept,
        cx: &mut AttachContext<'_>,
        site: &LinearSite,
    ) -> Result<Box<dyn LinearAdapter>> {
        let (r, scale) = self.0.rank_and_scale(&site.path);
        let (l, k) = factorization(site.shape.0, self.0.decompose_factor);
        let (m, n) = factorization(site.shape.1, self.0.decompose_factor);
        // Which of the factors starts at zero, so that the update does.
        let (zero1, zero2) = match self.0.init_weights {
            LokrInit::Default(zero) => (zero, false),
            LokrInit::Named(_) => (false, true),
        };
        let mut matrix = |tail: &str, dims: [usize; 2], zero: bool| {
            let key = Kept::key(site, tail);
            let fresh = if zero { zeros(cx, &dims)? } else { kaiming(cx, &key, dims)? };
            kept.add(cx, key, fresh)
        };
        let w1 = if self.0.decompose_both && 2 * r < l.max(m) {
            Factor::Thin(matrix("lokr_w1_a", [l, r], zero1)?, matrix("lokr_w1_b", [r, m], false)?)
        } else {
            Factor::Full(matrix("lokr_w1", [l, m], zero1)?)
        };
        let w2 = if 2 * r < k.max(n) {
            Factor::Thin(matrix("lokr_w2_a", [k, r], false)?, matrix("lokr_w2_b", [r, n], zero2)?)
        } else {
            Factor::Full(matrix("lokr_w2", [k, n], zero2)?)
        };
        let drops = self.0.drops("lokr", self.0.rank_dropout_scale);
        Ok(Box::new(Kronecker { w1, w2, sizes: [l, k, m, n], scale, drops }))
    }
}

/// Two factors of a size whose product it is: `factor` and the rest where it divides; else, walking up
/// from (1, size), the divisors whose sum keeps falling, the first at most `factor` (−1: any). The
/// first is the smaller one, but for a given factor that divides.
fn factorization(size: usize, factor: i64) -> (usize, usize) {
    let limit = if factor > 0 { factor as usize } else { size };
    if factor > 0 && size.is_multiple_of(limit) {
        return (limit, size / limit);
    }
    let (mut m, mut n) = (1, size);
    while m < n {
        let Some(next) = (m + 1..=size).find(|d| size.is_multiple_of(*d)) else { break };
        if next + size / next > m + n || next > limit {
            break;
        }
        (m, n) = (next, size / next);
    }
    (m.min(n), m.max(n))
}

/// A small matrix, or two thin ones whose product it is.
enum Factor {
    Full(Arc<Param>),
    Thin(Arc<Param>, Arc<Param>),
}

impl Factor {
    /// The last axis of `x` times the matrix, transposed.
    fn apply(&self, tape: &Tape, x: &Value) -> Result<Value> {
        match self {
            Factor::Full(w) => ops::linear(tape, x, &tape.param(w)?, None),
            Factor::Thin(a, b) => {
                let low = ops::linear(tape, x, &tape.param(b)?, None)?;
                ops::linear(tape, &low, &tape.param(a)?, None)
            }
        }
    }

    /// The matrix itself, `[rows, columns]`.
    fn dense(&self, rows: usize, columns: usize) -> Result<Vec<f32>> {
        match self {
            Factor::Full(w) => w.value().to_f32(),
            Factor::Thin(a, b) => {
                let (a, b) = (a.value(), b.value());
                let (r, mut w) = (b.dims()[0], vec![0.0; rows * columns]);
                let (a, b) = (a.view::<f32>()?, b.view::<f32>()?);
                ramekin_kernels::matmul::nn(rows, r, columns, 1.0, &a, &b, false, &mut w);
                Ok(w)
            }
        }
    }
}

/// What sits at one linear.
struct Kronecker {
    w1: Factor,
    w2: Factor,
    /// l, k, m, n.
    sizes: [usize; 4],
    scale: f64,
    drops: Drops,
}

impl LinearAdapter for Kronecker {
    fn forward(&self, fx: &Forward, site: &LinearSite, x: &Value, below: &Below<'_>) -> Result<Value> {
        let (tape, y) = (&fx.tape, below(x)?);
        if self.drops.module(fx, site) {
            return Ok(y);
        }
        let ([_, _, m, n], (rows, _)) = (self.sizes, x.array().rows());
        let x = ops::reshape(tape, x, &[rows, m, n])?;
        let right = ops::scale(tape, &self.w2.apply(tape, &x)?, self.scale)?; // [rows, m, k]
        let both = self.w1.apply(tape, &ops::swap_last(tape, &right)?)?; // [rows, k, l]
        let branch = ops::reshape(tape, &ops::swap_last(tape, &both)?, y.dims())?;
        ops::add(tape, &y, &self.drops.rows(fx, site, branch)?)
    }

    fn fold(&self, _: &Sites, site: &LinearSite, weight: Array) -> Result<Array> {
        let ([l, k, m, n], (_, i)) = (self.sizes, site.shape);
        let (w1, w2) = (self.w1.dense(l, m)?, self.w2.dense(k, n)?);
        weight.update(|w: &mut [f32]| {
            for (o, row) in w.chunks_exact_mut(i.max(1)).enumerate() {
                let (w1, w2) = (&w1[o / k * m..][..m], &w2[o % k * n..][..n]);
                for (part, w1) in row.chunks_exact_mut(n).zip(w1) {
                    elementwise::add_scaled(part, w1 * self.scale as f32, w2);
                }
            }
        })?;
        Ok(weight)
    }
}

#[cfg(test)]
mod tests {
    use super::factorization;

    #[test]
    fn factors_as_peft_chooses_them() {
        let check = |size, factor, expected| assert_eq!(factorization(size, factor), expected);
        check(256, -1, (16, 16));
        check(128, -1, (8, 16));
        check(127, -1, (1, 127));
        check(128, 4, (4, 32));
        check(160, -1, (10, 16));
        check(160, 100, (10, 16));
        check(96, 7, (6, 16));
        check(12, 12, (12, 1));
        check(1, -1, (1, 1));
        check(360, 7, (6, 60));
    }
}
