//! Sheet `objectives`, for `sft`.
//!
//! Left out until their parts exist: 4 (distillation and DPO; its ε = 0 half is in
//! [`check_4_smoothing`]), 5 (NEFTune), 6 (DPO).

use std::collections::BTreeMap;
use std::rc::Rc;

use anyhow::Result;
use ramekin_core::{Array, Category};
use ramekin_data::{Batch, DataSettings, Dataset, Example, Packing, pack};
use ramekin_engine::assembly::{Assembly, Blueprint};
use ramekin_engine::parts;
use ramekin_engine::run::plain_model;
use ramekin_engine::step::LabelledBatch;
use ramekin_slots::{FlatBatch, Forward, Mode, Model, ModelFacts};
use ramekin_tape::{GradStore, Tape, Value};
use ramekin_tests::compare::{difference, largest, same_bits};
use ramekin_tests::lab::{self, assemble, part, sequences};
use serde_json::{Value as Json, json};

const IGNORED: i64 = -100;

/// A small model of which everything trains.
fn all_of_it() -> Assembly {
    assemble(&Blueprint { full_training: true, ..lab::fresh_model(lab::small_llama()) })
}

type Gradients = BTreeMap<String, Vec<f32>>;

/// Loss and gradient of one step over these micro-batches.
fn step(assembly: &Assembly, batches: &[LabelledBatch]) -> (f64, Gradients) {
    let (loss, grads) = lab::loss_and_gradients(assembly, &lab::trainer(1e-2), batches);
    assert_eq!(grads.len(), assembly.trainable().len(), "every parameter has a gradient");
    (loss, grads.into_iter().collect())
}

/// Σ wᵢ · (loss, gradients)ᵢ
fn mean(parts: &[(f64, (f64, Gradients))]) -> (f64, Gradients) {
    let mut sum = (0.0, Gradients::new());
    for (weight, (loss, grads)) in parts {
        sum.0 += weight * loss;
        for (name, g) in grads {
            let into = sum.1.entry(name.clone()).or_insert_with(|| vec![0.0; g.len()]);
            into.iter_mut().zip(g).for_each(|(a, b)| *a += *weight as f32 * b);
        }
    }
    sum
}

/// The largest difference of any number of any gradient.
fn apart(a: &Gradients, b: &Gradients) -> f64 {
    assert!(a.keys().eq(b.keys()));
    a.iter().map(|(name, g)| difference(g, &b[name])).fold(0.0, f64::max)
}

/// Twelve examples of mixed lengths; the first tokens of every third are no targets.
fn twelve() -> Vec<Example> {
    let lengths = [3, 17, 5, 29, 8, 2, 21, 11, 31, 6, 13, 9];
    let example = |(i, ids): (usize, Vec<u32>)| {
        let masked = if i % 3 == 1 { ids.len() / 2 } else { 0 };
        let label = |(t, id): (usize, &u32)| if t < masked { IGNORED } else { i64::from(*id) };
        let labels = ids.iter().enumerate().map(label).collect();
        Example { ids, labels, prompt_len: 0, reference: None }
    };
    sequences(&lengths, 61, 1).into_iter().enumerate().map(example).collect()
}

/// Rows of 32 tokens by best fit, as one batch; and which segment each example became.
fn packed(examples: &[Example]) -> (LabelledBatch, Vec<usize>) {
    let lengths: Vec<usize> = examples.iter().map(Example::len).collect();
    let rows = pack(&lengths, 32, Packing::Bfd);
    assert!(rows.len() < 7 && rows.iter().any(|r| r.pieces.len() > 2), "rows share examples");
    let order = rows.iter().flat_map(|r| r.pieces.iter().map(|p| p.example)).collect();
    let data = Dataset::from_examples("twelve", examples.to_vec());
    (LabelledBatch::new(Batch::of_rows(&data, &rows)), order)
}

