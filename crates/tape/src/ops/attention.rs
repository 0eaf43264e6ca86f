//! Softmax attention over independent segments, without T×T.

use std::rc::Rc;

use anyhow::{Result, ensure};
use ramekin_core::{Array, Category, meter};
use ramekin_kernels::attention as kernel;
use ramekin_kernels::attention::{Reach, Segment};
use ramekin_kernels::{Real, unwritten};

use super::written;
use crate::dispatch;
use crate::tape::{SavedKind, Tape, Value};

/// Heads and mask of an attention.
#[derive(Clone, Copy, Debug)]
pub struct AttentionSpec {
    /// Query heads.
    pub heads: usize,
    /// Key/value heads; each serves `heads / kv_heads` query heads in a row.
    pub kv_heads: usize,
    /// Numbers a head.
    pub head_dim: usize,
    /// Factor of the scores.
    pub scale: f64,
    /// Which of the tokens up to itself a token sees.
    pub reach: Reach,
    /// Whether a token sees only what came before it.
    pub causal: bool,
    /// Whether products are to be in bf16, as those of a bf16 model.
    pub bf16: bool,
}

impl AttentionSpec {
    /// The same for the kernels.
    pub fn shape(&self) -> kernel::Shape {
        kernel::Shape {
            heads: self.heads,
            kv_heads: self.kv_heads,
            head_dim: self.head_dim,
            scale: self.scale,
            reach: self.reach,
            causal: self.causal,
            bf16: self.bf16,
        }
    }
}

/// Operations of the scores and of the sums of values: 4·D for each query head and key that it sees.
fn operations(segments: &[Segment], spec: &AttentionSpec) -> u64 {
    let seen = |s: &Segment| -> usize {
        let before = s.k_len - s.q_len;
        let of = |end: usize| if spec.causal { end - spec.reach.first(end) } else { s.k_len };
        (before + 1..=s.k_len).map(of).sum()
    };
    (4 * spec.heads * spec.head_dim * segments.iter().map(seen).sum::<usize>()) as u64
}

/// Keys and values, `[M, K·D]` each.
pub struct KeyValue<'a> {
    /// Keys, rotated.
    pub k: &'a Value,
    /// Values.
    pub v: &'a Value,
}

/// `q` `[N, H·D]` against keys and values → `[N, H·D]`, each segment for
/// itself. Keeps q, k, v, the result and one log-sum-exp a row and head.
pub fn attention(
    tape: &Tape,
    q: &Value,
    kv: &KeyValue<'_>,
    segments: &Rc<Vec<Segment>>,
    spec: AttentionSpec,
) -> Result<Value> {
    counted_attention(tape, q, kv, None, segments, spec)
}

/// [`attention`] in which key j counts as if it were there `counts[j]` times: its scores get + log of it.
/// Keeps the counts too; they are given no gradient.
pub fn counted_attention(
    tape: &Tape,
    q: &Value,
    kv: &KeyValue<'_>,
    counts: Option<&Rc<Vec<u32>>>,
    segments: &Rc<Vec<Segment>>,
    spec: AttentionSpec,
) -> Result<Value> {
    let (qa, ka, va) = (q.array(), kv.k.array(), kv.v.array());
    let (n, width) = qa.rows();
    ensure!(width == spec.heads * spec.head_dim, "queries {:?} for {spec:?}", qa.dims());
    ensure!(
        ka.dims() == va.dims() && ka.rows().1 == spec.kv_heads * spec.head_dim,
        "keys {:?} for {spec:?}",
        ka.dims()
    );
    let (m, _) = ka.rows();
    ensure!(counts.is_none_or(|c| c.len() == m), "counts of other keys than these {m}");
    // Where every key counts once there is nothing to add.
    let counts = counts.filter(|c| c.iter().any(|n| *n != 1)).cloned();
    for s in segments.iter() {
        ensure!(
            s.q_start + s.q_len <= n && s.k_start + s.k_len <= m && s.q_len <= s.k_len,
            "segment {s:?} of {n} queries and {m} keys"
        );
    }
    let products = operations(segments, &spec);
    meter::current().work(products);
    let shape_only = qa.is_shape_only() || ka.is_shape_only();
    let (y, lse) = dispatch!(qa, T => {
        let bias = counts.as_ref().map(logarithms::<T>);
        let mut lse = vec![0.0 as T; if shape_only { 0 } else { n * spec.heads }];
        let y = written::<T>(qa.dims(), &[qa, ka], |out| {
            kernel::forward(
                &qa.view::<T>()?, &ka.view::<T>()?, &va.view::<T>()?, bias.as_deref(),
                segments, &spec.shape(), out, &mut lse,
            );
            Ok(())
        })?;
        let lse = if shape_only {
            Array::shape_only(&[n, spec.heads], qa.dtype(), Category::Workspace)?
        } else {
            Array::from_vec(lse, &[n, spec.heads], Category::Workspace)?
        };
        Ok((y, lse))
    })?;
    let out = y.clone();
    tape.record(&[q, kv.k, kv.v], y, || {
        let q = tape.save(qa, SavedKind::Input)?;
        let k = tape.save(ka, SavedKind::Input)?;
        let v = tape.save(va, SavedKind::Input)?;
        let out = tape.save(&out, SavedKind::Output)?;
        let lse = tape.save(&lse, SavedKind::Statistic)?;
        let segments = segments.clone();
        Ok(Box::new(move |g: Array| {
            let (q, k, v, out, lse) = (q.get()?, k.get()?, v.get()?, out.get()?, lse.get()?);
            meter::current().work(5 * products / 2); // scores again, and a gradient of each operand
            if g.is_shape_only() {
                let like = |a: &Array| Array::shape_only(a.dims(), a.dtype(), Category::Workspace).map(Some);
                return Ok(vec![like(&q)?, like(&k)?, like(&v)?]);
            }
            dispatch!(g, T => {
                let bias = counts.as_ref().map(logarithms::<T>);
                let mut gq = unwritten::<T>(q.len());
                let (mut gk, mut gv) = (unwritten::<T>(k.len()), unwritten::<T>(v.len()));
                kernel::backward(
                    &g.view::<T>()?, &q.view::<T>()?, &k.view::<T>()?, &v.view::<T>()?, bias.as_deref(),
                    &out.view::<T>()?, &lse.view::<T>()?, &segments, &spec.shape(),
                    &mut gq, &mut gk, &mut gv,
                );
                Ok(vec![
                    Some(Array::from_vec(gq, q.dims(), Category::Workspace)?),
                    Some(Array::from_vec(gk, k.dims(), Category::Workspace)?),
                    Some(Array::from_vec(gv, v.dims(), Category::Workspace)?),
                ])
            })
        }))
    })
}

fn logarithms<T: Real>(counts: &Rc<Vec<u32>>) -> Vec<T> {
    counts.iter().map(|n| T::from_f64(f64::from(*n)).ln()).collect()
}
