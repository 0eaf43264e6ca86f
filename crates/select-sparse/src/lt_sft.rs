//! Lottery-ticket sparse fine-tuning: train all, keep the entries that moved most, train those again.
//!
//! An iteration, from θ_s (θ₀ in the first):  phase 1  θ₁ ← train(θ_s), all of P_m and the heads;
//! μ grows by the K/n entries of P_m outside it with the largest |θ₁ − θ₀|;  θ ← θ_s;
//! phase 2  θ₂ ← train(θ), only μ and the heads. Optimizer and schedule begin anew with each phase.
//! Loss: + λ/N Σ|θ − θ₀|. Result: φ = θ₂ − θ₀, sparse, and the heads.
//!
//! Source: Ansell et al., ACL 2022; sheet `lt-sft`. Of equal entries the first is kept, so that exactly K are.

use std::collections::HashSet;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use ramekin_core::pattern::layer_of;
use ramekin_core::{Array, BadSetting, Category, Draws, Mask, Param, ParamId, Rng};
use ramekin_registry::{Part, part};
use ramekin_slots::{
    AttachContext, LinearBase, LinearSite, RoundContext, Selection, SelectionFile, Sites, StateTensor,
    Stateful,
};
use serde_json::json;

use crate::frozen::Frozen;
use crate::ranking::{random, top};
use crate::settings::{LtSftSettings, Ranking};
use crate::vector::differences;

part! { selection / "lt-sft" => LtSft, "trains all, then from the start again the entries that moved most",
source = "ACL 2022; sheet lt-sft", traits = [NeedsBackboneBackward, IdentityAtStart, StatefulAcrossSteps] }

/// A tensor that trains.
struct Target {
    param: Arc<Param>,
    /// θ₀.
    base: Array,
    /// Where this iteration began; the same array in the first.
    start: Array,
    /// Entries of μ, ascending; `None` for heads, which train whole.
    places: Option<Vec<u32>>,
}

/// Where training stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Phase {
    iteration: u64,
    sparse: bool,
}

/// The selection; empty until attached.
pub struct LtSft {
    settings: LtSftSettings,
    targets: Vec<Target>,
    budget: usize,
    numbers: f64,
    rng: Rng,
    /// Updates of phase 1 and 2, once they are known.
    lengths: Option<(u64, u64)>,
    begun: Option<Phase>,
}

impl Part for LtSft {
    type Settings = LtSftSettings;

    fn new(settings: LtSftSettings) -> Result<Self> {
        settings.check()?;
        let rng = Rng::new(0);
        Ok(LtSft { settings, targets: Vec::new(), budget: 0, numbers: 1.0, rng, lengths: None, begun: None })
    }
}

fn copy_of(array: &Array) -> Result<Array> {
    Array::build::<f32>(array.dims(), array.is_shape_only(), Category::Weights, |out| {
        out.copy_from_slice(&array.view::<f32>()?);
        Ok(())
    })
}

/// What a tensor is to this method.
enum Kind {
    Maskable,
    Whole,
    Frozen,
}

impl LtSft {
    fn kind(&self, name: &str, sites: &Sites, blocks: usize) -> Kind {
        let s = &self.settings;
        let owns = |l: &&LinearSite| {
            l.bias.as_deref() == Some(name) || matches!(l.base(), LinearBase::Dense(w) if w == name)
        };
        let whole = |frozen: bool| if frozen { Kind::Frozen } else { Kind::Whole };
        let maskable = |frozen: bool| if frozen { Kind::Frozen } else { Kind::Maskable };
        let mut owners: Vec<&LinearSite> = sites.linears().iter().filter(owns).collect();
        owners.sort_by_key(|l| l.is_head);
        let vector = sites.param(name).is_ok_and(|p| p.base().value().dims().len() == 1);
        match owners.first() {
            // A table that a head shares is the embeddings'.
            Some(l) if l.is_head && name.strip_suffix(".weight").is_none_or(|p| p == l.path) => {
                whole(s.freeze_decoder)
            }
            Some(l) if !l.is_head && layer_of(&l.path).is_none_or(|i| i >= blocks) => whole(s.freeze_head),
            Some(l) if !l.is_head => Kind::Maskable,
            _ if vector => maskable(s.freeze_layer_norm),
            _ => maskable(s.freeze_embeddings),
        }
    }

