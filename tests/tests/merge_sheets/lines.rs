//! Sheet `lines`. Nothing is left out; check 6 is in `tuned_away`.

use ramekin_merge_vectors::{
    InMemory, Lines, LinesSettings, TaskArithmetic, TaskArithmeticSettings, Ties, TiesSettings,
};
use ramekin_registry::Part;
use ramekin_slots::Merger;
use serde_json::json;

use crate::normal;

/// Twelve blocks of one tensor with an embedding before and a norm behind them.
fn layout() -> Vec<(String, usize)> {
    let blocks = (0..12).map(|l| (format!("model.layers.{l}.mlp.up_proj.weight"), 40));
    let mut all = vec![("model.embed_tokens.weight".to_owned(), 50)];
    all.extend(blocks);
    all.push(("model.norm.weight".to_owned(), 10));
    all
}

fn vectors(tasks: usize) -> InMemory {
    let layout = layout();
    let names: Vec<(&str, usize)> = layout.iter().map(|(n, len)| (n.as_str(), *len)).collect();
    let d = names.iter().map(|(_, len)| len).sum();
    let deltas: Vec<Vec<f64>> = (0..tasks).map(|t| normal(&format!("τ {t}"), d)).collect();
    InMemory::new(&names, &normal("θ₀", d), &deltas)
}

fn lines(settings: serde_json::Value) -> Lines {
    Lines::new(serde_json::from_value::<LinesSettings>(settings).expect("settings")).expect("lines")
}

fn merged(vectors: &InMemory, settings: serde_json::Value) -> Vec<f64> {
    vectors.merged(&mut lines(settings)).unwrap_or_else(|e| panic!("{e:#}"))
}

fn base(vectors: &InMemory) -> Vec<f64> {
    vectors
        .made(&|piece, out| {
            out.copy_from_slice(piece.base);
            Ok(())
        })
        .expect("the base")
}

fn same(found: &[f64], expected: &[f64]) {
    assert_eq!(found.len(), expected.len());
    assert!(found.iter().zip(expected).all(|(a, b)| a.to_bits() == b.to_bits()));
}

#[test]
fn check_1() {
    let three = vectors(3);
    let mut arithmetic = TaskArithmetic::new(TaskArithmeticSettings::default()).expect("task arithmetic");
    same(
        &merged(&three, json!({ "alpha": 1.0, "beta": 0.0 })),
        &three.merged(&mut arithmetic).expect("merged"),
    );
    let mut ties = Ties::new(TiesSettings::default()).expect("ties");
    let with_ties = merged(&three, json!({ "alpha": 1.0, "beta": 0.0, "merger": "ties" }));
    same(&with_ties, &three.merged(&mut ties).expect("merged"));
    same(&merged(&three, json!({ "alpha": 0.0, "beta": 0.0 })), &base(&three));

    let one = vectors(1);
    let found = merged(&one, json!({ "alpha": 1.0, "beta": 0.0 }));
    let tuned = one.made(&|piece, out| {
        for (i, o) in out.iter_mut().enumerate() {
            *o = piece.base[i] + piece.deltas[0][i];
        }
        Ok(())
    });
    same(&found, &tuned.expect("the tuned model"));
}

#[test]
fn check_2() {
    let one = vectors(1);
    let (base, found) = (base(&one), merged(&one, json!({ "alpha": 0.3, "beta": 0.5 })));
    let delta = normal("τ 0", base.len());
    let mut at = 0;
    for (name, len) in layout() {
        // Not by searching for a digit: block 1 and block 11 differ.
        let factor = match name.split('.').nth(2).and_then(|l| l.parse::<usize>().ok()) {
            Some(0) => 0.3,
            Some(11) => 0.8,
            Some(l) => 0.3 + 0.5 * l as f64 / 11.0,
            None => 0.3,
        };
        for i in at..at + len {
            let off = (found[i] - base[i] - factor * delta[i]).abs();
            assert!(off < 1e-6, "{name}: off by {off:.1e}");
        }
        at += len;
    }
    let last = merged(&one, json!({ "alpha": 0.3, "beta": 0.5, "outside_scale": "last" }));
    let (first, end) = (0, base.len() - 1);
    assert!((last[first] - base[first] - 0.3 * delta[first]).abs() < 1e-6, "the embedding is before block 0");
    assert!((last[end] - base[end] - 0.8 * delta[end]).abs() < 1e-6, "the norm is behind the last block");
}

