//! Sheet `compeft`. Nothing is left out; check 5 is in `expert`.

use ramekin_core::{Draws, Rng};
use ramekin_merge_vectors::{Compeft, CompeftSettings, InMemory, TaskArithmetic, TaskArithmeticSettings};
use ramekin_registry::Part;
use ramekin_slots::{Stored, TaskVectors};
use ramekin_store::delta::{Base, Codec, Delta, DeltaWriter, Ternary, golomb};
use serde_json::{Value as Json, json};

use crate::normal;

/// The merger of these settings.
pub fn compeft(settings: Json) -> Compeft {
    Compeft::new(serde_json::from_value::<CompeftSettings>(settings).expect("settings")).expect("compeft")
}

/// What is left of one vector.
fn compressed(tau: &[f64], settings: Json) -> Vec<f64> {
    let cut = tau.len() / 3;
    let vectors =
        InMemory::new(&[("a", cut), ("b", tau.len() - cut)], &vec![0.0; tau.len()], &[tau.to_vec()]);
    vectors.merged(&mut compeft(settings)).unwrap_or_else(|e| panic!("{e:#}"))
}

fn sigma(tau: &[f64]) -> f64 {
    let mean = tau.iter().sum::<f64>() / tau.len() as f64;
    (tau.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / (tau.len() - 1) as f64).sqrt()
}

#[test]
fn check_1() {
    let tau = normal("τ", 1001);
    for (k, alpha) in [(0.05, 1.0), (0.2, 2.0), (1.0, 0.5)] {
        let found = compressed(&tau, json!({ "density": k, "alpha": alpha }));
        let scale = f64::from((alpha * sigma(&tau)) as f32);
        let kept = (k * 1001.0f64).floor() as usize;
        assert_eq!(found.iter().filter(|x| **x != 0.0).count(), kept);
        let mut least = f64::INFINITY;
        let mut most = 0.0f64;
        for (x, t) in found.iter().zip(&tau) {
            if *x == 0.0 {
                most = most.max(t.abs());
            } else {
                assert!((x.abs() / scale - 1.0).abs() < 1e-6, "{x} is not ±{scale}");
                assert_eq!(x.signum(), t.signum());
                least = least.min(t.abs());
            }
        }
        assert!(least >= most, "a kept magnitude {least} below a dropped one {most}");
    }
}

/// A vector of −1, 0 and 1 with ⌊kd⌋ entries at drawn places.
fn ternary(d: usize, k: f64) -> Vec<f64> {
    let mut draws = Draws::new(Rng::new(3).named("tests/ternary", &format!("{d} {k}")));
    let mut places: Vec<usize> = (0..d).collect();
    draws.shuffle(&mut places);
    let mut out = vec![0.0; d];
    for i in &places[..(k * d as f64).floor() as usize] {
        out[*i] = if draws.below(2) == 0 { 1.0 } else { -1.0 };
    }
    out
}

fn coded(codec: Codec, k: f64, numbers: &[f64]) -> (Vec<f64>, u64) {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("d.safetensors");
    let base = Base { label: "base".into(), sha256: "00".into() };
    let mut writer = DeltaWriter::new(codec, k, base, Json::Null);
    writer.begin("w", &[numbers.len()], Some(1.0)).expect("a tensor");
    writer.push(numbers).expect("numbers");
    writer.finish(&path).expect("a file");
    let codes = ramekin_store::Index::open(&path).expect("a file").tensor_info("codes").expect("codes").bytes;
    let delta = Delta::open(&path).expect("a file");
    let mut out = vec![f64::NAN; numbers.len()];
    delta.entries("w").expect("codes").expect("a tensor").fill(0, &mut out).expect("numbers");
    (out, codes)
}

#[test]
fn check_2() {
    for d in [1, 7, 100_000] {
        for k in [0.01, 0.05, 0.3, 1.0] {
            let numbers = ternary(d, k);
            for codec in [Codec::Golomb, Codec::Bitmask] {
                let (again, bytes) = coded(codec, k, &numbers);
                assert_eq!(again, numbers, "{codec:?} at {k} of {d}");
                if d == 100_000 && codec == Codec::Golomb {
                    let found = 8.0 * bytes as f64 / d as f64;
                    let formula = k * (golomb::expected_bits(k) + 1.0);
                    assert!(
                        (found / formula - 1.0).abs() < 0.01,
                        "{found} bits a number at {k}, formula {formula}"
                    );
                    let bound = golomb::entropy_bits(k, d as f64) / d as f64;
                    assert!(
                        found > bound * 0.995,
                        "{found} bits a number at {k} are below the bound {bound}"
                    );
                }
            }
        }
    }
}

#[test]
fn check_3() {
    let (a, b) = (ternary(10_001, 0.3), ternary(10_001, 0.2));
    let (x, y) = (Ternary::new(a.clone(), 0.37), Ternary::new(b.clone(), 1.9));
    let dense: f64 = a.iter().zip(&b).map(|(a, b)| 0.37 * a * 1.9 * b).sum();
    assert!(dense != 0.0 && (x.dot(&y) / dense - 1.0).abs() < 1e-6, "{} against {dense}", x.dot(&y));
    let distance: f64 = a.iter().zip(&b).map(|(a, b)| (0.37 * a - 1.9 * b).abs()).sum();
    assert!((x.l1_distance(&y) / distance - 1.0).abs() < 1e-6);

    let tau = normal("τ", 1001);
    let found = compressed(&tau, json!({ "density": 0.2 }));
    for c in [0.25, 3.0] {
        let scaled: Vec<f64> = tau.iter().map(|x| c * x).collect();
        for (a, b) in compressed(&scaled, json!({ "density": 0.2 })).iter().zip(&found) {
            assert!((a - c * b).abs() <= 1e-6 * a.abs());
        }
    }
}

