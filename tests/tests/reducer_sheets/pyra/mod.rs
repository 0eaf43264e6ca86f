//! Sheet `pyra`, on a vision transformer of width 48, 4 blocks and 4 heads.
//!
//! The last block has no generator, which could reach no class token: the checks that speak of every block speak of
//! the others. Check 7 times nothing: it counts what a step multiplies and holds, and the time itself is an ignored test.

mod behaviour;
mod cost;

use ramekin_core::{Array, Category, DType, Rng};
use ramekin_engine::assembly::Assembly;
use ramekin_engine::step::LabelledBatch;
use ramekin_kernels::reactivate::weights;
use ramekin_slots::{Forward, Mode};
use ramekin_tape::{GradStore, Tape, Value};
use ramekin_tests::compare::{difference, largest, same_bits};
use ramekin_tests::images::{noise, small_vit, with_reducer};
use ramekin_tests::lab::{self, assemble, fresh_model};
use serde_json::json;

use crate::ok;

const HEADS: usize = 4;
const C: usize = 48;

fn pyra(size: usize, schedule: &[usize], on: bool) -> Assembly {
    assemble(&with_reducer(size, "pyra", json!({ "schedule": schedule, "pyra": on })))
}

/// Normal numbers in f64, by name.
fn normal(name: &str, n: usize) -> Vec<f64> {
    let mut x = vec![0.0; n];
    Rng::new(3).named("tests/pyra", name).fill_normal(0, 1.0, &mut x);
    x
}

/// Every generator's numbers moved away from where they start.
fn stir(assembly: &Assembly) {
    for param in assembly.trainable() {
        let noise = normal(param.name(), param.value().len());
        let add = |x: &mut [f32]| x.iter_mut().zip(noise).for_each(|(x, n)| *x += 0.5 * n as f32);
        ok(param.value().update(add));
    }
}

fn in_f64(assembly: &Assembly) {
    for entry in assembly.ledger.borrow().entries() {
        let param = entry.param.as_ref().expect("nothing is packed");
        param.set(ok(param.value().to_dtype(DType::F64, Category::Weights)));
    }
}

/// A generator's tensor.
fn of(assembly: &Assembly, name: &str) -> Vec<f64> {
    let all = assembly.trainable();
    let param = all.iter().find(|p| p.name() == name).unwrap_or_else(|| panic!("no `{name}`"));
    ok(param.value().to_f64())
}

#[test]
fn check_1() {
    for (size, schedule) in [(16, [4, 3, 2, 1]), (20, [6, 5, 3, 2])] {
        let (with, without) = (pyra(size, &schedule, true), pyra(size, &schedule, false));
        let tome = assemble(&with_reducer(size, "tome", json!({ "schedule": schedule })));
        assert!(with.trainable().len() == 12 && without.trainable().is_empty());
        for seed in 0..16 {
            let flat = noise(&with, 1, seed).flat;
            let plain = lab::logits(&without, &flat, true);
            same_bits("b = 0", &lab::logits(&with, &flat, true), &plain);
            same_bits("tome", &lab::logits(&tome, &flat, true), &plain);
        }
        stir(&with);
        let flat = noise(&with, 1, 0).flat;
        let off = difference(&lab::logits(&with, &flat, true), &lab::logits(&without, &flat, true));
        assert!(off > 1e-3, "generators that say something change the logits, here by {off:.1e}");
    }
}

/// One segment of tokens, as the naive loop knows it.
struct Plain {
    tokens: Vec<Vec<f64>>,
    sizes: Vec<f64>,
}

