//! Check 6 of `lines`: a model tuned on one task gets another one back.

use anyhow::Result;
use ramekin_merge_vectors::{InMemory, Lines, LinesSettings};
use ramekin_registry::Part;
use ramekin_slots::{Candidate, Held, Judge, Merger};
use serde_json::json;

use crate::residual_mlp::{Adam, B, Clusters, Points, accuracy, batch, fresh, fresh_head, layout, run};

/// Pre-trained and tuned numbers, the heads of A and B, and test points.
struct Tuned {
    vectors: InMemory,
    heads: [Vec<f32>; 2],
    test: [Points; 2],
    base: [f64; 2],
    tuned: [f64; 2],
}

fn tune(seed: u64) -> Tuned {
    let tasks = ["A", "B", "C"].map(|t| Clusters::new(&format!("{seed} {t}")));
    let sizes = [4000, 60, 4000];
    let rows: Vec<Points> = tasks.iter().zip(sizes).map(|(t, n)| t.draw("pre", n)).collect();
    let mut p = fresh(seed);
    let mut heads: Vec<Vec<f32>> = ["A", "B", "C"].iter().map(|t| fresh_head(seed, t)).collect();
    let mut adam = Adam::new(p.len(), 1e-3, 0.01);
    let mut head_adams: Vec<Adam> = heads.iter().map(|h| Adam::new(h.len(), 1e-3, 0.01)).collect();
    for step in 0..600 {
        let mut g = vec![0.0; p.len()];
        for t in 0..3 {
            let mut gh = vec![0.0; heads[t].len()];
            run(&p, &heads[t], &batch(&rows[t], &format!("pre {seed} {t}"), step), Some((&mut g, &mut gh)));
            head_adams[t].step(&mut heads[t], &gh);
        }
        adam.step(&mut p, &g);
    }
    let base = p.clone();
    let test = [tasks[0].draw("test", 2000), tasks[1].draw("test", 2000)];
    let before = [accuracy(&p, &heads[0], &test[0]), accuracy(&p, &heads[1], &test[1])];
    let own = tasks[1].draw("tune", 4000);
    let mut adam = Adam::new(p.len(), 3e-3, 0.0);
    for step in 0..200 {
        let (mut g, mut gh) = (vec![0.0; p.len()], vec![0.0; heads[1].len()]);
        run(&p, &heads[1], &batch(&own, &format!("tune {seed}"), step), Some((&mut g, &mut gh)));
        adam.step(&mut p, &g);
        if (step + 1) % 5 == 0 && accuracy(&p, &heads[0], &test[0]) <= before[0] - 0.2 {
            break;
        }
    }
    let layout = layout();
    let names: Vec<(&str, usize)> = layout.iter().map(|(n, len)| (n.as_str(), *len)).collect();
    let wide = |p: &[f32]| p.iter().map(|x| f64::from(*x)).collect::<Vec<_>>();
    let delta = wide(&p).iter().zip(wide(&base)).map(|(a, b)| a - b).collect();
    let [a, b, _]: [Vec<f32>; 3] = heads.try_into().expect("three heads");
    let tuned = [accuracy(&p, &a, &test[0]), accuracy(&p, &b, &test[1])];
    Tuned { vectors: InMemory::new(&names, &wide(&base), &[delta]), heads: [a, b], test, base: before, tuned }
}

impl Tuned {
    /// Accuracy on A and B of what a candidate makes.
    fn measure(&self, candidate: &Candidate<'_>) -> [f64; 2] {
        let p: Vec<f32> =
            self.vectors.made(candidate).expect("numbers").into_iter().map(|x| x as f32).collect();
        [0, 1].map(|t| accuracy(&p, &self.heads[t], &self.test[t]))
    }