    /// A head that shares a table that trains gets a frozen one of its own.
    fn untie(&self, cx: &mut AttachContext<'_>, sites: &Sites) -> Result<()> {
        let s = &self.settings;
        if s.freeze_embeddings || !s.freeze_decoder {
            return Ok(());
        }
        for head in sites.linears().iter().filter(|l| l.is_head) {
            let LinearBase::Dense(table) = head.base() else { continue };
            let own = format!("{}.weight", head.path);
            if table == own {
                continue;
            }
            if !s.untie_embeddings {
                let why = "is true, and head and embeddings are one table, which trains; set `untie_embeddings` or `freeze_embeddings`";
                return Err(BadSetting::new("freeze_decoder", why).into());
            }
            let frozen = Frozen::copy(&sites.param(&table)?.base().value())?;
            let bytes = ramekin_slots::PackedWeight::bytes(&frozen);
            cx.ledger.add_packed(&own, &[head.shape.0, head.shape.1], "dense", bytes)?;
            head.set_base(LinearBase::Packed(Arc::new(frozen)));
        }
        Ok(())
    }

    fn phase(&self, step: u64) -> Phase {
        match self.lengths {
            Some((full, sparse)) => {
                let (iteration, at) = (step / (full + sparse), step % (full + sparse));
                Phase { iteration, sparse: at >= full }
            }
            // A plan does not know how long phases are; the first is the larger.
            None => Phase { iteration: 0, sparse: self.settings.ranking == Ranking::Random },
        }
    }

    /// Entries of μ after an iteration.
    fn quota(&self, iteration: u64) -> usize {
        let n = self.settings.n_ft_iterations as u128;
        (self.budget as u128 * (u128::from(iteration) + 1) / n) as usize
    }

    /// Phase 1 of a further iteration: from here, with the mask lifted.
    fn begin_full(&mut self) -> Result<()> {
        for t in &mut self.targets {
            t.start = copy_of(&t.param.value())?;
        }
        Ok(())
    }

    /// Phase 2: chooses entries, goes back to the start.
    fn begin_sparse(&mut self, iteration: u64) -> Result<()> {
        let quota = self.quota(iteration);
        let maskable: Vec<usize> =
            (0..self.targets.len()).filter(|i| self.targets[*i].places.is_some()).collect();
        let known: usize = self.targets.iter().filter_map(|t| t.places.as_ref()).map(Vec::len).sum();
        let wanted = quota.saturating_sub(known);
        let shape_only = self.targets.iter().any(|t| t.base.is_shape_only());
        let sizes: Vec<usize> = maskable.iter().map(|i| self.targets[*i].base.len()).collect();
        let chosen = match self.settings.ranking {
            _ if shape_only => first(&sizes, wanted),
            Ranking::Random => random(&sizes, wanted, &mut Draws::new(self.rng.stream("lt-sft/random", 0))),
            ranking => {
                let moved =
                    maskable.iter().map(|i| self.targets[*i].moved(ranking)).collect::<Result<Vec<_>>>()?;
                top(&moved, wanted)
            }
        };
        for (i, new) in maskable.into_iter().zip(chosen) {
            if let Some(places) = &mut self.targets[i].places {
                places.extend(new);
                places.sort_unstable();
            }
        }
        for t in self.targets.iter().filter(|t| !t.base.is_shape_only()) {
            let start = t.start.view::<f32>()?;
            t.param.value().update(|x: &mut [f32]| x.copy_from_slice(&start))?;
        }
        Ok(())
    }

    /// Says what trains in a phase.
    fn open(&self, phase: Phase) {
        for t in &self.targets {
            let places = t.places.as_ref().filter(|_| phase.sparse);
            t.param.set_trainable(places.is_none_or(|p| !p.is_empty()));
            let known = t.param.mask();
            let same = match (&known, places) {
                (Some(mask), Some(places)) => mask.places() == places,
                (None, None) => true,
                _ => false,
            };
            if !same {
                t.param.set_mask(places.map(|p| Arc::new(Mask::entries(p.clone()))));
            }
        }
    }

