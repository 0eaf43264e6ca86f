use std::sync::LazyLock;

use proptest::prelude::*;

use super::*;
use crate::tokenizer_train::BpeTraining;

/// A tokenizer that adds BOS, learned from a little of the tiny text.
pub(crate) fn small() -> &'static Tokenizer {
    static SMALL: LazyLock<Tokenizer> = LazyLock::new(|| {
        let how = BpeTraining {
            vocab_size: 600,
            more_special_tokens: vec!["<|im_start|>".into(), "<|im_end|>".into()],
            ..BpeTraining::default()
        };
        Tokenizer::train_bpe(crate::tiny::text(1, 100_000), &how).unwrap()
    });
    &SMALL
}

#[test]
fn bpe_is_learned_the_same_every_time() {
    let how = BpeTraining { vocab_size: 500, ..BpeTraining::default() };
    let learn = || Tokenizer::train_bpe(crate::tiny::text(1, 60_000), &how).unwrap().to_files().unwrap();
    let first = learn();
    assert_eq!(first, learn());
    let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
    assert_eq!(first, pool.install(learn));
}

/// A long text in pieces has the tokens that it has whole.
#[test]
fn pieces_of_a_text_have_its_tokens() {
    let text: Vec<String> = crate::tiny::text(3, 400_000).collect();
    let text = text.join("\n").replace(". ", ".\n\n  ").replace("lived with", "lived\nwith");
    let chars = Tokenizer::characters(&text).unwrap();
    for (tokenizer, specials) in [(small(), true), (small(), false), (&chars, true)] {
        let pieces = tokenizer.cuts.cut(&text);
        assert!(pieces.len() > 2, "{} pieces of {} bytes", pieces.len(), text.len());
        let whole = tokenizer.inner.encode_fast(&*text, specials).unwrap();
        assert_eq!(tokenizer.encode(&text, specials).unwrap(), whole.get_ids());
    }
}

#[test]
fn bpe_specials_digits_and_size() {
    let t = small();
    assert_eq!(t.vocab_size(), 600);
    // Special tokens come first, ordered by their names in the configuration.
    assert_eq!((t.bos_id(), t.eos_id(), t.pad_id()), (Some(0), Some(1), None));
    let ids = t.encode("Anna has 12 apples.", true).unwrap();
    assert_eq!(ids[0], 0);
    let tokens: Vec<String> = ids.iter().map(|id| t.token(*id).unwrap()).collect();
    assert!(tokens.windows(2).any(|w| w == ["1", "2"]), "{tokens:?}");
    assert_eq!(t.decode(&ids, true).unwrap(), "Anna has 12 apples.");
    assert_eq!(t.encode("a<|im_end|>", false).unwrap().len(), 2);
    let e =
        Tokenizer::train_bpe(std::iter::empty(), &BpeTraining { vocab_size: 100, ..BpeTraining::default() });
    assert_eq!(e.unwrap_err().to_string(), "`vocab_size` is 100; 256 bytes and 2 special tokens need 258");
}

#[test]
fn characters_are_tokens_in_order() {
    let t = Tokenizer::characters("héllo\nwörld").unwrap();
    assert_eq!(t.vocab_size(), 9);
    assert_eq!(t.encode("\nlé", true).unwrap(), [0, 3, 7]);
    assert_eq!(t.decode(&[2, 7, 3, 3, 4], true).unwrap(), "héllo");
    let e = t.encode("hx", false).unwrap_err().to_string();
    assert!(e.contains("no token for the character 'x'"), "{e}");
    assert!(Tokenizer::characters("").is_err());
}

#[test]
fn folders_come_back_as_they_were_saved() {
    let folder = tempfile::tempdir().unwrap();
    let mut t = small().clone();
    t.set_chat_template("{{ bos_token }}{{ messages | length }}");
    t.save(folder.path()).unwrap();
    let back = Tokenizer::from_folder(folder.path()).unwrap();
    assert_eq!(t.to_files().unwrap(), back.to_files().unwrap());
    assert_eq!((back.bos_id(), back.eos_ids()), (t.bos_id(), t.eos_ids()));
    assert_eq!(back.chat_template().unwrap().unwrap().render(&[], None, false).unwrap(), "<s>0");
    let chars = tempfile::tempdir().unwrap();
    let t = Tokenizer::characters("ab \n").unwrap();
    t.save(chars.path()).unwrap();
    let back = Tokenizer::from_folder(chars.path()).unwrap();
    assert_eq!(back.encode("b a\n", true).unwrap(), t.encode("b a\n", true).unwrap());
}

