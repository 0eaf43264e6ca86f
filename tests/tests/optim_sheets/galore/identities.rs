//! Checks 1 to 4: one weight against what the formulas say.

use serde_json::json;

use super::{Bench, difference, galore, jacobi, norm, numbers, product, transposed, wide};

const SHAPES: [[usize; 2]; 3] = [[12, 8], [8, 12], [8, 8]];

/// Gradient of ½‖(W − T) C‖² with a target T that moves and a fixed C: it depends on W.
fn gradient(w: &[f32], [m, n]: [usize; 2], t: u64) -> Vec<f32> {
    let c: Vec<f64> = (0..n * n)
        .map(|e| f64::from(u8::from(e / n == e % n)) + 0.1 * f64::from(numbers("c", 0, n * n)[e]))
        .collect();
    let square = product(&c, &transposed(&c, (n, n)), (n, n, n));
    let away = difference(&wide(w), &wide(&numbers("target", t, m * n)));
    product(&away, &square, (m, n, n)).iter().map(|x| *x as f32).collect()
}

/// Full rank and plain gradient descent: nothing is lost, with any refresh. With momentum, as long as the
/// subspace's coordinates stay the same.
#[test]
fn check_1() {
    for dims in SHAPES {
        let r = dims[0].min(dims[1]);
        for (optimizer, gap) in [(json!({}), 3), (json!({ "momentum": 0.9 }), 1000)] {
            let mut plain = Bench::new(dims, ("sgd", optimizer.clone()), None);
            let mut projected = Bench::new(dims, ("sgd", optimizer.clone()), Some(galore(r, gap, 1.0)));
            for t in 0..20 {
                for bench in [&mut plain, &mut projected] {
                    bench.step(gradient(&bench.weight(), dims, t), 0.05);
                }
            }
            let (a, b) = (wide(&projected.weight()), wide(&plain.weight()));
            let off = norm(&difference(&a, &b)) / norm(&b);
            println!("{dims:?} {optimizer}: off by {off:.1e}");
            assert!(off < 1e-5, "{dims:?} {optimizer}: off by {off:e}");
        }
    }
}

/// The projector is orthonormal and takes the largest singular values; it changes at 0, T, 2T and nowhere else.
#[test]
fn check_2() {
    for dims in SHAPES {
        let [m, n] = dims;
        let r = 3;
        let name = if m >= n { "projector_right" } else { "projector_left" };
        let side = m.min(n);
        let mut bench = Bench::new(dims, ("sgd", json!({})), Some(galore(r, 4, 1.0)));
        let mut before: Vec<f32> = Vec::new();
        for t in 0..12 {
            let g = numbers("gradient", t, m * n);
            bench.step(g.clone(), 1e-3);
            let q = bench.state(name);
            if !t.is_multiple_of(4) {
                assert_eq!(q, before, "{dims:?}: the projector changed at step {t}");
                continue;
            }
            assert_ne!(q, before, "{dims:?}: the projector is the same at step {t}");
            let wide_q = wide(&q);
            let gram = product(&transposed(&wide_q, (side, r)), &wide_q, (r, side, r));
            let one: Vec<f64> = (0..r * r).map(|e| f64::from(u8::from(e / r == e % r))).collect();
            assert!(norm(&difference(&gram, &one)) < 1e-5);
            let g = wide(&g);
            let small = if m >= n {
                product(&g, &wide_q, (m, n, r))
            } else {
                product(&transposed(&wide_q, (m, r)), &g, (r, m, n))
            };
            let (values, _) = jacobi::right(&g, (m, n));
            let most: f64 = values.iter().take(r).map(|s| s * s).sum();
            let found = norm(&small).powi(2);
            assert!((found - most).abs() < 1e-4 * most, "{dims:?}: {found} of {most}");
            // Exactly the vectors of this gradient, signs included.
            let expected = jacobi::projector(&g, (m, n), r);
            assert!(norm(&difference(&wide_q, &expected)) < 1e-5, "{dims:?} at step {t}");
            before = q;
        }
    }
}

