//! Which half: a mask over whole tensors, a pure function of seed and round.

use std::collections::BTreeSet;

use ramekin_core::pattern::{ends_in, layer_of};
use ramekin_core::{BadSetting, Draws, Rng};
use ramekin_slots::{ModelFacts, Sites};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::HftSettings;

/// What is balanced.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Strategy {
    /// In each layer its share of attention and of feed-forward matrices.
    #[default]
    Category,
    /// Whole layers.
    Layer,
    /// Matrices of the whole model, without balance.
    Model,
}

/// Which norms train.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum NormPolicy {
    /// Half of each layer's; the final norm with probability 1/2.
    #[default]
    Half,
    /// All.
    All,
    /// None.
    None,
}

/// A mask over a model's tensors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// Names of the tensors that train.
    pub trained: BTreeSet<String>,
    /// Names of all tensors of the layers: matrices with their biases, and norms.
    pub block: BTreeSet<String>,
}

/// What one layer has, by tensor names; a matrix comes with its bias.
#[derive(Default)]
struct Layer {
    attention: Vec<Vec<String>>,
    mlp: Vec<Vec<String>>,
    norms: Vec<Vec<String>>,
}

impl Choice {
    /// Draws the mask of a round.
    ///
    /// # Errors
    /// If a linear of a layer is neither attention nor feed-forward by the settings' lists.
    pub fn draw(
        settings: &HftSettings,
        sites: &Sites,
        facts: &ModelFacts,
        rng: Rng,
        round: u64,
    ) -> Result<Choice, BadSetting> {
        let (layers, outside) = sorted(settings, sites, facts)?;
        let draws = |what: &str, layer: usize| Draws::new(rng.named(what, &format!("{round}/{layer}")));
        let p = settings.ratio;
        let mut trained: Vec<&Vec<String>> = Vec::new();
        match settings.strategy {
            Strategy::Category => {
                let sizes: Vec<usize> = layers.iter().map(|l| l.mlp.len()).collect();
                let counts = spread(&sizes, p, &mut draws("hft.mlp.layers", 0));
                for (i, layer) in layers.iter().enumerate() {
                    let half = (layer.attention.len() as f64 * p).round() as usize;
                    trained.extend(some(&layer.attention, half, &mut draws("hft.attention", i)));
                    trained.extend(some(&layer.mlp, counts[i], &mut draws("hft.mlp", i)));
                }
            }
            Strategy::Layer => {
                let mut pick = draws("hft.layers", 0);
                let count = near(layers.len() as f64 * p, &mut pick);
                for layer in some(&layers, count, &mut pick) {
                    trained.extend(layer.attention.iter().chain(&layer.mlp));
                }
            }
            Strategy::Model => {
                let all: Vec<&Vec<String>> =
                    layers.iter().flat_map(|l| l.attention.iter().chain(&l.mlp)).collect();
                let count = (all.len() as f64 * p).floor() as usize;
                trained.extend(some(&all, count, &mut draws("hft.model", 0)).into_iter().copied());
            }
        }
        for (i, layer) in layers.iter().enumerate() {
            let mut pick = draws("hft.norms", i);
            let count = match settings.norm_policy {
                NormPolicy::Half => near(layer.norms.len() as f64 / 2.0, &mut pick),
                NormPolicy::All => layer.norms.len(),
                NormPolicy::None => 0,
            };
            trained.extend(some(&layer.norms, count, &mut pick));
        }
        let mut trained: BTreeSet<String> = trained.into_iter().flatten().cloned().collect();
        let all = layers.iter().flat_map(|l| l.attention.iter().chain(&l.mlp).chain(&l.norms));
        let block = all.flatten().cloned().collect();
        for (i, name) in outside.norms.into_iter().enumerate() {
            let coin = draws("hft.final_norm", i).uniform() < 0.5;
            match settings.norm_policy {
                NormPolicy::Half if coin => trained.insert(name),
                NormPolicy::All => trained.insert(name),
                _ => false,
            };
        }
        if settings.train_embeddings {
            trained.extend(outside.embeddings);
        }
        if settings.train_lm_head {
            trained.extend(outside.head);
        }
        Ok(Choice { trained, block })
    }