    fn target(&self, id: ParamId) -> Option<&Target> {
        self.targets.iter().find(|t| t.param.id() == id)
    }
}

/// The first entries of all, to stand for any on shapes.
fn first(sizes: &[usize], mut count: usize) -> Vec<Vec<u32>> {
    let mut take = |size: &usize| {
        let here = count.min(*size);
        count -= here;
        (0..here as u32).collect()
    };
    sizes.iter().map(&mut take).collect()
}

impl Target {
    /// How far phase 1 moved each entry; entries of μ come last.
    fn moved(&self, ranking: Ranking) -> Result<Vec<f32>> {
        let now = self.param.value();
        let (now, base) = (now.view::<f32>()?, self.base.view::<f32>()?);
        let sign = if ranking == Ranking::Smallest { -1.0 } else { 1.0 };
        let mut far: Vec<f32> = now.iter().zip(&*base).map(|(a, b)| sign * (a - b).abs()).collect();
        for at in self.places.iter().flatten() {
            far[*at as usize] = f32::NEG_INFINITY;
        }
        Ok(far)
    }
}

impl Stateful for LtSft {
    fn state(&self) -> Result<Vec<StateTensor>> {
        let phase = self.begun.map_or([-1, 0], |p| [p.iteration as i64, i64::from(p.sparse)]);
        let phase = Array::from_vec(phase.to_vec(), &[2], Category::Workspace)?;
        let mut all = vec![StateTensor { name: "phase".to_owned(), array: phase }];
        for t in &self.targets {
            let name = t.param.name();
            if let Some(places) = &t.places {
                let array = Array::from_vec(places.clone(), &[places.len()], Category::Workspace)?;
                all.push(StateTensor { name: format!("places.{name}"), array });
            }
            if self.settings.n_ft_iterations > 1 {
                all.push(StateTensor { name: format!("start.{name}"), array: t.start.clone() });
            }
        }
        Ok(all)
    }

    fn restore(&mut self, get: &mut dyn FnMut(&str) -> Option<Array>) -> Result<()> {
        let mut saved =
            |name: &str| get(name).with_context(|| format!("the checkpoint has no `{name}` of `lt-sft`"));
        let phase = saved("phase")?.view::<i64>()?.to_vec();
        ensure!(phase.len() == 2, "the checkpoint's phase of `lt-sft` is damaged");
        self.begun =
            (phase[0] >= 0).then_some(Phase { iteration: phase[0].max(0) as u64, sparse: phase[1] != 0 });
        for t in &mut self.targets {
            let name = t.param.name().to_owned();
            if let Some(places) = &mut t.places {
                *places = saved(&format!("places.{name}"))?.view::<u32>()?.to_vec();
                let inside = places.is_sorted() && places.last().is_none_or(|p| (*p as usize) < t.base.len());
                ensure!(inside, "the checkpoint's places in `{name}` are damaged");
            }
            if self.settings.n_ft_iterations > 1 {
                let start = saved(&format!("start.{name}"))?;
                ensure!(
                    start.dims() == t.base.dims(),
                    "the checkpoint's start of `{name}` has another shape"
                );
                start.recategorise(Category::Weights);
                t.start = start;
            }
        }
        Ok(())
    }
}

