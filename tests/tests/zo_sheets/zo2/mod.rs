//! `zo2`: the numbers of `mezo` with blocks that visit, one copy each way.

mod must_fail;
mod narrow;
mod timing;

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use anyhow::Result;
use ramekin_core::{Array, Meter, Param, Tier, meter};
use ramekin_engine::assembly::Assembly;
use ramekin_engine::blueprint::Blueprint;
use ramekin_engine::step::{LabelledBatch, Trainer};
use ramekin_engine::{checkpoint, parts};
use ramekin_placement_stream::{Delay, Offload};
use ramekin_registry::Part as _;
use ramekin_slots::{
    Estimator, FlatBatch, Loss, Objective, ObjectiveContext, ParamGroup, Placement as _, StepInfo, block_of,
};
use ramekin_tape::GradSink;
use ramekin_tests::{lab, toy};
use serde_json::{Value as Json, json};

const EPS: f64 = 1e-3;

/// The sheet's model of this many blocks.
fn plan(blocks: usize, tied: bool) -> Blueprint {
    let mut config = toy::llama(32, 32, blocks, 4, 64);
    config["tie_word_embeddings"] = tied.into();
    Blueprint { full_training: true, ..lab::fresh_model(config) }
}

fn batch() -> LabelledBatch {
    lab::batch(&lab::sequences(&[16; 8], 32, 3))
}

/// Moves the blocks of a model in memory to a placement at hand.
fn moved(plan: &Blueprint, settings: Json, delay: Option<Delay>) -> (Assembly, Rc<Offload>) {
    let mut assembly = lab::assemble(plan);
    let offload = Offload::new(serde_json::from_value(settings).expect("settings")).expect("an offload");
    let offload = Rc::new(match delay {
        Some(delay) => offload.delayed(delay),
        None => offload,
    });
    for entry in assembly.ledger.borrow().entries() {
        if let (Some(block), Some(param)) = (block_of(&entry.name), &entry.param) {
            offload.adopt_param(block, param).expect("a tensor that moves");
        }
    }
    Rc::get_mut(&mut assembly.sites).expect("sites in one hand").set_placement(offload.clone());
    (assembly, offload)
}

/// Notes every loss that is computed.
struct Noting(Box<dyn Objective>, Rc<RefCell<Vec<f64>>>);

impl Objective for Noting {
    fn counts(&self, flat: &FlatBatch, labels: &[i64]) -> Vec<f64> {
        self.0.counts(flat, labels)
    }

    fn loss(&self, cx: &ObjectiveContext<'_>) -> Result<Loss> {
        let loss = self.0.loss(cx)?;
        self.1.borrow_mut().push(loss.value.array().scalar()?);
        Ok(loss)
    }
}

fn estimator(kind: &str, mode: &str) -> Box<dyn Estimator> {
    let settings = json!({ "zo_eps": EPS, "perturb_mode": mode });
    parts::estimator(&lab::part(kind, settings)).expect("an estimator")
}

/// SGD at 1e-4 with decay 0.1 on matrices, under this schedule over 30 steps.
fn trainer(assembly: &Assembly, estimator: Box<dyn Estimator>, schedule: &str) -> Trainer {
    let rule = json!({ "lr": 1e-4, "weight_decay": 0.1 });
    let flat = assembly.trainable().into_iter().filter(|p| p.value().dims().len() < 2);
    Trainer {
        estimator,
        optimizer: parts::optimizer(&lab::part("sgd", rule)).expect("sgd"),
        schedule: parts::schedule(&lab::part(schedule, json!({}))).expect("a schedule"),
        groups: flat.map(|p| (p.id(), ParamGroup { decay: false, ..ParamGroup::default() })).collect(),
        fused: true,
        total_steps: 30,
        ..lab::trainer(1e-4)
    }
}

/// The bits of every trainable number, wherever they are.
fn bits(assembly: &Assembly) -> Vec<u32> {
    numbers(assembly).into_iter().map(f32::to_bits).collect()
}

fn numbers(assembly: &Assembly) -> Vec<f32> {
    let read = |p: &Arc<Param>| assembly.read_param(p).and_then(|a| a.to_f32()).expect("numbers");
    assembly.trainable().iter().flat_map(read).collect()
}

/// The newest projected gradient.
fn newest_c(estimator: &dyn Estimator) -> f64 {
    let state = estimator.state().expect("a state");
    let c = state.iter().find(|t| t.name == "projected_grad").expect("projected gradients");
    *c.array.view::<f64>().expect("f64").last().expect("a step")
}

/// What a run showed.
#[derive(Debug, PartialEq)]
struct Seen {
    losses: Vec<f64>,
    c: Vec<f64>,
    weights: Vec<u32>,
}

