//! `zo2`, item 5: fewer bits on the host.

use std::sync::Arc;

use ramekin_core::{Array, Category, DType, Param, Rng};
use ramekin_engine::assembly::Assembly;
use ramekin_engine::{checkpoint, parts};
use ramekin_estimate_zo::{Direction, Dist};
use ramekin_kernels::narrow::{Narrow, Rounding};
use ramekin_slots::{ParamGroup, StepInfo, block_of};
use ramekin_tests::{lab, toy};
use serde_json::json;

use super::{after_steps, bits, estimator, moved, newest_c, plan, steps, trainer};

/// What the host holds in f32 is what it holds without amp; in bf16 it is each result, rounded.
#[test]
fn check_5() {
    let plan = plan(3, false);
    let (whole, _) = moved(&plan, json!({}), None);
    let (same, _) = moved(&plan, json!({ "amp": true, "host_dtype": "f32" }), None);
    assert!(after_steps(&whole, 3) == after_steps(&same, 3), "amp with f32");

    let (assembly, _) = moved(&plan, json!({ "amp": true, "host_dtype": "bf16" }), None);
    let mut trainer = trainer(&assembly, estimator("zo2", "scratch"), "constant");
    let read = |assembly: &Assembly| -> Vec<(Arc<Param>, Array)> {
        assembly
            .trainable()
            .into_iter()
            .map(|p| (p.clone(), assembly.read_param(&p).expect("numbers")))
            .collect()
    };
    let (mut moved_at_all, mut count) = (0, 0);
    for step in 0..5 {
        steps(&assembly, &mut trainer, step, step + 1);
        let (before, c) = (read(&assembly), newest_c(&*trainer.estimator));
        let seed = trainer.rng.stream("zo/seed", step).u32_at(0);
        let z = Direction::new(trainer.rng, seed.into(), Dist::Gaussian, &[]).expect("a direction");
        trainer.flush(&assembly, step + 1).expect("a flush");
        for ((param, before), (_, after)) in before.iter().zip(read(&assembly)) {
            if block_of(param.name()).is_none() {
                continue;
            }
            let own = Param::new(
                param.name(),
                Array::from_tensor(before.tensor().copy().unwrap(), Category::Workspace).unwrap(),
            );
            let grad = Array::zeros(before.dims(), DType::F32, Category::Workspace).unwrap();
            z.add(&own, &grad, c).expect("a draw");
            let group = ParamGroup { decay: before.dims().len() > 1, ..ParamGroup::default() };
            let mut sgd =
                parts::optimizer(&lab::part("sgd", json!({ "lr": 1e-4, "weight_decay": 0.1 }))).unwrap();
            sgd.step(&own, &grad, StepInfo { step: step + 1, lr: 1e-4 }, group).expect("an update");
            let (exact, after, before) =
                (own.value().to_f32().unwrap(), after.to_f32().unwrap(), before.to_f32().unwrap());
            for ((exact, after), before) in exact.iter().zip(&after).zip(&before) {
                assert_eq!(half::bf16::from_f32(*exact).to_f32(), *after, "{} in step {step}", param.name());
                moved_at_all += usize::from(before != after);
                count += 1;
            }
        }
    }
    println!("{moved_at_all} of {count} updates outlived their rounding");
    assert!(moved_at_all > 0);
}

/// Stochastic rounding is right in the mean, where nearest rounding is off by up to half a spacing.
#[test]
fn check_5_stochastic() {
    let mut draws = toy::draws("zo2/rounding", 1);
    let values: Vec<f32> = (0..64).map(|_| 2.0 * draws.uniform() as f32 - 1.0).collect();
    let mut means = vec![0f64; 64];
    let rng = Rng::new(9);
    let (mut codes, mut back) = (vec![0; 128], vec![0f32; 64]);
    let mut round = |rounding: Rounding| {
        Narrow::Bf16.pack(&values, rounding, &mut codes);
        Narrow::Bf16.unpack(&codes, &mut back);
        back.clone()
    };
    for draw in 0..10_000 {
        let found = round(Rounding::Stochastic(rng.stream("rounding", draw)));
        means.iter_mut().zip(&found).for_each(|(m, x)| *m += f64::from(*x) / 1e4);
    }
    let off = |found: &[f64]| -> Vec<f64> {
        found.iter().zip(&values).map(|(m, x)| (m - f64::from(*x)) / Narrow::Bf16.spacing(*x)).collect()
    };
    let worst = |off: &[f64]| off.iter().fold(0f64, |w, x| w.max(x.abs()));
    let chance = off(&means);
    let mean = chance.iter().sum::<f64>() / 64.0;
    println!("worst mean {:.4} of a spacing, mean of all {mean:.5}", worst(&chance));
    assert!(worst(&chance) <= 0.025 && mean.abs() <= 0.004, "{:.4}, {mean:.5}", worst(&chance));
    let nearest: Vec<f64> = round(Rounding::Nearest).into_iter().map(f64::from).collect();
    assert!(worst(&off(&nearest)) > 0.4, "nearest is off by {:.3} alone", worst(&off(&nearest)));
}

/// A run with stochastic rounding that is saved in its middle goes on to the same bits.
#[test]
fn chance_does_not_depend_on_interruptions() {
    let settings = json!({ "amp": true, "host_dtype": "f8", "rounding": "stochastic" });
    let plan = plan(3, false);
    let (whole, _) = moved(&plan, settings.clone(), None);
    let expected = after_steps(&whole, 6);
    let (first, _) = moved(&plan, settings.clone(), None);
    let mut begun = trainer(&first, estimator("zo2", "in_place"), "constant");
    steps(&first, &mut begun, 0, 3);
    let folder = tempfile::tempdir().expect("a folder");
    let all = checkpoint::open(folder.path(), 1).expect("checkpoints");
    checkpoint::save(&all, 3, 0.0, &first, &begun, None).expect("a checkpoint");
    let (second, _) = moved(&plan, settings, None);
    let mut gone_on = trainer(&second, estimator("zo2", "in_place"), "constant");
    checkpoint::restore(&all, &second, &mut gone_on).expect("a restored run").expect("a checkpoint");
    steps(&second, &mut gone_on, 3, 6);
    gone_on.flush(&second, 6).expect("a flush");
    assert!(bits(&second) == expected);
}