#[test]
fn check_4() {
    let tau = normal("million", 1_000_000);
    for k in [0.05, 0.3, 1.0] {
        let found = compressed(&tau, json!({ "density": k }));
        let scale = found.iter().fold(0.0f64, |m, x| m.max(x.abs()));
        assert!((scale - 1.0).abs() < 0.01, "{scale} at {k}");
    }
}

#[test]
fn check_6() {
    let d = 900;
    let taus: Vec<Vec<f64>> = (0..3).map(|t| normal(&format!("expert {t}"), d)).collect();
    let names = [("a", 400), ("b", 500)];
    let vectors = InMemory::new(&names, &normal("base", d), &taus);
    let mut method = compeft(json!({ "density": 0.2, "alpha": 2.0 }));
    vectors.merged(&mut method).expect("merged");
    // Through files, as a merge stage stores and reads them.
    let dir = tempfile::tempdir().expect("a folder");
    let mut from_files = Vec::new();
    for task in 0..3 {
        let path = dir.path().join(format!("{task}.safetensors"));
        let base = Base { label: "base".into(), sha256: "00".into() };
        let mut writer = DeltaWriter::new(Codec::Golomb, method.density(task), base, Json::Null);
        for (t, tensor) in vectors.tensors().iter().enumerate() {
            writer.begin(&tensor.name, &tensor.dims, method.scale(task, t)).expect("a tensor");
            vectors
                .pieces_of(t, &mut |piece| {
                    let mut out = vec![0.0; piece.base.len()];
                    method.values(task, piece, &mut out)?;
                    writer.push(&out)
                })
                .expect("numbers");
        }
        writer.finish(&path).expect("a file");
        let delta = Delta::open(&path).expect("a file");
        let mut all = Vec::new();
        for (name, len) in names {
            let mut out = vec![0.0; len];
            delta.entries(name).expect("codes").expect("a tensor").fill(0, &mut out).expect("numbers");
            all.extend(out);
        }
        from_files.push(all);
    }
    let dense: Vec<Vec<f64>> = taus
        .iter()
        .map(|tau| {
            let scale = 2.0 * sigma(tau);
            let mut order: Vec<usize> = (0..d).collect();
            order.sort_by(|a, b| tau[*b].abs().total_cmp(&tau[*a].abs()).then(a.cmp(b)));
            let mut out = vec![0.0; d];
            order[..180].iter().for_each(|i| out[*i] = scale * tau[*i].signum());
            out
        })
        .collect();
    let merge = |taus: &[Vec<f64>]| {
        let vectors = InMemory::new(&names, &normal("base", d), taus).weighted(&[0.5, 1.0, -0.3]);
        let mut method = TaskArithmetic::new(TaskArithmeticSettings { lambda: 0.7, ..Default::default() });
        vectors.merged(method.as_mut().expect("task arithmetic")).expect("merged")
    };
    for (a, b) in merge(&from_files).iter().zip(merge(&dense)) {
        assert!((a - b).abs() < 1e-6, "{a} against {b}");
    }
}

#[test]
fn bad_input_is_refused() {
    let settings = |s: Json| {
        let parsed = serde_json::from_value::<CompeftSettings>(s).expect("settings");
        Compeft::new(parsed).err().map_or_else(|| "taken".to_owned(), |e| e.to_string())
    };
    assert_eq!(settings(json!({ "alpha": 0.0 })), "`alpha` is 0; it must be above 0");
    assert_eq!(settings(json!({ "density": 1.5 })), "`density` is 1.5; it must be in (0, 1]");
    assert!(
        settings(json!({ "mode": "prune", "alpha": 2.0 })).contains("is read only with `mode = \"compeft\"`")
    );
    let refusal = |tau: Vec<f64>, s: Json| {
        let vectors = InMemory::new(&[("a", tau.len())], &vec![0.0; tau.len()], &[tau]);
        vectors.merged(&mut compeft(s)).err().map_or_else(|| "taken".to_owned(), |e| e.to_string())
    };
    assert!(
        refusal(vec![1.0, -2.0], json!({}))
            .contains("`density` is 0.2, which keeps nothing of the 2 numbers")
    );
    assert!(refusal(vec![0.0; 20], json!({})).contains("has nothing to compress"));
    assert!(
        refusal(vec![1.0, 2.0], json!({ "density": [0.5, 1.0] })).contains("give `task 0` its held rows")
    );
}

#[test]
fn the_other_modes_keep_values_and_mean_magnitudes() {
    let tau = [4.0, -3.0, 1.0, 0.5];
    assert_eq!(compressed(&tau, json!({ "mode": "prune", "density": 0.5 })), [4.0, -3.0, 0.0, 0.0]);
    assert_eq!(compressed(&tau, json!({ "mode": "stc", "density": 0.5 })), [3.5, -3.5, 0.0, 0.0]);
}