fn steps(assembly: &Assembly, trainer: &mut Trainer, from: u64, to: u64) {
    for step in from..to {
        trainer.step(assembly, &[batch()], step).unwrap_or_else(|e| panic!("{e:#}"));
    }
}

/// 30 steps and a flush.
fn run(assembly: &Assembly, mut trainer: Trainer) -> Seen {
    let losses = Rc::new(RefCell::new(Vec::new()));
    trainer.objective = Box::new(Noting(trainer.objective, losses.clone()));
    let mut c = Vec::new();
    for step in 0..30 {
        steps(assembly, &mut trainer, step, step + 1);
        c.push(newest_c(&*trainer.estimator));
    }
    trainer.flush(assembly, 30).expect("a flush");
    Seen { losses: losses.take(), c, weights: bits(assembly) }
}

/// Losses, projected gradients and weights are those of `mezo`, bit for bit.
#[test]
fn check_1() {
    for (tied, mode) in [(false, "in_place"), (false, "scratch"), (true, "scratch")] {
        let plan = plan(3, tied);
        let plain = lab::assemble(&plan);
        let expected = run(&plain, trainer(&plain, estimator("mezo", mode), "linear"));
        assert_eq!((expected.losses.len(), expected.c.len()), (60, 30));
        let (away, _) = moved(&plan, json!({}), None);
        let found = run(&away, trainer(&away, estimator("zo2", mode), "linear"));
        assert_eq!(found, expected, "tied: {tied}, {mode}");
        assert_ne!(found.weights, bits(&lab::assemble(&plan)), "nothing was learnt");
    }
}

/// θ ← θ − lr·(g + 0.1 θ on matrices), f64.
struct Sgd64(f64);

impl GradSink for Sgd64 {
    fn ready(&mut self, param: &Arc<Param>, grad: Array) -> Result<()> {
        let (g, value) = (grad.view::<f64>()?, param.value());
        let decay = if value.dims().len() > 1 { 0.1 } else { 0.0 };
        let rule =
            |p: &mut [f64]| p.iter_mut().zip(g.iter()).for_each(|(p, g)| *p -= self.0 * (g + decay * *p));
        value.update(rule)
    }
}

/// A tied head in place rounds once more, at its second use: in f64 that is all there is between the two.
#[test]
fn check_1_tied_in_place() {
    let plan = plan(3, true);
    let run = |kind: &str| -> (Vec<f64>, Vec<f64>) {
        let assembly = lab::assemble(&plan);
        toy::to_f64(&assembly);
        let (trainer, mut own) = (lab::trainer(1e-4), estimator(kind, "in_place"));
        let (params, batches) = (assembly.trainable(), [batch()]);
        let mut c = Vec::new();
        for step in 0..30 {
            let lr = 1e-4 * (1.0 - step as f64 / 30.0);
            let mut problem = toy::problem(&assembly, &trainer, &params, &batches);
            (problem.step, problem.info) = (step, StepInfo { step: step + 1, lr });
            let rate = own.pending().map_or(lr, |info| info.lr);
            own.estimate(&mut problem, &mut Sgd64(rate)).unwrap_or_else(|e| panic!("{e:#}"));
            c.push(newest_c(&*own));
            if let (29, Some(info)) = (step, own.pending()) {
                own.flush(&mut problem, &mut Sgd64(info.lr)).expect("a flush");
            }
        }
        let weights = params.iter().flat_map(|p| p.value().view::<f64>().expect("f64").to_vec()).collect();
        (weights, c)
    };
    let ((a, c), (b, d)) = (run("mezo"), run("zo2"));
    let far = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| (x - y).abs()).fold(0.0, f64::max);
    println!("tied in place: weights {:.1e}, c {:.1e} apart", far(&a, &b), far(&c, &d));
    assert!(far(&a, &b) <= 1e-12, "weights are {:.1e} apart", far(&a, &b));
    assert!(far(&c, &d) <= 1e-9, "c is {:.1e} apart", far(&c, &d));
}

