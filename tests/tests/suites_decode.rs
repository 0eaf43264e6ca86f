//! What every registered decoder must do, whatever it is. A part without an entry in the table fails.
//!
//! The cache changes nothing, prompts do not see each other, ends are kept, every token is told once, the
//! same seed gives the same tokens, shapes suffice for a plan, and those that shall be greedy are.

use ramekin_core::{Meter, Rng, meter};
use ramekin_engine::assembly::Assembly;
use ramekin_engine::blueprint::Blueprint;
use ramekin_engine::generation::{Generated, Generator, Limits};
use ramekin_engine::parts;
use ramekin_kernels::sampling::Filters;
use ramekin_recipe::Part;
use ramekin_registry::Slot;
use ramekin_slots::FlatBatch;
use ramekin_tests::lab::{self, assemble, part, sequences};
use serde_json::{Value as Json, json};

/// How a decoder is tried.
struct Case {
    kind: &'static str,
    settings: Json,
    /// Whether it takes what plain greedy decoding takes.
    greedy: bool,
    /// Whether it draws tokens.
    draws: bool,
}

const V: usize = 61;

fn cases() -> Vec<Case> {
    let model = json!({ "source": "the tests put it there" });
    let case = |kind, settings, greedy, draws| Case { kind, settings, greedy, draws };
    vec![
        case("greedy", json!({}), true, false),
        case("greedy", json!({ "repetition_penalty": 1.5 }), false, false),
        case("sample", json!({ "temperature": 0.8, "top_k": 20, "top_p": 0.9 }), false, true),
        case("beam", json!({ "num_beams": 1 }), true, false),
        case("beam", json!({ "num_beams": 3, "early_stopping": true }), false, false),
        case(
            "beam",
            json!({ "num_beams": 3, "early_stopping": "never", "length_penalty": 2.0 }),
            false,
            false,
        ),
        case("speculative", json!({ "assistant_model": model }), true, false),
        case("speculative", json!({ "assistant_model": model, "num_assistant_tokens": 1 }), true, false),
        case(
            "speculative",
            json!({ "assistant_model": model, "do_sample": true, "top_p": 0.9 }),
            false,
            true,
        ),
        case(
            "emulated-tuning",
            json!({ "tuned": [model], "weights": [0.0], "temperature": 0.0 }),
            true,
            false,
        ),
        case(
            "emulated-tuning",
            json!({ "tuned": [model], "tuned_base": model, "temperature": 0.0 }),
            false,
            false,
        ),
        case(
            "emulated-tuning",
            json!({ "tuned": [model, model], "weights": [0.5, 0.7], "tuned_base": model, "delta_top_p": 0.9,
                    "draft_tokens": 3, "drafter": 1, "temperature": 0.0 }),
            false,
            false,
        ),
        case(
            "emulated-tuning",
            json!({ "tuned": [model], "tuned_base": model, "draft_tokens": 2, "temperature": 0.7 }),
            false,
            true,
        ),
    ]
}

/// A small model of its own seed.
fn small(seed: u64, shape_only: bool) -> Assembly {
    let plan = Blueprint { seed, ..lab::fresh_model(lab::small_llama()) };
    if shape_only { plan.assemble(true).expect("shapes") } else { assemble(&plan) }
}

/// The model in work with every model that the decoder names beside it.
fn set_up(case: &Case, shape_only: bool) -> Assembly {
    let mut assembly = small(5, shape_only);
    let decoder = parts::decoder(&part(case.kind, case.settings.clone())).expect("a decoder");
    for (i, (name, _)) in decoder.models().into_iter().enumerate() {
        assembly.companions.insert(name, small(6 + i as u64, shape_only));
    }
    assembly
}

struct How {
    cache: bool,
    seed: u64,
    longest: usize,
    eos: Vec<u32>,
}

impl Default for How {
    fn default() -> Self {
        How { cache: true, seed: 3, longest: 12, eos: Vec::new() }
    }
}

fn run(case: &Case, assembly: &Assembly, prompts: &[Vec<u32>], how: &How) -> (Generated, Vec<(usize, u32)>) {
    let decoder = parts::decoder(&part(case.kind, case.settings.clone())).expect("a decoder");
    let kv = parts::kv(&Part::of("full")).expect("full");
    let kv = how.cache.then_some(&*kv);
    let generator = Generator { assembly, decoder: &*decoder, kv, rng: Rng::new(how.seed), adapters: true };
    let limits = Limits { max_new_tokens: how.longest, eos: &how.eos };
    let mut told = Vec::new();
    let made = generator.run(prompts, &limits, &mut |line, id| told.push((line, id)));
    (made.unwrap_or_else(|e| panic!("{} {}: {e:#}", case.kind, case.settings)), told)
}