fn alpha(vectors: &InMemory, settings: serde_json::Value) -> f64 {
    let mut lines = lines(settings);
    let report =
        lines.prepare(vectors, &mut ramekin_merge_vectors::Nobody).unwrap_or_else(|e| panic!("{e:#}"));
    report["alpha"].as_f64().expect("alpha")
}

#[test]
fn check_3() {
    let three = vectors(3);
    let found = alpha(&three, json!({ "beta": 0.5 }));
    assert!((found - 1.0 / 3.0).abs() < 1e-6, "{found}");

    let found = alpha(&three, json!({ "beta": 0.5, "merger": "ties" }));
    let d: usize = layout().iter().map(|(_, len)| len).sum();
    let sums: f64 = (0..d).map(|i| (0..3).map(|t| normal(&format!("τ {t}"), d)[i]).sum::<f64>().abs()).sum();
    let ties = merged(&three, json!({ "alpha": 1.0, "beta": 0.0, "merger": "ties" }));
    let norm: f64 = ties.iter().zip(base(&three)).map(|(a, b)| (a - b).abs()).sum();
    let ratio = sums / norm / 3.0;
    assert!((found / ratio - 1.0).abs() < 1e-6, "{found} against {ratio}");
    assert!(found > 1.0 / 3.0, "{found}");
}

/// The sheet's rule 7, entry by entry.
fn ties_by_hand(deltas: &[Vec<f64>], share: f64) -> Vec<f64> {
    let d = deltas[0].len();
    let keep = (share * d as f64).floor() as usize;
    let trimmed: Vec<Vec<f64>> = deltas
        .iter()
        .map(|tau| {
            let mut order: Vec<usize> = (0..d).collect();
            order.sort_by(|a, b| tau[*b].abs().total_cmp(&tau[*a].abs()).then(a.cmp(b)));
            let mut kept = vec![0.0; d];
            order[..keep].iter().for_each(|i| kept[*i] = tau[*i]);
            kept
        })
        .collect();
    let sign = |x: f64| if x == 0.0 { 0.0 } else { x.signum() };
    let signs: Vec<f64> = (0..d).map(|j| sign(trimmed.iter().map(|t| t[j]).sum())).collect();
    let majority = sign(signs.iter().sum());
    (0..d)
        .map(|j| {
            let elected = if signs[j] == 0.0 { majority } else { signs[j] };
            let agree: Vec<f64> =
                trimmed.iter().map(|t| t[j]).filter(|x| *x != 0.0 && sign(*x) == elected).collect();
            agree.iter().sum::<f64>() / agree.len().max(1) as f64
        })
        .collect()
}

#[test]
fn check_4() {
    const D: usize = 1000;
    // Quarters: many zeros and ties.
    let rough = |t: usize| normal(&format!("rough {t}"), D).iter().map(|x| (x * 4.0).round() / 4.0).collect();
    let deltas: Vec<Vec<f64>> = (0..3).map(rough).collect();
    assert!(deltas[0].iter().filter(|x| **x == 0.0).count() > 50);
    for share in [0.2, 0.35, 1.0] {
        for piece in [7, 4096] {
            let names = [("a", 300), ("b", 700)];
            let vectors = InMemory::new(&names, &[0.0; D], &deltas).in_pieces_of(piece);
            let settings = TiesSettings { density: share, ..TiesSettings::default() };
            let found = vectors.merged(&mut Ties::new(settings).expect("ties")).expect("merged");
            let expected = ties_by_hand(&deltas, share);
            assert_eq!(found, expected, "{share} in pieces of {piece}");
        }
    }
    // T identical inputs with everything kept are one of them; merged signs are elected ones everywhere.
    let same = InMemory::new(&[("a", D)], &[0.0; D], &vec![deltas[0].clone(); 3]);
    let all = TiesSettings { density: 1.0, ..TiesSettings::default() };
    let found = same.merged(&mut Ties::new(all.clone()).expect("ties")).expect("merged");
    let off = found.iter().zip(&deltas[0]).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    assert!(off < 1e-12, "{off:.1e}");
    let found = ties_by_hand(&deltas, 1.0);
    for j in 0..D {
        let sum: f64 = deltas.iter().map(|t| t[j]).sum();
        assert!(sum == 0.0 || found[j].signum() == sum.signum());
    }
}