/// A folder's files in memory, with a tokenizer of the smallest kind.
fn load(files: &[(&str, Json)]) -> Result<Tokenizer> {
    let tokenizer = small().to_files()?.swap_remove(0).1;
    Tokenizer::from_files("m", |name| {
        if name == "tokenizer.json" {
            return Ok(Some(tokenizer.clone()));
        }
        let found = files.iter().find(|(n, _)| *n == name);
        Ok(found.map(|(_, j)| j.as_str().map_or_else(|| j.to_string(), str::to_owned).into_bytes()))
    })
}

#[test]
fn special_tokens_from_every_file() {
    let t = load(&[
        ("tokenizer_config.json", json!({"bos_token": {"content": "<s>"}, "eos_token": null})),
        ("special_tokens_map.json", json!({"eos_token": "<|im_end|>", "pad_token": "</s>"})),
        ("generation_config.json", json!({"eos_token_id": [1, 3, 300], "bos_token_id": 9})),
    ])
    .unwrap();
    let im_end = t.id("<|im_end|>").unwrap();
    assert_eq!((t.bos_id(), t.eos_id(), t.pad_id()), (Some(0), Some(im_end), Some(1)));
    assert_eq!(t.eos_ids()[1..], [1, 300], "ids once each");
    let t =
        load(&[("config.json", json!({"eos_token_id": 7, "bos_token_id": 8, "pad_token_id": 9}))]).unwrap();
    assert_eq!((t.bos_id(), t.eos_ids(), t.pad_id()), (Some(8), &[7][..], Some(9)));
}

#[test]
fn chat_templates_from_every_file() {
    let say = |t: &Tokenizer, tools: Option<&Json>| {
        t.chat_template().unwrap().unwrap().render(&[], tools, false).unwrap()
    };
    let listed = json!({"chat_template": [{"name": "default", "template": "one"}, {"name": "tool_use", "template": "two"}]});
    let t = load(&[("tokenizer_config.json", listed.clone())]).unwrap();
    assert_eq!((say(&t, None), say(&t, Some(&json!([])))), ("one".into(), "two".into()));
    // The file of its own wins, and the list survives saving.
    let t = load(&[("tokenizer_config.json", listed), ("chat_template.jinja", json!("three"))]).unwrap();
    assert_eq!((say(&t, None), say(&t, Some(&json!([])))), ("three".into(), "two".into()));
    let files = t.to_files().unwrap();
    assert_eq!(files.iter().find(|f| f.0 == "chat_template.jinja").unwrap().1, b"three");
    let config: Json = serde_json::from_slice(&files[1].1).unwrap();
    assert_eq!(config["chat_template"][1]["template"], "two");
    assert!(load(&[]).unwrap().chat_template().unwrap().is_none());
}

#[test]
fn broken_folders() {
    let folder = tempfile::tempdir().unwrap();
    let e = Tokenizer::from_folder(folder.path()).unwrap_err().to_string();
    assert!(e.starts_with("the folder has no `tokenizer.json`"), "{e}");
    std::fs::write(folder.path().join("tokenizer.json"), "{\"version\": \"1.0\"").unwrap();
    let e = Tokenizer::from_folder(folder.path()).unwrap_err().to_string();
    assert!(e.starts_with("the tokenizer cannot be read") && e.contains("tokenizer.json"), "{e}");
    let e = load(&[("tokenizer_config.json", json!("{\n\n!"))]).unwrap_err().to_string();
    assert!(e.contains("m/tokenizer_config.json:3"), "{e}");
    let e = load(&[("tokenizer_config.json", json!([1]))]).unwrap_err().to_string();
    assert!(e.contains("not a JSON object"), "{e}");
}

proptest! {
    #[test]
    fn any_text_goes_and_comes(text in "\\PC{0,40}") {
        let t = small();
        let ids = t.encode(&text, false).unwrap();
        prop_assert_eq!(t.decode(&ids, false).unwrap(), text.clone());
        let with = t.encode_with_offsets(&text, true).unwrap();
        prop_assert_eq!(&with.ids[1..], &ids[..]);
        prop_assert!(with.offsets.iter().all(|(a, b)| a <= b && *b <= text.len()));
    }

    #[test]
    fn any_file_loads_or_is_an_error(bytes in prop::collection::vec(any::<u8>(), 0..40)) {
        let _ = Tokenizer::from_files("m", |_| Ok(Some(bytes.clone())));
    }
}
