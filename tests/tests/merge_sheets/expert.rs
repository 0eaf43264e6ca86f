//! Check 5 of `compeft`: a LoRA expert on a small language model, compressed.

use std::rc::Rc;
use std::sync::Arc;

use anyhow::Result;
use ramekin_core::{Array, Category, Draws, Param, Rng};
use ramekin_engine::assembly::Assembly;
use ramekin_engine::blueprint::Blueprint;
use ramekin_engine::hidden::hidden;
use ramekin_engine::parts;
use ramekin_merge_vectors::InMemory;
use ramekin_recipe::Adapter;
use ramekin_slots::{
    Candidate, FlatBatch, Forward, Held, Judge, Merger, Mode, ParamGroup, StepInfo, Stored, TaskVectors,
};
use ramekin_store::delta::{Base, Codec, Delta, DeltaWriter};
use ramekin_tape::ops::{self, CrossEntropy};
use ramekin_tape::{GradStore, Tape};
use ramekin_tests::lab::{assemble, fresh_model, part};
use serde_json::{Value as Json, json};

use crate::compeft::compeft;
use crate::normal;

const TOKENS: usize = 24;
const LENGTH: usize = 16;
const QUERY: u32 = 24;
const LABEL: u32 = 25;

/// Sequences, each with the number of its table.
struct Rows {
    ids: Vec<Vec<u32>>,
    table: Vec<u32>,
}

/// `n` sequences of one of four bigram tables, then the query; labels are put behind by [`Rows::flat`].
fn rows(seed: u64, split: &str, n: usize) -> Rows {
    let logits = normal(&format!("tables {seed}"), 4 * TOKENS * TOKENS);
    let table: Vec<Vec<f64>> = logits
        .chunks(TOKENS)
        .map(|row| {
            let e: Vec<f64> = row.iter().map(|x| (2.0 * x).exp()).collect();
            let sum: f64 = e.iter().sum();
            e.into_iter().map(|x| x / sum).collect()
        })
        .collect();
    let mut draws = Draws::new(Rng::new(seed).named("tests/bigrams", split));
    let mut found = Rows { ids: Vec::new(), table: Vec::new() };
    for _ in 0..n {
        let which = draws.below(4);
        let mut ids = vec![draws.below(TOKENS) as u32];
        while ids.len() < LENGTH {
            let row = &table[which * TOKENS + ids[ids.len() - 1] as usize];
            let mut u = draws.uniform();
            let next = row.iter().position(|p| {
                u -= p;
                u < 0.0
            });
            ids.push(next.unwrap_or(TOKENS - 1) as u32);
        }
        ids.push(QUERY);
        found.ids.push(ids);
        found.table.push(which as u32);
    }
    found
}

/// The label's loss at weight 1 beside the sequence's mean.
fn update(
    assembly: &Assembly,
    optimizer: &mut dyn ramekin_slots::Optimizer,
    rows: &Rows,
    shift: u32,
    step: u64,
    stream: &str,
) {
    let mut draws = Draws::new(Rng::new(9).stream(stream, step));
    let picked: Vec<usize> = (0..32).map(|_| draws.below(rows.ids.len())).collect();
    let ids: Vec<Vec<u32>> = picked.iter().map(|i| rows.ids[*i].clone()).collect();
    let width = LENGTH + 1;
    let tape = Tape::new();
    let mode = Mode { training: true, ..Mode::inference() };
    let fx = Forward::new(tape.clone(), assembly.sites.clone(), FlatBatch::new(&ids), mode);
    let run = || -> Result<GradStore> {
        let h = hidden(&assembly.model, &fx, None)?;
        let mut inside = Vec::new();
        let mut next = Vec::new();
        for (b, row) in ids.iter().enumerate() {
            inside.extend((0..LENGTH).map(|t| (b * width + t) as u32));
            next.extend(row[1..].iter().map(|id| i64::from(*id)));
        }
        let ends: Vec<u32> = (0..32).map(|b| (b * width + LENGTH) as u32).collect();
        let labels: Vec<i64> =
            picked.iter().map(|i| i64::from(LABEL + (rows.table[*i] + shift) % 4)).collect();
        let loss = |at: Vec<u32>, labels: &[i64]| {
            let part = ops::select_rows(&tape, &h, &Rc::new(at))?;
            let logits = assembly.model.head(&fx, &part)?;
            let scale = 1.0 / labels.len() as f64;
            ops::cross_entropy(&tape, logits, labels, scale, CrossEntropy::default())
        };
        let total = ops::add(&tape, &loss(inside, &next)?, &loss(ends, &labels)?)?;
        let mut store = GradStore::new();
        tape.backward_scalar(&total, &mut store)?;
        Ok(store)
    };
    let grads = run().unwrap_or_else(|e| panic!("{e:#}")).take();
    for (param, grad) in grads {
        let info = StepInfo { step: step + 1, lr: 3e-3 };
        optimizer.step(&param, &grad, info, ParamGroup::default()).expect("a step");
    }
}