/// Before a flush the weights are those of the step before, after it those of now; what is pending survives.
#[test]
fn check_2() {
    for mode in ["in_place", "scratch"] {
        let plan = plan(3, false);
        let plain = lab::assemble(&plan);
        let mut mezo = trainer(&plain, estimator("mezo", mode), "constant");
        steps(&plain, &mut mezo, 0, 9);
        let before = numbers(&plain);
        steps(&plain, &mut mezo, 9, 10);
        let after = numbers(&plain);

        let (away, _) = moved(&plan, json!({}), None);
        let mut zo2 = trainer(&away, estimator("zo2", mode), "constant");
        steps(&away, &mut zo2, 0, 10);
        let host = numbers(&away);
        if mode == "scratch" {
            assert!(host == before, "the host is not one step behind");
        } else {
            let (mut near, mut far) = (0f64, 0f64);
            for ((host, before), after) in host.iter().zip(&before).zip(&after) {
                // |z| < 6.77
                let ulp = f32::max(before.abs(), 2.0 * EPS as f32 * 6.77) * f32::EPSILON;
                assert!((host - before).abs() <= 4.0 * ulp, "{host} for {before}");
                near += f64::from(host - before).powi(2);
                far += f64::from(host - after).powi(2);
            }
            println!("in place: {:.1e} from the step before, {:.1e} from now", near.sqrt(), far.sqrt());
            assert!(far.sqrt() >= 10.0 * near.sqrt(), "{:.1e} against {:.1e}", near.sqrt(), far.sqrt());
        }

        // Saved with what is pending, and gone on elsewhere.
        let folder = tempfile::tempdir().expect("a folder");
        let save = |name: &str, assembly: &Assembly, trainer: &Trainer| {
            let all = checkpoint::open(&folder.path().join(name), 1).expect("checkpoints");
            checkpoint::save(&all, 10, 0.0, assembly, trainer, None).expect("a checkpoint");
        };
        save("pending", &away, &zo2);
        zo2.flush(&away, 10).expect("a flush");
        assert!(numbers(&away) == after, "{mode}: a flush does not lead to now");
        zo2.flush(&away, 10).expect("a flush");
        assert!(numbers(&away) == after, "{mode}: a second flush changed something");
        save("flushed", &away, &zo2);
        steps(&away, &mut zo2, 10, 14);
        zo2.flush(&away, 14).expect("a flush");
        steps(&plain, &mut mezo, 10, 14);
        assert!(bits(&away) == bits(&plain), "{mode}: going on after a flush");
        for name in ["pending", "flushed"] {
            let (again, _) = moved(&plan, json!({ "overlap": false }), None);
            let mut trainer = trainer(&again, estimator("zo2", mode), "constant");
            let all = checkpoint::open(&folder.path().join(name), 1).expect("checkpoints");
            checkpoint::restore(&all, &again, &mut trainer).expect("a restored run").expect("a checkpoint");
            assert_eq!(trainer.estimator.pending().is_some(), name == "pending");
            steps(&again, &mut trainer, 10, 14);
            trainer.flush(&again, 14).expect("a flush");
            assert!(bits(&again) == bits(&plain), "{mode}: going on from what was saved {name}");
        }
    }
}

fn block_bytes(assembly: &Assembly) -> Vec<u64> {
    let mut bytes = vec![0; assembly.model.facts().blocks];
    for p in assembly.trainable() {
        if let Some(block) = block_of(p.name()) {
            bytes[block] += p.value().bytes();
        }
    }
    bytes
}

/// A step moves each block once each way, and no more blocks have room than there are buffers.
#[test]
fn check_3() {
    for (buffers, overlap, list) in
        [(1, true, None), (2, true, None), (3, true, Some([0, 2, 5])), (4, false, None)]
    {
        let meter = Meter::new();
        let _scope = meter::scope(meter.clone());
        let mut settings = json!({ "prefetch_buffers": buffers, "overlap": overlap });
        if let Some(list) = list {
            settings["offloading_blocks"] = json!(list);
        }
        let (assembly, offload) = moved(&plan(6, false), settings, None);
        let bytes = block_bytes(&assembly);
        let away: Vec<usize> = list.map_or((0..6).collect(), |l| l.to_vec());
        let total: u64 = away.iter().map(|b| bytes[*b]).sum();
        let stays: u64 = assembly.trainable().iter().map(|p| p.value().bytes()).sum::<u64>() - total;
        let mut trainer = trainer(&assembly, estimator("zo2", "in_place"), "constant");
        let host = || meter.away(Tier::Host);
        assert_eq!(host().live, total);
        let (mut moves, mut link) = (offload.moves(), host());
        meter.reset_peak();
        for step in 0..4 {
            steps(&assembly, &mut trainer, step, step + 1);
            let now = offload.moves();
            for b in 0..6 {
                let count = |all: &std::collections::BTreeMap<usize, u64>| all.get(&b).copied().unwrap_or(0);
                let moved = (count(&now.up) - count(&moves.up), count(&now.down) - count(&moves.down));
                let once = u64::from(away.contains(&b));
                assert_eq!(moved, (once, once), "block {b} in step {step}");
            }
            assert_eq!((host().fetched - link.fetched, host().sent - link.sent), (total, total));
            assert_eq!(host().live, total);
            (moves, link) = (now, host());
            if step == 0 {
                let most = meter.at_peak();
                assert!(most.weights + most.trainable <= stays + total);
                meter.reset_peak(); // buffers count as what they hold, which is nothing at first
            }
        }
        assert!(moves.most <= buffers, "{} blocks on the device with {buffers} buffers", moves.most);
        let now = meter.highest();
        let budget = stays + buffers as u64 * bytes.iter().max().expect("a block");
        assert!(now.weights + now.trainable <= budget, "{now:?} with {budget}");
    }
}

