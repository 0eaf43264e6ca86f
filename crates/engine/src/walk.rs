//! A walk through the network, one module at a time, with the hidden states of several branches side by side.
//!
//! A block's weights come in, whatever an estimator does with the block happens, and they go again: each
//! block once a walk, however many branches and micro-batches there are. With in-place changes that is what
//! keeps zeroth-order training of a streamed model at one copy of a block each way.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use ramekin_core::{Array, BadRecipe, Category, Param, ParamId, UserError};
use ramekin_recipe::TrainStage;
use ramekin_slots::{
    FlatBatch, Forward, LinearBase, Longer, Mode, Model, ModelFacts, OnEmbedding, ParamGroup, ParamView,
    Runner, States, StepInfo, Stop, Visit, block_of,
};
use ramekin_tape::{Tape, Value};

use crate::assembly::Assembly;
use crate::blueprint::Blueprint;
use crate::cache::check_positions;
use crate::pass::Batches;
use crate::{objective, parts};

/// A micro-batch on its way through the network.
struct Lane {
    /// The batch with virtual tokens, where an adapter makes some.
    longer: Option<Longer>,
    h: Value,
}

impl Lane {
    fn enter(model: &Rc<dyn Model>, fx: &Forward) -> Result<Self> {
        check_positions(&**model, fx)?;
        let h = model.embed(fx)?;
        let longer = fx.longer(&h)?;
        Ok(Lane { h: longer.as_ref().map_or(h, |l| l.h.clone()), longer })
    }

    fn fx(&self, plain: &Forward, tape: &Tape) -> Forward {
        self.longer.as_ref().map_or(plain, |l| &l.fx).on(tape)
    }

    fn block(&mut self, model: &Rc<dyn Model>, index: usize, plain: &Forward, tape: &Tape) -> Result<()> {
        self.h = model.block(index, &self.fx(plain, tape), &self.h)?;
        Ok(())
    }

    /// The states of real tokens after the final norm.
    fn leave(&self, model: &Rc<dyn Model>, plain: &Forward, tape: &Tape) -> Result<Value> {
        let y = model.final_norm(&self.fx(plain, tape), &self.h)?;
        self.longer.as_ref().map_or(Ok(y.clone()), |l| l.real(&y))
    }
}

/// The model in work as an objective sees it when its states have arrived already.
struct Arrived<'a> {
    assembly: &'a Assembly,
    hidden: RefCell<Option<Value>>,
}

impl Runner for Arrived<'_> {
    fn facts(&self) -> &ModelFacts {
        self.assembly.model.facts()
    }

    fn run(
        &self,
        tape: &Tape,
        batch: &FlatBatch,
        mode: Mode,
        on: Option<&OnEmbedding<'_>>,
    ) -> Result<States> {
        if !mode.adapters {
            return objective::Run::new(self.assembly).run(tape, batch, mode, on);
        }
        let arrived = self.hidden.borrow_mut().take().filter(|_| on.is_none());
        let hidden = arrived.ok_or_else(|| {
            UserError::new(
                "the objective runs the model anew, and the estimator walks through it once a step",
            )
            .help("take `estimator = { kind = \"mezo\" }`")
        })?;
        let fx = Forward::new(tape.clone(), self.assembly.sites.clone(), batch.clone(), mode);
        Ok(States { fx, hidden, model: self.assembly.model.clone() })
    }
}

/// The trainable parameters by the module that reads them.
struct Modules {
    embedding: Vec<Arc<Param>>,
    blocks: Vec<Vec<Arc<Param>>>,
    /// All that the norm, the head and the objective read.
    end: Vec<Arc<Param>>,
    /// Those of them that the embedding does not read.
    end_alone: Vec<Arc<Param>>,
}

impl Modules {
    /// Blocks by names; of the rest the embedding has what it reads, and the end all others.
    fn of(assembly: &Assembly, params: &[Arc<Param>], embedding: &[ParamId]) -> Self {
        let mut blocks = vec![Vec::new(); assembly.model.facts().blocks];
        let (mut first, mut end, mut end_alone) = (Vec::new(), Vec::new(), Vec::new());
        let tied = tied_table(assembly);
        for param in params {
            if let Some(block) = block_of(param.name()).and_then(|b| blocks.get_mut(b)) {
                block.push(param.clone());
                continue;
            }
            let early = embedding.contains(&param.id());
            if early {
                first.push(param.clone());
            }
            if !early || tied.as_deref() == Some(param.name()) {
                end.push(param.clone());
            }
            if !early {
                end_alone.push(param.clone());
            }
        }
        Modules { embedding: first, blocks, end, end_alone }
    }
}

/// Name of the table that a tied head shares with the embedding.
fn tied_table(assembly: &Assembly) -> Option<String> {
    let head = assembly.sites.linears().iter().find(|l| l.is_head && l.is_tied())?;
    match head.base() {
        LinearBase::Dense(name) => Some(name),
        LinearBase::Packed(_) => None,
    }
}