/// Share of rows whose shifted label has the largest logit of the four.
fn accuracy(assembly: &Assembly, rows: &Rows) -> f64 {
    let mut right = 0;
    for (ids, tables) in rows.ids.chunks(250).zip(rows.table.chunks(250)) {
        let fx = Forward::new(Tape::off(), assembly.sites.clone(), FlatBatch::new(ids), Mode::inference());
        let h = hidden(&assembly.model, &fx, None).expect("hidden states");
        let ends: Vec<u32> = (0..ids.len()).map(|b| (b * (LENGTH + 1) + LENGTH) as u32).collect();
        let part = ops::select_rows(&fx.tape, &h, &Rc::new(ends)).expect("rows");
        let logits = assembly.model.head(&fx, &part).and_then(|z| z.array().to_f32()).expect("logits");
        for (row, table) in logits.chunks(32).zip(tables) {
            let four = &row[LABEL as usize..LABEL as usize + 4];
            let best = (0..4).fold(0, |b, i| if four[i] > four[b] { i } else { b });
            right += usize::from(best as u32 == (table + 1) % 4);
        }
    }
    right as f64 / rows.ids.len() as f64
}

struct Expert {
    assembly: Assembly,
    params: Vec<Arc<Param>>,
    vectors: InMemory,
    delta: Vec<f64>,
    validation: Rows,
    test: Rows,
    raw: f64,
}

fn values(params: &[Arc<Param>]) -> Vec<f64> {
    params.iter().flat_map(|p| p.value().to_f32().expect("f32")).map(f64::from).collect()
}

fn optimizer() -> Box<dyn ramekin_slots::Optimizer> {
    parts::optimizer(&part("adamw", json!({ "lr": 3e-3, "weight_decay": 0.0 }))).expect("adamw")
}

fn expert(seed: u64) -> Expert {
    let train = rows(seed, "train", 4000);
    let model = fresh_model(json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64,
        "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 4, "max_position_embeddings": 32, "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0, "tie_word_embeddings": false, "vocab_size": 32,
        "initializer_range": 0.05, "eos_token_id": 31,
    }));
    let base = assemble(&Blueprint { full_training: true, seed, ..model.clone() });
    let mut adam = optimizer();
    (0..500).for_each(|step| update(&base, &mut *adam, &train, 0, step, "base"));

    let lora = part(
        "lora",
        json!({ "r": 8, "lora_alpha": 16,
        "target_modules": ["q_proj", "v_proj", "up_proj", "down_proj"] }),
    );
    let assembly = assemble(&Blueprint { adapters: vec![Adapter::New(lora)], seed, ..model });
    for entry in base.ledger.borrow().entries() {
        let ledger = assembly.ledger.borrow();
        let param = ledger.get(&entry.name).and_then(|e| e.param.clone()).expect("the same tensor");
        param.set(entry.param.as_ref().expect("dense").value());
    }
    let mut params: Vec<(String, Arc<Param>)> = assembly.adapters[0].adapter.params();
    params.sort_by(|a, b| a.0.cmp(&b.0));
    for (name, param) in params.iter().filter(|(n, _)| n.contains("lora_A")) {
        let dims = param.value().dims().to_vec();
        let std = 1.0 / (dims[1] as f64).sqrt();
        let a =
            normal(&format!("{seed} {name}"), dims[0] * dims[1]).iter().map(|x| (std * x) as f32).collect();
        param.set(Array::from_vec(a, &dims, Category::Trainable).expect("A"));
    }
    let sizes: Vec<(String, usize)> = params.iter().map(|(n, p)| (n.clone(), p.value().len())).collect();
    let params: Vec<Arc<Param>> = params.into_iter().map(|(_, p)| p).collect();
    let start = values(&params);
    let mut adam = optimizer();
    (0..400).for_each(|step| update(&assembly, &mut *adam, &train, 1, step, "expert"));
    let delta: Vec<f64> = values(&params).iter().zip(&start).map(|(a, b)| a - b).collect();
    let names: Vec<(&str, usize)> = sizes.iter().map(|(n, len)| (n.as_str(), *len)).collect();
    let vectors = InMemory::new(&names, &start, std::slice::from_ref(&delta));
    let (validation, test) = (rows(seed, "validation", 500), rows(seed, "test", 2000));
    let raw = accuracy(&assembly, &test);
    Expert { assembly, params, vectors, delta, validation, test, raw }
}

