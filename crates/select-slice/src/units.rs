//! Heads and channels: what is coupled, how units are scored and which are chosen.

use std::collections::HashMap;

use anyhow::Result;
use ramekin_core::pattern::{ends_in, layer_of};
use ramekin_core::{BadSetting, Draws, Rng};
use ramekin_slots::{ModelFacts, Sites};

use crate::settings::{S2ftSettings, Scope};

/// Module paths of a layer's coupled matrices.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct LayerPaths {
    pub q: String,
    pub k: String,
    pub v: String,
    pub o: String,
    pub up: String,
    /// `None` for a feed-forward of two matrices.
    pub gate: Option<String>,
    pub down: String,
}

/// Names that a matrix goes by.
const Q: [&str; 1] = ["q_proj"];
const K: [&str; 1] = ["k_proj"];
const V: [&str; 1] = ["v_proj"];
const O: [&str; 2] = ["o_proj", "out_proj"];
const UP: [&str; 2] = ["up_proj", "fc1"];
const GATE: [&str; 1] = ["gate_proj"];
const DOWN: [&str; 2] = ["down_proj", "fc2"];

/// The paths of every layer.
///
/// # Errors
/// If a layer has no matrix of a kind, as where q, k and v are fused.
pub fn layers(sites: &Sites, facts: &ModelFacts) -> Result<Vec<LayerPaths>, BadSetting> {
    let find = |layer: usize, names: &[&str]| {
        let fits = |path: &str| layer_of(path) == Some(layer) && names.iter().any(|n| ends_in(path, n));
        sites.linears().iter().find(|l| fits(&l.path)).map(|l| l.path.clone())
    };
    (0..facts.blocks)
        .map(|i| {
            let need = |setting: &str, names: &[&str]| {
                find(i, names).ok_or_else(|| {
                    let why = format!(
                        "needs separate matrices, and layer {i} of this `{}` has no `{}`: fused ones have no mapping here",
                        facts.model_type, names[0]
                    );
                    BadSetting::new(setting, why)
                })
            };
            Ok(LayerPaths {
                q: need("o_ratio", &Q)?,
                k: need("o_ratio", &K)?,
                v: need("v_ratio", &V)?,
                o: need("o_ratio", &O)?,
                up: need("u_ratio", &UP)?,
                gate: find(i, &GATE),
                down: need("d_ratio", &DOWN)?,
            })
        })
        .collect()
}

/// The four kinds of matrices that can train.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs)]
pub enum Matrix {
    V,
    O,
    Up,
    Down,
}

impl Matrix {
    /// All four, with their ratios' names.
    pub const ALL: [(Matrix, &'static str); 4] =
        [(Matrix::V, "v_ratio"), (Matrix::O, "o_ratio"), (Matrix::Up, "u_ratio"), (Matrix::Down, "d_ratio")];

    /// Whether its units are heads.
    pub fn is_head(self) -> bool {
        matches!(self, Matrix::V | Matrix::O)
    }

    /// Its path in a layer.
    pub fn path(self, layer: &LayerPaths) -> &str {
        match self {
            Matrix::V => &layer.v,
            Matrix::O => &layer.o,
            Matrix::Up => &layer.up,
            Matrix::Down => &layer.down,
        }
    }

    /// Units in a layer and entries a unit has.
    pub fn units(self, sites: &Sites, layer: &LayerPaths, facts: &ModelFacts) -> Result<(usize, usize)> {
        Ok(match self {
            Matrix::V => (facts.kv_heads, facts.head_dim),
            Matrix::O => (facts.kv_heads, facts.heads / facts.kv_heads * facts.head_dim),
            Matrix::Up | Matrix::Down => (sites.linear(&layer.down)?.shape.1, 1),
        })
    }
}

/// Chosen units: of each matrix and layer, ascending.
pub type Chosen = HashMap<Matrix, Vec<Vec<u32>>>;

/// Scores of units by matrix and layer.
pub type Scores = HashMap<Matrix, Vec<Vec<f64>>>;

/// Chooses units: at random, or by `scores`.
///
/// # Errors
/// If a ratio is so small that it chooses nothing.
pub fn choose(
    s: &S2ftSettings,
    sites: &Sites,
    layers: &[LayerPaths],
    facts: &ModelFacts,
    rng: Rng,
    scores: Option<&Scores>,
) -> Result<Chosen> {
    let mut all = Chosen::new();
    for ((matrix, name), (_, ratio)) in Matrix::ALL.into_iter().zip(s.ratios()) {
        let counts =
            layers.iter().map(|l| Ok(matrix.units(sites, l, facts)?.0)).collect::<Result<Vec<usize>>>()?;
        let pool: Vec<(usize, u32)> =
            counts.iter().enumerate().flat_map(|(l, n)| (0..*n as u32).map(move |u| (l, u))).collect();
        let score = |&(l, u): &(usize, u32)| scores.map(|s| s[&matrix][l][u as usize]);
        let mut chosen = vec![Vec::new(); layers.len()];
        let mut take = |mut pool: Vec<(usize, u32)>, id: u64| -> Result<(), BadSetting> {
            let count = (ratio * pool.len() as f64 + 1e-9).floor() as usize;
            if count == 0 && ratio > 0.0 {
                let least = (1e5 / pool.len() as f64).ceil() / 1e5;
                let why = format!(
                    "is {ratio}, which chooses none of {} units; it must be at least {least}, or 0",
                    pool.len()
                );
                return Err(BadSetting::new(name, why));
            }
            if scores.is_some() {
                // A stable sort: of equal scores the first unit wins.
                pool.sort_by(|a, b| {
                    let (a, b) = (score(a).unwrap_or(0.0), score(b).unwrap_or(0.0));
                    if s.largest { b.total_cmp(&a) } else { a.total_cmp(&b) }
                });
            } else {
                Draws::new(rng.stream(&format!("s2ft/{matrix:?}"), id)).shuffle(&mut pool);
            }
            pool.into_iter().take(count).for_each(|(l, u)| chosen[l].push(u));
            Ok(())
        };
        match s.scope {
            Scope::Global => take(pool, 0)?,
            Scope::PerLayer => {
                for l in 0..layers.len() {
                    take(pool.iter().copied().filter(|(of, _)| *of == l).collect(), l as u64)?;
                }
            }
        }
        chosen.iter_mut().for_each(|c| c.sort_unstable());
        all.insert(matrix, chosen);
    }
    Ok(all)
}

/// The order [only first, both, only second, rest] of `count` units, with the lengths of the first three.
pub fn co_order(first: &[u32], second: &[u32], count: usize) -> (Vec<u32>, [usize; 3]) {
    let all = 0..count as u32;
    let kind = |u: &u32| match (first.binary_search(u).is_ok(), second.binary_search(u).is_ok()) {
        (true, false) => 0,
        (true, true) => 1,
        (false, true) => 2,
        (false, false) => 3,
    };
    let mut order: Vec<u32> = all.collect();
    order.sort_by_key(kind);
    let sizes = [0, 1, 2].map(|k| order.iter().filter(|u| kind(u) == k).count());
    (order, sizes)
}
