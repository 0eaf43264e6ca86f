//! `zo2`, item 1: what would not be `mezo`.

use std::rc::Rc;
use std::sync::Arc;

use anyhow::Result;
use ramekin_core::{Array, Param, Rng};
use ramekin_slots::{Estimator, ParamView, Problem, StateTensor, Stateful, StepInfo, Stop};
use ramekin_tape::GradSink;
use ramekin_tests::lab;

use super::{estimator, plan, run, trainer};

const TABLE: &str = "model.embed_tokens.weight";

/// What is done wrong.
#[derive(Clone, Copy, PartialEq)]
enum Wrong {
    Nothing,
    /// The new step's rate for the old gradient.
    Rate,
    /// The tied head draws a z of its own.
    OwnZ,
    /// The tied head is updated a second time.
    Twice,
}

struct Broken(Box<dyn Estimator>, Wrong);

impl Stateful for Broken {
    fn state(&self) -> Result<Vec<StateTensor>> {
        self.0.state()
    }
}

impl Estimator for Broken {
    fn needs_backward(&self) -> bool {
        false
    }
    fn pending(&self) -> Option<StepInfo> {
        self.0.pending().filter(|_| self.1 != Wrong::Rate)
    }
    fn flush(&mut self, problem: &mut dyn Problem, sink: &mut dyn GradSink) -> Result<()> {
        self.0.flush(problem, sink)
    }
    fn estimate(&mut self, problem: &mut dyn Problem, sink: &mut dyn GradSink) -> Result<f64> {
        self.0.estimate(&mut Bent(problem, self.1), sink)
    }
}

/// A problem whose last stop is another.
struct Bent<'a>(&'a mut dyn Problem, Wrong);

impl Problem for Bent<'_> {
    fn params(&self) -> &[Arc<Param>] {
        self.0.params()
    }
    fn step(&self) -> u64 {
        self.0.step()
    }
    fn total(&self) -> u64 {
        self.0.total()
    }
    fn rng(&self) -> Rng {
        self.0.rng()
    }
    fn lr(&self) -> f64 {
        self.0.lr()
    }
    fn info(&self) -> StepInfo {
        self.0.info()
    }
    fn loss(&mut self, view: Option<ParamView>) -> Result<f64> {
        self.0.loss(view)
    }
    fn predictions(&mut self, view: Option<ParamView>) -> Result<Vec<(i64, i64)>> {
        self.0.predictions(view)
    }
    fn backward(&mut self, sink: &mut dyn GradSink) -> Result<f64> {
        self.0.backward(sink)
    }
    fn walk(
        &mut self,
        branches: usize,
        visit: &mut dyn FnMut(&mut Stop<'_>) -> Result<()>,
    ) -> Result<Vec<f64>> {
        let wrong = self.1;
        self.0.walk(branches, &mut |stop| {
            let tied = stop.fresh.len() < stop.params.len();
            match wrong {
                Wrong::Twice if tied => {
                    visit(&mut Stop { params: stop.params, fresh: stop.params, run: &mut *stop.run })
                }
                Wrong::OwnZ if tied => visit(&mut Stop {
                    params: stop.params,
                    fresh: stop.fresh,
                    run: &mut |branch, view| (stop.run)(branch, view.map(other_z)),
                }),
                _ => visit(stop),
            }
        })
    }
}

/// The same view with another name for the table, by which z is drawn.
fn other_z(view: ParamView) -> ParamView {
    Rc::new(move |param: &Arc<Param>| -> Result<Array> {
        if param.name() == TABLE {
            let head = Param::new("lm_head.weight", param.value());
            head.set_trainable(true);
            return view(&head);
        }
        view(param)
    })
}

/// The new step's rate, a z of the head's own and a second update of it are all seen.
#[test]
fn check_1_must_fail() {
    let plan = plan(3, true);
    let plain = lab::assemble(&plan);
    let expected = run(&plain, trainer(&plain, estimator("mezo", "scratch"), "linear"));
    for (wrong, agrees) in
        [(Wrong::Nothing, true), (Wrong::Rate, false), (Wrong::OwnZ, false), (Wrong::Twice, false)]
    {
        let assembly = lab::assemble(&plan);
        let broken = Broken(estimator("zo2", "scratch"), wrong);
        let found = run(&assembly, trainer(&assembly, Box::new(broken), "linear"));
        assert_eq!(found.c == expected.c, agrees);
        assert_eq!(found.losses == expected.losses, agrees);
    }
}
