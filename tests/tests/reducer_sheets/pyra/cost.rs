//! Check 7: what a step costs at 257 tokens when 160 of them go.

use std::time::Instant;

use ramekin_core::{Meter, meter};
use ramekin_engine::assembly::Assembly;
use ramekin_engine::blueprint::Blueprint;
use ramekin_slots::{Forward, Mode};
use ramekin_tape::{GradStore, Tape};
use ramekin_tests::images::{noise, small_vit};
use ramekin_tests::lab::{self, fresh_model, part};
use serde_json::json;

use crate::ok;

const IMAGES: usize = 16;
const SCHEDULE: [usize; 4] = [64, 48, 32, 16];

fn model(merges: bool) -> Blueprint {
    let pyra = part("pyra", json!({ "schedule": SCHEDULE }));
    let reducers = if merges { vec![pyra] } else { Vec::new() };
    Blueprint { reducers, full_training: true, ..fresh_model(small_vit(64)) }
}

/// Multiplications of a forward's products, by what its blocks are given.
fn products(assembly: &Assembly) -> usize {
    let (c, f, heads) = (48, 96, 4);
    let batch = noise(assembly, 1, 1).flat;
    let mut fx = Forward::new(Tape::off(), assembly.sites.clone(), batch, Mode::inference());
    let mut h = ok(assembly.model.embed(&fx));
    let mut all = fx.batch.len() * 16 * c;
    for block in 0..4 {
        let n = fx.batch.len();
        h = ok(assembly.model.block(block, &fx, &h));
        fx = fx.after(block).unwrap_or(fx);
        let left = h.array().rows().0;
        all += 4 * n * c * c + 2 * n * n * c + 2 * left * c * f;
        if left < n {
            all += n / 2 * n.div_ceil(2) * c / heads; // the matching
        }
    }
    all
}

/// Bytes that a step keeps from forward to backward at most, and holds in all.
fn held(merges: bool) -> (u64, u64) {
    let meter = Meter::new();
    let _scope = meter::scope(meter.clone());
    let assembly = ok(model(merges).assemble(false));
    let batch = noise(&assembly, IMAGES, 1);
    let mut trainer = lab::trainer(1e-3);
    lab::train(&assembly, &mut trainer, &batch, 1);
    meter.reset_peak();
    lab::train(&assembly, &mut trainer, &batch, 1);
    (meter.highest().activations, meter.peak())
}

/// The sheet's bound on time, 0.8, holds for the products and for the bytes.
#[test]
fn check_7() {
    let [with, without] = [true, false].map(|merges| ok(model(merges).assemble(false)));
    let (few, all) = (products(&with), products(&without));
    let share = few as f64 / all as f64;
    println!("products {few} of {all}: {share:.3}");
    assert!(share <= 0.8, "{few} multiplications of {all}");
    let ((few, peak), (all, whole)) = (held(true), held(false));
    println!("activations {few} of {all} bytes: {:.3}", few as f64 / all as f64);
    assert!(few as f64 <= 0.8 * all as f64, "{few} bytes of activations of {all}");
    assert!(peak < whole, "{peak} bytes at the peak, {whole} without merging");
}

/// The time itself, which says as much of the machine.
#[test]
#[ignore = "a timed assertion is no test; this prints medians of 7"]
fn check_7_timed() {
    let median = |merges: bool| {
        let assembly = ok(model(merges).assemble(false));
        let batch = noise(&assembly, IMAGES, 1);
        let trainer = lab::trainer(1e-3);
        let mut times: Vec<f64> = (0..8)
            .map(|_| {
                let begun = Instant::now();
                let mut store = GradStore::new();
                ok(trainer.micro_batch(&assembly, &batch, &[IMAGES as f64], 0, true, &mut store));
                begun.elapsed().as_secs_f64()
            })
            .skip(1)
            .collect();
        times.sort_by(f64::total_cmp);
        times[3]
    };
    let (with, without) = (median(true), median(false));
    println!("{:.1} ms of {:.1} ms: {:.2}", 1e3 * with, 1e3 * without, with / without);
}
