use proptest::prelude::*;
use serde_json::json;

use super::*;

fn template(source: &str) -> ChatTemplate {
    let specials = BTreeMap::from([
        ("bos_token".to_owned(), "<s>".to_owned()),
        ("eos_token".to_owned(), "</s>".to_owned()),
    ]);
    ChatTemplate::at("t.jinja", source, &specials, 1_721_952_000).unwrap()
}

fn render(source: &str, messages: Json) -> String {
    template(source).render(messages.as_array().unwrap(), None, false).unwrap()
}

fn spans(source: &str, messages: &Json) -> Vec<String> {
    let r = template(source).render_with_assistant(messages.as_array().unwrap(), None).unwrap();
    r.assistant.iter().map(|s| r.text[s.clone()].to_owned()).collect()
}

fn talk() -> Json {
    json!([
        {"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"},
        {"role": "user", "content": "who?"}, {"role": "assistant", "content": "me, é"}
    ])
}

#[test]
fn hugging_face_semantics() {
    // Block tags on lines of their own leave no trace.
    assert_eq!(
        render(
            "{%- for m in messages %}\n  {% if m.role == 'user' %}\nU:{{ m.content }}\n  {% endif %}\n{% endfor %}",
            talk()
        ),
        "U:hi\nU:who?\n"
    );
    assert_eq!(render("{{ bos_token }}{{ messages[-1]['content'].strip().upper() }}", talk()), "<s>ME, É");
    assert_eq!(
        render(
            "{% for m in messages %}{% if loop.index0 == 1 %}{% continue %}{% endif %}{% if loop.last %}{% break %}{% endif %}{{ m.role }}{% endfor %}",
            talk()
        ),
        "useruser"
    );
    assert_eq!(
        render("{{ messages[0] | tojson }}", json!([{"role": "user", "content": "<é> & 'x'"}])),
        r#"{"role": "user", "content": "<é> & 'x'"}"#
    );
    assert_eq!(
        render("{{ messages[0] | tojson(indent=2) }}", json!([{"role": "user"}])),
        "{\n  \"role\": \"user\"\n}"
    );
    assert_eq!(
        render("{{ none }} {{ true }} {{ missing }} {{ 1.0 }} {{ ['a', 1] }}", json!([])),
        "None True  1.0 ['a', 1]"
    );
    assert_eq!(render("{{ strftime_now('%d %b %Y') }}", json!([])), "26 Jul 2024");
    assert_eq!(
        render(
            "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
            talk()
        ),
        "4"
    );
    assert_eq!(render("{% macro f(x) %}[{{ x }}]{% endmacro %}{{ f(messages | length) }}", talk()), "[4]");
    assert_eq!(
        render(
            "{% if tools is none and documents is none and tools is not defined %}no{% else %}yes{% endif %}",
            json!([])
        ),
        "yes"
    );
    assert_eq!(
        render(
            "{% for k, v in messages[0].items() %}{{ k }}={{ v }};{% endfor %}",
            json!([{"role": "r", "a": 1}])
        ),
        "role=r;a=1;"
    );
}

#[test]
fn none_is_no_list_and_text_is_one() {
    let source = "{% for v in [none, 'a', ['a'], {'a': 1}, 5, missing] %}{{ v is iterable }},{{ v is sequence }} {% endfor %}";
    assert_eq!(render(source, json!([])), "False,False True,True True,True True,True False,False True,True ");
}

#[test]
fn generation_marks_the_assistant() {
    let source = "{% for m in messages %}\n{% if m.role == 'assistant' %}\nA: {% generation %}{{ m.content }}{{ eos_token }}{% endgeneration %}\n\n{% else %}\nU: {{ m.content }}\n{% endif %}\n{% endfor %}";
    assert_eq!(spans(source, &talk()), ["hello</s>", "me, é</s>"]);
    assert_eq!(render(source, talk()), "U: hi\nA: hello</s>\nU: who?\nA: me, é</s>\n");
    // On a line of its own the tag leaves no trace, and what is set inside stays inside.
    let lines = "{% set x = 'out' %}\n{% for m in messages %}\n  {% generation %}\n{% set x = 'in' %}\n{{ m.content }}\n  {% endgeneration %}\n{% endfor %}\n{{ x }}";
    assert_eq!(render(lines, json!([{"content": "a"}, {"content": "b"}])), "a\nb\nout");
    assert_eq!(render("a {%- generation -%} b {%- endgeneration -%} c", json!([])), "abc");
    // A message that holds a marker of ours is text like any other.
    let marker = "\u{fdd0}0\u{fdd1}";
    assert_eq!(spans(source, &json!([{"role": "assistant", "content": marker}])), [format!("{marker}</s>")]);
}

