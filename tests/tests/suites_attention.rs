//! What every part that decides what tokens see must hold, for every registered one: a part without a line
//! in [`table`] fails.
//!
//! * the logits are those of the part's own words: of a masked attention, token by token
//! * with room for the whole text they are the plain model's, to the bit
//! * decoding with a cache gives what one pass gives
//! * shapes suffice, the schema takes its own defaults' form and refuses what it does not know

use ramekin_engine::assembly::Assembly;
use ramekin_engine::blueprint::Blueprint;
use ramekin_engine::parts;
use ramekin_registry::Slot;
use ramekin_slots::FlatBatch;
use ramekin_tape::ops::Reach;
use ramekin_tests::compare::{close, same_bits};
use ramekin_tests::decoding::{Session, shape};
use ramekin_tests::kitchen::cook;
use ramekin_tests::lab::{self, assemble, part, sequences};
use serde_json::{Value as Json, json};

/// A part's line: settings that see less than the text, and settings that see all of it.
struct Line {
    kind: &'static str,
    narrow: Json,
    wide: Json,
    /// Whether query i of a text sees key j ≤ i, under `narrow` in block 0.
    sees: fn(usize, usize) -> bool,
}

fn table() -> Vec<Line> {
    let line = |kind, narrow, wide, sees| Line { kind, narrow, wide, sees };
    vec![
        line("full", json!({}), json!({}), |_, _| true),
        line("window", json!({ "window": 5 }), json!({ "window": 64 }), |i, j| i - j < 5),
        line("block-diagonal", json!({ "block_size": 5 }), json!({ "block_size": 64 }), |i, j| {
            i / 5 == j / 5
        }),
    ]
}

fn model(kind: Option<(&str, &Json)>, blocks: usize) -> Assembly {
    let mut config = lab::small_llama();
    config["num_hidden_layers"] = json!(blocks);
    let plan = lab::fresh_model(config);
    let attention = kind.map(|(kind, settings)| part(kind, settings.clone()));
    assemble(&Blueprint { attention, ..plan })
}

fn texts() -> Vec<Vec<u32>> {
    sequences(&[23, 9, 16], 61, 3)
}

#[test]
fn every_attention_is_in_the_table() {
    ramekin_catalog::link();
    for name in ramekin_registry::names(Slot::Attention) {
        assert!(table().iter().any(|l| l.kind == name), "`{name}` has no line in this suite's table");
    }
}

#[test]
fn schemas_take_their_own_and_refuse_the_unknown() {
    ramekin_catalog::link();
    for line in table() {
        let full = ramekin_registry::complete(Slot::Attention, line.kind, line.narrow).expect("settings");
        assert!(parts::attention(&part(line.kind, full)).is_ok(), "{}", line.kind);
        let unknown = parts::attention(&part(line.kind, json!({ "no_such_setting": 1 })));
        let said = unknown.err().map(|e| format!("{e:#}")).unwrap_or_default();
        assert!(said.contains("no_such_setting"), "{}: {said}", line.kind);
    }
    for (kind, setting) in [("window", "window"), ("block-diagonal", "block_size")] {
        for settings in [json!({}), json!({ setting: 0 })] {
            let said = parts::attention(&part(kind, settings)).err().map(|e| format!("{e:#}"));
            assert!(said.as_ref().is_some_and(|s| s.contains(setting)), "{kind}: {said:?}");
        }
    }
}

/// What a token may see decides its logits: another token in reach moves them, one out of reach leaves
/// their bits. One block, so that reach does not grow by depth.
#[test]
fn tokens_out_of_reach_change_nothing() {
    for line in table() {
        let model = model(Some((line.kind, &line.narrow)), 1);
        let text = sequences(&[23], 61, 3);
        let of = |text: &[Vec<u32>]| lab::logits(&model, &FlatBatch::new(text), true);
        let plain = of(&text);
        for j in 0..23 {
            let mut other = text.clone();
            other[0][j] = (other[0][j] + 1) % 61;
            let moved = of(&other);
            for i in j..23 {
                let row = |z: &[f32]| z[i * 61..(i + 1) * 61].to_vec();
                let same = row(&plain) == row(&moved);
                assert_eq!(same, !(line.sees)(i, j), "{}: token {i} and token {j}", line.kind);
            }
        }
    }
}

#[test]
fn with_room_for_everything_it_is_the_plain_model() {
    let batch = FlatBatch::new(&texts());
    let plain = lab::logits(&model(None, 2), &batch, true);
    for line in table() {
        let logits = lab::logits(&model(Some((line.kind, &line.wide)), 2), &batch, true);
        same_bits(line.kind, &logits, &plain);
    }
}