fn after_steps(assembly: &Assembly, count: u64) -> Vec<u32> {
    let mut trainer = trainer(assembly, estimator("zo2", "in_place"), "constant");
    steps(assembly, &mut trainer, 0, count);
    trainer.flush(assembly, count).expect("a flush");
    bits(assembly)
}

/// Overlap, buckets, buffers, the disk and any choice of blocks leave every weight as it is.
#[test]
fn check_4() {
    let plan = plan(4, false);
    let expected = after_steps(&lab::assemble(&plan), 4);
    for settings in [
        json!({}),
        json!({ "overlap": false }),
        json!({ "bucket": true }),
        json!({ "bucket": true, "overlap": false, "offloading_blocks": [3] }),
        json!({ "offloading_blocks": [0, 2], "prefetch_buffers": 2 }),
        json!({ "offloading_blocks": [1, 2, 3], "prefetch_buffers": 4 }),
        json!({ "offload_device": "disk" }),
        json!({ "offload_device": "disk", "bucket": true, "prefetch_buffers": 1, "bandwidth": 1e8 }),
    ] {
        let (assembly, _) = moved(&plan, settings.clone(), None);
        assert!(after_steps(&assembly, 4) == expected, "{settings}");
    }
}

/// Whatever a copy's delay, in 50 runs, the weights are the same.
#[test]
fn check_6() {
    let plan = plan(4, false);
    let expected = after_steps(&lab::assemble(&plan), 3);
    for run in 0..50u64 {
        let settings = json!({ "prefetch_buffers": 1 + run % 4, "bucket": run % 3 == 0 });
        let (assembly, _) = moved(&plan, settings, Some(timing::random(run)));
        assert!(after_steps(&assembly, 3) == expected, "run {run}");
    }
}

/// Several directions cost hidden states and no traffic, and are those of `mezo`.
#[test]
fn directions_share_a_walk() {
    let plan = plan(3, false);
    let settings = json!({ "zo_eps": EPS, "n_directions": 3 });
    let of = |kind: &str| parts::estimator(&lab::part(kind, settings.clone())).expect("an estimator");
    let plain = lab::assemble(&plan);
    let mut mezo = trainer(&plain, of("mezo"), "linear");
    steps(&plain, &mut mezo, 0, 4);
    let (away, offload) = moved(&plan, json!({}), None);
    let mut zo2 = trainer(&away, of("zo2"), "linear");
    steps(&away, &mut zo2, 0, 4);
    assert!(offload.moves().up.values().all(|n| *n == 4));
    zo2.flush(&away, 4).expect("a flush");
    assert!(bits(&away) == bits(&plain));
}

/// Micro-batches go side by side, and their loss is one.
#[test]
fn micro_batches_share_a_walk() {
    let plan = plan(3, false);
    let batches = [batch(), lab::batch(&lab::sequences(&[5, 9], 32, 4))];
    let run = |assembly: &Assembly, kind: &str| {
        let mut trainer = trainer(assembly, estimator(kind, "in_place"), "constant");
        for step in 0..3 {
            trainer.step(assembly, &batches, step).unwrap_or_else(|e| panic!("{e:#}"));
        }
        trainer.flush(assembly, 3).expect("a flush");
        bits(assembly)
    };
    let (away, offload) = moved(&plan, json!({}), None);
    assert!(run(&away, "zo2") == run(&lab::assemble(&plan), "mezo"));
    assert!(offload.moves().up.values().all(|n| *n <= 5), "{:?}", offload.moves());
}

/// With autocast the forwards see bf16 matrices, and the weights stay as they are but for their updates.
#[test]
fn autocast_shows_matrices_as_bf16() {
    let plan = plan(2, false);
    let first = |autocast: &str, mode: &str| {
        let assembly = lab::assemble(&plan);
        let settings = json!({ "zo_eps": EPS, "perturb_mode": mode, "autocast": autocast });
        let own = parts::estimator(&lab::part("zo2", settings)).expect("zo2");
        let mut trainer = trainer(&assembly, own, "constant");
        let seen = Rc::new(RefCell::new(Vec::new()));
        trainer.objective = Box::new(Noting(trainer.objective, seen.clone()));
        steps(&assembly, &mut trainer, 0, 1);
        let losses = seen.take();
        assert!(bits(&assembly) == bits(&lab::assemble(&plan)) || mode == "in_place");
        losses
    };
    let (plain, cast) = (first("off", "scratch"), first("bf16", "scratch"));
    assert_ne!(plain, cast);
    assert!((plain[0] - cast[0]).abs() < 1e-2 * plain[0], "{plain:?} {cast:?}");
    assert_ne!(first("off", "in_place"), first("bf16", "in_place"));
}