/// The same examples as padded rows, padding on the left and on the right in turn.
fn padded(examples: &[Example]) -> LabelledBatch {
    let width = 1 + examples.iter().map(Example::len).max().expect("examples");
    let pad = |r: usize, n: usize| if r.is_multiple_of(2) { (0, width - n) } else { (width - n, 0) };
    let fill = |(r, x): (usize, &Example)| {
        let (left, right) = pad(r, x.len());
        let ids = [vec![7; left], x.ids.clone(), vec![7; right]].concat();
        let labels = [vec![IGNORED; left], x.labels.clone(), vec![IGNORED; right]].concat();
        (ids, [vec![0; left], vec![1; x.len()], vec![0; right]].concat(), labels)
    };
    let (mut ids, mut mask, mut labels) = (Vec::new(), Vec::new(), Vec::new());
    for (i, m, l) in examples.iter().enumerate().map(fill) {
        ids.push(i);
        mask.push(m);
        labels.push(l);
    }
    let data = Dataset::from_token_rows("padded", ids, Some(mask), Some(labels)).expect("rows");
    LabelledBatch::new(Batch::of_rows(&data, &data.rows))
}

// The bfd-packed loss and every gradient equal the padded batch's and the token-weighted mean of
// single sequences within 1e-5; a token changed in one segment leaves the others' logits bit-identical.
#[test]
fn check_1() {
    let examples = twelve();
    let assembly = all_of_it();
    let (batch, order) = packed(&examples);
    let together = step(&assembly, std::slice::from_ref(&batch));
    assert!(together.1.values().all(|g| largest(g) > 1e-4), "no gradient is empty");

    let apart_of = |what: &str, other: (f64, Gradients)| {
        let (loss, grad) = ((together.0 - other.0).abs(), apart(&together.1, &other.1));
        println!("{what}: loss {loss:.1e}, gradients {grad:.1e}");
        assert!(loss <= 1e-5 && grad <= 1e-5, "{what}: loss off by {loss:.1e}, a gradient by {grad:.1e}");
    };
    apart_of("padded", step(&assembly, &[padded(&examples)]));
    let singles = examples.iter().map(|x| {
        let data = Dataset::from_examples("one", vec![x.clone()]);
        let one = LabelledBatch::new(Batch::of_rows(&data, &data.rows));
        (one.active() as f64 / batch.active() as f64, step(&assembly, &[one]))
    });
    apart_of("one by one", mean(&singles.collect::<Vec<_>>()));

    let v = assembly.model.facts().vocab_size;
    let before = lab::logits(&assembly, &batch.flat, true);
    for (segment, example) in batch.flat.segments.iter().zip(order) {
        assert_eq!(batch.flat.ids[segment.clone()], examples[example].ids[..]);
        let mut changed = batch.flat.clone();
        let id = &mut Rc::make_mut(&mut changed.ids)[segment.start];
        *id = (*id + 1) % 61;
        let after = lab::logits(&assembly, &changed, true);
        let (from, to) = (segment.start * v, segment.end * v);
        same_bits("segments before", &after[..from], &before[..from]);
        same_bits("segments behind", &after[to..], &before[to..]);
        assert!(difference(&after[to - v..to], &before[to - v..to]) > 1e-3, "its own last logits move");
    }
}

// Accumulating 4 micro-batches with unequal token counts gives the gradient of the one big batch
// within 1e-6; a mean of means must fail.
#[test]
fn check_2() {
    let assembly = all_of_it();
    let micro: Vec<Vec<Vec<u32>>> =
        [&[31, 8][..], &[2], &[17, 9, 4], &[5, 3]].iter().map(|n| sequences(n, 61, n.len() as u64)).collect();
    let micros: Vec<LabelledBatch> = micro.iter().map(|s| lab::batch(s)).collect();
    let big = lab::batch(&micro.concat());

    let whole = step(&assembly, std::slice::from_ref(&big));
    let accumulated = step(&assembly, &micros);
    let off = apart(&whole.1, &accumulated.1);
    println!("gradients {off:.1e}, loss {:.1e}", (whole.0 - accumulated.0).abs());
    assert!(off <= 1e-6, "a gradient is off by {off:.1e}");
    assert!((whole.0 - accumulated.0).abs() <= 1e-6);

    let means: Vec<_> = micros.iter().map(|b| (0.25, step(&assembly, std::slice::from_ref(b)))).collect();
    let wrong = apart(&whole.1, &mean(&means).1);
    assert!(wrong > 1e-3, "a mean of means is off by {wrong:.1e} only and would pass");

    // The training step itself accumulates so.
    let report = |batches: &[LabelledBatch]| {
        lab::trainer(1e-2).step(&all_of_it(), batches, 0).unwrap_or_else(|e| panic!("{e:#}"))
    };
    let (one, four) = (report(&[big]), report(&micros));
    assert!((one.loss - four.loss).abs() <= 1e-6, "{one:?}, {four:?}");
    assert!((one.grad_norm - four.grad_norm).abs() <= 1e-6 * one.grad_norm, "{one:?}, {four:?}");
}

