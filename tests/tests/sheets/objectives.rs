//! Sheet `objectives`: its six checks. What 4 says of smoothing is in [`check_4_smoothing`].

use std::collections::BTreeMap;
use std::rc::Rc;

use anyhow::Result;
use ramekin_core::{Array, Category};
use ramekin_data::{Batch, DataSettings, Dataset, Example, Packing, pack};
use ramekin_engine::assembly::Assembly;
use ramekin_engine::blueprint::Blueprint;
use ramekin_engine::parts;
use ramekin_engine::run::plain_model;
use ramekin_engine::step::LabelledBatch;
use ramekin_slots::{
    FlatBatch, Forward, Mode, Model, ModelFacts, Objective, ObjectiveContext, OnEmbedding, Runner, States,
};
use ramekin_tape::{GradStore, Tape, Value};
use ramekin_tests::compare::{difference, largest, same_bits};
use ramekin_tests::lab::{self, assemble, part, sequences};
use serde_json::{Value as Json, json};

#[path = "objectives_dpo.rs"]
mod behaviour;

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
        Example { ids, labels, ..Example::default() }
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

/// Runs nothing: the hidden states are there.
struct Given<'a> {
    assembly: &'a Assembly,
    hidden: Value,
    facts: ModelFacts,
}

impl Runner for Given<'_> {
    fn facts(&self) -> &ModelFacts {
        &self.facts
    }

    fn run(&self, tape: &Tape, batch: &FlatBatch, mode: Mode, _: Option<&OnEmbedding<'_>>) -> Result<States> {
        let fx = Forward::new(tape.clone(), self.assembly.sites.clone(), batch.clone(), mode);
        let model: Rc<dyn Model> = Rc::new(BareLogits(self.facts.clone()));
        Ok(States { fx, hidden: self.hidden.clone(), model })
    }
}

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
    loss_of_logits(assembly, &*objective, logits, labels, FlatBatch::new(&[vec![0; labels.len()]]))
}