fn dot(x: &[f64], y: &[f64]) -> f64 {
    x.iter().zip(y).map(|(x, y)| x * y).sum()
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

impl Plain {
    /// Items 2, 4 and 5 of the sheet, token by token. Returns the best scores of those that went and stayed.
    fn merge(&mut self, keys: &[Vec<f64>], r: usize, a: &[f64], b: &[f64], nu: [&[f64]; 2]) -> (f64, f64) {
        let metric: Vec<Vec<f64>> = keys
            .iter()
            .map(|k| {
                let d = k.len() / HEADS;
                let mean: Vec<f64> =
                    (0..d).map(|c| (0..HEADS).map(|h| k[h * d + c]).sum::<f64>() / HEADS as f64).collect();
                let length = dot(&mean, &mean).sqrt();
                mean.into_iter().map(|x| x / length).collect()
            })
            .collect();
        let n = self.tokens.len();
        let mut best: Vec<(f64, usize, usize)> = (2..n)
            .step_by(2)
            .map(|i| {
                let scores = (1..n).step_by(2).map(|j| (dot(&metric[i], &metric[j]), i, j));
                scores.fold((f64::MIN, i, 0), |b, s| if s.0 > b.0 { s } else { b })
            })
            .collect();
        best.sort_by(|x, y| y.0.total_cmp(&x.0));
        let (gone, stay) = best.split_at(r);
        let times = |i: usize| -> Vec<f64> { self.tokens[i].iter().map(|x| x * self.sizes[i]).collect() };
        // G = nu(S + D), row by row.
        let g: Vec<Vec<f64>> = gone
            .iter()
            .map(|(_, i, j)| {
                let sum: Vec<f64> = times(*i).iter().zip(times(*j)).map(|(s, d)| s + d).collect();
                let mean = sum.iter().sum::<f64>() / C as f64;
                let spread = sum.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / C as f64;
                let scaled = sum.iter().map(|x| (x - mean) / (spread + 1e-5).sqrt());
                scaled.enumerate().map(|(c, x)| x * nu[0][c] + nu[1][c]).collect()
            })
            .collect();
        let channel = |c: usize| 2.0 * sigmoid(g.iter().zip(a).map(|(g, a)| g[c] * a).sum());
        let mut sums: Vec<Vec<f64>> = (0..n).map(times).collect();
        let mut sizes = self.sizes.clone();
        for ((_, i, j), g) in gone.iter().zip(&g) {
            let w_t = 2.0 * sigmoid(dot(g, b)) - 1.0;
            for (c, s) in times(*i).into_iter().enumerate() {
                sums[*j][c] += s + s * channel(c) * w_t;
            }
            sizes[*j] += self.sizes[*i];
        }
        let left = (0..n).step_by(2).filter(|i| gone.iter().all(|g| g.1 != *i)).chain((1..n).step_by(2));
        let left: Vec<usize> = left.collect();
        self.tokens = left.iter().map(|i| sums[*i].iter().map(|x| x / sizes[*i]).collect()).collect();
        self.sizes = left.iter().map(|i| sizes[*i]).collect();
        (gone.last().map_or(f64::MAX, |g| g.0), stay.first().map_or(f64::MIN, |s| s.0))
    }
}

#[test]
fn check_2() {
    for (size, schedule) in [(16, [5, 4, 2, 1]), (20, [9, 4, 4, 2])] {
        let assembly = pyra(size, &schedule, true);
        stir(&assembly);
        in_f64(&assembly);
        let batch = noise(&assembly, 3, 8).flat;
        let tokens = batch.segments[0].len();
        let mut fx = Forward::new(Tape::off(), assembly.sites.clone(), batch, Mode::inference());
        let mut h = normal("h", 3 * tokens * C);
        let rows = |x: &[f64]| -> Vec<Vec<f64>> { x.chunks(C).map(<[f64]>::to_vec).collect() };
        let mut plain: Vec<Plain> =
            h.chunks(tokens * C).map(|x| Plain { tokens: rows(x), sizes: vec![1.0; tokens] }).collect();
        for (block, r) in schedule.into_iter().enumerate() {
            let n = fx.batch.len();
            let keys = normal(&format!("keys {block}"), n * C);
            let tensor = |x: &[f64]| {
                Value::constant(ok(Array::from_vec(x.to_vec(), &[x.len() / C, C], Category::Workspace)))
            };
            let class: Vec<Vec<f64>> = fx.batch.segments.iter().map(|s| rows(&h)[s.start].clone()).collect();
            let (next, merged) = ok(fx.reduce(block, tensor(&h), Some(&tensor(&keys)), HEADS));
            let at = |tail: &str| of(&assembly, &format!("pyra.{block}.{tail}"));
            let (a, b, w, shift) = match block {
                3 => (vec![0.0; r], vec![0.0; C], vec![1.0; C], vec![0.0; C]), // no generator: S' = S
                _ => (at("a"), at("b"), at("norm.weight"), at("norm.bias")),
            };
            assert_eq!((a.len(), b.len()), (r, C));
            let found = ok(merged.array().to_f64());
            let counts = next.counts();
            for (i, p) in plain.iter_mut().enumerate() {
                let own = rows(&keys)[fx.batch.segments[i].clone()].to_vec();
                let (last, first) = p.merge(&own, r, &a, &b, [&w, &shift]);
                assert!(last > first, "the {r} most alike have gone");
                let segment = next.batch.segments[i].clone();
                assert_eq!(segment.len(), p.tokens.len());
                for (row, (token, count)) in segment.clone().zip(p.tokens.iter().zip(&p.sizes)) {
                    assert_eq!(f64::from(counts[row]), *count, "block {block}, row {row}");
                    for (x, want) in found[row * C..(row + 1) * C].iter().zip(token) {
                        assert!((x - want).abs() <= 1e-6, "block {block}, row {row}: {x}, not {want}");
                    }
                }
                assert_eq!(counts[segment.clone()].iter().sum::<u32>() as usize, tokens, "sizes sum to N");
                assert_eq!(counts[segment.start], 1, "the class token stands for itself");
                assert_eq!(rows(&found)[segment.start], class[i], "and is what it was");
            }
            (fx, h) = (next, found);
        }
    }
}

fn loss_and_gradients(assembly: &Assembly, batch: &LabelledBatch) -> (f64, Vec<(String, Vec<f64>)>) {
    let mut store = GradStore::new();
    let trainer = lab::trainer(1e-2);
    let totals = trainer.totals(std::slice::from_ref(batch));
    let loss = ok(trainer.micro_batch(assembly, batch, &totals, 0, false, &mut store));
    (loss, store.iter().map(|(p, g)| (p.name().to_owned(), ok(g.to_f64()))).collect())
}

#[test]
fn check_3() {
    let assembly = pyra(16, &[4, 3, 2, 1], true);
    let batch = noise(&assembly, 6, 4);
    let gradients = loss_and_gradients(&assembly, &batch).1;
    assert_eq!(gradients.len(), 12);
    for (name, g) in &gradients {
        let zero = g.iter().all(|x| *x == 0.0);
        assert_eq!(zero, !name.ends_with(".b"), "{name}: b = 0 stops the others' gradients");
    }
    let mut trainer = lab::trainer(1e-2);
    lab::train(&assembly, &mut trainer, &batch, 1);
    let gradients = loss_and_gradients(&assembly, &batch).1;
    let flows = |(name, g): &(String, Vec<f64>)| !name.ends_with(".a") || g.iter().any(|x| *x != 0.0);
    assert!(gradients.iter().all(flows), "after a step a has a gradient");

    stir(&assembly);
    in_f64(&assembly);
    let gradients = loss_and_gradients(&assembly, &batch).1;
    for (name, gradient) in &gradients {
        let all = assembly.trainable();
        let param = all.iter().find(|p| p.name() == name).expect("a parameter");
        let norm = dot(gradient, gradient).sqrt();
        assert!(norm > 1e-9, "{name}");
        for i in 0..gradient.len().min(6) {
            let loss = |by: f64| {
                ok(param.value().update(|x: &mut [f64]| x[i] += by));
                loss_and_gradients(&assembly, &batch).0
            };
            let (up, down) = (loss(1e-6), loss(-2e-6));
            loss(1e-6);
            let off = ((up - down) / 2e-6 - gradient[i]).abs();
            assert!(off <= 1e-3 * norm, "{name}[{i}] is off by {off:.1e} of {norm:.1e}");
        }
    }
}

/// Through the matching nothing flows: with plain merging and no attention from keys to the output, keys
/// decide and get no gradient.
#[test]
fn check_3_matching() {
    let assembly = pyra(16, &[4], true);
    stir(&assembly);
    let tape = Tape::new();
    let fx =
        Forward::new(tape.clone(), assembly.sites.clone(), noise(&assembly, 2, 5).flat, Mode::inference());
    let n = fx.batch.len();
    let leaf = |name: &str| {
        let x: Vec<f32> = normal(name, n * C).into_iter().map(|x| x as f32).collect();
        tape.input(ok(Array::from_vec(x, &[n, C], Category::Workspace)))
    };
    let (h, keys) = (leaf("h"), leaf("keys"));
    let (_, merged) = ok(fx.reduce(0, h.clone(), Some(&keys), HEADS));
    let seed = ok(Array::from_vec(vec![1f32; merged.array().len()], merged.dims(), Category::Workspace));
    let flows = ok(tape.backward(&merged, seed, &[h, keys], &mut GradStore::new()));
    assert!(flows[0].is_some() && flows[1].is_none(), "tokens get a gradient, keys do not");
}

#[test]
fn check_4() {
    for (size, tokens, schedule) in [(16, 17, [6, 3, 0, 2]), (20, 26, [12, 5, 3, 1])] {
        let assembly = pyra(size, &schedule, true);
        let batch = noise(&assembly, 3, 6).flat;
        let mut fx = Forward::new(Tape::off(), assembly.sites.clone(), batch.clone(), Mode::inference());
        let mut h = ok(assembly.model.embed(&fx));
        let mut left = tokens;
        for (block, r) in schedule.into_iter().enumerate() {
            h = ok(assembly.model.block(block, &fx, &h));
            fx = fx.after(block).unwrap_or(fx);
            left -= r;
            assert_eq!(h.dims(), [3 * left, C], "block {block}");
            assert_eq!(fx.batch.segments.iter().map(|s| s.len()).collect::<Vec<_>>(), [left; 3]);
            assert_eq!(fx.counts().iter().sum::<u32>() as usize, 3 * tokens);
        }
        assert_eq!(ok(fx.spread(h)).dims(), [3 * tokens, C], "every token has a state in the end");

        let bare = lab::logits(&assemble(&fresh_model(small_vit(size))), &batch, true);
        assert!(largest(&bare) > 0.1);
        for none in [vec![], vec![0, 0, 0, 0]] {
            same_bits("no token goes", &lab::logits(&pyra(size, &none, true), &batch, true), &bare);
        }
        let some = lab::logits(&assembly, &batch, true);
        assert!(difference(&some, &bare) > 1e-2, "merging changes the logits");
        same_bits("switched off", &lab::logits(&assembly, &batch, false), &bare);
    }
}

#[test]
fn check_5() {
    let (images, r) = (3, 5);
    let (g, a, b) = (normal("g", images * r * C), normal("a", r), normal("b", C));
    let before = weights(&g, &a, &b);
    for i in 0..r {
        let mut more = a.clone();
        more[i] *= 2.0;
        let after = weights(&g, &more, &b);
        let moved = before.channels.iter().zip(&after.channels).all(|(x, y)| x != y);
        assert!(moved && before.channels.len() == images * C, "every channel, which is one for all rows");
        assert_eq!(before.rows, after.rows);
    }
    for c in 0..C {
        let mut more = b.clone();
        more[c] += 0.5;
        let after = weights(&g, &a, &more);
        assert!(before.rows.iter().zip(&after.rows).all(|(x, y)| x != y) && before.rows.len() == images * r);
        assert_eq!(before.channels, after.channels);
    }
}

/// A block that is run again in backward merges what it merged the first time.
#[test]
fn recomputing_matches_alike() {
    let assembly = pyra(20, &[6, 5, 3, 2], true);
    stir(&assembly);
    let batch = noise(&assembly, 4, 9);
    let run = |activation: &str| {
        let mut trainer = lab::trainer(1e-2);
        trainer.activation = ok(ramekin_engine::parts::activation(&lab::part(activation, json!({}))));
        lab::loss_and_gradients(&assembly, &trainer, std::slice::from_ref(&batch))
    };
    let (kept, again) = (run("keep"), run("checkpoint"));
    assert_eq!(kept.0, again.0);
    assert!(kept.1.len() == 12 && kept == again, "the same gradients to the bit");
}

/// The learning rate of the generators is their own, and they do not decay.
#[test]
fn generators_have_a_rate_of_their_own() {
    let settings = json!({ "schedule": [4, 3], "pyra_lr": 3e-2 });
    let assembly = assemble(&with_reducer(16, "pyra", settings));
    let groups = assembly.adapters[0].adapter.groups(1e-3);
    assert_eq!(groups.len(), 8);
    assert!(groups.iter().all(|(_, g)| (g.lr_scale - 30.0).abs() < 1e-12 && !g.decay));
}