fn prompts() -> Vec<Vec<u32>> {
    sequences(&[5, 1, 9], V, 1)
}

#[test]
fn every_decoder_is_in_the_table() {
    ramekin_catalog::link();
    let known: Vec<&str> = cases().iter().map(|c| c.kind).collect();
    let names = ramekin_registry::names(Slot::Decode);
    assert!(names.len() >= 5, "{names:?}");
    for name in names {
        assert!(known.contains(&name), "`{name}` has no entry in this suite's table");
    }
}

#[test]
fn schemas_take_the_default_and_refuse_the_unknown() {
    ramekin_catalog::link();
    for name in ramekin_registry::names(Slot::Decode) {
        let full = ramekin_registry::complete(Slot::Decode, name, json!({})).expect("defaults");
        assert!(parts::any_decoder(&part(name, full)).is_ok(), "{name}");
        let unknown = parts::any_decoder(&part(name, json!({ "no_such_setting": 1 })));
        let said = unknown.err().map(|e| format!("{e:#}")).unwrap_or_default();
        assert!(said.contains("no_such_setting"), "{name}: {said}");
    }
}

#[test]
fn caches_change_nothing_and_every_token_is_told() {
    for case in cases() {
        let assembly = set_up(&case, false);
        let (cached, told) = run(&case, &assembly, &prompts(), &How::default());
        let (plain, _) = run(&case, &assembly, &prompts(), &How { cache: false, ..How::default() });
        assert_eq!(cached.ids, plain.ids, "{} {}", case.kind, case.settings);
        for (i, (ids, prompt)) in cached.ids.iter().zip(prompts()).enumerate() {
            assert_eq!(ids.len(), prompt.len() + 12, "{}", case.kind);
            assert_eq!(ids[..prompt.len()], prompt);
            let own: Vec<u32> = told.iter().filter(|t| t.0 == i).map(|t| t.1).collect();
            assert_eq!(own, ids[prompt.len()..], "{}: what was told", case.kind);
        }
    }
}

#[test]
fn prompts_do_not_see_each_other_and_seeds_decide() {
    for case in cases() {
        let assembly = set_up(&case, false);
        let (together, _) = run(&case, &assembly, &prompts(), &How::default());
        let (again, _) = run(&case, &assembly, &prompts(), &How::default());
        assert_eq!(together.ids, again.ids, "{}: the same seed", case.kind);
        // Draws belong to a prompt's number, so the first alone must be the first among others.
        let (alone, _) = run(&case, &assembly, &prompts()[..1], &How::default());
        assert_eq!(together.ids[0], alone.ids[0], "{} {}", case.kind, case.settings);
        let (other, _) = run(&case, &assembly, &prompts(), &How { seed: 4, ..How::default() });
        assert_eq!(together.ids != other.ids, case.draws, "{}: another seed", case.kind);
    }
}

#[test]
fn ends_are_kept_and_end_a_sequence() {
    for case in cases() {
        let assembly = set_up(&case, false);
        let (free, _) = run(&case, &assembly, &prompts(), &How::default());
        // A token that the second prompt's text has in its middle.
        let end = free.ids[1][1 + 4];
        let (ended, _) = run(&case, &assembly, &prompts(), &How { eos: vec![end], ..How::default() });
        for (ids, prompt) in ended.ids.iter().zip(prompts()) {
            let new = &ids[prompt.len()..];
            let at = new.iter().position(|id| *id == end);
            assert!(at.map_or(new.len() == 12, |at| at + 1 == new.len()), "{}: {new:?}", case.kind);
        }
        if case.kind != "beam" {
            for (ended, free) in ended.ids.iter().zip(&free.ids) {
                assert!(free.starts_with(ended), "{}: an end changes what comes before it", case.kind);
            }
        }
        let (one, _) = run(&case, &assembly, &prompts(), &How { longest: 1, ..How::default() });
        assert!(one.ids.iter().zip(prompts()).all(|(ids, p)| ids.len() == p.len() + 1), "{}", case.kind);
    }
}

