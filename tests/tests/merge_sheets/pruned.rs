//! Cutting small models, and check 6 of `cfsp`: what a cut costs, and what a recovery brings back.

use ramekin_calibrate::batches;
use ramekin_core::{Array, Category, Draws, Rng};
use ramekin_engine::assembly::Assembly;
use ramekin_engine::blueprint::Blueprint;
use ramekin_engine::parts;
use ramekin_engine::step::Trainer;
use ramekin_engine::surgery::{Surgery, highest, mlps};
use ramekin_prune_channels::{Cfsp, CfspSettings, ranks};
use ramekin_recipe::Adapter;
use ramekin_registry::Part;
use ramekin_slots::{BlockStatistics, FlatBatch, MlpWeights, Pruner};
use ramekin_store::{Data, write_safetensors};
use ramekin_tests::lab::{assemble, batch, folder_model, fresh_model, logits, part, trainer};
use serde_json::{Value as Json, json};

use crate::normal;

/// What every block does to these sequences.
pub fn statistics(assembly: &Assembly, rows: &[Vec<u32>]) -> Vec<BlockStatistics> {
    let samples: Vec<Vec<Vec<u32>>> = rows.iter().map(|row| vec![row.clone()]).collect();
    let found = ramekin_engine::calibration::statistics(assembly, &batches(&samples, 2048), samples.len());
    found.unwrap_or_else(|e| panic!("{e:#}"))
}

fn write(tensors: Vec<(String, Data)>, mut config: Json) -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a folder");
    write_safetensors(dir.path().join("model.safetensors"), &tensors, &[("format", "pt")]).expect("a file");
    let sizes = config.as_object_mut().and_then(|c| c.shift_remove("intermediate_sizes"));
    if let Some(sizes) = sizes {
        std::fs::write(dir.path().join("ramekin.json"), json!({ "intermediate_sizes": sizes }).to_string())
            .expect("a file");
    }
    std::fs::write(dir.path().join("config.json"), config.to_string()).expect("a file");
    dir
}

/// A folder with the model of these channels alone.
pub fn cut(assembly: &Assembly, kept: &[Vec<usize>], pad: bool) -> tempfile::TempDir {
    let mlps = mlps(&*assembly.model).expect("MLPs");
    let surgery = Surgery::new(&mlps, kept.to_vec(), pad).expect("a surgery");
    let names = assembly.sites.param_names();
    let tensors = names.iter().map(|name| {
        let value = assembly.sites.param(name).expect("a parameter").base().value();
        let array = surgery.cut(name, value).expect("a tensor");
        assert_eq!(
            array.dims(),
            surgery.dims(name, assembly.sites.param(name).expect("it").base().value().dims())
        );
        (name.clone(), Data::from(&array))
    });
    write(tensors.collect(), surgery.config(&assembly.config))
}

/// A folder with the model and a channel of zeros before each of its own.
pub fn wide(assembly: &Assembly) -> tempfile::TempDir {
    let tensors = assembly.sites.param_names().iter().map(|name| {
        let value = assembly.sites.param(name).expect("a parameter").base().value();
        let numbers = value.to_f32().expect("f32");
        let dims = value.dims().to_vec();
        let array = if name.contains("up_proj") || name.contains("gate_proj") {
            let rows = numbers.chunks(dims[1]).flat_map(|row| [vec![0.0; row.len()], row.to_vec()].concat());
            Array::from_vec(rows.collect(), &[2 * dims[0], dims[1]], Category::Workspace)
        } else if name.contains("down_proj") {
            let pairs = numbers.iter().flat_map(|x| [0.0, *x]);
            Array::from_vec(pairs.collect(), &[dims[0], 2 * dims[1]], Category::Workspace)
        } else {
            Array::from_vec(numbers, &dims, Category::Workspace)
        };
        (name.clone(), Data::from(&array.expect("a tensor")))
    });
    let mut config = assembly.config.clone();
    config["intermediate_size"] = json!(2 * config["intermediate_size"].as_u64().expect("a width"));
    write(tensors.collect(), config)
}

/// A configured pruner.
pub struct Chooser(Cfsp);

/// `cfsp` of these settings.
pub fn pruner(settings: Json) -> Chooser {
    Chooser(Cfsp::new(serde_json::from_value::<CfspSettings>(settings).expect("settings")).expect("cfsp"))
}

impl Chooser {
    /// Widths and scores of every block.
    fn look(&mut self, assembly: &Assembly, rows: &[Vec<u32>]) -> (Vec<usize>, Vec<Vec<f64>>) {
        let blocks = statistics(assembly, rows);
        let mlps = mlps(&*assembly.model).expect("MLPs");
        let dense = |path: &str| {
            assembly.sites.linear(path).and_then(|l| l.dense(&assembly.sites, true)).expect("a weight")
        };
        let widths: Vec<usize> = mlps.iter().map(|m| dense(&m.up).dims()[0]).collect();
        let left = self.0.widths(&blocks, &widths).unwrap_or_else(|e| panic!("{e:#}"));
        let scores = mlps.iter().zip(&blocks).map(|(m, block)| {
            let weights =
                MlpWeights { up: dense(&m.up), gate: m.gate.as_deref().map(dense), down: dense(&m.down) };
            self.0.scores(block, &weights).expect("scores")
        });
        (left, scores.collect())
    }