/// The same for the other sides, by the singular values that are kept.
#[test]
fn check_2_other_sides() {
    for (proj_type, left, right) in
        [("reverse_std", true, false), ("left", true, false), ("right", false, true), ("full", true, true)]
    {
        let (m, n, r) = (12, 8, 3);
        let mut settings = galore(r, 4, 1.0);
        settings["proj_type"] = json!(proj_type);
        let mut bench = Bench::new([m, n], ("sgd", json!({})), Some(settings));
        let g = numbers("gradient", 0, m * n);
        bench.step(g.clone(), 1e-3);
        let g = wide(&g);
        let mut small = g.clone();
        let mut rows = m;
        if left {
            let p = wide(&bench.state("projector_left"));
            small = product(&transposed(&p, (m, r)), &small, (r, m, n));
            rows = r;
        }
        if right {
            let q = wide(&bench.state("projector_right"));
            small = product(&small, &q, (rows, n, r));
        }
        let (values, _) = jacobi::right(&g, (m, n));
        let most: f64 = values.iter().take(r).map(|s| s * s).sum();
        let found = norm(&small).powi(2);
        assert!((found - most).abs() < 1e-4 * most, "{proj_type}: {found} of {most}");
        let names: Vec<String> = bench.transforms[0].state().unwrap().into_iter().map(|t| t.name).collect();
        assert_eq!(names.iter().any(|n| n.contains("left")), left);
        assert_eq!(names.iter().any(|n| n.contains("right")), right);
    }
}

/// A step stays in the subspace; several subspaces together are larger than one.
#[test]
fn check_3() {
    let (m, n, r) = (12, 8, 2);
    let mut bench = Bench::new([m, n], ("adamw", json!({ "eps": 1e-6 })), Some(galore(r, 5, 0.25)));
    let start = wide(&bench.weight());
    for t in 0..15 {
        let before = wide(&bench.weight());
        bench.step(numbers("gradient", t, m * n), 0.1);
        let dw = difference(&wide(&bench.weight()), &before);
        let q = wide(&bench.state("projector_right"));
        let inside = product(&product(&dw, &q, (m, n, r)), &transposed(&q, (n, r)), (m, r, n));
        let outside = norm(&difference(&dw, &inside));
        assert!(norm(&dw) > 1e-3 && outside < 1e-6, "step {t}: {outside:e} of {:e}", norm(&dw));
        assert!(jacobi::rank(&dw, (m, n), 1e-5) <= r, "step {t}");
    }
    let moved = difference(&wide(&bench.weight()), &start);
    assert!(jacobi::rank(&moved, (m, n), 1e-3) > r);
}

/// Thirty steps of Adam in the subspace against steps 3 to 7 of the sheet in f64.
#[test]
fn check_4() {
    let (r, gap, scale, lr, wd) = (3, 7, 0.25, 0.02, 0.1);
    let (b1, b2, eps) = (0.9, 0.999, 1e-6);
    for [m, n] in [[12, 8], [8, 12]] {
        let adamw = json!({ "betas": [b1, b2], "eps": eps, "weight_decay": wd });
        let mut bench = Bench::new([m, n], ("adamw", adamw), Some(galore(r, gap, scale)));
        let mut w = wide(&bench.weight());
        let small = m.max(n) * r;
        let (mut first, mut second) = (vec![0.0; small], vec![0.0; small]);
        let mut q = Vec::new();
        for t in 0..30u64 {
            let recorded = numbers("gradient", t, m * n);
            bench.step(recorded.clone(), lr);
            let g = wide(&recorded);
            if t.is_multiple_of(gap) {
                q = jacobi::projector(&g, (m, n), r);
            }
            let low = if m >= n {
                product(&g, &q, (m, n, r))
            } else {
                product(&transposed(&q, (m, r)), &g, (r, m, n))
            };
            for i in 0..small {
                first[i] = b1 * first[i] + (1.0 - b1) * low[i];
                second[i] = b2 * second[i] + (1.0 - b2) * low[i] * low[i];
            }
            let direction: Vec<f64> = (0..small).map(|i| first[i] / (second[i].sqrt() + eps)).collect();
            let full = if m >= n {
                product(&direction, &transposed(&q, (n, r)), (m, r, n))
            } else {
                product(&q, &direction, (m, r, n))
            };
            let k = (t + 1) as i32;
            let rate = lr * (1.0 - f64::powi(b2, k)).sqrt() / (1.0 - f64::powi(b1, k));
            for (w, d) in w.iter_mut().zip(&full) {
                *w -= rate * scale * d;
                *w -= lr * wd * *w;
            }
        }
        let largest = w.iter().fold(0.0f64, |a, x| a.max(x.abs()));
        let off = difference(&wide(&bench.weight()), &w).iter().fold(0.0f64, |a, x| a.max(x.abs()));
        println!("[{m}, {n}]: off by {off:.1e}, the largest weight is {largest:.1}");
        assert!(off < 1e-6 * largest.max(1.0), "[{m}, {n}]: off by {off:e}");
    }
}
