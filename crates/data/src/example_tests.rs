use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::tokenizer::tests::small;

fn prepare(sample: &Sample, options: &Preparation) -> Result<Prepared> {
    Preparer::new(small(), options, std::path::Path::new(".")).unwrap().prepare(sample)
}

fn chatml(more: impl Fn(&mut Preparation)) -> Preparation {
    let mut options = Preparation { template: Some("chatml".to_owned()), ..Preparation::default() };
    more(&mut options);
    options
}

fn pair(prompt: &str, completion: &str) -> Sample {
    Sample::PromptCompletion { prompt: prompt.into(), completion: completion.into() }
}

fn talk() -> Vec<Json> {
    vec![
        json!({"role": "user", "content": "Who is Anna?"}),
        json!({"role": "assistant", "content": "A girl, é."}),
        json!({"role": "user", "content": "And Ben?"}),
        json!({"role": "assistant", "content": "A boy."}),
    ]
}

/// The text of what is trained.
fn trained(example: &Example) -> String {
    let ids: Vec<u32> = example.labels.iter().filter(|l| **l != IGNORED).map(|l| *l as u32).collect();
    small().decode(&ids, false).unwrap()
}

#[test]
fn prompt_and_completion() {
    let p = prepare(&pair("Anna has 4 apples.\nRecord:", " giver: Anna"), &Preparation::default()).unwrap();
    let e = &p.example;
    assert!(!p.prefix_differs && !p.truncated);
    assert_eq!(e.ids[0], small().bos_id().unwrap());
    assert_eq!(e.ids.iter().filter(|id| Some(**id) == small().bos_id()).count(), 1);
    assert_eq!(e.ids.last(), Some(&small().eos_id().unwrap()));
    assert_eq!(trained(e), " giver: Anna</s>");
    assert_eq!(e.labels[..e.prompt_len], vec![IGNORED; e.prompt_len]);
    assert_eq!(e.labels[e.prompt_len], i64::from(e.ids[e.prompt_len]));
    let reference = e.reference.as_ref().unwrap();
    assert_eq!(reference.prompt_ids(small()).unwrap(), e.ids[..e.prompt_len]);
    assert_eq!(reference.completion, " giver: Anna");
    // Everything, when asked for.
    let all = Preparation { completion_only_loss: Some(false), ..Preparation::default() };
    let e = prepare(&pair("Anna has", " 4."), &all).unwrap().example;
    assert_eq!(trained(&e), "<s>Anna has 4.</s>");
    // A border inside a token is noticed.
    assert!(
        prepare(&pair("Anna has 4 apples and gi", "ves"), &Preparation::default()).unwrap().prefix_differs
    );
}

#[test]
fn plain_text() {
    let e = prepare(&Sample::Text("One day.".into()), &Preparation::default()).unwrap().example;
    assert_eq!(trained(&e), "<s>One day.</s>");
    assert_eq!(e.active_tokens(), e.len() - 1);
    let stream = Preparation::default();
    let preparer = Preparer::new(small(), &stream, std::path::Path::new(".")).unwrap().for_stream();
    assert_eq!(trained(&preparer.prepare(&Sample::Text("One day.".into())).unwrap().example), "<s>One day.");
    // A text that ends in the end token already gets no second one.
    let e = prepare(&Sample::Text("One day.</s>".into()), &Preparation::default()).unwrap().example;
    assert_eq!(trained(&e), "<s>One day.</s>");
}