impl Expert {
    fn accuracy_of(&self, numbers: &[f64], rows: &Rows) -> f64 {
        let mut at = 0;
        for param in &self.params {
            let dims = param.value().dims().to_vec();
            let len = param.value().len();
            let value = numbers[at..at + len].iter().map(|x| *x as f32).collect();
            param.set(Array::from_vec(value, &dims, Category::Trainable).expect("a value"));
            at += len;
        }
        accuracy(&self.assembly, rows)
    }

    /// Test accuracy of the setting that is best on validation, and the merger.
    fn compressed(&self, density: Json) -> (f64, ramekin_merge_vectors::Compeft, Json) {
        let mut method = compeft(json!({ "density": density, "alpha": [0.5, 1.0, 2.0, 3.0, 4.0] }));
        let report = method.prepare(&self.vectors, &mut Validation(self)).unwrap_or_else(|e| panic!("{e:#}"));
        let made = self.vectors.made(&|piece, out| method.merge(piece, out)).expect("numbers");
        (self.accuracy_of(&made, &self.test), method, report)
    }

    /// The same of signs at other places, α chosen likewise.
    fn other(&self, signs: &[f64]) -> f64 {
        let sigma = {
            let n = self.delta.len() as f64;
            let mean = self.delta.iter().sum::<f64>() / n;
            (self.delta.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / (n - 1.0)).sqrt()
        };
        let start = self.vectors.made(&|piece, out| {
            out.copy_from_slice(piece.base);
            Ok(())
        });
        let start = start.expect("the start");
        let at = |alpha: f64| -> Vec<f64> {
            start.iter().zip(signs).map(|(x, s)| x + alpha * sigma * s).collect()
        };
        let mut best = (f64::MIN, 0.0);
        for alpha in [0.5, 1.0, 2.0, 3.0, 4.0] {
            let found = self.accuracy_of(&at(alpha), &self.validation);
            if found > best.0 {
                best = (found, alpha);
            }
        }
        self.accuracy_of(&at(best.1), &self.test)
    }
}

struct Validation<'a>(&'a Expert);

impl Judge for Validation<'_> {
    fn held(&self) -> Vec<Held> {
        vec![Held::Task(0)]
    }

    fn score(&mut self, _: Held, _: &str, candidate: &Candidate<'_>) -> Result<f64> {
        let made = self.0.vectors.made(candidate)?;
        Ok(self.0.accuracy_of(&made, &self.0.validation))
    }
}