/// The trainable parameters that `f` reads on the tape that it is given.
fn reads(f: impl FnOnce(&Tape) -> Result<()>) -> Result<Vec<Arc<Param>>> {
    let seen = Rc::new(RefCell::new(Vec::new()));
    let note = seen.clone();
    f(&Tape::viewing(Rc::new(move |p: &Arc<Param>| {
        note.borrow_mut().push(p.clone());
        Ok(p.value())
    })))?;
    Ok(seen.take())
}

fn ids(params: &[Arc<Param>]) -> Vec<ParamId> {
    params.iter().map(|p| p.id()).collect()
}

/// [`ramekin_slots::Problem::walk`] over a step's batches.
pub fn walk(
    p: &Batches<'_>,
    branches: usize,
    visit: &mut dyn FnMut(&mut Stop<'_>) -> Result<()>,
) -> Result<Vec<f64>> {
    let (assembly, model) = (p.assembly, &p.assembly.model);
    let mode = Mode { rng: p.pass.rng, ..Mode::inference() };
    let plain = |flat: &FlatBatch| Forward::new(Tape::off(), assembly.sites.clone(), flat.clone(), mode);
    let forwards: Vec<Forward> = p.batches.iter().map(|b| plain(&b.flat)).collect();
    let tape = |view: Option<ParamView>| view.map_or_else(Tape::off, Tape::viewing);

    // Without branches nothing is read, and everything outside of the blocks may be visited at once.
    let embedding = match p.batches.first().and_then(|b| b.flat.ids.first()).filter(|_| branches > 0) {
        Some(id) => {
            let one = plain(&FlatBatch::new(&[vec![*id]]));
            ids(&reads(|tape| Lane::enter(model, &one.on(tape)).map(drop))?)
        }
        None => ids(p.params),
    };
    let modules = Modules::of(assembly, p.params, &embedding);
    // A step's walk and a flush after it are never the same visit.
    let number = if branches > 0 { 2 * p.step } else { (2 * p.step).saturating_sub(1) };
    let when = Visit { rng: p.pass.rng, number };

    let mut lanes: Vec<Vec<Option<Lane>>> =
        forwards.iter().map(|_| (0..branches).map(|_| None).collect()).collect();
    visit(&mut Stop {
        params: &modules.embedding,
        fresh: &modules.embedding,
        run: &mut |branch, view| {
            let tape = tape(view);
            for (fx, lanes) in forwards.iter().zip(&mut lanes) {
                lanes[branch] = Some(Lane::enter(model, &fx.on(&tape))?);
            }
            Ok(())
        },
    })?;
    for (index, params) in modules.blocks.iter().enumerate() {
        if branches == 0 && params.is_empty() {
            continue;
        }
        assembly.sites.with_block_changed(index, when, || {
            visit(&mut Stop {
                params,
                fresh: params,
                run: &mut |branch, view| {
                    let tape = tape(view);
                    for (fx, lanes) in forwards.iter().zip(&mut lanes) {
                        let lane = lanes[branch].as_mut().context("a branch that never began")?;
                        lane.block(model, index, fx, &tape)?;
                    }
                    Ok(())
                },
            })
        })?;
    }
    let mut losses = vec![0.0; branches];
    visit(&mut Stop {
        params: &modules.end,
        fresh: &modules.end_alone,
        run: &mut |branch, view| {
            let tape = tape(view);
            for ((fx, lanes), batch) in forwards.iter().zip(&mut lanes).zip(p.batches) {
                let lane = lanes[branch].take().context("a branch that never began")?;
                let hidden = RefCell::new(Some(lane.leave(model, fx, &tape)?));
                drop(lane);
                let arrived = Arrived { assembly, hidden };
                let loss =
                    objective::loss_of(p.pass.objective, assembly, &arrived, batch, &p.totals, &tape, mode)?;
                losses[branch] += loss.value.array().scalar()?;
            }
            Ok(())
        },
    })?;
    Ok(losses)
}

/// Refuses what cannot go with an estimator that walks, on an assembly of shapes.
///
/// # Errors
/// [`BadRecipe`] with both places.
pub fn check(index: usize, s: &TrainStage, plan: &Blueprint, assembly: &Assembly) -> Result<()> {
    if !parts::estimator(&s.estimator)?.walks() {
        return Ok(());
    }
    let at = |key: &str| format!("stage.{index}.{key}");
    let refuse = |other: &str, place: String, label: &str, why: &str, help: &str| {
        let title = format!("`estimator/{}` cannot go with {other}", s.estimator.kind);
        let error = BadRecipe::new(title).at(&s.estimator.path, why).at(place, label);
        Err(error.help(help.to_owned()).into())
    };
    if keeps_state(s)? {
        return refuse(
            &format!("`optimizer/{}` here", s.optimizer.kind),
            s.optimizer.path.clone(),
            "keeps state for every weight that trains, which would stay in memory",
            "updates a block when it is visited, and holds nothing of it between visits",
            "take `optimizer = { kind = \"sgd\" }` without momentum",
        );
    }
    let once = "goes through the network once, module by module";
    // `mezo` changes weights all over, so those must be in memory.
    let mezo = if assembly.trains_what_is_away() {
        "take `estimator = { kind = \"mezo\" }` with `placement = { kind = \"resident\" }`"
    } else {
        "take `estimator = { kind = \"mezo\" }`"
    };
    if let Some(part) = s.method.as_ref().filter(|_| assembly.sites.around().path().is_some()) {
        let other = format!("`method/{}`", part.kind);
        return refuse(&other, part.path.clone(), "has a way through the blocks of its own", once, mezo);
    }
    if let Some(part) = s.reducer.first() {
        let other = format!("`reducer/{}`", part.kind);
        return refuse(&other, part.path.clone(), "leaves out tokens between the blocks", once, mezo);
    }
    let facts = assembly.model.facts();
    if facts.images.is_some() {
        let title = format!("`estimator/{}` cannot go with `{}`", s.estimator.kind, facts.model_type);
        return Err(BadRecipe::new(title)
            .at(&s.estimator.path, "walks through models of tokens; this one reads images")
            .help(mezo)
            .into());
    }
    if let Some(part) = &s.comm
        && parts::comm(part)?.ranks() > 1
    {
        let other = format!("`comm/{}`", part.kind);
        let label = "shares a step's micro-batches out among ranks";
        return refuse(&other, part.path.clone(), label, "walks with all of a step's micro-batches", mezo);
    }
    if let Some(beside) = assembly.adapters.iter().find(|a| a.adapter.runs_beside()) {
        return refuse(
            &format!("`adapter/{}`", beside.kind),
            beside.owner.clone(),
            "reads the states after every block at once",
            "goes through the network module by module",
            mezo,
        );
    }
    if assembly.trains_what_is_away() {
        let why = "changes weights that are in memory only while it visits them";
        if let Some(part) = &plan.selection {
            let help = "keep the weights with `placement = { kind = \"resident\" }`";
            let other = format!("`selection/{}` and weights that are elsewhere", part.kind);
            return refuse(&other, part.path.clone(), "looks at weights to choose among them", why, help);
        }
        for part in &s.hook {
            if parts::hook(part)?.ever_handles_weights() {
                let help =
                    "leave the hook out, or keep the weights with `placement = { kind = \"resident\" }`";
                let other = format!("`hook/{}` and weights that are elsewhere", part.kind);
                return refuse(
                    &other,
                    part.path.clone(),
                    "reads or changes weights between steps",
                    why,
                    help,
                );
            }
        }
    }
    if let Some((param, where_from)) = stray(assembly)? {
        let owner = assembly.ledger.borrow().get(&param).map(|e| e.owner.clone());
        let adds = assembly.adapters.iter().find(|a| owner.as_ref() == Some(&a.owner));
        let (other, place, label) = match adds {
            Some(a) => (
                format!("`adapter/{}`", a.kind),
                a.owner.clone(),
                format!("adds `{param}`, which {where_from} reads"),
            ),
            None => (
                format!("the parameter `{param}`"),
                at("kind"),
                format!("trains `{param}`, which {where_from} reads"),
            ),
        };
        return refuse(
            &other,
            place,
            &label,
            "visits every parameter with the one module that reads it",
            mezo,
        );
    }
    Ok(())
}

/// Whether the optimizer holds anything for a parameter: one step on shapes shows it.
fn keeps_state(s: &TrainStage) -> Result<bool> {
    let mut optimizer = parts::optimizer(&s.optimizer)?;
    let shape = || Array::shape_only(&[64, 64], ramekin_core::DType::F32, Category::Workspace);
    let param = Param::new("weight", shape()?);
    let info = StepInfo { step: 1, lr: optimizer.lr() };
    optimizer.step(&param, &shape()?, info, ParamGroup::default())?;
    Ok(optimizer.table().bytes() > 0)
}

/// A trainable parameter that is read by another module than the one it belongs to, and which that is.
fn stray(assembly: &Assembly) -> Result<Option<(String, String)>> {
    let model = &assembly.model;
    let flat = FlatBatch::new(&[vec![0, 0]]);
    let fx = Forward::new(Tape::off(), assembly.sites.clone(), flat, Mode::inference());
    let lane = Cell::new(None);
    let first = reads(|tape| {
        lane.set(Some(Lane::enter(model, &fx.on(tape))?));
        Ok(())
    })?;
    let Some(mut lane) = lane.take() else { bail!("the embedding gave nothing") };
    let modules = Modules::of(assembly, &assembly.trainable(), &ids(&first));
    let outside = |read: &[Arc<Param>], own: &[Arc<Param>]| {
        read.iter().find(|p| !own.iter().any(|o| o.id() == p.id())).map(|p| p.name().to_owned())
    };
    if let Some(name) = outside(&first, &modules.embedding) {
        return Ok(Some((name, "the embedding".to_owned())));
    }
    for (index, own) in modules.blocks.iter().enumerate() {
        let read = reads(|tape| lane.block(model, index, &fx, tape))?;
        if let Some(name) = outside(&read, own) {
            return Ok(Some((name, format!("block {index}"))));
        }
    }
    let read = reads(|tape| {
        let h = lane.leave(model, &fx, tape)?;
        model.head(&fx.on(tape), &h).map(drop)
    })?;
    Ok(outside(&read, &modules.end).map(|name| (name, "the head".to_owned())))
}
