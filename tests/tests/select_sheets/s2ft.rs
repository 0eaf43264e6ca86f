//! Sheet `s2ft`.

use std::collections::HashMap;
use std::rc::Rc;

use ramekin_core::{Draws, Meter, Rng, meter};
use ramekin_engine::assembly::Assembly;
use ramekin_engine::blueprint::Blueprint;
use ramekin_select_slice::serve::{Assignment, SliceSet, mix};
use ramekin_select_slice::units::{LayerPaths, Matrix, choose, layers};
use ramekin_select_slice::{S2ftSettings, Scope, Score, order};
use ramekin_slots::{LinearBase, SelectionFile};
use ramekin_tape::{GradStore, Tape};
use ramekin_tests::compare::{close, difference, largest, same_bits};
use ramekin_tests::domains::{self, Domain};
use ramekin_tests::lab::{self, assemble, batch, fresh_model, sequences};
use ramekin_tests::selecting::{draw, loss, prepare, refusal, weights, with_selection, write_model};
use serde_json::{Value as Json, json};

/// Width 64, 2 layers, 4 heads, `groups` of keys and values, biases of q, k, v.
fn config(groups: usize) -> Json {
    let mut config = lab::small_llama();
    config.as_object_mut().expect("a table").extend(
        json!({ "model_type": "qwen2", "hidden_size": 64, "num_key_value_heads": groups, "initializer_range": 0.12 })
            .as_object()
            .cloned()
            .expect("a table"),
    );
    config
}

fn s2ft(groups: usize, settings: Json) -> Blueprint {
    with_selection(fresh_model(config(groups)), "s2ft", settings)
}

/// Every kind of matrix has some.
fn all_four(more: Json) -> Json {
    let mut all = json!({ "v_ratio": 0.25, "o_ratio": 0.5, "u_ratio": 0.1, "d_ratio": 0.2 });
    all.as_object_mut().expect("a table").extend(more.as_object().cloned().expect("a table"));
    all
}

/// Biases are zero in fresh weights; here they are not.
fn with_biases(assembly: &Assembly) {
    for name in assembly.sites.param_names().iter().filter(|n| n.ends_with(".bias")) {
        let value = assembly.sites.param(name).expect("a bias").base().value();
        value.update(|x: &mut [f32]| Rng::new(3).named("bias", name).fill_normal(0, 0.3, x)).expect("filled");
    }
}

fn shuffled(count: usize, seed: u64) -> Vec<u32> {
    let mut order: Vec<u32> = (0..count as u32).collect();
    Draws::new(Rng::new(seed).stream("order", 0)).shuffle(&mut order);
    order
}

fn rows() -> Vec<Vec<u32>> {
    sequences(&[12, 7, 10], 61, 3)
}

/// Another order changes no logit, comes back to the bit, and must go by groups.
#[test]
fn check_1() {
    for groups in [4, 2] {
        let assembly = assemble(&fresh_model(config(groups)));
        with_biases(&assembly);
        let (sites, facts) = (&assembly.sites, assembly.model.facts());
        let paths = layers(sites, facts).expect("paths");
        let flat = batch(&rows()).flat;
        let (before, bits) = (lab::logits(&assembly, &flat, true), weights(&assembly));
        for seed in 0..3 {
            let orders = [shuffled(groups, seed), shuffled(48, seed + 9)];
            for layer in &paths {
                order::heads(sites, layer, facts, &orders[0]).expect("heads");
                order::channels(sites, layer, &orders[1]).expect("channels");
            }
            assert!(weights(&assembly) != bits || groups == 2 && orders[0] == [0, 1]);
            close("logits in another order", &lab::logits(&assembly, &flat, true), &before, 1e-5);
            for layer in &paths {
                order::heads(sites, layer, facts, &order::inverse(&orders[0])).expect("heads");
                order::channels(sites, layer, &order::inverse(&orders[1])).expect("channels");
            }
            assert!(weights(&assembly) == bits, "undoing an order gives the bits back");
        }
        if groups == 2 {
            // Single query heads across groups.
            let order = order::expand(&[2, 1, 0, 3], facts.head_dim);
            for LayerPaths { q, o, .. } in &paths {
                order::outputs(sites, q, &order).expect("rows");
                order::inputs(sites, o, &order).expect("columns");
            }
            let off = difference(&lab::logits(&assembly, &flat, true), &before) / largest(&before);
            println!("query heads across groups: off by {off:.3} of the largest logit");
            assert!(off > 0.1, "{off}");
        }
    }
}

