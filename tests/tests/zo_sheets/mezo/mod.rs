//! `mezo`: the arithmetic of the estimator, and what it learns.

mod behaviour;

use std::sync::Arc;

use anyhow::Result;
use ramekin_core::{Array, Category, Draws, Meter, Param, Rng, meter};
use ramekin_engine::assembly::Assembly;
use ramekin_engine::step::{LabelledBatch, Trainer};
use ramekin_estimate_zo::{Direction, Dist, Mezo, MezoSettings, PerturbMode, replay};
use ramekin_registry::Part as _;
use ramekin_slots::{Estimator, ParamView, Problem};
use ramekin_tape::{GradSink, GradStore};
use ramekin_tests::{lab, toy};

fn mezo(settings: MezoSettings) -> Mezo {
    Mezo::new(settings).expect("settings that hold")
}

/// The sheet's model with everything trainable, and a random batch of 8 × 16 tokens.
fn model(seed: u64) -> (Assembly, LabelledBatch) {
    let plan = lab::fresh_model(toy::llama(32, 32, 2, 4, 64));
    let assembly = lab::assemble(&ramekin_engine::blueprint::Blueprint { seed, full_training: true, ..plan });
    (assembly, lab::batch(&lab::sequences(&[16; 8], 32, seed)))
}

fn numbers(params: &[Arc<Param>]) -> Vec<f64> {
    let all = |p: &Arc<Param>| -> Vec<f64> {
        let value = p.value();
        match value.view::<f64>() {
            Ok(v) => v.to_vec(),
            Err(_) => value.to_f32().expect("numbers").into_iter().map(f64::from).collect(),
        }
    };
    params.iter().flat_map(all).collect()
}

fn bits(params: &[Arc<Param>]) -> Vec<u32> {
    params.iter().flat_map(|p| p.value().to_f32().expect("f32")).map(f32::to_bits).collect()
}

/// |c − ⟨∇L, z⟩| / ‖∇L‖ at this ε.
fn error(assembly: &Assembly, trainer: &Trainer, batch: &LabelledBatch, eps: f64, seed: u64) -> f64 {
    let params = assembly.trainable();
    let batches = [batch.clone()];
    let mut problem = toy::problem(assembly, trainer, &params, &batches);
    let mut exact = GradStore::new();
    problem.backward(&mut exact).expect("gradients");
    let z = Direction::new(Rng::new(0), seed, Dist::Gaussian, &params).expect("a direction");
    let (mut along, mut norm) = (0.0, 0.0);
    for p in &params {
        let g = numbers(&[Param::new("g", exact.get(p.id()).expect("a gradient").clone())]);
        let zeros = Param::new(
            p.name(),
            Array::zeros(p.value().dims(), p.value().dtype(), Category::Workspace).unwrap(),
        );
        z.add(&zeros, &zeros.value(), 1.0).expect("a draw");
        let zs = numbers(&[zeros]);
        along += g.iter().zip(&zs).map(|(g, z)| g * z).sum::<f64>();
        norm += g.iter().map(|g| g * g).sum::<f64>();
    }
    let view = |s: f64| -> ParamView { std::rc::Rc::new(move |p: &Arc<Param>| z.moved(p, &p.value(), s)) };
    let plus = problem.loss(Some(view(eps))).expect("a loss");
    let minus = problem.loss(Some(view(-eps))).expect("a loss");
    ((plus - minus) / (2.0 * eps) - along).abs() / norm.sqrt()
}

/// In f64 the error at 1e-5 is at most 1e-5 and falls fourfold from 2e-4 to 1e-4; in f32 it is below 0.08 at 1e-3.
#[test]
fn check_1() {
    let trainer = lab::trainer(1e-3);
    for seed in 0..8 {
        let (assembly, batch) = model(seed);
        let single = error(&assembly, &trainer, &batch, 1e-3, seed);
        assert!(single <= 0.08, "seed {seed}: f32 off by {single:.3}");
        toy::to_f64(&assembly);
        let fine = error(&assembly, &trainer, &batch, 1e-5, seed);
        assert!(fine <= 1e-5, "seed {seed}: f64 off by {fine:.1e}");
        let (wide, narrow) =
            (error(&assembly, &trainer, &batch, 2e-4, seed), error(&assembly, &trainer, &batch, 1e-4, seed));
        assert!((3.6..=4.4).contains(&(wide / narrow)), "seed {seed}: ratio {:.2}", wide / narrow);
    }
}