/// The same of any objective; other models and the base have the same logits.
fn loss_of_logits(
    assembly: &Assembly,
    objective: &dyn Objective,
    logits: &[f32],
    labels: &[i64],
    batch: FlatBatch,
) -> (f64, Vec<f32>) {
    let facts = assembly.model.facts().clone();
    let dims = [labels.len(), facts.vocab_size];
    let tape = Tape::new();
    let z = Array::from_vec(logits.to_vec(), &dims, Category::Workspace).expect("an array");
    let z = tape.input(z);
    let totals = objective.counts(&batch, labels);
    let given = Given { assembly, hidden: z.clone(), facts };
    let cx = ObjectiveContext {
        tape: &tape,
        mode: Mode::inference(),
        flat: &batch,
        labels,
        targets: &[],
        totals: &totals,
        model: &given,
        others: BTreeMap::new(),
    };
    let loss = objective.loss(&cx).expect("a loss").value;
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
        let mixed = LabelledBatch::of(a.flat.clone(), b.labels.clone());
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

/// A frozen small model under a LoRA whose B is not zero, so that it differs from its base.
fn moved() -> Assembly {
    let adapter = lab::new_adapter("lora", json!({ "r": 4, "target_modules": "all-linear" }));
    let plan = Blueprint { adapters: vec![adapter], ..lab::fresh_model(lab::small_llama()) };
    let assembly = assemble(&plan);
    for p in assembly.trainable().iter().filter(|p| p.name().contains("lora_B")) {
        let stream = ramekin_core::Rng::new(8).named("moved", p.name());
        p.value().update(|x: &mut [f32]| stream.fill_normal(0, 0.1, x)).expect("f32");
    }
    assembly
}

/// Loss and gradients under an objective.
fn under(assembly: &Assembly, kind: &str, settings: Json, batch: &LabelledBatch) -> (f64, Gradients) {
    let mut trainer = lab::trainer(1e-2);
    trainer.objective = parts::objective(&part(kind, settings)).expect("an objective");
    let (loss, grads) = lab::loss_and_gradients(assembly, &trainer, std::slice::from_ref(batch));
    (loss, grads.into_iter().collect())
}

// Identities: the KL term of KD (α = 0) with teacher = student gives 0 and zero gradient; GKD at β = 0
// equals KL and is within 1e-6 of Hinton's term divided by T²; DPO at π = ref gives log 2 per pair and
// gradient −β/2 per unit of δ; ipo at π = ref gives 1/(4β²).
#[test]
fn check_4() {
    let adapter = lab::new_adapter("lora", json!({ "r": 4, "target_modules": "all-linear" }));
    let fresh = assemble(&Blueprint { adapters: vec![adapter], ..lab::fresh_model(lab::small_llama()) });
    let moved = moved();
    let batch = lab::batch(&sequences(&[9, 14, 6], 61, 3));
    for kl in ["forward", "reverse"] {
        let settings = json!({ "kd_alpha": 0.0, "kl": kl });
        let (loss, grads) = under(&fresh, "distil", settings.clone(), &batch);
        assert_eq!(loss, 0.0, "{kl}");
        assert!(grads.values().all(|g| g.iter().all(|x| *x == 0.0)), "{kl}");
        assert!(under(&moved, "distil", settings, &batch).0 > 1e-3, "{kl}: another model is further away");
    }

    let t = 1.7;
    let hinton = under(&moved, "distil", json!({ "kd_alpha": 0.0, "kd_temperature": t }), &batch);
    let gkd = under(&moved, "gkd", json!({ "beta": 0.0, "temperature": t }), &batch);
    let off = (hinton.0 / (t * t) - gkd.0).abs();
    println!("GKD at 0 is {:.4}, Hinton's term differs by {off:.1e}", gkd.0);
    assert!(gkd.0 > 1e-3 && off <= 1e-6);
    let scaled: Gradients =
        hinton.1.into_iter().map(|(n, g)| (n, g.iter().map(|x| x / (t * t) as f32).collect())).collect();
    assert!(apart(&scaled, &gkd.1) <= 1e-6);
    let close = |beta| under(&moved, "gkd", json!({ "beta": beta, "temperature": t }), &batch).0;
    // Near the ends the mixture is nearly one of the two: the divergence falls to 0 there.
    assert!(close(0.999) < 0.01 * close(1.0) && close(0.5) > 1e-4);

    // Pairs of which the model in work and the reference have the same logits.
    let v = fresh.model.facts().vocab_size;
    let flat = FlatBatch::new(&sequences(&[7, 9, 6, 8], 61, 4));
    let labels: Vec<i64> = (0..flat.len())
        .map(|t| {
            let s = flat.segments.iter().find(|s| s.contains(&t)).expect("a segment");
            if t + 1 < s.end && t >= s.start + 3 { i64::from(flat.ids[t + 1]) } else { IGNORED }
        })
        .collect();
    let logits = lab::logits(&fresh, &flat, true);
    let beta = 0.3;
    let of = |settings: Json| {
        let objective = parts::objective(&part("dpo", settings)).expect("dpo");
        loss_of_logits(&fresh, &*objective, &logits, &labels, flat.clone())
    };
    let (loss, grad) = of(json!({ "beta": beta, "chunk_tokens": 3 }));
    assert!((loss - 2f64.ln()).abs() <= 1e-6, "{loss}");
    let mut worst = 0.0f64;
    for (t, (g, z)) in grad.chunks(v).zip(logits.chunks(v)).enumerate() {
        let sign = if flat.segments.iter().position(|s| s.contains(&t)).expect("a segment") % 2 == 0 {
            1.0
        } else {
            -1.0
        };
        let top = z.iter().fold(f64::MIN, |m, z| m.max(f64::from(*z)));
        let sum: f64 = z.iter().map(|z| (f64::from(*z) - top).exp()).sum();
        for (i, (g, z)) in g.iter().zip(z).enumerate() {
            let p = (f64::from(*z) - top).exp() / sum;
            let slope =
                if labels[t] == IGNORED { 0.0 } else { f64::from(u8::from(labels[t] == i as i64)) - p };
            // Two pairs, so half of −β/2 each.
            worst = worst.max((f64::from(*g) - -beta / 2.0 * sign * slope / 2.0).abs());
        }
    }
    println!("dpo's gradient is off by {worst:.1e}");
    assert!(worst <= 1e-6);
    let (ipo, _) = of(json!({ "beta": beta, "loss_type": "ipo" }));
    assert!((ipo - 1.0 / (4.0 * beta * beta)).abs() <= 1e-6, "{ipo}");
}

/// What `sft` with these settings adds to zeros of width `d` in the place of embedded tokens.
fn noise(settings: &Json, lengths: &[usize], d: usize, training: bool, micro_batch: u64) -> Vec<f32> {
    struct Catch {
        assembly: Assembly,
        d: usize,
        seen: std::cell::RefCell<Vec<f32>>,
    }
    impl Runner for Catch {
        fn facts(&self) -> &ModelFacts {
            self.assembly.model.facts()
        }
        fn run(
            &self,
            tape: &Tape,
            batch: &FlatBatch,
            mode: Mode,
            on: Option<&OnEmbedding<'_>>,
        ) -> Result<States> {
            let fx = Forward::new(tape.clone(), self.assembly.sites.clone(), batch.clone(), mode);
            let zeros = Array::zeros(&[batch.len(), self.d], ramekin_core::DType::F32, Category::Workspace)?;
            let zeros = Value::constant(zeros);
            let embedded = match on {
                Some(on) => on(&fx, zeros)?,
                None => zeros,
            };
            *self.seen.borrow_mut() = embedded.array().to_f32()?;
            anyhow::bail!("seen")
        }
    }
    let objective = parts::objective(&part("sft", settings.clone())).expect("sft");
    let model =
        Catch { assembly: assemble(&lab::fresh_model(lab::small_llama())), d, seen: Default::default() };
    let tape = Tape::off();
    let sequences: Vec<Vec<u32>> = lengths.iter().map(|n| vec![1; *n]).collect();
    let batch = lab::batch(&sequences);
    let mode = Mode { training, rng: ramekin_core::Rng::new(3), micro_batch, adapters: true };
    let (flat, labels, totals) = (&batch.flat, &batch.labels[..], &[1.0][..]);
    let cx = ObjectiveContext {
        tape: &tape,
        mode,
        flat,
        labels,
        targets: &[],
        totals,
        model: &model,
        others: BTreeMap::new(),
    };
    assert!(objective.loss(&cx).is_err_and(|e| e.to_string() == "seen"));
    model.seen.take()
}

// NEFTune: |U| ≤ α/√(Ld), sample variance α²/(3Ld) within 2 % over at least 50,000 draws, exactly zero
// in evaluation.
#[test]
fn check_5() {
    let (alpha, d) = (5.0, 96);
    let padded = json!({ "neftune_noise_alpha": alpha });
    let variance = |x: &[f32]| x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / x.len() as f64;
    let check = |x: &[f32], length: usize| {
        assert!(x.len() >= 50_000);
        let ld = (length * d) as f64;
        let (bound, wanted) = (alpha / ld.sqrt(), alpha * alpha / (3.0 * ld));
        assert!(x.iter().all(|u| f64::from(u.abs()) <= bound), "beyond {bound}");
        let off = variance(x) / wanted - 1.0;
        println!("L = {length}: variance off by {off:.4}");
        assert!(off.abs() <= 0.02);
    };
    // Transformers scales by the padded length, the original code by each row's own.
    let all = noise(&padded, &[600, 700, 650], d, true, 0);
    check(&all[..600 * d], 700);
    check(&all[600 * d..], 700);
    let own =
        noise(&json!({ "neftune_noise_alpha": alpha, "neftune_length": "own" }), &[600, 700], d, true, 0);
    check(&own[..600 * d], 600);
    check(&own[600 * d..], 700);

    assert_eq!(all, noise(&padded, &[600, 700, 650], d, true, 0), "the same address, the same noise");
    assert_ne!(all, noise(&padded, &[600, 700, 650], d, true, 1), "another micro-batch, another noise");
    assert!(noise(&padded, &[600], d, false, 0).iter().all(|u| *u == 0.0), "none in evaluation");
    assert!(noise(&json!({}), &[600], d, true, 0).iter().all(|u| *u == 0.0), "none unless asked for");
    let negative = parts::objective(&part("sft", json!({ "neftune_noise_alpha": -1.0 })));
    assert!(negative.is_err_and(|e| format!("{e:#}").contains("neftune_noise_alpha")));
}

// DPO, three seeds: accuracy at least 0.92, margin at least 0.6 and larger than after 25 steps, the last
// ten losses at most 0.45; adapters off nothing has changed; the swapped order prefers the other answers.
#[test]
fn check_6() {
    for seed in 0..3 {
        behaviour::learns(seed);
    }
    behaviour::swapped(0);
}