#[test]
fn greedy_ones_are_greedy() {
    let plain = Case { kind: "greedy", settings: json!({}), greedy: true, draws: false };
    let how = How { longest: 40, ..How::default() };
    let (expected, _) = run(&plain, &small(5, false), &prompts(), &how);
    for case in cases().into_iter().filter(|c| c.greedy) {
        let (found, _) = run(&case, &set_up(&case, false), &prompts(), &how);
        assert_eq!(found.ids, expected.ids, "{} {}", case.kind, case.settings);
    }
}

#[test]
fn shapes_suffice_for_a_plan() {
    for case in cases() {
        // What is held while running is at most what was planned.
        let peak = |shape_only: bool| {
            let meter = Meter::new();
            let _scope = meter::scope(meter.clone());
            let assembly = set_up(&case, shape_only);
            run(&case, &assembly, &prompts(), &How::default());
            meter.peak()
        };
        let (planned, measured) = (peak(true), peak(false));
        println!("{}: planned {planned}, measured {measured}", case.kind);
        assert!(measured <= planned, "{} {}: {measured} above {planned}", case.kind, case.settings);
    }
}

#[test]
fn drafts_that_agree_are_all_accepted() {
    let settings = json!({ "assistant_model": { "source": "itself" }, "num_assistant_tokens": 4 });
    let case = Case { kind: "speculative", settings, greedy: true, draws: false };
    let mut assembly = small(5, false);
    assembly.companions.insert("assistant_model".to_owned(), small(5, false));
    let (made, _) = run(&case, &assembly, &prompts(), &How { longest: 20, ..How::default() });
    assert_eq!(made.figures[0], ("acceptance_rate", 1.0));
    // Rounds of four drafts and one more.
    assert_eq!(made.figures[1], ("tokens_per_pass", 15.0));
    let other = set_up(&case, false);
    let (made, _) = run(&case, &other, &prompts(), &How { longest: 20, ..How::default() });
    assert!(made.figures[0].1 < 0.9, "{:?}", made.figures);
}

/// The distribution over two tokens, of `sample` and of `speculative` sampling alike.
#[test]
fn speculative_sampling_keeps_the_distribution() {
    let tiny = |seed| {
        let mut config = lab::small_llama();
        for (key, value) in
            [("vocab_size", 6), ("hidden_size", 8), ("intermediate_size", 12), ("num_hidden_layers", 1)]
        {
            config[key] = json!(value);
        }
        config["num_attention_heads"] = json!(1);
        config["num_key_value_heads"] = json!(1);
        config["initializer_range"] = json!(0.6);
        assemble(&Blueprint { seed, ..lab::fresh_model(config) })
    };
    let mut assembly = tiny(1);
    assembly.companions.insert("assistant_model".to_owned(), tiny(2));
    let filters = Filters { temperature: 0.9, top_p: 0.95, ..Filters::default() };
    let settings = json!({ "assistant_model": { "source": "itself" }, "num_assistant_tokens": 2, "do_sample": true,
                           "temperature": 0.9, "top_p": 0.95 });
    let case = Case { kind: "speculative", settings, greedy: false, draws: true };
    let p = |ids: &[u32]| {
        let z = lab::logits(&assembly, &FlatBatch::new(&[ids.to_vec()]), true);
        filters.distribution(z[z.len() - 6..].iter().map(|z| f64::from(*z)))
    };
    let prompt = vec![1, 4, 2];
    let first = p(&prompt);
    let mut counts = vec![0.0; 36];
    let (lanes, runs) = (2000, 20);
    for seed in 0..runs {
        let how = How { seed, longest: 2, ..How::default() };
        let (made, _) = run(&case, &assembly, &vec![prompt.clone(); lanes], &how);
        for ids in made.ids {
            counts[(ids[3] * 6 + ids[4]) as usize] += 1.0;
        }
    }
    let n = lanes as f64 * runs as f64;
    for a in 0..6u32 {
        let second = p(&[prompt.clone(), vec![a]].concat());
        for b in 0..6u32 {
            let wanted = first[a as usize] * second[b as usize];
            let off = (counts[(a * 6 + b) as usize] / n - wanted).abs();
            assert!(
                off <= 4.0 * (wanted * (1.0 - wanted) / n).sqrt(),
                "{a} {b}: off by {off:.1e} of {wanted:.3}"
            );
        }
    }
}