    /// The channels that stay.
    pub fn channels(mut self, assembly: &Assembly, rows: &[Vec<u32>]) -> Vec<Vec<usize>> {
        let (left, scores) = self.look(assembly, rows);
        scores.iter().zip(left).map(|(s, n)| highest(s, n)).collect()
    }
}

const V: usize = 16;
const L: usize = 4;
const M: usize = 128;

/// `n` sequences of 16 tokens whose next token hangs on the two before it.
fn rows(seed: u64, split: &str, n: usize) -> Vec<Vec<u32>> {
    let table: Vec<f64> =
        normal(&format!("table {seed}"), V * V * V).iter().map(|x| (3.0 * x).exp()).collect();
    let mut draws = Draws::new(Rng::new(seed).named("tests/table", split));
    (0..n)
        .map(|_| {
            let mut ids = vec![draws.below(V) as u32, draws.below(V) as u32];
            while ids.len() < 16 {
                let at = (ids[ids.len() - 2] as usize * V + ids[ids.len() - 1] as usize) * V;
                let row = &table[at..at + V];
                let mut u = draws.uniform() * row.iter().sum::<f64>();
                let next = row.iter().position(|p| {
                    u -= p;
                    u < 0.0
                });
                ids.push(next.unwrap_or(V - 1) as u32);
            }
            ids
        })
        .collect()
}

fn loss(assembly: &Assembly, rows: &[Vec<u32>]) -> f64 {
    let (mut sum, mut count) = (0.0, 0);
    for rows in rows.chunks(64) {
        let found = logits(assembly, &FlatBatch::new(rows), true);
        let next = rows.iter().flat_map(|r| r[1..].iter().map(|id| Some(*id)).chain([None]));
        for (z, next) in found.chunks(V).zip(next) {
            let Some(next) = next else { continue };
            let e: f64 = z.iter().map(|x| f64::from(*x).exp()).sum();
            sum += e.ln() - f64::from(z[next as usize]);
            count += 1;
        }
    }
    sum / f64::from(count)
}

fn train(assembly: &Assembly, mut trainer: Trainer, rows: &[Vec<u32>], steps: u64) {
    trainer.total_steps = steps;
    for step in 0..steps {
        let mut draws = Draws::new(Rng::new(3).stream("tests/rows", step));
        let picked: Vec<Vec<u32>> = (0..16).map(|_| rows[draws.below(rows.len())].clone()).collect();
        trainer.step(assembly, &[batch(&picked)], step).unwrap_or_else(|e| panic!("{e:#}"));
    }
}

fn dense(seed: u64, rows: &[Vec<u32>]) -> Assembly {
    let config = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64,
        "intermediate_size": M, "num_hidden_layers": L, "num_attention_heads": 4, "num_key_value_heads": 4,
        "max_position_embeddings": 32, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "tie_word_embeddings": false, "vocab_size": V, "initializer_range": 0.05, "eos_token_id": 0,
    });
    let assembly = assemble(&Blueprint { full_training: true, seed, ..fresh_model(config) });
    let optimizer =
        parts::optimizer(&part("adamw", json!({ "lr": 3e-3, "weight_decay": 0.05 }))).expect("adamw");
    let schedule = parts::schedule(&part("cosine", json!({}))).expect("cosine");
    train(&assembly, Trainer { optimizer, schedule, ..trainer(3e-3) }, rows, 400);
    assembly
}

/// The loss with these channels alone: the others' columns of `down` are zero for the while.
fn loss_of(assembly: &Assembly, kept: &[Vec<usize>], test: &[Vec<u32>]) -> f64 {
    let mut saved = Vec::new();
    for (block, kept) in kept.iter().enumerate() {
        let name = format!("model.layers.{block}.mlp.down_proj.weight");
        let param = assembly.sites.param(&name).expect("down").base().clone();
        let value = param.value();
        let mut numbers = value.to_f32().expect("f32");
        let mut stays = [false; M];
        kept.iter().for_each(|c| stays[*c] = true);
        numbers.iter_mut().enumerate().filter(|(n, _)| !stays[n % M]).for_each(|(_, x)| *x = 0.0);
        param.set(Array::from_vec(numbers, value.dims(), Category::Weights).expect("down"));
        saved.push((param, value));
    }
    let found = loss(assembly, test);
    saved.into_iter().for_each(|(param, value)| param.set(value));
    found
}