    /// Accuracies with a factor by place: of a block's number, or outside.
    fn scaled(&self, factor: impl Fn(Option<usize>) -> f64) -> [f64; 2] {
        let layout = layout();
        self.measure(&|piece, out| {
            let name = &layout[piece.tensor].0;
            let block =
                name.strip_prefix("blocks.").and_then(|r| r.split('.').next()).and_then(|s| s.parse().ok());
            for (i, o) in out.iter_mut().enumerate() {
                *o = piece.base[i] + factor(block) * piece.deltas[0][i];
            }
            Ok(())
        })
    }

    /// Share of A's lost accuracy that is there again.
    fn regained(&self, found: [f64; 2]) -> f64 {
        (found[0] - self.tuned[0]) / (self.base[0] - self.tuned[0])
    }

    /// Rule 2's score.
    fn score(&self, found: [f64; 2]) -> f64 {
        2.0 * found[1] / self.tuned[1] + found[0] / self.base[0]
    }
}

/// Task B is the model's own, A the control.
struct Tests<'a>(&'a Tuned);

impl Judge for Tests<'_> {
    fn held(&self) -> Vec<Held> {
        vec![Held::Task(0), Held::Control(0)]
    }

    fn score(&mut self, held: Held, _: &str, candidate: &Candidate<'_>) -> Result<f64> {
        let [a, b] = self.0.measure(candidate);
        Ok(if held == Held::Task(0) { b } else { a })
    }
}

#[test]
fn check_6() {
    let (mut best, mut best_reversed) = (Vec::new(), Vec::new());
    for seed in 0..4 {
        let tuned = tune(seed);
        assert!(tuned.base[0] - tuned.tuned[0] >= 0.2, "seed {seed}: A lost nothing");
        let settings: LinesSettings =
            serde_json::from_value(json!({ "alpha": 0.1, "beta": 0.9 })).expect("settings");
        let mut lines = Lines::new(settings).expect("lines");
        lines.prepare(&tuned.vectors, &mut Tests(&tuned)).unwrap_or_else(|e| panic!("{e:#}"));
        let found = tuned.measure(&|piece, out| lines.merge(piece, out));
        let up = |l: usize| l as f64 / (B - 1) as f64;
        let uniform = tuned.scaled(|_| 0.55);
        let turned = |alpha: f64| {
            tuned.scaled(move |block| block.map_or(1.0, |l| alpha + (1.0 - alpha) * (1.0 - up(l))))
        };
        let reversed = turned(0.1);
        let [rec, rec_uniform, rec_reversed] = [found, uniform, reversed].map(|f| tuned.regained(f));
        let kept = found[1] / tuned.tuned[1];
        println!(
            "seed {seed}: regained {rec:.3}, uniform {rec_uniform:.3}, reversed {rec_reversed:.3}; B kept {kept:.3}"
        );
        assert!(rec >= 0.8, "seed {seed}: {rec}");
        assert!(kept >= 0.85, "seed {seed}: {kept}");
        assert!(rec >= rec_uniform + 0.05, "seed {seed}: {rec} against {rec_uniform}");
        assert!(rec >= rec_reversed + 0.2, "seed {seed}: {rec} against {rec_reversed}");

        let mut lines = Lines::new(LinesSettings::default()).expect("lines");
        let report = lines.prepare(&tuned.vectors, &mut Tests(&tuned)).unwrap_or_else(|e| panic!("{e:#}"));
        assert_eq!(report["search"].as_array().map(Vec::len), Some(11));
        best.push(tuned.score(tuned.measure(&|piece, out| lines.merge(piece, out))));
        let grid = (0..=10).map(|n| tuned.score(turned(f64::from(n) / 10.0)));
        best_reversed.push(grid.fold(f64::MIN, f64::max));
    }
    let mean = |x: &[f64]| x.iter().sum::<f64>() / x.len() as f64;
    println!("best scores {best:.3?}, reversed {best_reversed:.3?}");
    assert!(mean(&best) >= mean(&best_reversed) + 0.02, "{best:?} against {best_reversed:?}");
}