/// Fresh slices change nothing; merged and written in the own order they compute the same.
#[test]
fn check_2() {
    for groups in [4, 2] {
        for more in [json!({}), json!({ "permute": false }), json!({ "storage": "in_place" })] {
            let assembly = assemble(&s2ft(groups, all_four(more.clone())));
            let flat = batch(&rows()).flat;
            let with = lab::logits(&assembly, &flat, true);
            same_bits("fresh", &with, &lab::logits(&assembly, &flat, false));
            let plain = lab::logits(&assemble(&fresh_model(config(groups))), &flat, true);
            close("fresh against the base", &with, &plain, 1e-5);
            let mut trainer = lab::trainer(1e-2);
            lab::train(&assembly, &mut trainer, &batch(&rows()), 5);
            let trained = lab::logits(&assembly, &flat, true);
            assert!(difference(&trained, &with) > 0.01);
            trainer.finish(&assembly, 5).expect("an end");
            close("in the own order", &lab::logits(&assembly, &flat, true), &trained, 1e-5);
            // What a stage writes: every linear merged.
            let exported = assemble(&fresh_model(config(groups)));
            for site in assembly.sites.linears() {
                let merged = site.merged(&assembly.sites).expect("merged").to_f32().expect("f32");
                let LinearBase::Dense(name) = exported.sites.linear(&site.path).expect("a linear").base()
                else {
                    panic!()
                };
                let value = exported.sites.param(&name).expect("a tensor").base().value();
                value.update(|x: &mut [f32]| x.copy_from_slice(&merged)).expect("copied");
            }
            close("exported", &lab::logits(&exported, &flat, true), &trained, 1e-5);
        }
    }
}

/// Gradients are slices of the dense ones, and backward keeps tokens × n numbers of a column slice.
#[test]
fn check_3() {
    let full = assemble(&Blueprint { full_training: true, ..fresh_model(config(2)) });
    let trainer = lab::trainer(1e-3);
    let (_, dense) = lab::loss_and_gradients(&full, &trainer, &[batch(&rows())]);
    let dense: HashMap<String, Vec<f32>> = dense.into_iter().collect();
    for permute in [false, true] {
        let assembly = assemble(&s2ft(2, all_four(json!({ "permute": permute }))));
        let (_, found) = lab::loss_and_gradients(&assembly, &trainer, &[batch(&rows())]);
        let file = file(&assembly);
        assert!(found.len() >= 4, "{}", found.len());
        for (name, grad) in found {
            let path = name.strip_suffix(".s2ft").expect("a slice");
            let whole = &dense[&format!("{path}.weight")];
            let width = full.sites.linear(path).expect("a linear").shape.1;
            let indices = indices(&file, path);
            let wanted: Vec<f32> = if path.ends_with("o_proj") || path.ends_with("down_proj") {
                whole.chunks(width).flat_map(|row| indices.iter().map(|c| row[*c as usize])).collect()
            } else {
                indices.iter().flat_map(|r| whole[*r as usize * width..][..width].to_vec()).collect()
            };
            close(&name, &grad, &wanted, if permute { 1e-5 } else { 1e-6 });
        }
    }
    // One linear alone, under a meter.
    let assembly = assemble(&s2ft(
        2,
        json!({ "o_ratio": 0.0, "d_ratio": 0.25, "permute": false, "scope": "per_layer" }),
    ));
    let site = assembly.sites.linear("model.layers.1.mlp.down_proj").expect("a linear");
    let n = indices(&file(&assembly), &site.path).len();
    let tokens = 29;
    let live = Meter::new();
    let _scope = meter::scope(live.clone());
    let fx = {
        let tape = Tape::new();
        let flat = batch(&sequences(&[tokens], 61, 3)).flat;
        ramekin_slots::Forward::new(tape, assembly.sites.clone(), flat, ramekin_slots::Mode::inference())
    };
    let x = ramekin_core::Array::from_vec(
        vec![0.5f32; tokens * 48],
        &[tokens, 48],
        ramekin_core::Category::Workspace,
    )
    .expect("x");
    let x = fx.tape.input(x);
    let y = site.forward(&fx, &x).expect("a forward");
    assert_eq!(live.live().activations, (tokens * n * 4) as u64, "tokens × n numbers are kept");
    drop(x);
    let mut store = GradStore::new();
    fx.tape
        .backward(&y, ramekin_tape::ops::ones_like(y.array()).expect("ones"), &[], &mut store)
        .expect("a backward");
    assert_eq!(store.iter().count(), 1);
}