/// A model whose hidden states are taken for its logits.
struct BareLogits(ModelFacts);

impl Model for BareLogits {
    fn facts(&self) -> &ModelFacts {
        &self.0
    }

    fn embed(&self, _: &Forward) -> Result<Value> {
        anyhow::bail!("there is a head only")
    }

    fn block(&self, _: usize, _: &Forward, x: &Value) -> Result<Value> {
        Ok(x.clone())
    }

    fn final_norm(&self, _: &Forward, x: &Value) -> Result<Value> {
        Ok(x.clone())
    }

    fn head(&self, _: &Forward, x: &Value) -> Result<Value> {
        Ok(x.clone())
    }
}

/// Loss of logits `[N, V]` and its gradient with respect to them.
fn of_logits(assembly: &Assembly, objective: &Json, logits: &[f32], labels: &[i64]) -> (f64, Vec<f32>) {
    let objective = parts::objective(&part("sft", objective.clone())).expect("sft");
    let facts = assembly.model.facts().clone();
    let dims = [labels.len(), facts.vocab_size];
    let tape = Tape::new();
    let batch = FlatBatch::new(&[vec![0; labels.len()]]);
    let fx = Forward::new(tape.clone(), assembly.sites.clone(), batch, Mode::inference());
    let z = Array::from_vec(logits.to_vec(), &dims, Category::Workspace).expect("an array");
    let z = tape.input(z);
    let model: Rc<dyn Model> = Rc::new(BareLogits(facts));
    let active = labels.iter().filter(|l| **l != IGNORED).count();
    let loss = objective.loss(&fx, &model, &z, labels, 1.0 / active as f64).expect("a loss");
    let seed = Array::from_vec(vec![1f32; loss.array().len()], loss.dims(), Category::Workspace);
    let flows =
        tape.backward(&loss, seed.expect("an array"), &[z], &mut GradStore::new()).expect("a gradient");
    let grad = flows[0].as_ref().expect("a gradient of the logits").to_f32().expect("f32");
    (loss.array().scalar().expect("a scalar"), grad)
}

/// What the data crate makes of rows with this prompt.
fn prompted(tokenizer: &ramekin_data::Tokenizer, prompt: &str, completion_only: bool) -> LabelledBatch {
    let folder = tempfile::tempdir().expect("a folder");
    let rows = ["so they have 7 apples.", "so none is left."]
        .map(|c| json!({ "prompt": format!("{prompt} "), "completion": c }).to_string());
    std::fs::write(folder.path().join("rows.jsonl"), rows.join("\n")).expect("written");
    let settings = json!({ "path": "rows.jsonl", "completion_only_loss": completion_only });
    let settings = DataSettings::from_json("jsonl", settings).expect("settings");
    let data = settings.load(tokenizer, folder.path()).expect("a data set");
    LabelledBatch::new(Batch::of_rows(&data, &data.rows))
}