    /// The same with trained and frozen tensors of the layers exchanged.
    #[must_use]
    pub fn complement(&self) -> Choice {
        let outside = self.trained.difference(&self.block).cloned();
        let exchanged = self.block.difference(&self.trained).cloned();
        Choice { trained: exchanged.chain(outside).collect(), block: self.block.clone() }
    }
}

/// Tensors that belong to no layer.
#[derive(Default)]
struct Outside {
    embeddings: Vec<String>,
    head: Vec<String>,
    norms: Vec<String>,
}

fn sorted(s: &HftSettings, sites: &Sites, facts: &ModelFacts) -> Result<(Vec<Layer>, Outside), BadSetting> {
    let mut layers: Vec<Layer> = (0..facts.blocks).map(|_| Layer::default()).collect();
    let mut outside = Outside::default();
    let mut seen = BTreeSet::new();
    for site in sites.linears() {
        let weight = format!("{}.weight", site.path);
        let tensors: Vec<String> = std::iter::once(weight).chain(site.bias.clone()).collect();
        seen.extend(tensors.iter().cloned());
        let Some(layer) = layer_of(&site.path).filter(|l| *l < facts.blocks && !site.is_head) else {
            // A tied head has no tensor of its own.
            outside.head.extend(tensors.into_iter().filter(|n| sites.param(n).is_ok()));
            continue;
        };
        let within = |list: &[String]| list.iter().any(|name| ends_in(&site.path, name));
        if within(&s.attention_modules) {
            layers[layer].attention.push(tensors);
        } else if within(&s.mlp_modules) {
            layers[layer].mlp.push(tensors);
        } else {
            let why = format!(
                "leaves `{}` out, which belongs to neither block; name it here or in `mlp_modules` (a fused matrix counts as one)",
                site.path
            );
            return Err(BadSetting::new("attention_modules", why));
        }
    }
    for name in sites.param_names().iter().filter(|n| !seen.contains(*n)) {
        let norm = sites.param(name).is_ok_and(|p| p.base().value().dims().len() == 1);
        match layer_of(name).filter(|l| *l < facts.blocks) {
            Some(layer) => {
                let module = name.rsplit_once('.').map_or("", |(module, _)| module);
                let norms = &mut layers[layer].norms;
                // A norm's bias follows its weight.
                match norms.iter_mut().find(|n| n[0].rsplit_once('.').is_some_and(|(m, _)| m == module)) {
                    Some(known) => known.push(name.clone()),
                    None => norms.push(vec![name.clone()]),
                }
            }
            None if norm => outside.norms.push(name.clone()),
            None => outside.embeddings.push(name.clone()),
        }
    }
    Ok((layers, outside))
}

/// `count` of the items, at random, in their order.
fn some<'a, T>(items: &'a [T], count: usize, draws: &mut Draws) -> Vec<&'a T> {
    let mut order: Vec<usize> = (0..items.len()).collect();
    draws.shuffle(&mut order);
    order.truncate(count);
    order.sort_unstable();
    order.into_iter().map(|i| &items[i]).collect()
}

/// The whole number below or above, so that the mean is `x`.
fn near(x: f64, draws: &mut Draws) -> usize {
    let low = x.floor();
    low as usize + usize::from(draws.uniform() < x - low)
}

/// How many of each layer's matrices train, floor or ceiling of its share: the sum is that of all shares.
fn spread(sizes: &[usize], p: f64, draws: &mut Draws) -> Vec<usize> {
    let share = |n: usize| n as f64 * p;
    let mut counts: Vec<usize> = sizes.iter().map(|n| share(*n).floor() as usize).collect();
    let rest: f64 = sizes.iter().map(|n| share(*n).fract()).sum();
    let mut broken: Vec<usize> = (0..sizes.len()).filter(|i| share(sizes[*i]).fract() > 0.0).collect();
    // A sum of halves is exact; one of other shares may be off by rounding.
    let extra = if (rest - rest.round()).abs() < 1e-9 { rest.round() as usize } else { near(rest, draws) };
    draws.shuffle(&mut broken);
    for i in broken.into_iter().take(extra) {
        counts[i] += 1;
    }
    counts
}
