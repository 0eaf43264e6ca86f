//! What good recipes mean, how they are written out, and the schema.

mod support;

use std::path::Path;

use proptest::prelude::*;
use ramekin_recipe::{Adapter, Bytes, Doc, Dtype, Recipe, Stage, Tokenizer, TokenizerKind, resolved, schema};
use serde_json::{Value as Json, json};

fn read(text: &str, overrides: &[&str]) -> Recipe {
    support::read("folder/my run.toml", text, overrides).unwrap_or_else(|e| panic!("{e}")).1
}

#[test]
fn the_whole_recipe_written_out() {
    let (_, recipe) = support::read("r.toml", support::WHOLE, &[]).unwrap();
    let text = resolved(&recipe);
    insta::assert_snapshot!("resolved", text);
    let (_, again) = support::read("other.toml", &text, &[]).unwrap();
    assert_eq!(again, recipe);
    assert_eq!(resolved(&again), text);
}

#[test]
fn defaults() {
    let recipe = read(
        "model.source = 'builtin:tiny'\n[[stage]]\nkind = 'train'\nsteps = 3\ndata = { kind = 'jsonl', path = 'd' }",
        &[],
    );
    assert_eq!((recipe.name.as_str(), recipe.seed, recipe.memory.budget), ("my run", 0, None));
    let Stage::Train(s) = &recipe.stage[0] else { panic!() };
    let kinds = [&s.optimizer, &s.schedule, &s.objective, &s.activation].map(|part| part.kind.as_str());
    assert_eq!(kinds, ["adamw", "constant", "sft", "keep"]);
    assert_eq!(s.optimizer.path, "stage.0.optimizer");
    assert_eq!((s.max_grad_norm, s.log_every, s.audit, s.checkpoint.keep), (1.0, 1, true, 2));
    assert_eq!((s.batch.micro_batch_size, s.batch.gradient_accumulation_steps), (8, Some(1)));
}

#[test]
fn aliases_have_canonical_names() {
    let text =
        "model.source = 'builtin:tiny'\n[[stage]]\nkind = 'train'\nnum_train_epochs = 2\nlogging_steps = 5
data = { kind = 'jsonl', path = 'd' }\neval = { data = 'e', eval_steps = 7 }
batch = { per_device_train_batch_size = 3 }\ncheckpoint = { save_steps = 9, save_total_limit = 4 }
optimizer = { kind = 'adamw', learning_rate = 1 }";
    let recipe = read(text, &[]);
    let Stage::Train(s) = &recipe.stage[0] else { panic!() };
    assert_eq!((s.epochs, s.log_every, s.batch.micro_batch_size), (Some(2.0), 5, 3));
    assert_eq!((s.checkpoint.every, s.checkpoint.keep), (Some(9), 4));
    assert_eq!(s.eval.as_ref().unwrap().every, Some(7));
    assert_eq!(s.optimizer.settings["lr"], json!(1.0));
    let written = resolved(&recipe);
    for alias in
        ["num_train_epochs", "logging_steps", "per_device", "save_steps", "save_total", "learning_rate"]
    {
        assert!(!written.contains(alias), "{alias}");
    }
}

#[test]
fn lists_of_one_saved_adapters_and_eval_paths() {
    let recipe = read(support::WHOLE, &[]);
    let Stage::Train(train) = &recipe.stage[0] else { panic!() };
    assert_eq!(train.gradient[0].path, "stage.0.gradient.0");
    let eval = train.eval.as_ref().unwrap();
    let eval_data = eval.data.as_ref().unwrap();
    assert_eq!((eval_data.kind.as_str(), eval_data.path.as_str()), ("jsonl", "stage.0.eval.data"));
    assert_eq!(
        (&eval_data.settings["path"], &eval_data.settings["max_length"]),
        (&json!("data/dev.jsonl"), &json!(1024))
    );
    let Stage::Eval(eval) = &recipe.stage[2] else { panic!() };
    let saved = Adapter::Saved { folder: "runs/other/adapter".into(), path: "stage.2.adapter.0".into() };
    assert_eq!(eval.adapter, [saved]);
    let Stage::Merge(merge) = &recipe.stage[4] else { panic!() };
    assert_eq!(merge.max_shard_size, Bytes(2 << 30));
}