/// Bytes of the file, of its codes, of the adapter in f32 as a file, and in 16 bits bare.
fn sizes(expert: &Expert, method: &ramekin_merge_vectors::Compeft) -> (u64, u64, u64, u64) {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("adapter_delta.safetensors");
    let base = Base { label: "base".into(), sha256: "0".repeat(64) };
    let mut writer = DeltaWriter::new(Codec::Golomb, method.density(0), base, Json::Null);
    for (t, tensor) in expert.vectors.tensors().iter().enumerate() {
        writer.begin(&tensor.name, &tensor.dims, method.scale(0, t)).expect("a tensor");
        let push = &mut |piece: &ramekin_slots::Piece<'_>| {
            let mut out = vec![0.0; piece.base.len()];
            method.values(0, piece, &mut out)?;
            writer.push(&out)
        };
        expert.vectors.pieces_of(t, push).expect("numbers");
    }
    let bytes = writer.finish(&path).expect("a file");
    drop(Delta::open(&path).expect("a file"));
    let codes = ramekin_store::Index::open(&path).expect("a file").tensor_info("codes").expect("codes").bytes;
    let dense: Vec<_> = expert
        .vectors
        .tensors()
        .iter()
        .zip(&expert.params)
        .map(|(t, p)| (t.name.clone(), ramekin_store::Data::from(&p.value())))
        .collect();
    let raw = dir.path().join("adapter_model.safetensors");
    ramekin_store::write_safetensors(&raw, &dense, &[("format", "pt")]).expect("a file");
    let raw = std::fs::metadata(raw).expect("a file").len();
    (bytes, codes + 2, raw, 2 * expert.vectors.numbers())
}

#[test]
fn check_5() {
    let mut over_random = Vec::new();
    for seed in 0..4 {
        let expert = expert(seed);
        let (best, method, report) = expert.compressed(json!([0.2, 0.3, 0.5]));
        let (bytes, codes, raw_bytes, half) = sizes(&expert, &method);
        let (at_three, three, _) = expert.compressed(json!(0.3));
        let kept: Vec<f64> = {
            let mut all = Vec::new();
            expert
                .vectors
                .pieces(&mut |piece| {
                    let mut out = vec![0.0; piece.base.len()];
                    three.values(0, piece, &mut out)?;
                    all.extend(out.iter().map(|x| if *x == 0.0 { 0.0 } else { x.signum() }));
                    Ok(())
                })
                .expect("numbers");
            all
        };
        let mut draws = Draws::new(Rng::new(seed).stream("tests/places", 0));
        let mut places: Vec<usize> = (0..kept.len()).collect();
        draws.shuffle(&mut places);
        let count = kept.iter().filter(|x| **x != 0.0).count();
        let mut random = vec![0.0; kept.len()];
        places[..count].iter().for_each(|i| random[*i] = expert.delta[*i].signum());
        let mut signs: Vec<f64> = kept.iter().copied().filter(|x| *x != 0.0).collect();
        draws.shuffle(&mut signs);
        let mut signs = signs.into_iter();
        let permuted: Vec<f64> =
            kept.iter().map(|x| if *x == 0.0 { 0.0 } else { signs.next().expect("a sign") }).collect();
        let (random, permuted) = (expert.other(&random), expert.other(&permuted));
        println!(
            "seed {seed}: raw {:.1}, compressed {:.1} {}, at 0.3 {:.1}, random {:.1}, permuted {:.1}; {raw_bytes} to {bytes} bytes, {half} to {codes}",
            100.0 * expert.raw,
            100.0 * best,
            report["experts"][0],
            100.0 * at_three,
            100.0 * random,
            100.0 * permuted
        );
        assert!(expert.raw > 0.8, "seed {seed}: the expert learnt nothing: {}", expert.raw);
        assert!(best >= expert.raw - 0.07, "seed {seed}: {best} against {}", expert.raw);
        assert!(
            10 * bytes <= raw_bytes && 10 * codes <= half,
            "seed {seed}: {bytes} of {raw_bytes}, {codes} of {half}"
        );
        assert!(at_three >= random + 0.04, "seed {seed}: {at_three} against random places {random}");
        assert!(at_three >= permuted + 0.35, "seed {seed}: {at_three} against permuted signs {permuted}");
        over_random.push(at_three - random);
    }
    let mean = over_random.iter().sum::<f64>() / 4.0;
    assert!(mean >= 0.07, "{over_random:?}");
}