// Masking: changing the prompt ids' labels changes nothing; the gradient of the logits at masked
// positions is exactly 0; prompt tokens still influence the completion's logits.
#[test]
fn check_3() {
    ramekin_catalog::link();
    let tiny = Blueprint { full_training: true, ..Blueprint::new(plain_model("builtin:tiny")) };
    let assembly = assemble(&tiny);
    let tokenizer = assembly.tokenizer().expect("a tokenizer").clone();
    let (one, other) = ("Anna has 4 red apples and finds 3 more,", "Anna has 9 red apples and finds 3 more,");
    let (a, b) = (prompted(&tokenizer, one, true), prompted(&tokenizer, other, true));
    let changed: Vec<usize> = (0..a.flat.len()).filter(|t| a.flat.ids[*t] != b.flat.ids[*t]).collect();
    assert_eq!(changed.len(), 2, "one token of each of two prompts");

    // Labels of other prompt ids under the same inputs: the same bits, but only because of the mask.
    let with_labels_of = |a: &LabelledBatch, b: &LabelledBatch| {
        let mixed = LabelledBatch { flat: a.flat.clone(), labels: b.labels.clone() };
        step(&assembly, &[mixed])
    };
    let (masked, relabelled) = (with_labels_of(&a, &a), with_labels_of(&a, &b));
    assert_eq!(masked.0.to_bits(), relabelled.0.to_bits());
    for (name, g) in &masked.1 {
        same_bits(name, &relabelled.1[name], g);
    }
    let (open, open_b) = (prompted(&tokenizer, one, false), prompted(&tokenizer, other, false));
    assert_eq!(open.flat.ids, a.flat.ids);
    assert!((with_labels_of(&open, &open).0 - with_labels_of(&open, &open_b).0).abs() > 1e-3);

    // The gradient of the logits, for every way to form the loss.
    let v = assembly.model.facts().vocab_size;
    let logits = lab::logits(&assembly, &a.flat, true);
    for settings in [
        json!({}),
        json!({ "chunk_tokens": 3 }),
        json!({ "loss_type": "nll" }),
        json!({ "loss_type": "dft" }),
        json!({ "label_smoothing_factor": 0.1 }),
    ] {
        let (loss, grad) = of_logits(&assembly, &settings, &logits, &a.labels);
        assert!(loss.is_finite());
        for (row, label) in grad.chunks(v).zip(&a.labels) {
            let zero = row.iter().all(|g| *g == 0.0);
            assert_eq!(zero, *label == IGNORED, "{settings}: label {label}");
        }
    }

    // The prompt is not cut off: its tokens reach the completion's logits.
    let after = lab::logits(&assembly, &b.flat, true);
    let at = |z: &[f32], t: usize| z[t * v..(t + 1) * v].to_vec();
    let targets = (0..a.flat.len()).filter(|t| a.labels[*t] != IGNORED);
    let moved = targets.map(|t| difference(&at(&logits, t), &at(&after, t))).fold(f64::MAX, f64::min);
    println!("completion logits move by at least {moved:.1e}");
    assert!(moved > 1e-3, "the prompt moves the completion's logits by {moved:.1e} only");
}

// Identities: ε = 0 smoothing is the negative log-likelihood (the rest of the check needs KD, GKD and DPO).
#[test]
fn check_4_smoothing() {
    let assembly = all_of_it();
    let batch = lab::batch(&sequences(&[9, 14], 61, 3));
    let logits = lab::logits(&assembly, &batch.flat, true);
    let v = assembly.model.facts().vocab_size;
    let zero = json!({ "loss_type": "nll", "label_smoothing_factor": 0.0 });
    let (loss, grad) = of_logits(&assembly, &zero, &logits, &batch.labels);

    // −log softmax at the label, in f64.
    let (mut sum, mut active) = (0.0, 0);
    for (row, label) in logits.chunks(v).zip(&batch.labels).filter(|(_, l)| **l != IGNORED) {
        let top = row.iter().fold(f64::MIN, |m, z| m.max(f64::from(*z)));
        let total: f64 = row.iter().map(|z| (f64::from(*z) - top).exp()).sum();
        sum += top + total.ln() - f64::from(row[*label as usize]);
        active += 1;
    }
    let off = (loss - sum / f64::from(active)).abs();
    assert!(off <= 1e-6, "off by {off:.1e}");
    let (plain, same) = of_logits(&assembly, &json!({}), &logits, &batch.labels);
    assert!((plain - loss).abs() <= 1e-6 && difference(&same, &grad) <= 1e-7);
    let (smoothed, _) =
        of_logits(&assembly, &json!({ "label_smoothing_factor": 0.1 }), &logits, &batch.labels);
    assert!((smoothed - loss).abs() > 1e-2, "ε = 0.1 is something else");
}