#[test]
fn fresh_weights() {
    let text = "[model]\nsource = 'init'\nconfig = { model_type = 'llama', hidden_size = 64, rope = { theta = 1e4 } }
tokenizer = { kind = 'bpe', data = 'x.txt', vocab_size = 512 }\n[[stage]]\nkind = 'merge'";
    let model = read(text, &[]).model.unwrap();
    let learnt =
        Tokenizer::Learn { kind: TokenizerKind::Bpe, data: Some("x.txt".into()), vocab_size: Some(512) };
    assert_eq!(model.tokenizer, Some(learnt));
    let text = text.replace("{ kind = 'bpe', data = 'x.txt', vocab_size = 512 }", "{ path = 't' }");
    assert_eq!(read(&text, &[]).model.unwrap().tokenizer, Some(Tokenizer::File { path: "t".into() }));
}

#[test]
fn overrides_lie_over_the_file() {
    let set = |overrides: &[&str]| read(support::WHOLE, overrides);
    assert_eq!(set(&["name=foo"]).name, "foo");
    assert_eq!(set(&["name=2024-01-01"]).name, "2024-01-01");
    assert_eq!(set(&["seed=1", "seed=2"]).seed, 2);
    assert_eq!(set(&["memory.budget=1GiB"]).memory.budget, Some(Bytes(1 << 30)));
    assert_eq!(set(&["model.dtype=f32"]).model.unwrap().dtype, Some(Dtype::F32));
    let Stage::Train(s) =
        &set(&["stage.0.adapter.0.r=4", "stage.0.gradient.0.kind=clip", "stage.0.batch={}"]).stage[0]
    else {
        panic!()
    };
    let Adapter::New(lora) = &s.adapter[0] else { panic!() };
    assert_eq!((&lora.settings["r"], s.batch.tokens), (&json!(4), None));
    let Stage::Generate(s) =
        &set(&["stage.1.stop=[\"a\", 'b=c']", "stage.1.decode.kind=greedy", "stage.1.prompt=5 # 3"]).stage[1]
    else {
        panic!()
    };
    assert_eq!((s.stop.join("|").as_str(), s.prompt.as_deref()), ("a|b=c", Some("5 # 3")));
    let Stage::Merge(s) = &set(&["stage.4.adapter.0.kind=lora", "stage.4.adapter.0.r=2"]).stage[4] else {
        panic!()
    };
    assert_eq!(s.adapter.len(), 1);
    // A setting of a part that is there by default.
    let text = "model.source = 'builtin:tiny'\n[[stage]]\nkind = 'train'\nsteps = 3\ndata = { kind = 'jsonl', path = 'd' }";
    let Stage::Train(s) = &read(text, &["stage.0.optimizer.lr=1e-4"]).stage[0] else { panic!() };
    assert_eq!(s.optimizer.settings["lr"], json!(1e-4));
}

#[test]
fn places_of_settings_and_conflicts() {
    let (doc, _) = support::read("r.toml", support::WHOLE, &["stage.0.adapter.0.r=0"]).unwrap();
    let errors = [
        doc.bad_setting("stage.0.adapter.0", "r", "must be at least 1"),
        doc.bad_setting("stage.1.kv", "start_size", "must be at least 1"),
        doc.conflict(
            "this needs that",
            ("stage.0.gradient.0", "needs all"),
            ("stage.0.activation.kind", "frees each"),
        ),
    ];
    let text: Vec<String> = errors.iter().map(|e| e.render(false)).collect();
    insta::assert_snapshot!("places", text.join("\n\n"));
}

#[test]
fn paths_are_relative_to_the_recipe() {
    let doc = |name: &str| Doc::parse(Path::new(name), "", &[]).unwrap();
    assert_eq!(doc("recipes/x.toml").resolve_path("data/a.jsonl"), Path::new("recipes/data/a.jsonl"));
    assert_eq!(doc("x.toml").resolve_path("a"), Path::new("a"));
    assert_eq!(doc("recipes/x.toml").resolve_path("/abs/a"), Path::new("/abs/a"));
}

fn whole_schema() -> Json {
    let parts = support::parts();
    let list: Vec<_> = parts.iter().map(|(slot, name, _, schema)| (*slot, *name, schema.clone())).collect();
    schema(&list)
}