#[test]
fn spans_without_generation_come_from_prefixes() {
    let source = "{{ bos_token }}{% for m in messages %}<{{ m.role }}>{{ m.content }}</>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}";
    assert_eq!(spans(source, &talk()), ["hello</>", "me, é</>"]);
    let two = json!([{"role": "assistant", "content": "a"}, {"role": "assistant", "content": "b"}]);
    assert_eq!(spans(source, &two), ["a</>", "b</>"]);
    // A template that drops earlier answers cannot be read this way, and says so by name.
    let dropping = "{% for m in messages %}{{ m.role }}:{% if loop.last or m.role == 'user' %}{{ m.content }}{% endif %};{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}";
    let e =
        template(dropping).render_with_assistant(talk().as_array().unwrap(), None).unwrap_err().to_string();
    assert!(e.contains("t.jinja") && e.contains("cannot be told apart") && e.contains("generation"), "{e}");
}

#[test]
fn errors_name_the_template() {
    let e = template("{{ raise_exception('roles must alternate') }}").render(&[], None, false).unwrap_err();
    assert_eq!(e.to_string(), "the chat template `t.jinja` refuses the chat: roles must alternate");
    let e = template("\n{{ messages[0].a.b }}").render(&[], None, false).unwrap_err().to_string();
    assert!(e.starts_with("the chat template `t.jinja` fails in line 2: undefined value"), "{e}");
    let e = ChatTemplate::new("t.jinja", "{% if %}", &BTreeMap::new()).unwrap_err().to_string();
    assert!(e.contains("does not parse") && e.contains("--> t.jinja:1"), "{e}");
    // Endless work ends.
    let e = template("{% for i in range(10000) %}{% for j in range(10000) %}{% endfor %}{% endfor %}")
        .render(&[], None, false);
    assert!(e.unwrap_err().to_string().contains("fuel"));
    let e = template(
        "{% set ns = namespace(x='ab') %}{% for i in range(9999) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    )
    .render(&[], None, false);
    assert!(e.unwrap_err().to_string().contains("fuel"));
}

#[test]
fn a_template_for_tools_is_used_with_tools() {
    let t = template("plain").with_tools(template("{{ tools[0].name }}"));
    assert_eq!(t.render(&[], None, false).unwrap(), "plain");
    assert_eq!(t.render(&[], Some(&json!([{"name": "f"}])), false).unwrap(), "f");
}

#[test]
fn chatml() {
    let t = ChatTemplate::new("chatml", CHATML, &BTreeMap::new()).unwrap();
    let r = t.render_with_assistant(&talk().as_array().unwrap()[..2], None).unwrap();
    assert_eq!(r.text, "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nhello<|im_end|>\n");
    assert_eq!(&r.text[r.assistant[0].clone()], "hello<|im_end|>");
    let asked = t.render(&talk().as_array().unwrap()[..1], None, true).unwrap();
    assert!(asked.ends_with("<|im_start|>assistant\n"));
}

proptest! {
    #[test]
    fn any_template_ends_without_panic(source in r"(\{%[- ](if|for|set|macro|generation|endgeneration|endfor|endif|else|break|raw|endraw) [a-z=0-9 ]{0,8}%\}|\{\{ [a-z.|()\[\]'0-9~+*-]{0,16} \}\}|[a-z \n]|\{#|#\}|\{\{|%\}){0,14}") {
        if let Ok(t) = ChatTemplate::new("p", &source, &BTreeMap::new()) {
            let talk = talk();
            let _ = t.render(talk.as_array().unwrap(), None, true);
            if let Ok(r) = t.render_with_assistant(talk.as_array().unwrap(), None) {
                for s in &r.assistant {
                    prop_assert!(r.text.get(s.clone()).is_some());
                }
            }
        }
    }

    #[test]
    fn any_message_content_is_marked_exactly(content in "\\PC{0,12}") {
        let talk = json!([{"role": "user", "content": content.clone()}, {"role": "assistant", "content": content.clone()}]);
        let source = "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}.{% endgeneration %}{% else %}{{ m.content }}{% endif %}{% endfor %}";
        prop_assert_eq!(spans(source, &talk), [format!("{content}.")]);
    }
}
