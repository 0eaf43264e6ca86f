//! Copies beside computing: simulated delays, and how long a step takes with them.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Result;
use ramekin_core::Rng;
use ramekin_placement_stream::Delay;
use ramekin_slots::{Forward, Model, ModelFacts};
use ramekin_tape::Value;
use serde_json::{Value as Json, json};

use super::{estimator, moved, plan, steps, trainer};

/// Up to a millisecond for each copy, by a draw.
pub fn random(seed: u64) -> Delay {
    let (stream, next) = (Rng::new(seed).stream("zo2/delays", 0), AtomicU64::new(0));
    Arc::new(move |_, _| {
        let u = stream.uniform_at(next.fetch_add(1, Ordering::Relaxed));
        // Some take no time at all.
        Duration::from_secs_f64(1e-3 * (2.0 * u - 1.0).max(0.0))
    })
}

const COPY: Duration = Duration::from_millis(5);

/// A model whose blocks take half of [`COPY`] each time, as a block runs in two branches.
struct Slow(Rc<dyn Model>);

impl Model for Slow {
    fn facts(&self) -> &ModelFacts {
        self.0.facts()
    }
    fn embed(&self, fx: &Forward) -> Result<Value> {
        self.0.embed(fx)
    }
    fn block(&self, index: usize, fx: &Forward, x: &Value) -> Result<Value> {
        std::thread::sleep(COPY / 2);
        self.0.block(index, fx, x)
    }
    fn final_norm(&self, fx: &Forward, x: &Value) -> Result<Value> {
        self.0.final_norm(fx, x)
    }
    fn head(&self, fx: &Forward, x: &Value) -> Result<Value> {
        self.0.head(fx, x)
    }
}

/// The shortest of three steps of 12 blocks, each 5 ms up, at work and down.
fn step_time(settings: Json) -> Duration {
    let (mut assembly, _) = moved(&plan(12, false), settings, Some(Arc::new(|_, _| COPY)));
    assembly.model = Rc::new(Slow(assembly.model));
    let mut trainer = trainer(&assembly, estimator("zo2", "in_place"), "constant");
    let time = |step| {
        let began = Instant::now();
        steps(&assembly, &mut trainer, step, step + 1);
        began.elapsed()
    };
    (0..3).map(time).min().expect("a step")
}

/// With three buffers a step takes less than half of the time one after the other; with one buffer there is
/// nothing to gain. The bound is the sleeps', so the shortest of a few tries is what counts.
#[test]
fn check_4_overlap() {
    let least = |settings: Json, enough: Duration| {
        let mut best = Duration::MAX;
        for _ in 0..6 {
            best = best.min(step_time(settings.clone()));
            if best < enough {
                break;
            }
        }
        best
    };
    let sequential = least(json!({ "overlap": false }), Duration::ZERO.max(COPY * 40));
    let ratio = |buffers: usize, enough: f64| {
        let settings = json!({ "prefetch_buffers": buffers });
        least(settings, sequential.mul_f64(enough)).as_secs_f64() / sequential.as_secs_f64()
    };
    let (three, two, one) = (ratio(3, 0.5), ratio(2, 0.6), ratio(1, 1.0));
    println!(
        "one after the other {sequential:?}; 3 buffers {three:.2}, 2 buffers {two:.2}, 1 buffer {one:.2}"
    );
    assert!(three < 0.5, "{three:.2} of the time with three buffers");
    assert!(one >= 0.9, "{one:.2} of the time with one buffer");
}