#[test]
fn check_5() {
    let three = vectors(3);
    let consensus = |k: usize| json!({ "merger": "consensus", "consensus_k": k, "tall_lambda": 0.4, "alpha": 1.0, "beta": 0.0 });
    same(&merged(&three, consensus(0)), &merged(&three, json!({ "alpha": 1.0, "beta": 0.0 })));
    same(&merged(&three, consensus(4)), &base(&three));

    // Disjoint supports: every entry is used by its own task alone.
    let layout = layout();
    let names: Vec<(&str, usize)> = layout.iter().map(|(n, len)| (n.as_str(), *len)).collect();
    let d: usize = names.iter().map(|(_, len)| len).sum();
    let mine = |t: usize| (0..d).map(|i| if i % 3 == t { 1.0 + i as f64 } else { 0.0 }).collect();
    let deltas: Vec<Vec<f64>> = (0..3).map(mine).collect();
    let disjoint = InMemory::new(&names, &normal("θ₀", d), &deltas);
    same(&merged(&disjoint, consensus(2)), &base(&disjoint));
    same(&merged(&disjoint, consensus(1)), &merged(&disjoint, json!({ "alpha": 1.0, "beta": 0.0 })));

    // Masks equal the inequality entry by entry: k = 2 keeps what at least two tasks use.
    let (base, found) = (base(&three), merged(&three, consensus(2)));
    let deltas: Vec<Vec<f64>> = (0..3).map(|t| normal(&format!("τ {t}"), d)).collect();
    let mut dropped = 0;
    for i in 0..d {
        let tau: f64 = deltas.iter().map(|t| t[i]).sum();
        let used =
            deltas.iter().filter(|t| t[i].abs() > 0.4 * (base[i] + tau - (base[i] + t[i])).abs()).count();
        let expected = if used >= 2 { base[i] + tau } else { base[i] };
        assert!((found[i] - expected).abs() < 1e-12, "entry {i}, used by {used}");
        dropped += usize::from(used < 2);
    }
    assert!(dropped > 20 && dropped < d - 20, "{dropped} of {d}");
}

#[test]
fn bad_input_is_refused() {
    let settings = |s: serde_json::Value| {
        let parsed = serde_json::from_value::<LinesSettings>(s).expect("settings");
        Lines::new(parsed).err().map_or_else(|| "taken".to_owned(), |e| e.to_string())
    };
    assert_eq!(
        settings(json!({ "ties_keep_percent": 0.0 })),
        "`ties_keep_percent` is 0; it must be in (0, 100]"
    );
    assert_eq!(
        settings(json!({ "num_blocks": 1 })),
        "`num_blocks` is 1; a factor by depth needs at least 2 blocks"
    );
    assert_eq!(settings(json!({ "alpha": -0.5 })), "`alpha` is -0.5; it must be at least 0");
    let refusal = |vectors: &InMemory, s: serde_json::Value| {
        vectors.merged(&mut lines(s)).err().map_or_else(|| "taken".to_owned(), |e| e.to_string())
    };
    let one = vectors(1);
    assert!(refusal(&one, json!({ "mode": "multi" })).contains("needs at least 2 models; there is 1"));
    assert!(refusal(&one, json!({})).contains("has 11 values to choose from; give `task 0` its held rows"));
    assert!(refusal(&one, json!({ "num_blocks": 3 })).contains("is 3; the tensors' paths name 12 blocks"));
    assert!(refusal(&one, json!({ "block_path": "h" })).contains("is \"h\", in which no tensor lies"));
    assert!(
        refusal(&vectors(2), json!({ "merger": "consensus", "consensus_k": 4 }))
            .contains("must be at most 3")
    );
    let zero = InMemory::new(&[("h.0.w", 2), ("h.1.w", 2)], &[1.0; 4], &[vec![0.0; 4]]);
    assert!(refusal(&zero, json!({ "alpha": 1.0 })).contains("`task 0` equals the base"));
}