#[test]
fn decoding_with_a_cache_gives_what_one_pass_gives() {
    for line in table() {
        let model = model(Some((line.kind, &line.narrow)), 2);
        let whole = lab::logits(&model, &FlatBatch::new(&texts()), true);
        let cache = parts::kv(&part("full", json!({}))).expect("a cache");
        let mut session = Session::new(&model, &*cache, shape(&model, 1, 7, 16));
        let text = &texts()[0];
        let mut found = session.feed(&[text[..7].to_vec()]).remove(0);
        for token in &text[7..] {
            found.extend(session.feed(&[vec![*token]]).remove(0));
        }
        close(line.kind, &found, &whole[..23 * 61], 1e-5);
    }
}

/// A mistral under `full` forgets its window; under `window` a llama is the mistral.
#[test]
fn the_config_gives_way() {
    let mut mistral = lab::small_llama();
    mistral["model_type"] = json!("mistral");
    mistral["architectures"] = json!(["MistralForCausalLM"]);
    mistral["sliding_window"] = json!(6);
    let batch = FlatBatch::new(&texts());
    let of = |config: Json, attention: Option<(&str, Json)>| {
        let attention = attention.map(|(kind, settings)| part(kind, settings));
        lab::logits(&assemble(&Blueprint { attention, ..lab::fresh_model(config) }), &batch, true)
    };
    let llama = of(lab::small_llama(), None);
    let own = of(mistral.clone(), None);
    assert!(llama != own, "the window shows");
    same_bits("the config gives way", &of(mistral.clone(), Some(("full", json!({})))), &llama);
    same_bits(
        "the config gives way",
        &of(lab::small_llama(), Some(("window", json!({ "window": 6 })))),
        &own,
    );
    // Blocks that keep what the config says.
    let window = |n: usize| Some(("window", json!({ "window": 6, "max_window_layers": n })));
    same_bits("the config gives way", &of(lab::small_llama(), window(2)), &llama);
    let chunks = |n: usize| Some(("block-diagonal", json!({ "block_size": 6, "full_every": n })));
    same_bits("the config gives way", &of(lab::small_llama(), chunks(1)), &llama);
    let half = assemble(&Blueprint {
        attention: chunks(2).map(|(kind, settings)| part(kind, settings)),
        ..lab::fresh_model(lab::small_llama())
    });
    assert_eq!(half.model.facts().reach, [Reach::chunk(6), Reach::ALL]);
}

/// What drops entries by itself is refused beside an attention that forgets, naming both.
#[test]
fn caches_that_drop_are_refused() {
    let model = model(Some(("block-diagonal", &json!({ "block_size": 8 }))), 2);
    let cache = parts::kv(&part("snapkv", json!({}))).expect("a policy");
    let refused = cache.check(model.model.facts(), shape(&model, 1, 16, 8)).err().map(|e| format!("{e:#}"));
    assert!(refused.as_ref().is_some_and(|s| s.contains("snapkv")), "{refused:?}");
}

/// A model or an adapter that trained under a rule is under it wherever it is loaded, merged and saved again, unless a
/// recipe says otherwise.
#[test]
fn what_was_trained_remembers_what_it_saw() {
    let recipe = |more: &str| {
        format!(
            r#"
seed = 1
model = {{ source = "builtin:tiny" }}

[[stage]]
kind = "train"
steps = 2
attention = {{ kind = "window", window = 7 }}
data = {{ kind = "builtin", name = "records", rows = 32, max_length = 64 }}
{more}
"#
        )
    };
    let sees = |plan: Blueprint| assemble(&plan).model.facts().reach[0];
    let reach = |kind: &str, settings: Json| {
        let attention = Some(part(kind, settings));
        sees(Blueprint { attention, ..lab::fresh_model(lab::small_llama()) })
    };
    let (window, wider) = (reach("window", json!({ "window": 7 })), reach("window", json!({ "window": 9 })));
    assert_ne!(window, wider);
    let whole = cook(&recipe(""));
    let model = lab::folder_model(&whole.out("model"));
    assert_eq!(sees(model.clone()), window);
    assert_eq!(sees(Blueprint { attention: Some(part("window", json!({ "window": 9 }))), ..model }), wider);

    let lora = "adapter = [{ kind = \"lora\", r = 2, target_modules = [\"q_proj\"] }]\n\n[[stage]]\nkind = \"merge\"\n";
    let tuned = cook(&recipe(lora));
    let base = lab::folder_model(&whole.out("model"));
    let plain = Blueprint { attention: Some(part("full", json!({}))), ..base.clone() };
    let adapted =
        |plan: Blueprint| Blueprint { adapters: vec![lab::saved_adapter(&tuned.out("adapter"))], ..plan };
    assert_ne!(sees(plain.clone()), window);
    assert_eq!(sees(adapted(base)), window);
    assert_ne!(sees(adapted(plain)), window, "the recipe's word counts");
    assert_eq!(sees(lab::folder_model(&tuned.out("model"))), window, "merged");
}