#[test]
fn check_6() {
    let (mut cfsp, mut magnitude, mut random, mut reversed, mut lowest, mut released) =
        (Vec::new(), Vec::new(), Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for seed in 0..3 {
        let learnt = rows(seed, "train", 4000);
        let (calibration, test) = (&learnt[..64], rows(seed, "test", 256));
        let model = dense(seed, &learnt);
        let base = json!({ "pruning_ratio": 0.5, "cuda_friendly": false });
        let with = |more: Json| {
            let mut settings = base.clone();
            settings.as_object_mut().expect("a table").extend(more.as_object().cloned().unwrap_or_default());
            pruner(settings)
        };
        let at = |kept: &[Vec<usize>]| loss_of(&model, kept, &test);
        let full = loss(&model, &test);
        let (widths, scores) = with(json!({})).look(&model, calibration);
        let chosen: Vec<Vec<usize>> = scores.iter().zip(&widths).map(|(s, n)| highest(s, *n)).collect();
        let found = at(&chosen);
        cfsp.push(found);
        magnitude
            .push(at(&with(json!({ "a": 0.0, "local_metrics": "magnitude" })).channels(&model, calibration)));
        let draw = |n: u64| {
            let mut draws = Draws::new(Rng::new(seed).stream("tests/random channels", n));
            let one = |_| {
                let mut all: Vec<usize> = (0..M).collect();
                draws.shuffle(&mut all);
                all.truncate(M / 2);
                all
            };
            at(&(0..L).map(one).collect::<Vec<_>>())
        };
        random.push((0..5).map(draw).sum::<f64>() / 5.0);
        let turned: Vec<Vec<usize>> =
            scores.iter().zip(widths.iter().rev()).map(|(s, n)| highest(s, *n)).collect();
        reversed.push(at(&turned));
        let negative = |s: &[f64]| s.iter().map(|x| -x).collect::<Vec<_>>();
        let worst: Vec<Vec<usize>> =
            scores.iter().zip(&widths).map(|(s, n)| highest(&negative(s), *n)).collect();
        lowest.push(at(&worst));
        released.push(at(&with(json!({ "normaliser": "released" })).channels(&model, calibration)));
        println!(
            "seed {seed}: dense {full:.3}, cfsp {found:.3} {widths:?}, magnitude {:.3}, random {:.3}, reversed {:.3}, lowest {:.3}, released {:.3}",
            magnitude[magnitude.len() - 1],
            random[random.len() - 1],
            reversed[reversed.len() - 1],
            lowest[lowest.len() - 1],
            released[released.len() - 1]
        );
        for (what, other) in [("random", &random), ("reversed", &reversed), ("lowest", &lowest)] {
            let other = other[other.len() - 1];
            assert!(found < other, "seed {seed}: {found} against {what} {other}");
        }

        // Recovery: guided ranks on the model that was really cut.
        let mut guided = with(json!({ "recovery_rank": 4 }));
        guided.look(&model, calibration);
        let report = guided.0.report();
        let pattern = &report["recovery"]["rank_pattern"];
        let sum: u64 = pattern.as_object().expect("ranks").values().filter_map(Json::as_u64).sum();
        assert_eq!(sum, 4 * L as u64, "{pattern}");
        let folder = cut(&model, &chosen, false);
        let adapter = part(
            "lora",
            json!({ "r": 4, "lora_alpha": 8, "target_modules": "all-linear",
            "rank_pattern": pattern, "alpha_pattern": report["recovery"]["alpha_pattern"] }),
        );
        let adapted =
            Blueprint { adapters: vec![Adapter::New(adapter)], seed, ..folder_model(folder.path()) };
        let adapted = assemble(&adapted);
        let cut_loss = loss(&adapted, &test);
        assert!((cut_loss - found).abs() < 1e-4, "{cut_loss} against {found}");
        train(&adapted, trainer(5e-3), &learnt, 150);
        let recovered = loss(&adapted, &test);
        println!("seed {seed}: recovered {recovered:.3} with ranks {pattern}");
        assert!(
            cut_loss - recovered >= (cut_loss - full) / 3.0,
            "seed {seed}: {full}, {cut_loss}, {recovered}"
        );
    }
    let mean = |x: &[f64]| x.iter().sum::<f64>() / x.len() as f64;
    let below = |what: &str, other: &[f64], by: f64| {
        assert!(mean(&cfsp) <= mean(other) - by, "{} against {what} {}", mean(&cfsp), mean(other));
    };
    below("magnitude", &magnitude, 0.04);
    below("random", &random, 0.12);
    below("reversed", &reversed, 0.08);
    below("lowest", &lowest, 0.13);
    assert!((mean(&released) - mean(&cfsp)).abs() <= 0.03, "{released:?} and {cfsp:?}");
}

#[test]
fn ranks_keep_their_sum() {
    for weights in [vec![0.9, 0.1, 0.5, 0.5], vec![0.99, 0.001, 0.001, 0.001], vec![0.5; 7]] {
        for mean in [1, 4, 8] {
            let found = ranks(&weights, mean);
            assert_eq!(found.iter().sum::<usize>(), mean * weights.len(), "{found:?}");
            assert!(found.iter().all(|r| *r >= 1));
        }
    }
}