fn file(assembly: &Assembly) -> SelectionFile {
    assembly.selection.borrow().as_ref().expect("s2ft").file().expect("a file").expect("a file")
}

fn indices(file: &SelectionFile, path: &str) -> Vec<u32> {
    let found = file.tensors.iter().find(|(n, _)| *n == format!("{path}.indices"));
    found.expect("indices").1.view::<u32>().expect("u32").to_vec()
}

/// Exact counts, no duplicates, the same again; W and A take the top units, A, S and G the look's.
#[test]
fn check_4() {
    let assembly = assemble(&fresh_model(config(4)));
    let (sites, facts) = (&assembly.sites, assembly.model.facts());
    let paths = layers(sites, facts).expect("paths");
    let settings =
        S2ftSettings { v_ratio: 0.25, o_ratio: 0.5, u_ratio: 0.07, d_ratio: 0.2, ..S2ftSettings::default() };
    for scope in [Scope::Global, Scope::PerLayer] {
        let s = S2ftSettings { scope, ..settings.clone() };
        for seed in 0..50 {
            let chosen = choose(&s, sites, &paths, facts, Rng::new(seed), None).expect("a choice");
            let again = choose(&s, sites, &paths, facts, Rng::new(seed), None).expect("a choice");
            assert_eq!(chosen, again);
            for ((matrix, _), (units, ratio)) in
                Matrix::ALL.into_iter().zip([(4, 0.25), (4, 0.5), (48, 0.07), (48, 0.2)])
            {
                let per_layer: Vec<usize> = chosen[&matrix].iter().map(Vec::len).collect();
                match scope {
                    Scope::Global => {
                        assert_eq!(per_layer.iter().sum::<usize>(), (ratio * (2 * units) as f64) as usize)
                    }
                    Scope::PerLayer => assert_eq!(per_layer, [(ratio * units as f64) as usize; 2]),
                }
                for layer in &chosen[&matrix] {
                    assert!(layer.is_sorted_by(|a, b| a < b) && layer.iter().all(|u| *u < units as u32));
                }
            }
        }
    }
    // By hand: norms of coupled weights, mean |activation| into down.
    let norms: Vec<f64> = {
        let w = |path: &str| {
            sites.linear(path).expect("a linear").dense(sites, false).expect("w").to_f32().expect("f32")
        };
        let square = |x: &f32| f64::from(*x).powi(2);
        let mut all = Vec::new();
        for l in &paths {
            let (up, gate, down) = (w(&l.up), w(l.gate.as_ref().expect("a gate")), w(&l.down));
            for c in 0..48 {
                let rows = up[c * 64..][..64].iter().chain(&gate[c * 64..][..64]).map(square).sum::<f64>();
                all.push(rows + (0..64).map(|r| square(&down[r * 48 + c])).sum::<f64>());
            }
        }
        all
    };
    for largest in [true, false] {
        let only_down = json!({ "o_ratio": 0.0, "d_ratio": 0.2, "selection": "W", "largest": largest });
        let tuned = assemble(&s2ft(4, only_down));
        let mut order: Vec<usize> = (0..96).collect();
        order.sort_by(|a, b| {
            if largest { norms[*b].total_cmp(&norms[*a]) } else { norms[*a].total_cmp(&norms[*b]) }
        });
        let mut expected: Vec<usize> = order[..19].to_vec();
        expected.sort_unstable();
        assert_eq!(down_units(&tuned, &paths), expected, "W, largest = {largest}");
    }
    // The look: A by an observer of our own, then that S and G choose and repeat.
    let seen = Rc::new(std::cell::RefCell::new(vec![0.0f64; 96]));
    for (l, layer) in paths.iter().enumerate() {
        sites.linear(&layer.down).expect("a linear").attach(Box::new(Sum(seen.clone(), l)));
    }
    let draw = draw(61, 10);
    for i in 0..4 {
        lab::logits(&assembly, &draw("s2ft", i, 8).flat, true);
    }
    let mut order: Vec<usize> = (0..96).collect();
    order.sort_by(|a, b| seen.borrow()[*b].total_cmp(&seen.borrow()[*a]));
    let mut expected: Vec<usize> = order[..19].to_vec();
    expected.sort_unstable();
    let looked = |selection: &str| {
        let assembly = assemble(&s2ft(4, json!({ "o_ratio": 0.5, "d_ratio": 0.2, "selection": selection })));
        let mut trainer = lab::trainer(1e-2);
        trainer.draw = Some(ramekin_tests::selecting::draw(61, 10));
        assert!(assembly.trainable().is_empty(), "the look comes first");
        prepare(&assembly, &mut trainer, 1.0);
        assert!(assembly.sites.linear(&paths[0].down).expect("a linear").adapter_count() <= 1);
        let found = down_units(&assembly, &paths);
        assert_eq!(found.len(), 19);
        lab::train(&assembly, &mut trainer, &batch(&rows()), 1);
        found
    };
    assert_eq!(looked("A"), expected);
    let (s, g) = (looked("S"), looked("G"));
    assert_eq!((looked("S"), looked("G")), (s.clone(), g.clone()));
    assert!(s != g && g != expected, "scores differ");
}

