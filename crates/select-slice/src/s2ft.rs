//! S²FT: structured sparsity; a few heads and channels train, as dense slices.
//!
//! columns of O, down:  y = x Wᵀ + x[:, idx] Dᵀ      rows of V, up:  y[:, idx] += x Dᵀ
//!
//! Backward keeps x[:, idx] alone for a column slice, and computes no gradient of the rest. Heads and
//! channels are put side by side while training and back at the end.
//!
//! Source: Yang et al., NeurIPS 2024; sheet `s2ft`.

use std::cell::RefCell;
use std::rc::Rc;

use anyhow::{Context, Result};
use ramekin_core::{Array, BadSetting, Category, Param, Rng};
use ramekin_registry::{Part, part};
use ramekin_slots::{
    AttachContext, LinearBase, ModelFacts, Probe, RoundContext, Selection, SelectionFile, Sites, Stateful,
};
use serde_json::json;

use crate::settings::{S2ftSettings, Score, Storage};
use crate::site::{AtSite, Side, Slice, cut};
use crate::units::{Chosen, LayerPaths, Matrix, choose, co_order, layers};
use crate::{order, scores};

part! { selection / "s2ft" => S2ft, "trains slices of matrices: a few heads and channels, with a partial backward",
source = "NeurIPS 2024; sheet s2ft", traits = [Mergeable, IdentityAtStart, NeedsBackboneBackward] }

/// A layer's order while training.
struct Orders {
    layer: LayerPaths,
    heads: Option<Vec<u32>>,
    channels: Option<Vec<u32>>,
}

/// The selection; empty until attached.
pub struct S2ft {
    settings: S2ftSettings,
    slices: Vec<Rc<Slice>>,
    orders: Vec<Orders>,
    chosen: Chosen,
    sites: Option<Rc<Sites>>,
}

impl Part for S2ft {
    type Settings = S2ftSettings;

    fn new(settings: S2ftSettings) -> Result<Self> {
        settings.check()?;
        Ok(S2ft { settings, slices: Vec::new(), orders: Vec::new(), chosen: Chosen::new(), sites: None })
    }
}

impl S2ft {
    /// The slices that train.
    pub fn slices(&self) -> &[Rc<Slice>] {
        &self.slices
    }

    /// The chosen units.
    pub fn chosen(&self) -> &Chosen {
        &self.chosen
    }

    fn rng(&self, cx: &AttachContext<'_>) -> Rng {
        self.settings.seed.map_or(cx.rng, Rng::new)
    }

    fn check_storage(&self, sites: &Sites, layers: &[LayerPaths]) -> Result<(), BadSetting> {
        if self.settings.storage == Storage::Separate {
            return Ok(());
        }
        for path in layers.iter().flat_map(|l| Matrix::ALL.map(|(m, _)| m.path(l))) {
            if let Ok(LinearBase::Packed(_)) = sites.linear(path).map(|l| l.base()) {
                let why = format!("is \"in_place\", and `{path}` is held packed; set \"separate\"");
                return Err(BadSetting::new("storage", why).against("quantizer"));
            }
        }
        Ok(())
    }

    /// Puts the chosen units in place; returns the linears.
    fn place(
        &mut self,
        cx: &mut AttachContext<'_>,
        layers: &[LayerPaths],
        chosen: Chosen,
    ) -> Result<Vec<String>> {
        let sites = cx.sites.clone();
        for (i, layer) in layers.iter().enumerate() {
            let of = |m: Matrix| &chosen[&m][i];
            let heads = self.arrange(&sites, layer, cx.facts, [of(Matrix::V), of(Matrix::O)], true)?;
            let channels =
                self.arrange(&sites, layer, cx.facts, [of(Matrix::Up), of(Matrix::Down)], false)?;
            for ((matrix, _), places) in
                Matrix::ALL.into_iter().zip([&heads.0, &heads.1, &channels.0, &channels.1])
            {
                let size = matrix.units(&sites, layer, cx.facts)?.1;
                if let (false, (now, own)) = (places.0.is_empty(), places) {
                    self.add(
                        cx,
                        matrix,
                        matrix.path(layer),
                        order::expand(now, size),
                        order::expand(own, size),
                    )?;
                }
            }
            let (heads, channels) = (heads.2, channels.2);
            if heads.is_some() || channels.is_some() {
                self.orders.push(Orders { layer: layer.clone(), heads, channels });
            }
        }
        self.chosen = chosen;
        self.sites = Some(sites);
        Ok(self.slices.iter().map(|s| s.path.clone()).collect())
    }

    /// Units of the first and the second matrix as they lie from now on, each with its own number; and
    /// the order, where there is a new one.
    #[allow(clippy::type_complexity)] // two alike pairs
    fn arrange(
        &self,
        sites: &Sites,
        layer: &LayerPaths,
        facts: &ModelFacts,
        [first, second]: [&Vec<u32>; 2],
        heads: bool,
    ) -> Result<((Vec<u32>, Vec<u32>), (Vec<u32>, Vec<u32>), Option<Vec<u32>>)> {
        if !self.settings.permute || first.is_empty() && second.is_empty() {
            return Ok(((first.clone(), first.clone()), (second.clone(), second.clone()), None));
        }
        let count = if heads { facts.kv_heads } else { sites.linear(&layer.down)?.shape.1 };
        let (order, [only_first, both, only_second]) = co_order(first, second, count);
        if heads {
            order::heads(sites, layer, facts, &order)?;
        } else {
            order::channels(sites, layer, &order)?;
        }
        let part = |from: usize, to: usize| ((from as u32..to as u32).collect(), order[from..to].to_vec());
        let one = part(0, only_first + both);
        let two = part(only_first, only_first + both + only_second);
        Ok((one, two, Some(order)))
    }