/// Calls `see` with every object of the schema.
fn walk(schema: &Json, see: &mut dyn FnMut(&Json)) {
    see(schema);
    match schema {
        Json::Object(entries) => entries.values().for_each(|entry| walk(entry, see)),
        Json::Array(entries) => entries.iter().for_each(|entry| walk(entry, see)),
        _ => {}
    }
}

#[test]
fn the_schema_hangs_together() {
    let schema = whole_schema();
    assert_eq!(schema["$schema"], "https://json-schema.org/draft/2020-12/schema");
    let mut references = 0;
    walk(&schema, &mut |node| {
        if let Some(target) = node.get("$ref").and_then(Json::as_str) {
            assert!(schema.pointer(&target[1..]).is_some(), "{target}");
            references += 1;
        }
    });
    assert!(references > 20, "{references}");
    assert_eq!(schema["required"], json!(["stage"]));
    let train = &schema["$defs"]["Stage"]["oneOf"][0];
    assert_eq!(train["required"], json!(["kind", "data"]));
    assert_eq!(train["properties"]["max_grad_norm"]["default"], json!(1.0));
    assert_eq!(train["properties"]["max_steps"]["deprecated"], true);
    for (slot, name, ..) in support::parts() {
        let choices = schema["$defs"][format!("slot-{slot}")]["oneOf"].as_array().unwrap();
        let part = choices.iter().find(|c| c["properties"]["kind"]["const"] == name).unwrap();
        assert_eq!(part["additionalProperties"], false);
    }
}

/// The schema knows exactly the keys that reading knows, other spellings included.
#[test]
fn the_schema_knows_the_keys_of_every_stage() {
    let schema = whole_schema();
    for stage in schema["$defs"]["Stage"]["oneOf"].as_array().unwrap() {
        let kind = stage["properties"]["kind"]["const"].as_str().unwrap();
        for key in stage["properties"].as_object().unwrap().keys().filter(|key| *key != "kind") {
            let text = format!("[[stage]]\nkind = '{kind}'\n{key} = [[[]]]");
            let errors = support::read("r", &text, &[]).unwrap_err().to_string();
            assert!(!errors.contains("has no setting"), "{kind}: {errors}");
        }
        let text = format!("model.source='a'\n[[stage]]\nkind = '{kind}'\n@ = 1")
            .replace('@', "\"§§§§§§§§§§§§§§§§§§§§§§§\"");
        let errors = support::read("r", &text, &[]).unwrap_err().to_string();
        let known = errors.lines().find(|line| line.contains("it has:")).unwrap();
        for key in known.split("it has:").nth(1).unwrap().split('`').skip(1).step_by(2) {
            assert!(stage["properties"].get(key).is_some(), "{kind}: {key}");
        }
    }
}

proptest! {
    #[test]
    fn written_out_and_read_again(
        seed in 0..=i64::MAX as u64,
        prompt in any::<String>(),
        stop in prop::collection::vec(any::<String>(), 0..3),
        lr in any::<f64>().prop_filter("finite", |x| x.is_finite()),
        norm in 0.0..f64::MAX,
        epochs in f64::MIN_POSITIVE..1e300,
        budget in 1..=i64::MAX as u64,
        key in any::<String>(),
        steps in prop::option::of(1..=i64::MAX as u64),
    ) {
        let mut recipe = read(support::WHOLE, &[]);
        recipe.seed = seed;
        recipe.memory.budget = Some(Bytes(budget));
        if let Stage::Train(s) = &mut recipe.stage[0] {
            s.optimizer.settings.insert("lr".into(), json!(lr));
            // Settings of parts are free: any key, nested.
            s.optimizer.settings.insert("extra".into(), json!({ key.clone(): [prompt.clone(), { "x": lr }, []] }));
            s.max_grad_norm = norm;
            s.steps = steps;
            s.epochs = steps.is_none().then_some(epochs);
        }
        if let Stage::Generate(s) = &mut recipe.stage[1] {
            s.prompt = Some(prompt);
            s.stop = stop;
        }
        let doc = Doc::parse("r.toml".as_ref(), &resolved(&recipe), &[]).unwrap();
        prop_assert_eq!(Recipe::read(&doc).unwrap(), recipe);
    }
}