struct Sum(Rc<std::cell::RefCell<Vec<f64>>>, usize);

impl ramekin_slots::LinearAdapter for Sum {
    fn forward(
        &self,
        _: &ramekin_slots::Forward,
        _: &ramekin_slots::LinearSite,
        x: &ramekin_tape::Value,
        below: &ramekin_slots::Below<'_>,
    ) -> anyhow::Result<ramekin_tape::Value> {
        for row in x.array().to_f32()?.chunks(48) {
            row.iter()
                .enumerate()
                .for_each(|(c, x)| self.0.borrow_mut()[self.1 * 48 + c] += f64::from(x.abs()));
        }
        below(x)
    }

    fn fold(
        &self,
        _: &ramekin_slots::Sites,
        _: &ramekin_slots::LinearSite,
        w: ramekin_core::Array,
    ) -> anyhow::Result<ramekin_core::Array> {
        Ok(w)
    }
}

/// Chosen channels over both layers.
fn down_units(assembly: &Assembly, paths: &[LayerPaths]) -> Vec<usize> {
    let file = file(assembly);
    let mut all = Vec::new();
    for (l, layer) in paths.iter().enumerate() {
        if file.tensors.iter().any(|(n, _)| *n == format!("{}.indices", layer.down)) {
            all.extend(indices(&file, &layer.down).iter().map(|c| 48 * l + *c as usize));
        }
    }
    all.sort_unstable();
    all
}

