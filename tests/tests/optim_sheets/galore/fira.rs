//! Check 7: Fira's residual.

use serde_json::{Value as Json, json};

use super::{Bench, difference, norm, numbers, product, transposed, wide};

fn fira(rank: usize, scale: f64, gamma: f64) -> Json {
    json!({
        "rank": rank, "update_proj_gap": 4, "scale": scale, "residual": true, "limiter_gamma": gamma
    })
}

/// What a step of rate 1 without momentum did outside the subspace: S, for there the rest is −scale·back(R).
fn residual(bench: &Bench, before: &[f32], g: &[f32], rank: usize, scale: f64) -> Vec<f64> {
    let [m, n] = bench.dims;
    let change = difference(&wide(before), &wide(&bench.weight()));
    let q = wide(&bench.state(if m >= n { "projector_right" } else { "projector_left" }));
    let inside = if m >= n {
        product(&product(&wide(g), &q, (m, n, rank)), &transposed(&q, (n, rank)), (m, rank, n))
    } else {
        product(&q, &product(&transposed(&q, (m, rank)), &wide(g), (rank, m, n)), (m, rank, n))
    };
    let inside: Vec<f64> = inside.iter().map(|x| scale * x).collect();
    difference(&change, &inside)
}

/// Plain gradient descent inside, nothing limited: the whole gradient at any rank.
#[test]
fn check_7_equals_full_sgd() {
    for dims in [[12, 8], [8, 12]] {
        for rank in [1, 3, 8] {
            let mut whole = Bench::new(dims, ("sgd", json!({})), None);
            let mut bench = Bench::new(dims, ("sgd", json!({})), Some(fira(rank, 1.0, 1e30)));
            for t in 0..12 {
                let g = numbers("gradient", t, 96);
                whole.step(g.clone(), 0.05);
                bench.step(g, 0.05);
            }
            let (a, b) = (wide(&bench.weight()), wide(&whole.weight()));
            let off = norm(&difference(&a, &b)) / norm(&b);
            println!("{dims:?}, rank {rank}: off by {off:.1e}");
            assert!(off < 1e-5, "{dims:?}, rank {rank}: off by {off:e}");
        }
    }
}

/// A gradient a hundred times as large adds no more than a hundredth to the residual.
#[test]
fn check_7_the_limiter() {
    for dims in [[12, 8], [8, 12]] {
        let rank = 3;
        let mut bench = Bench::new(dims, ("sgd", json!({})), Some(fira(rank, 1.0, 1.01)));
        let mut last = 0.0;
        for t in 0..6u64 {
            let mut g = numbers("gradient", t, 96);
            if t == 5 {
                g.iter_mut().for_each(|g| *g *= 100.0);
            }
            let before = bench.weight();
            bench.step(g.clone(), 1.0);
            let now = norm(&residual(&bench, &before, &g, rank, 1.0));
            println!("{dims:?}, step {t}: the residual's norm is {now:.4}");
            assert!(now > 0.1, "no residual");
            if t > 0 {
                assert!(now <= 1.01 * last * (1.0 + 1e-4), "{dims:?}: {last} → {now} at step {t}");
            }
            last = now;
        }
    }
}

/// S leaves the subspace alone for any scale, unless it is asked to hold what the scale took away.
#[test]
fn check_7_orthogonal() {
    for dims in [[12, 8], [8, 12]] {
        let [m, n] = dims;
        let (rank, scale) = (3, 0.25);
        for includes in [false, true] {
            let mut settings = fira(rank, scale, 1e30);
            settings["residual_includes_scale"] = json!(includes);
            let mut bench = Bench::new(dims, ("sgd", json!({})), Some(settings));
            let (before, g) = (bench.weight(), numbers("gradient", 0, m * n));
            bench.step(g.clone(), 1.0);
            let s = residual(&bench, &before, &g, rank, scale);
            let along = if m >= n {
                product(&s, &wide(&bench.state("projector_right")), (m, n, rank))
            } else {
                let p = wide(&bench.state("projector_left"));
                product(&transposed(&p, (m, rank)), &s, (rank, m, n))
            };
            let share = norm(&along) / norm(&s);
            println!("{dims:?}, includes {includes}: share inside {share:.1e}");
            assert_eq!(share < 1e-5, !includes, "{dims:?}, includes {includes}: share inside {share:e}");
        }
    }
}