impl Selection for LtSft {
    fn attach(&mut self, cx: &mut AttachContext<'_>) -> Result<Vec<String>> {
        let sites = cx.sites.clone();
        if let Some(l) = sites.linears().iter().find(|l| matches!(l.base(), LinearBase::Packed(_))) {
            let why = format!(
                "chooses among the base's own entries, and `{}` is held packed; leave `quantizer` out: a sparse \
                 vector can be added to a quantised model's dense form",
                l.path
            );
            return Err(BadSetting::new("kind", why).against("quantizer").into());
        }
        self.rng = self.settings.seed.map_or(cx.rng, Rng::new);
        self.untie(cx, &sites)?;
        self.numbers = cx.ledger.counts().0 as f64;
        let mut names = HashSet::new();
        for name in sites.param_names() {
            let places = match self.kind(name, &sites, cx.facts.blocks) {
                Kind::Frozen => continue,
                Kind::Whole => None,
                Kind::Maskable => Some(Vec::new()),
            };
            let param = cx.train(name)?;
            let base = copy_of(&param.value())?;
            names.insert(name.clone());
            self.targets.push(Target { param, start: base.clone(), base, places });
        }
        let maskable: usize = self.targets.iter().filter(|t| t.places.is_some()).map(|t| t.base.len()).sum();
        if maskable == 0 {
            let why = "is true, and every other tensor is frozen too: no entry is left to choose from";
            return Err(BadSetting::new("freeze_embeddings", why).into());
        }
        let (name, budget) = match self.settings.ft_params_num {
            Some(n) => ("ft_params_num", n as usize),
            None => {
                let share = self.settings.ft_params_proportion * maskable as f64;
                ("ft_params_proportion", (share + 1e-9).floor() as usize)
            }
        };
        if budget > maskable || budget < self.settings.n_ft_iterations as usize {
            let least = self.settings.n_ft_iterations;
            let why = format!("chooses {budget} entries; it must be {least} to {maskable} of this model");
            return Err(BadSetting::new(name, why).into());
        }
        self.budget = budget;
        Ok(names.into_iter().collect())
    }

    fn updates(&mut self, epoch: f64) -> Result<Option<u64>> {
        let (full, sparse) = self.settings.lengths(epoch);
        self.lengths = Some((full, sparse));
        Ok(Some(self.settings.n_ft_iterations * (full + sparse)))
    }

    fn clock(&self, step: u64, total: u64) -> (u64, u64) {
        match self.lengths {
            None => (step, total),
            Some((full, sparse)) => {
                let at = step % (full + sparse);
                if at < full { (at, full) } else { (at - full, sparse) }
            }
        }
    }

    fn before_step(&mut self, cx: &mut RoundContext<'_>) -> Result<()> {
        let phase = self.phase(cx.step);
        if self.begun != Some(phase) {
            match (phase.sparse, self.begun) {
                (true, _) => self.begin_sparse(phase.iteration)?,
                (false, Some(_)) => self.begin_full()?,
                (false, None) => {}
            }
            self.targets.iter().for_each(|t| cx.optimizer.forget(t.param.id()));
            self.begun = Some(phase);
        }
        self.open(phase);
        Ok(())
    }

    fn gradient(&mut self, param: &Arc<Param>, grad: &Array) -> Result<f64> {
        let sparse = self.begun.is_some_and(|p| p.sparse);
        let weight = if sparse { self.settings.sparse_l1_reg } else { self.settings.full_l1_reg };
        let Some(t) = self.target(param.id()).filter(|_| weight > 0.0) else { return Ok(0.0) };
        if self.settings.apply_reg_to_sparse_only && t.places.is_none() || grad.is_shape_only() {
            return Ok(0.0);
        }
        ensure!(grad.is_unique(), "the gradient of `{}` is shared", param.name());
        let base = match t.param.mask() {
            Some(mask) => mask.gather::<f32>(&t.base, Category::Workspace)?,
            None => t.base.clone(),
        };
        let (now, each) = (param.value(), weight / self.numbers);
        let (now, base) = (now.view::<f32>()?, base.view::<f32>()?);
        let mut sum = 0.0;
        grad.update(|g: &mut [f32]| {
            for (g, (a, b)) in g.iter_mut().zip(now.iter().zip(&*base)) {
                let far = a - b;
                sum += f64::from(far.abs());
                if far != 0.0 {
                    *g += (each * f64::from(far.signum())) as f32;
                }
            }
        })?;
        Ok(each * sum)
    }

    fn file(&self) -> Result<Option<SelectionFile>> {
        let mut file = SelectionFile { config: json!({}), tensors: Vec::new(), differences: Vec::new() };
        for t in &self.targets {
            match t.places {
                Some(_) => file.differences.push(differences(t.param.name(), &t.base, &t.param.value())?),
                None => file.tensors.push((t.param.name().to_owned(), t.param.value())),
            }
        }
        let entries: usize = file.differences.iter().map(|d| d.entries.len()).sum();
        file.config = json!({
            "kind": "lt-sft",
            "settings": self.settings,
            "budget": self.budget,
            "entries": entries,
            "heads": file.tensors.iter().map(|(n, _)| n).collect::<Vec<_>>(),
        });
        Ok(Some(file))
    }
}