/// Several sets on one base: mixed in a batch, added up, exchanged.
#[test]
fn check_5() {
    let trained = |seed: u64| {
        let assembly = assemble(&s2ft(2, all_four(json!({ "seed": seed }))));
        let mut trainer = lab::trainer(1e-2);
        lab::train(&assembly, &mut trainer, &batch(&sequences(&[11, 9], 61, 40 + seed)), 6);
        SliceSet::of(&file(&assembly)).expect("a set")
    };
    let sets: Vec<SliceSet> = (0..3).map(trained).collect();
    let base = || assemble(&fresh_model(config(2)));
    let flat = batch(&rows()).flat;
    let merged: Vec<Vec<f32>> = sets
        .iter()
        .map(|set| {
            let assembly = base();
            set.add(&assembly.sites, 1.0).expect("added");
            lab::logits(&assembly, &flat, true)
        })
        .collect();
    let assignment: Assignment = Rc::default();
    *assignment.borrow_mut() = (0..29)
        .map(|t| {
            Some(if t < 12 {
                2
            } else if t < 19 {
                0
            } else {
                1
            })
        })
        .collect();
    let mixed = base();
    mix(&mixed.sites, &sets, &assignment).expect("mixed");
    let found = lab::logits(&mixed, &flat, true);
    for (range, set) in [(0..12, 2), (12..19, 0), (19..29, 1)] {
        let part = |z: &[f32]| z[range.start * 61..range.end * 61].to_vec();
        close("a sequence of a mixed batch", &part(&found), &part(&merged[set]), 1e-5);
    }
    // Three added, one taken off, are the other two.
    let (three, two) = (base(), base());
    sets.iter().for_each(|s| s.add(&three.sites, 1.0).expect("added"));
    sets[1].add(&three.sites, -1.0).expect("taken off");
    sets[0].add(&two.sites, 1.0).expect("added");
    sets[2].add(&two.sites, 1.0).expect("added");
    close("two of three", &lab::logits(&three, &flat, true), &lab::logits(&two, &flat, true), 1e-5);
    // Exchanging touches the columns of both and no other.
    let assembly = base();
    sets[0].add(&assembly.sites, 1.0).expect("added");
    let before = weights(&assembly);
    sets[0].exchange(&sets[1], &assembly.sites).expect("exchanged");
    let path = "model.layers.0.mlp.down_proj";
    let wanted: std::collections::BTreeSet<u32> = sets[..2]
        .iter()
        .flat_map(|s| s.slices.iter().filter(|s| s.path == path).flat_map(|s| s.indices.to_vec()))
        .collect();
    let (old, new) = (&before, weights(&assembly));
    let at = old.iter().position(|(n, _)| *n == format!("{path}.weight")).expect("the matrix");
    let changed: std::collections::BTreeSet<u32> =
        (0..old[at].1.len()).filter(|i| old[at].1[*i] != new[at].1[*i]).map(|i| (i % 48) as u32).collect();
    assert_eq!(changed, wanted);
    close("exchanged", &lab::logits(&assembly, &flat, true), &merged[1], 1e-5);
    let other = assemble(&fresh_model(lab::small_llama()));
    assert!(sets[0].add(&other.sites, 1.0).is_err(), "another base");
}

/// As good as LoRA on the new domain, better than full tuning on the old one.
#[test]
fn check_6() {
    let (mut good, mut apart) = (0, 0);
    for seed in 0..5 {
        let (a, b) = (Domain::new(seed, 0), Domain::new(seed, 1));
        let fresh = Blueprint { seed, ..fresh_model(domains::config()) };
        let base = assemble(&Blueprint { full_training: true, ..fresh });
        domains::learn(&base, &a, 2e-3, 400);
        let folder = tempfile::tempdir().expect("a folder");
        write_model(&base, folder.path());
        let tuned = |plan: Blueprint, lr: f64| {
            let assembly = assemble(&Blueprint { seed, ..plan });
            let trainer = domains::learn(&assembly, &b, lr, 300);
            let count = assembly.ledger.borrow().counts().1;
            (loss(&assembly, &trainer, &a.held()), loss(&assembly, &trainer, &b.held()), count)
        };
        let model = || lab::folder_model(folder.path());
        let full = tuned(Blueprint { full_training: true, ..model() }, 2e-3);
        let lora = json!({ "r": 2, "lora_alpha": 4, "target_modules": "all-linear" });
        let lora = tuned(Blueprint { adapters: vec![lab::new_adapter("lora", lora)], ..model() }, 1e-2);
        let slices = json!({ "o_ratio": 0.25, "d_ratio": 0.4 });
        let slices = tuned(with_selection(model(), "s2ft", slices), 1e-2);
        let wrong = neighbours(folder.path(), seed, &b);
        println!(
            "seed {seed}: full {full:.3?}, LoRA {lora:.3?}, S2FT {slices:.3?}, neighbours' gradient {wrong:.3}"
        );
        assert_eq!((lora.2, slices.2), (4352, 4288));
        good +=
            usize::from(slices.1 <= 1.03 * lora.1 && slices.1 <= 1.2 * full.1 && slices.0 <= full.0 - 0.2);
        apart += usize::from(wrong > 1.3 * lora.1);
    }
    assert!(good >= 4, "{good} of 5 seeds");
    assert_eq!(apart, 5, "a gradient of the neighbouring columns must be told apart");
}