    fn add(
        &mut self,
        cx: &mut AttachContext<'_>,
        matrix: Matrix,
        path: &str,
        now: Vec<u32>,
        own: Vec<u32>,
    ) -> Result<()> {
        let sites = cx.sites.clone();
        let site = sites.linear(path)?;
        let side = if matches!(matrix, Matrix::V | Matrix::Up) { Side::Rows } else { Side::Columns };
        let (o, i) = site.shape;
        let dims = if side == Side::Columns { [o, now.len()] } else { [now.len(), i] };
        let inside = self.settings.storage == Storage::InPlace;
        if let LinearBase::Dense(name) = site.base() {
            cx.ledger.claim(&name, &cx.owner)?;
        }
        let value = if inside {
            cut(&weight(&sites, path)?, side, &now)?
        } else {
            Array::build::<f32>(&dims, cx.shape_only, Category::Trainable, |_| Ok(()))?
        };
        let param = Param::new(format!("{path}.s2ft"), value);
        param.set_trainable(true);
        cx.ledger.add(&param, &cx.owner)?;
        let slice = Rc::new(Slice {
            path: path.to_owned(),
            side,
            param,
            idx: RefCell::new(Rc::new(now)),
            original: Rc::new(own),
            inside,
        });
        site.attach(Box::new(AtSite(slice.clone())));
        self.slices.push(slice);
        Ok(())
    }

    /// Writes slices that live in the base's matrices there.
    fn write_inside(&self) -> Result<()> {
        let Some(sites) = &self.sites else { return Ok(()) };
        for slice in self.slices.iter().filter(|s| s.inside) {
            slice.put_into(&weight(sites, &slice.path)?)?;
        }
        Ok(())
    }
}

/// A linear's dense weight.
fn weight(sites: &Sites, path: &str) -> Result<Array> {
    match sites.linear(path)?.base() {
        LinearBase::Dense(name) => Ok(sites.param(&name)?.base().value()),
        LinearBase::Packed(_) => anyhow::bail!("`{path}` is held packed"),
    }
}

impl Stateful for S2ft {
    fn restore(&mut self, _: &mut dyn FnMut(&str) -> Option<Array>) -> Result<()> {
        self.write_inside()
    }
}

impl Selection for S2ft {
    fn attach(&mut self, cx: &mut AttachContext<'_>) -> Result<Vec<String>> {
        let sites = cx.sites.clone();
        let paths = layers(&sites, cx.facts)?;
        self.check_storage(&sites, &paths)?;
        let s = &self.settings;
        if s.looks() && !cx.shape_only {
            return Ok(Vec::new()); // the look comes first
        }
        // On shapes a random choice stands for any: as many units, as many numbers.
        let scores = match s.selection {
            Score::W if !cx.shape_only => Some(scores::weights(&sites, &paths, cx.facts)?),
            _ => None,
        };
        let chosen = choose(s, &sites, &paths, cx.facts, self.rng(cx), scores.as_ref())?;
        self.place(cx, &paths, chosen)
    }

    fn calibrate(&mut self, cx: &mut AttachContext<'_>, probe: &mut dyn Probe) -> Result<()> {
        if !self.settings.looks() {
            return Ok(());
        }
        let sites = cx.sites.clone();
        let paths = layers(&sites, cx.facts)?;
        let scores = scores::looked(&self.settings, &sites, &paths, cx.facts, probe)?;
        if cx.shape_only {
            return Ok(());
        }
        let chosen = choose(&self.settings, &sites, &paths, cx.facts, self.rng(cx), Some(&scores))?;
        self.place(cx, &paths, chosen).map(drop)
    }

    fn after_step(&mut self, _: &mut RoundContext<'_>) -> Result<()> {
        self.write_inside()
    }

    fn finish(&mut self, cx: &mut RoundContext<'_>) -> Result<()> {
        for Orders { layer, heads, channels } in self.orders.drain(..) {
            if let Some(order) = heads {
                order::heads(&cx.sites, &layer, cx.facts, &order::inverse(&order))?;
            }
            if let Some(order) = channels {
                order::channels(&cx.sites, &layer, &order::inverse(&order))?;
            }
        }
        for slice in &self.slices {
            *slice.idx.borrow_mut() = slice.original.clone();
        }
        Ok(())
    }

    fn file(&self) -> Result<Option<SelectionFile>> {
        let mut tensors = Vec::new();
        let mut slices = Vec::new();
        for slice in &self.slices {
            let idx = slice.original.to_vec();
            let count = idx.len();
            let what = if slice.inside { "slice" } else { "delta" };
            tensors.push((format!("{}.{what}", slice.path), slice.param.value()));
            let idx = Array::from_vec(idx, &[count], Category::Workspace).context("indices")?;
            tensors.push((format!("{}.indices", slice.path), idx));
            slices.push(json!({ "path": slice.path, "side": slice.side }));
        }
        let config = json!({ "kind": "s2ft", "settings": self.settings, "slices": slices });
        Ok(Some(SelectionFile { config, tensors, differences: Vec::new() }))
    }
}