/// In place the weights come back within 4 ulp; in scratch mode to the bit; nothing else changes.
#[test]
fn check_2() {
    for mode in [PerturbMode::InPlace, PerturbMode::Scratch] {
        let (assembly, batch) = model(1);
        let all = assembly.trainable();
        let (chosen, others) = all.split_at(all.len() / 2);
        let (before, rest) = (bits(chosen), bits(others));
        let trainer = lab::trainer(1e-3);
        let batches = [batch];
        let mut estimator = mezo(MezoSettings { perturb_mode: mode, ..MezoSettings::default() });
        let mut problem = toy::problem(&assembly, &trainer, chosen, &batches);
        estimator.estimate(&mut problem, &mut GradStore::new()).expect("an estimate");
        assert_eq!(bits(others), rest, "a tensor outside the list changed");
        let after = bits(chosen);
        if mode == PerturbMode::Scratch {
            assert_eq!(after, before);
            continue;
        }
        for (a, b) in after.iter().zip(&before) {
            let (a, b) = (f32::from_bits(*a), f32::from_bits(*b));
            // |z| < 6.77; an ulp of the larger of the weight and its shift.
            let ulp = f32::max(b.abs(), 2e-3 * 6.77) * f32::EPSILON;
            assert!((a - b).abs() <= 4.0 * ulp, "{b} came back as {a}");
        }
    }
}

/// Updates a parameter by θ ← θ − lr·g as its gradient comes.
struct Sgd<'a>(f64, &'a mut dyn FnMut(&Arc<Param>));

impl GradSink for Sgd<'_> {
    fn ready(&mut self, param: &Arc<Param>, grad: Array) -> Result<()> {
        let g = grad.view::<f32>()?;
        let lr = self.0 as f32;
        param.value().update(|p: &mut [f32]| p.iter_mut().zip(g.iter()).for_each(|(p, g)| *p -= lr * g))?;
        (self.1)(param);
        Ok(())
    }
}

/// First weights and log give the last weights again, bit for bit, in any order of the parameters.
#[test]
fn check_3() {
    for mode in [PerturbMode::InPlace, PerturbMode::Scratch] {
        let settings = MezoSettings { perturb_mode: mode, n_directions: 2, ..MezoSettings::default() };
        let (assembly, batch) = model(2);
        let params = assembly.trainable();
        let trainer = lab::trainer(1e-3);
        let mut estimator = mezo(settings.clone());
        let batches = [batch];
        for step in 0..100 {
            let mut problem = toy::problem(&assembly, &trainer, &params, &batches);
            problem.step = step;
            estimator.estimate(&mut problem, &mut Sgd(1e-4, &mut |_| {})).expect("an estimate");
        }
        let trained = bits(&params);
        let bytes: u64 =
            ramekin_slots::Stateful::state(&estimator).expect("a log").iter().map(|t| t.array.bytes()).sum();
        assert!(bytes / 100 < 2 * 20, "{bytes} bytes of log for 100 steps of two directions");

        let (again, _) = model(2);
        let mut turned = again.trainable();
        turned.reverse();
        for step in estimator.log() {
            replay(&settings, trainer.rng, &turned, step, &mut Sgd(1e-4, &mut |_| {})).expect("a replay");
        }
        assert_eq!(bits(&again.trainable()), trained, "{mode:?}");
    }
}

/// A loss of one parameter vector, f64.
struct Plain<'a> {
    params: Vec<Arc<Param>>,
    step: u64,
    f: &'a dyn Fn(&[f64]) -> f64,
}

impl Problem for Plain<'_> {
    fn params(&self) -> &[Arc<Param>] {
        &self.params
    }
    fn step(&self) -> u64 {
        self.step
    }
    fn total(&self) -> u64 {
        u64::MAX
    }
    fn rng(&self) -> Rng {
        Rng::new(11)
    }
    fn lr(&self) -> f64 {
        0.0
    }
    fn loss(&mut self, view: Option<ParamView>) -> Result<f64> {
        let value = view.map_or_else(|| Ok(self.params[0].value()), |v| v(&self.params[0]))?;
        Ok((self.f)(&value.view::<f64>()?))
    }
    fn predictions(&mut self, _: Option<ParamView>) -> Result<Vec<(i64, i64)>> {
        anyhow::bail!("no predictions")
    }
    fn backward(&mut self, _: &mut dyn GradSink) -> Result<f64> {
        anyhow::bail!("no backward")
    }
}

fn vector(d: usize, seed: u64) -> Vec<f64> {
    let mut draws = Draws::new(Rng::new(seed).stream("tests/vector", 0));
    (0..d).map(|_| toy::normal(&mut draws)).collect()
}

fn plain<'a>(start: Vec<f64>, f: &'a dyn Fn(&[f64]) -> f64) -> Plain<'a> {
    let d = start.len();
    let param = Param::new("theta", Array::from_vec(start, &[d], Category::Workspace).expect("a vector"));
    param.set_trainable(true);
    Plain { params: vec![param], step: 1, f }
}

fn estimate(estimator: &mut Mezo, problem: &mut Plain<'_>) -> Vec<f64> {
    let mut store = GradStore::new();
    estimator.estimate(problem, &mut store).expect("an estimate");
    problem.step += 1;
    store.take()[0].1.view::<f64>().expect("f64").to_vec()
}