/// A wrong version: each slice gets the gradient of the columns beside it. Returns the loss on B.
fn neighbours(folder: &std::path::Path, seed: u64, b: &Domain) -> f64 {
    use ramekin_slots::{AttachContext, LinearAdapter, RoundContext, Selection, Stateful};
    use ramekin_tape::Value;
    struct Wrong(std::sync::Arc<ramekin_core::Param>, Rc<Vec<u32>>, Rc<Vec<u32>>);
    impl LinearAdapter for Wrong {
        fn forward(
            &self,
            fx: &ramekin_slots::Forward,
            _: &ramekin_slots::LinearSite,
            x: &Value,
            below: &ramekin_slots::Below<'_>,
        ) -> anyhow::Result<Value> {
            let d = fx.tape.param(&self.0)?;
            let y = ramekin_select_slice::ops::columns(&fx.tape, &below(x)?, x, &d.detach(), &self.1, false)?;
            ramekin_select_slice::ops::columns(&fx.tape, &y, x, &d, &self.2, true)
        }
        fn fold(
            &self,
            _: &ramekin_slots::Sites,
            _: &ramekin_slots::LinearSite,
            w: ramekin_core::Array,
        ) -> anyhow::Result<ramekin_core::Array> {
            Ok(w)
        }
    }
    struct Part;
    impl Stateful for Part {}
    impl Selection for Part {
        fn attach(&mut self, cx: &mut AttachContext<'_>) -> anyhow::Result<Vec<String>> {
            let s =
                S2ftSettings { o_ratio: 0.25, d_ratio: 0.4, selection: Score::R, ..S2ftSettings::default() };
            let sites = cx.sites.clone();
            let paths = layers(&sites, cx.facts)?;
            let chosen = choose(&s, &sites, &paths, cx.facts, cx.rng, None)?;
            for (i, layer) in paths.iter().enumerate() {
                for matrix in [Matrix::O, Matrix::Down] {
                    let site = sites.linear(matrix.path(layer))?;
                    let size = matrix.units(&sites, layer, cx.facts)?.1;
                    let idx = Rc::new(order::expand(&chosen[&matrix][i], size));
                    if idx.is_empty() {
                        continue;
                    }
                    let width = site.shape.1 as u32;
                    let beside = Rc::new(idx.iter().map(|c| (c + size as u32) % width).collect());
                    let zeros = ramekin_core::Array::zeros(
                        &[site.shape.0, idx.len()],
                        ramekin_core::DType::F32,
                        ramekin_core::Category::Trainable,
                    )?;
                    let param = ramekin_core::Param::new(format!("{}.wrong", site.path), zeros);
                    param.set_trainable(true);
                    cx.ledger.add(&param, "wrong")?;
                    site.attach(Box::new(Wrong(param, idx, beside)));
                }
            }
            Ok(Vec::new())
        }
        fn finish(&mut self, _: &mut RoundContext<'_>) -> anyhow::Result<()> {
            Ok(())
        }
    }
    let assembly = assemble(&Blueprint { seed, ..lab::folder_model(folder) });
    assembly.seated(false, |cx| Part.attach(cx)).expect("attached");
    let trainer = domains::learn(&assembly, b, 1e-2, 300);
    loss(&assembly, &trainer, &b.held())
}

/// What the sheet says must be refused.
#[test]
fn refusals() {
    let e = refusal(&s2ft(2, json!({ "o_ratio": 0.1 })));
    assert!(
        e.contains("`o_ratio` is 0.1, which chooses none of 4 units; it must be at least 0.25, or 0"),
        "{e}"
    );
    let e = refusal(&s2ft(2, json!({ "o_ratio": 0.0, "d_ratio": 0.0 })));
    assert!(e.contains("nothing would train"), "{e}");
    let quantized = |settings| Blueprint {
        quantizer: Some(lab::part("rtn", json!({ "bits": 8, "group_size": 16 }))),
        ..s2ft(2, settings)
    };
    let real = |plan: &Blueprint| plan.assemble(true).err().map(|e| format!("{e:#}")).unwrap_or_default();
    let e = real(&quantized(json!({ "o_ratio": 0.0, "d_ratio": 0.2 })));
    assert!(e.contains("with `permute = false` columns are gathered instead"), "{e}");
    let e = real(&quantized(json!({ "o_ratio": 0.0, "d_ratio": 0.2, "storage": "in_place" })));
    assert!(e.contains("`storage` is \"in_place\""), "{e}");
    let packed = assemble(&quantized(json!({ "o_ratio": 0.0, "d_ratio": 0.2, "permute": false })));
    let mut trainer = lab::trainer(1e-2);
    let losses = lab::train(&packed, &mut trainer, &batch(&rows()), 8);
    assert!(losses[7] < losses[0], "slices train on a packed base: {losses:?}");
}
