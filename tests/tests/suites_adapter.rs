//! What every registered adapter part must do, whoever wrote it.
//!
//! The parts come from the registry; a part without a line in [`CASES`] fails the suite. What a part
//! declares is measured: identity at the start, merging. The rest holds for all: gradients, saving and
//! loading, a frozen base, settings, and the run on shapes that a plan is.

use std::sync::Arc;

use ramekin_core::{Param, Rng};
use ramekin_engine::assembly::Assembly;
use ramekin_engine::blueprint::Blueprint;
use ramekin_registry::{PartEntry, Slot, Trait};
use ramekin_slots::FlatBatch;
use ramekin_tests::compare::{close, difference, largest, same_bits};
use ramekin_tests::lab::{self, assemble, new_adapter, saved_adapter, sequences};
use ramekin_tests::suite::{self, differences, listed, same_files, save_adapter, stir};
use ramekin_tests::toy;
use serde_json::{Value as Json, json};

/// How a part is tried on the small llama.
struct Case {
    part: &'static str,
    /// Settings, as JSON.
    settings: &'static str,
    /// Ends of names whose gradients leave something out on purpose, so that central differences of
    /// the loss say something else. Their own check is elsewhere.
    detached: &'static [&'static str],
}

/// A line for each adapter part, or several.
const CASES: &[Case] = &[
    Case {
        part: "dora",
        settings: r#"{ "r": 2, "target_modules": "all-linear" }"#,
        detached: &["lora_A.weight", "lora_B.weight"], // lora_family::single::check_3_dora
    },
    Case { part: "ia3", settings: r#"{}"#, detached: &[] },
    Case { part: "ln", settings: r#"{}"#, detached: &[] },
    Case { part: "loha", settings: r#"{ "r": 2, "target_modules": "all-linear" }"#, detached: &[] },
    Case { part: "lokr", settings: r#"{ "r": 2, "target_modules": "all-linear" }"#, detached: &[] },
    Case { part: "lora", settings: r#"{ "r": 2, "target_modules": "all-linear" }"#, detached: &[] },
    Case {
        part: "parallel",
        settings: r#"{ "bottleneck_size": 4, "scaling": "learned", "activation": "gelu" }"#,
        detached: &[],
    },
    Case { part: "prefix", settings: r#"{ "num_virtual_tokens": 3 }"#, detached: &[] },
    Case { part: "prompt", settings: r#"{ "num_virtual_tokens": 3 }"#, detached: &[] },
    Case { part: "series", settings: r#"{ "bottleneck_size": 4 }"#, detached: &[] },
    Case {
        part: "series",
        settings: r#"{ "bottleneck_size": 4, "target_modules": ["up_proj", "o_proj"], "activation": "silu" }"#,
        detached: &[],
    },
    Case { part: "ssf", settings: r#"{ "sites": ["linear", "norm"] }"#, detached: &[] },
    Case { part: "unipt", settings: r#"{ "causal": true, "pool": "prefix_mean" }"#, detached: &[] },
    Case {
        part: "unipt",
        settings: r#"{ "causal": true, "pool": "first", "output": "residual", "layers": [0, 2] }"#,
        detached: &[],
    },
    Case { part: "vera", settings: r#"{ "r": 16, "target_modules": "all-linear" }"#, detached: &[] },
];

/// Every registered adapter with its cases.
fn parts() -> Vec<(&'static PartEntry, Vec<&'static Case>)> {
    ramekin_catalog::link();
    let all: Vec<_> = ramekin_registry::parts()
        .into_iter()
        .filter(|p| p.slot == Slot::Adapter)
        .map(|p| (p, CASES.iter().filter(|c| c.part == p.name).collect::<Vec<_>>()))
        .collect();
    assert!(!all.is_empty(), "no adapter is registered");
    for (part, cases) in &all {
        assert!(!cases.is_empty(), "`{}` has no case in this suite", part.name);
    }
    for case in CASES {
        assert!(all.iter().any(|(p, _)| p.name == case.part), "`{}` is not registered", case.part);
    }
    all
}

/// Runs `f` on every case of every part.
fn each(f: impl Fn(&PartEntry, &Case)) {
    for (part, cases) in parts() {
        cases.into_iter().for_each(|case| f(part, case));
    }
}

fn settings(case: &Case) -> Json {
    serde_json::from_str(case.settings).expect("JSON")
}

/// Biased linears, so that every part shows what it does with a bias.
fn config() -> Json {
    let mut config = lab::small_llama();
    config["attention_bias"] = json!(true);
    config["mlp_bias"] = json!(true);
    config
}

fn blueprint(case: &Case) -> Blueprint {
    let adapters = vec![new_adapter(case.part, settings(case))];
    Blueprint { adapters, ..lab::fresh_model(config()) }
}

fn probe() -> FlatBatch {
    FlatBatch::new(&sequences(&[17, 5, 1], 61, 3))
}

fn declares(part: &PartEntry, what: Trait) -> bool {
    part.traits.contains(&what)
}

#[test]
fn identity_at_start_where_declared() {
    let bare = lab::logits(&assemble(&lab::fresh_model(config())), &probe(), true);
    assert!(largest(&bare) > 0.5, "logits that say something");
    each(|part, case| {
        let assembly = assemble(&blueprint(case));
        let fresh = lab::logits(&assembly, &probe(), true);
        if declares(part, Trait::IdentityAtStart) {
            same_bits(case.part, &fresh, &bare);
        } else {
            assert!(difference(&fresh, &bare) > 0.0, "`{}` is the identity and does not say so", case.part);
        }
        stir(&assembly, 0.3);
        let stirred = lab::logits(&assembly, &probe(), true);
        assert!(difference(&stirred, &bare) > 1e-2, "`{}` does nothing", case.part);
        same_bits("adapters off", &lab::logits(&assembly, &probe(), false), &bare);
    });
}

/// Whole-model loss against central differences in f64, at up to four entries of each tensor.
#[test]
fn gradients_are_differences() {
    let batch = lab::batch(&sequences(&[6, 3], 61, 9));
    each(|_, case| {
        let assembly = assemble(&blueprint(case));
        stir(&assembly, 0.3);
        toy::to_f64(&assembly);
        differences(case.part, &assembly, &lab::trainer(1e-2), &batch, case.detached);
    });
}

#[test]
fn saved_and_loaded_is_the_same_to_the_bit() {
    each(|_, case| {
        let assembly = assemble(&blueprint(case));
        stir(&assembly, 0.3);
        let folder = tempfile::tempdir().expect("a folder");
        save_adapter(&assembly, folder.path());
        let adapters = vec![saved_adapter(folder.path())];
        let again = assemble(&Blueprint { adapters, ..lab::fresh_model(config()) });
        let logits = |a: &Assembly| lab::logits(a, &probe(), true);
        same_bits(case.part, &logits(&again), &logits(&assembly));
        let second = tempfile::tempdir().expect("a folder");
        save_adapter(&again, second.path());
        same_files(case.part, folder.path(), second.path());
    });
}

/// Folds every linear and bias and gives the logits of what comes out, or why it cannot be.
fn merged_logits(case: &Case, assembly: &Assembly) -> anyhow::Result<Vec<f32>> {
    if let Some(why) = assembly.adapters[0].adapter.unmergeable() {
        anyhow::bail!(why);
    }
    let plain = assemble(&lab::fresh_model(config()));
    let put = |name: &str, value: Vec<f32>| {
        let param: Arc<Param> = plain.sites.param(name).expect("a parameter").base().clone();
        param.value().update(|x: &mut [f32]| x.copy_from_slice(&value)).expect("f32");
    };
    for name in assembly.sites.param_names() {
        let value = match assembly.sites.folded_norm(name)? {
            Some(folded) => folded,
            None => assembly.sites.param(name)?.active(true).value(),
        };
        put(name, value.to_f32()?);
    }
    for site in assembly.sites.linears() {
        put(&format!("{}.weight", site.path), site.merged(&assembly.sites)?.to_f32()?);
        if let (Some(name), Some(bias)) = (&site.bias, assembly.sites.folded_bias(site)?) {
            put(name, bias.to_f32()?);
        }
    }
    assert_eq!(plain.adapters.len(), 0, "{}", case.part);
    Ok(lab::logits(&plain, &probe(), true))
}

#[test]
fn merged_equals_unmerged_where_declared_and_is_refused_elsewhere() {
    each(|part, case| {
        let assembly = assemble(&blueprint(case));
        stir(&assembly, 0.1);
        // Biases that say something: a fresh model's are zero.
        for site in assembly.sites.linears() {
            if let Some(name) = &site.bias {
                let bias = assembly.sites.param(name).expect("a bias").base().value();
                let fill = |b: &mut [f32]| Rng::new(7).named("suite/bias", name).fill_normal(0, 0.5, b);
                bias.update(fill).expect("f32");
            }
        }
        match merged_logits(case, &assembly) {
            Ok(merged) => {
                assert!(declares(part, Trait::Mergeable), "`{}` merges and does not say so", case.part);
                close(case.part, &merged, &lab::logits(&assembly, &probe(), true), 1e-5);
            }
            Err(e) => assert!(!declares(part, Trait::Mergeable), "`{}` does not merge: {e:#}", case.part),
        }
    });
}

#[test]
fn the_base_stays_what_it_was() {
    let batch = lab::batch(&sequences(&[20, 9, 14], 61, 4));
    each(|_, case| {
        let assembly = assemble(&blueprint(case));
        let frozen = lab::frozen_bits(&assembly);
        let (before, bare) = (lab::trained(&assembly), lab::logits(&assembly, &batch.flat, false));
        lab::train(&assembly, &mut lab::trainer(1e-2), &batch, 3);
        assert!(frozen.len() > 10, "`{}`: the base is there to compare", case.part);
        assert!(frozen == lab::frozen_bits(&assembly), "`{}`: a frozen tensor has moved", case.part);
        same_bits("adapters off", &lab::logits(&assembly, &batch.flat, false), &bare);
        let moved = before.iter().zip(&lab::trained(&assembly)).filter(|(a, b)| a.1 != b.1).count();
        assert_eq!(moved, before.len(), "`{}`: every trainable tensor moves", case.part);
    });
}

#[test]
fn settings_are_complete_and_closed() {
    parts().into_iter().for_each(|(part, _)| suite::settings(part));
}

/// A plan's assembly has the same parameters in the same shapes, and its step runs without numbers.
#[test]
fn shapes_alone_run() {
    let batch = lab::batch(&sequences(&[20, 9, 14], 61, 4));
    for quantizer in [None, Some(lab::part("nf4", json!({ "block_size": 32 })))] {
        each(|_, case| {
            let blueprint = Blueprint { quantizer: quantizer.clone(), ..blueprint(case) };
            let (real, shapes) = (assemble(&blueprint), blueprint.assemble(true).expect("shapes"));
            assert_eq!(listed(&real), listed(&shapes), "`{}`", case.part);
            assert!(shapes.is_shape_only());
            lab::train(&shapes, &mut lab::trainer(1e-2), &batch, 1);
            lab::train(&real, &mut lab::trainer(1e-2), &batch, 1);
        });
    }
}