/// On a linear loss the mean estimate points along the gradient, and its mean square is (d + n + 1)/n times that of the gradient.
#[test]
fn check_4() {
    let g = vector(50, 4);
    let f = |x: &[f64]| x.iter().zip(&g).map(|(x, g)| x * g).sum();
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    for n in [1, 4] {
        let settings =
            MezoSettings { n_directions: n, perturb_mode: PerturbMode::Scratch, ..MezoSettings::default() };
        let (mut estimator, mut problem) = (mezo(settings), plain(vec![0.0; 50], &f));
        let (mut mean, mut square) = (vec![0.0; 50], 0.0);
        for _ in 0..20_000 {
            let e = estimate(&mut estimator, &mut problem);
            square += dot(&e, &e) / 20_000.0;
            mean.iter_mut().zip(&e).for_each(|(m, e)| *m += e / 20_000.0);
        }
        let cosine = dot(&mean, &g) / (dot(&mean, &mean) * dot(&g, &g)).sqrt();
        assert!(cosine > 0.99, "n = {n}: cosine {cosine:.4}");
        let expected = (50.0 + n as f64 + 1.0) / n as f64 * dot(&g, &g);
        assert!((square / expected - 1.0).abs() < 0.05, "n = {n}: {square:.1} for {expected:.1}");
    }
}

/// On ½‖θ‖², d = 64, a rate of 1/(d + 2) contracts and one of 8/(d + 2) diverges.
#[test]
fn check_5() {
    let f = |x: &[f64]| 0.5 * x.iter().map(|x| x * x).sum::<f64>();
    let run = |lr: f64, steps: usize| -> f64 {
        let (mut estimator, mut problem) = (mezo(MezoSettings::default()), plain(vector(64, 5), &f));
        let first = f(&problem.params[0].value().view::<f64>().unwrap());
        for _ in 0..steps {
            let e = estimate(&mut estimator, &mut problem);
            let value = problem.params[0].value();
            value.update(|x: &mut [f64]| x.iter_mut().zip(&e).for_each(|(x, e)| *x -= lr * e)).unwrap();
        }
        f(&problem.params[0].value().view::<f64>().unwrap()) / first
    };
    assert!(run(1.0 / 66.0, 1000) < 1e-4, "{:.1e}", run(1.0 / 66.0, 1000));
    assert!(run(8.0 / 66.0, 100) > 1e12, "{:.1e}", run(8.0 / 66.0, 100));
}

/// Beyond the weights a step holds no more than the largest tensor and one forward; no gradient at all.
#[test]
fn check_6() {
    for mode in [PerturbMode::InPlace, PerturbMode::Scratch] {
        let (assembly, batch) = model(3);
        let meter = Meter::new();
        let _scope = meter::scope(meter.clone());
        let trainer = lab::trainer(1e-3);
        let forward = {
            let params = assembly.trainable();
            toy::problem(&assembly, &trainer, &params, std::slice::from_ref(&batch))
                .loss(None)
                .expect("a loss");
            meter.peak()
        };
        meter.reset_peak();
        let before = meter.live().total();
        let mut trainer = lab::trainer(1e-3);
        let settings = serde_json::json!({ "perturb_mode": mode });
        trainer.estimator = ramekin_engine::parts::estimator(&lab::part("mezo", settings)).expect("mezo");
        trainer.optimizer =
            ramekin_engine::parts::optimizer(&lab::part("sgd", serde_json::json!({ "lr": 1e-4 })))
                .expect("sgd");
        trainer.fused = true;
        lab::train(&assembly, &mut trainer, &batch, 3);
        let largest = assembly.trainable().iter().map(|p| p.value().bytes()).max().expect("a tensor");
        let held = meter.peak() - before;
        assert!(
            held <= forward + largest,
            "{mode:?}: {held} bytes; a forward holds {forward}, a tensor {largest}"
        );
        assert_eq!(meter.highest().gradients, 0, "{mode:?}: a gradient was made");
    }
}

/// Each seed ends at 78 % or more and 13 points above its start.
#[test]
fn check_7() {
    for seed in 0..3 {
        let (before, after) = behaviour::run(seed, 16, behaviour::trainer("loss", 1e-3, 1e-4));
        println!("seed {seed}: {before:.3} → {after:.3}");
        assert!(after >= 0.78 && after >= before + 0.13, "seed {seed}: {before:.3} → {after:.3}");
    }
}

/// The update with its sign turned unlearns; one along a direction that was not measured learns too little.
#[test]
fn check_7_must_fail() {
    let (before, after) = behaviour::run(0, 16, behaviour::flipped());
    assert!(after < before && after < 0.45, "flipped: {before:.3} → {after:.3}");
    let (before, after) = behaviour::run(0, 16, behaviour::fresh());
    assert!(after < 0.75, "fresh: {before:.3} → {after:.3}");
}

/// Accuracy itself can be the objective.
#[test]
fn check_7_accuracy() {
    let (before, after) = behaviour::run(0, 64, behaviour::trainer("accuracy", 1e-2, 1e-4));
    assert!(after >= 0.77, "{before:.3} → {after:.3}");
}
