//! Sheet `cfsp`. Nothing is left out; check 6 is in `pruned`.

use std::rc::Rc;

use anyhow::Result;
use ramekin_calibrate::{Calibration, batches};
use ramekin_core::{Array, Category};
use ramekin_prune_channels::{Cfsp, CfspSettings, LocalMetric, Normaliser, keep_ratios, score};
use ramekin_registry::Part;
use ramekin_slots::{
    BlockMetric, BlockStatistics, FlatBatch, Forward, MlpWeights, Model, ModelFacts, Pruner, Sites,
};
use ramekin_tape::Value;
use ramekin_tests::compare::{close, same_bits};
use ramekin_tests::lab::{assemble, folder_model, fresh_model, logits, sequences, small_llama};
use serde_json::json;

use crate::normal;
use crate::pruned::{cut, pruner, statistics, wide};

#[test]
fn check_1() {
    let skewed = [0.02, 0.03, 0.05, 0.9, 0.04, 0.03, 0.6, 0.02];
    let usual = [0.31, 0.12, 0.09, 0.14];
    for p in [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8] {
        for importance in [&skewed[..], &usual[..]] {
            for a in [1.0, 10.0] {
                let ratios = keep_ratios(importance, p, a, 13.107);
                let mean = ratios.iter().sum::<f64>() / ratios.len() as f64;
                assert!((mean - (1.0 - p)).abs() < 1e-6, "{mean} at {p}");
                assert!(ratios.iter().all(|r| *r > 0.0 && *r < 1.0), "{ratios:?} at {p}");
            }
        }
        assert_eq!(keep_ratios(&skewed, p, 0.0, 13.107), [1.0 - p; 8]);
        assert_eq!(keep_ratios(&[0.1; 3], p, 1.0, 13.107), [1.0 - p; 3]);
    }
    // The rescue was needed: without it the largest share would pass 1.
    let ratios = keep_ratios(&skewed, 0.1, 10.0, 13.107);
    assert!(ratios.iter().fold(0.0f64, |m, r| m.max(*r)) > 0.95, "{ratios:?}");

    let assembly = assemble(&fresh_model(small_llama()));
    let rows = sequences(&[12, 12, 12], 61, 4);
    let twice = [rows.clone(), rows.clone()].concat();
    let (once, twice) = (statistics(&assembly, &rows), statistics(&assembly, &twice));
    let angles = |blocks: &[BlockStatistics]| blocks.iter().map(|b| b.moved[0].1).collect::<Vec<_>>();
    let (a, b) =
        (keep_ratios(&angles(&once), 0.5, 1.0, 13.107), keep_ratios(&angles(&twice), 0.5, 1.0, 13.107));
    assert!(a.iter().zip(&b).all(|(a, b)| (a - b).abs() < 1e-12), "{a:?} and {b:?}");
}

fn array(numbers: &[f64], dims: &[usize]) -> Array {
    Array::from_vec(numbers.iter().map(|x| *x as f32).collect(), dims, Category::Workspace).expect("an array")
}

fn ranks(x: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..x.len()).collect();
    order.sort_by(|a, b| x[*a].total_cmp(&x[*b]));
    let mut ranks = vec![0.0; x.len()];
    order.iter().enumerate().for_each(|(rank, i)| ranks[*i] = rank as f64);
    ranks
}

fn spearman(x: &[f64], y: &[f64]) -> f64 {
    let n = x.len() as f64;
    let d: f64 = ranks(x).iter().zip(ranks(y)).map(|(a, b)| (a - b).powi(2)).sum();
    1.0 - 6.0 * d / (n * (n * n - 1.0))
}

#[test]
fn check_2() {
    let (d, m) = (64, 128);
    for seed in 0..3 {
        let draw = |what: &str, n: usize| normal(&format!("{seed} {what}"), n);
        // Uniform in [1, 1.2], through the normal distribution's own ranks.
        let norms: Vec<f64> = ranks(&draw("A", m)).iter().map(|r| 1.0 + 0.2 * r / m as f64).collect();
        let columns: Vec<f64> = draw("columns", m).iter().map(|x| (0.5 * x).exp()).collect();
        let down: Vec<f64> =
            draw("down", d * m).iter().enumerate().map(|(n, x)| x * columns[n % m]).collect();
        let mlp = MlpWeights {
            up: array(&draw("up", m * d), &[m, d]),
            gate: Some(array(&draw("gate", m * d), &[m, d])),
            down: array(&down, &[d, m]),
        };
        let at = |normaliser, c| {
            score(LocalMetric::ThreeWOneWa, normaliser, (1.0, c), &norms, &mlp).expect("scores")
        };
        for c in [0.5, 1.0, 2.0] {
            for (found, a) in at(Normaliser::Released, c).iter().zip(&norms) {
                let formula = 3.0 / d as f64 * a.powf(c);
                assert!((found / formula - 1.0).abs() < 1e-5, "{found} against {formula}");
            }
        }
        let found = spearman(&at(Normaliser::Relative, 1.0), &norms);
        assert!(found < 0.7, "seed {seed}: {found}");
    }
    let mut norms = vec![1.0; m];
    norms[7] = 0.0;
    let dead = |rows: usize, columns: usize, by_row: bool| {
        let numbers: Vec<f64> = normal("dead", rows * columns)
            .iter()
            .enumerate()
            .map(|(n, x)| if (if by_row { n / columns } else { n % columns }) == 7 { 0.0 } else { *x })
            .collect();
        array(&numbers, &[rows, columns])
    };
    let mlp = MlpWeights { up: dead(m, d, true), gate: Some(dead(m, d, true)), down: dead(d, m, false) };
    for normaliser in [Normaliser::Released, Normaliser::Relative] {
        let found = score(LocalMetric::ThreeWOneWa, normaliser, (1.0, 1.0), &norms, &mlp).expect("scores");
        assert_eq!(found[7], 0.0);
        assert!(found.iter().all(|x| x.is_finite()));
    }
}