#[test]
fn chats() {
    let chat = Sample::Chat { messages: talk(), tools: None };
    let e = prepare(&chat, &chatml(|_| {})).unwrap().example;
    assert!(trained(&e).starts_with("<|im_start|>user\nWho is"), "no BOS, and all of it: {}", trained(&e));
    assert_eq!(e.reference.as_ref().unwrap().completion, "A boy.");
    assert!(e.reference.unwrap().prompt.ends_with("And Ben?<|im_end|>\n<|im_start|>assistant\n"));
    let e = prepare(&chat, &chatml(|o| o.assistant_only_loss = true)).unwrap().example;
    assert_eq!(trained(&e), "A girl, é.<|im_end|>A boy.<|im_end|>");
    // The same without generation tags, from prefixes; the template's own BOS is the only one.
    let plain = "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";
    let options = chatml(|o| (o.template, o.assistant_only_loss) = (Some(plain.to_owned()), true));
    let e = prepare(&chat, &options).unwrap().example;
    assert_eq!(trained(&e), "A girl, é.<|im_end|>\nA boy.<|im_end|>\n");
    assert_eq!(e.ids.iter().filter(|id| Some(**id) == small().bos_id()).count(), 1);
    let asked = Sample::Chat { messages: talk()[..1].to_vec(), tools: None };
    let err = prepare(&asked, &options).unwrap_err().to_string();
    assert!(err.contains("no token of this chat is the assistant's"), "{err}");
    let err = prepare(&chat, &Preparation::default()).unwrap_err().to_string();
    assert!(err.contains("no chat template") && err.contains("chatml"), "{err}");
}

#[test]
fn chat_prompt_and_completion() {
    let (prompt, completion) = (talk()[..3].to_vec(), talk()[3..].to_vec());
    let sample = Sample::ChatCompletion { prompt, completion, tools: None };
    let p = prepare(&sample, &chatml(|_| {})).unwrap();
    assert!(!p.prefix_differs);
    assert_eq!(trained(&p.example), "A boy.<|im_end|>\n");
    // Both masks together.
    let e = prepare(&sample, &chatml(|o| o.assistant_only_loss = true)).unwrap().example;
    assert_eq!(trained(&e), "A boy.<|im_end|>");
    let e =
        prepare(&sample, &chatml(|o| (o.assistant_only_loss, o.completion_only_loss) = (true, Some(false))))
            .unwrap()
            .example;
    assert_eq!(trained(&e), "A girl, é.<|im_end|>A boy.<|im_end|>");
}

#[test]
fn truncation_keeps_an_end() {
    let sample = pair("Anna has 4 red apples.", " One two three four.");
    let whole = prepare(&sample, &Preparation::default()).unwrap().example;
    let limit = whole.prompt_len + 2;
    let p = prepare(&sample, &Preparation { max_length: limit, ..Preparation::default() }).unwrap();
    assert!(p.truncated);
    assert_eq!(p.example.ids, whole.ids[..limit]);
    assert_eq!(p.example.active_tokens(), 2);
    let end =
        Preparation { max_length: limit, truncation_mode: Truncation::KeepEnd, ..Preparation::default() };
    let p = prepare(&sample, &end).unwrap().example;
    assert_eq!(p.ids, whole.ids[whole.len() - limit..]);
    assert_eq!(p.labels, whole.labels[whole.len() - limit..]);
    assert_eq!(p.prompt_len, whole.prompt_len - (whole.len() - limit));
    // Nothing but prompt is left.
    let p =
        prepare(&sample, &Preparation { max_length: whole.prompt_len, ..Preparation::default() }).unwrap();
    assert_eq!(p.example.active_tokens(), 0);
}

#[test]
fn options_that_do_not_fit_the_data() {
    let only = Preparation { completion_only_loss: Some(true), ..Preparation::default() };
    assert!(
        prepare(&Sample::Text("a".into()), &only)
            .unwrap_err()
            .to_string()
            .contains("no prompt and completion")
    );
    let assistant = Preparation { assistant_only_loss: true, ..Preparation::default() };
    assert!(prepare(&pair("a", "b"), &assistant).unwrap_err().to_string().contains("no chat"));
}

proptest! {
    #[test]
    fn completions_are_what_is_trained(prompt in "[A-Za-z0-9 .é]{0,20}", completion in "\\PC{0,20}") {
        // A prompt that ends where a token ends; otherwise the border is the tokenizer's business.
        let prompt = format!("{prompt}\n");
        let p = prepare(&pair(&prompt, &completion), &Preparation::default()).unwrap();
        let e = &p.example;
        prop_assert_eq!(e.ids.len(), e.labels.len());
        prop_assert!(e.ids.iter().zip(&e.labels).all(|(id, l)| *l == IGNORED || *l == i64::from(*id)));
        if !p.prefix_differs {
            prop_assert_eq!(trained(e), format!("{completion}</s>"));
        }
    }
}