#[test]
fn check_3() {
    let assembly = assemble(&fresh_model(small_llama()));
    let flat = FlatBatch::new(&sequences(&[20, 9], 61, 8));
    let before = logits(&assembly, &flat, true);
    let kept: Vec<Vec<usize>> =
        vec![(0..48).filter(|c| c % 3 != 1).collect(), (0..48).filter(|c| c % 4 != 2).collect()];
    let folder = cut(&assembly, &kept, false);
    let found = logits(&assemble(&folder_model(folder.path())), &flat, true);
    let padded = cut(&assembly, &kept, true);
    let found_padded = logits(&assemble(&folder_model(padded.path())), &flat, true);
    for (block, kept) in kept.iter().enumerate() {
        let name = format!("model.layers.{block}.mlp.down_proj.weight");
        let param = assembly.sites.param(&name).expect("down").base().clone();
        let mut numbers = param.value().to_f32().expect("f32");
        numbers.iter_mut().enumerate().filter(|(n, _)| !kept.contains(&(n % 48))).for_each(|(_, x)| *x = 0.0);
        param.set(Array::from_vec(numbers, &[32, 48], Category::Weights).expect("down"));
    }
    let zeroed = logits(&assembly, &flat, true);
    close("cut against zeroed", &found, &zeroed, 1e-5);
    close("padded against zeroed", &found_padded, &zeroed, 1e-5);
    assert!(ramekin_tests::compare::difference(&zeroed, &before) > 1e-2, "the cut did nothing");

    // As many dead channels again are found and cut, in both modes.
    let assembly = assemble(&fresh_model(small_llama()));
    let before = logits(&assembly, &flat, true);
    let folder = wide(&assembly);
    let doubled = assemble(&folder_model(folder.path()));
    close("with dead channels", &logits(&doubled, &flat, true), &before, 1e-5);
    for normaliser in ["released", "relative"] {
        let settings =
            json!({ "pruning_ratio": 0.5, "a": 0.0, "cuda_friendly": false, "normaliser": normaliser });
        let kept = pruner(settings).channels(&doubled, &sequences(&[16, 16, 16, 16], 61, 3));
        assert!(kept.iter().all(|k| k.iter().all(|c| c % 2 == 1)), "{kept:?}");
        let folder = cut(&doubled, &kept, false);
        let found = logits(&assemble(&folder_model(folder.path())), &flat, true);
        close("dead channels cut", &found, &before, 1e-5);
    }
}

/// Blocks that turn every pair of coordinates of a token by an angle.
struct Turning {
    facts: ModelFacts,
    degrees: Vec<f64>,
}

const TOKENS: usize = 40;

impl Model for Turning {
    fn facts(&self) -> &ModelFacts {
        &self.facts
    }

    fn embed(&self, _: &Forward) -> Result<Value> {
        Ok(Value::constant(array(&normal("states", TOKENS * 8), &[TOKENS, 8])))
    }

    fn block(&self, index: usize, _: &Forward, x: &Value) -> Result<Value> {
        if self.degrees[index] == 0.0 {
            return Ok(x.clone());
        }
        let (sin, cos) = self.degrees[index].to_radians().sin_cos();
        let numbers = x.array().to_f32()?;
        let turned = numbers.chunks(2).flat_map(|p| {
            let (a, b) = (f64::from(p[0]), f64::from(p[1]));
            [cos * a - sin * b, sin * a + cos * b]
        });
        Ok(Value::constant(array(&turned.collect::<Vec<_>>(), x.dims())))
    }

    fn final_norm(&self, _: &Forward, x: &Value) -> Result<Value> {
        Ok(x.clone())
    }

    fn head(&self, _: &Forward, x: &Value) -> Result<Value> {
        Ok(x.clone())
    }
}

#[test]
fn check_4() {
    let degrees = vec![0.0, 30.0, 60.0, 90.0];
    let facts = ModelFacts { blocks: 4, ..assemble(&fresh_model(small_llama())).model.facts().clone() };
    let model: Rc<dyn Model> = Rc::new(Turning { facts, degrees });
    let sites = Rc::new(Sites::default());
    let rows = batches(&[vec![vec![0; TOKENS]]], TOKENS);
    let mut angles = Vec::new();
    let calibration = Calibration { model: &model, sites: &sites, batches: &rows };
    calibration
        .walk(&mut |_| Ok(Vec::new()), &mut |seen| {
            let means = seen.moved.means();
            angles.extend(means.iter().find(|(m, _)| *m == BlockMetric::Angular).map(|(_, x)| *x));
            Ok(false)
        })
        .expect("a walk");
    for (found, expected) in angles.iter().zip([0.0, 1.0 / 6.0, 1.0 / 3.0, 0.5]) {
        assert!((found - expected).abs() < 1e-3, "{angles:?}");
    }
    let ratios = keep_ratios(&angles, 0.5, 1.0, 13.107);
    assert!(ratios.is_sorted_by(|a, b| a < b), "{ratios:?}");
}

#[test]
fn check_5() {
    let block =
        |angle: f64| BlockStatistics { moved: vec![(BlockMetric::Angular, angle)], norms: Vec::new() };
    let blocks: Vec<BlockStatistics> = [0.4, 0.12, 0.1, 0.2].map(block).into();
    for (m, g) in [(512, 128), (1000, 64), (96, 16)] {
        let settings = CfspSettings { pruning_ratio: 0.3, block_size: g, ..CfspSettings::default() };
        let mut cfsp = Cfsp::new(settings).expect("cfsp");
        let widths = cfsp.widths(&blocks, &[m; 4]).expect("widths");
        let ratios = keep_ratios(&[0.4, 0.12, 0.1, 0.2], 0.3, 1.0, 13.107);
        for (n, ratio) in widths.iter().zip(ratios) {
            assert_eq!(n % g, 0);
            let off = (*n as f64 - m as f64 * ratio).abs();
            assert!(off <= g as f64 / 2.0, "{n} of {m} is {off} from its share");
        }
        let removed = cfsp.report()["removed"].as_f64().expect("a share");
        let expected = 1.0 - widths.iter().sum::<usize>() as f64 / (4 * m) as f64;
        assert!((removed - expected).abs() < 1e-12);
    }
}

#[test]
fn bad_input_is_refused() {
    let settings = |s: serde_json::Value| {
        let parsed = serde_json::from_value::<CfspSettings>(s).expect("settings");
        Cfsp::new(parsed).err().map_or_else(|| "taken".to_owned(), |e| e.to_string())
    };
    assert_eq!(
        settings(json!({ "pruning_ratio": 1.0 })),
        "`pruning_ratio` is 1; it must be above 0 and below 1"
    );
    assert_eq!(settings(json!({ "a": -1.0 })), "`a` is -1; it must be at least 0");
    assert_eq!(settings(json!({ "block_size": 0 })), "`block_size` is 0; it must be at least 1");
    let block = BlockStatistics { moved: vec![(BlockMetric::Angular, 0.1)], norms: Vec::new() };
    let widths = |s: CfspSettings, m: usize| {
        Cfsp::new(s).expect("cfsp").widths(std::slice::from_ref(&block), &[m]).err().map(|e| e.to_string())
    };
    let narrow = widths(CfspSettings::default(), 96).expect("a refusal");
    assert!(narrow.contains("`block_size` is 128, more than the 96 channels of a block"), "{narrow}");
    let none =
        widths(CfspSettings { pruning_ratio: 0.9, ..CfspSettings::default() }, 200).expect("a refusal");
    assert!(none.contains("which makes 0 of a block of 200 channels"), "{none}");
    let plain = CfspSettings { pruning_ratio: 0.99, cuda_friendly: false, ..CfspSettings::default() };
    assert!(widths(plain, 20).expect("a refusal").contains("leaves a block of 20 channels none"));
    // A model of one block is uniform, not refused.
    assert_eq!(widths(CfspSettings { pruning_ratio: 0.5, ..CfspSettings::default() }, 256), None);
}

#[test]
fn observing_changes_nothing() {
    let assembly = assemble(&fresh_model(small_llama()));
    let flat = FlatBatch::new(&sequences(&[20, 9], 61, 8));
    let before = logits(&assembly, &flat, true);
    statistics(&assembly, &sequences(&[10, 10], 61, 1));
    same_bits("after a pass", &logits(&assembly, &flat, true), &before);
    assert!(assembly.sites.linears().iter().all(|l| l.adapter_count() == 0));
}
