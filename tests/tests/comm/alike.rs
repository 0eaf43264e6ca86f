//! Two ranks with a micro-batch each are one rank with two: the same losses, norms and tensors, bit for bit.

use ramekin_tests::{Kitchen, sha256};
use serde_json::Value as Json;

use super::{LORA, kitchen};

const TOKENS: &str = r#"data = { kind = "tokens", path = "ids.safetensors", repeat = false }"#;

/// Every key of a step that does not tell the time or the memory.
fn steps(kitchen: &Kitchen) -> Vec<Json> {
    let text = std::fs::read_to_string(kitchen.out("metrics.jsonl")).expect("metrics");
    let line = |line: &str| {
        let mut line: Json = serde_json::from_str(line).expect("JSON");
        let keys = line.as_object_mut().expect("an object");
        keys.remove("tokens_per_s");
        keys.remove("mem");
        line
    };
    text.lines().map(line).collect()
}

fn made(kitchen: &Kitchen) -> String {
    let files = ["adapter/adapter_model.safetensors", "model/model.safetensors"];
    let found = files.into_iter().map(|f| kitchen.out(f)).find(|f| f.exists());
    sha256(&found.expect("an adapter or a model"))
}

/// Cooks a stage with so many ranks and micro-batches each.
fn cooked(stage: &str, ranks: usize, micros: usize) -> Kitchen {
    let comm = match ranks {
        1 => String::new(),
        n => format!("comm = {{ kind = \"local\", ranks = {n} }}\n"),
    };
    let batch = format!("batch = {{ micro_batch_size = 1, gradient_accumulation_steps = {micros} }}");
    let kitchen = kitchen(&format!("{stage}\n{comm}{batch}"));
    kitchen.run(&[]).expect(0);
    kitchen
}

#[track_caller]
fn same(what: &str, a: &Kitchen, b: &Kitchen) {
    let (left, right) = (steps(a), steps(b));
    assert!(!left.is_empty(), "{what}");
    assert_eq!(left, right, "{what}");
    assert_eq!(made(a), made(b), "{what}");
}

/// However the micro-batches of a step are shared out: dropout, clipping and the loss's mean go by the step.
#[test]
fn ranks_are_micro_batches() {
    let stage = format!("{LORA}\n{TOKENS}\nsteps = 4\nmax_grad_norm = 0.05");
    let alone = cooked(&stage, 1, 4);
    let norms: Vec<f64> = steps(&alone).iter().filter_map(|l| l["grad_norm"].as_f64()).collect();
    assert!(norms.iter().all(|n| *n > 0.05), "clipping has something to do: {norms:?}");
    for (ranks, micros) in [(2, 2), (4, 1)] {
        same(&format!("{ranks} × {micros}"), &alone, &cooked(&stage, ranks, micros));
    }
    let other = cooked(&stage.replace("lora_dropout = 0.2", "lora_dropout = 0.0"), 2, 2);
    assert_ne!(made(&alone), made(&other), "dropout is drawn");
}

/// Rows of several lengths, and pairs: the loss is a mean over what the objective counts in the step on all
/// ranks, and so are the figures beside it.
#[test]
fn the_loss_is_the_steps_mean() {
    for (objective, data, figure) in [
        ("{ kind = \"sft\" }", "name = \"records\"", None),
        (
            "{ kind = \"classification\", num_labels = 10 }",
            "name = \"colours\", format = \"classification\"",
            Some("accuracy"),
        ),
        ("{ kind = \"dpo\" }", "name = \"preferences\"", Some("rewards/margins")),
    ] {
        let recipe = |ranks: &str, micros: usize| {
            format!(
                r#"
seed = 1
model = {{ source = "builtin:tiny" }}
[[stage]]
kind = "train"
adapter = [{{ kind = "lora", r = 4, target_modules = "all-linear", lora_dropout = 0.1 }}]
objective = {objective}
data = {{ kind = "builtin", {data}, rows = 32, max_length = 128 }}
batch = {{ micro_batch_size = 1, gradient_accumulation_steps = {micros} }}
{ranks}
steps = 3
"#
            )
        };
        let alone = ramekin_tests::kitchen::cook(&recipe("", 4));
        let two = ramekin_tests::kitchen::cook(&recipe("comm = { kind = \"local\" }", 2));
        let lines = steps(&alone);
        let tokens: Vec<u64> = lines.iter().filter_map(|l| l["tokens"].as_u64()).collect();
        assert!(tokens.iter().any(|n| *n != tokens[0]), "the rows differ in length: {tokens:?}");
        assert!(figure.is_none_or(|f| lines[0][f].is_number()), "{lines:?}");
        same(objective, &alone, &two);
    }
}

/// What other parts do in a step, they do as well on two ranks.
#[test]
fn parts_do_the_same_on_two_ranks() {
    let eval =
        r#"eval = { data = { kind = "tokens", path = "ids.safetensors", repeat = false }, every = 1 }"#;
    for stage in [
        "optimizer = { kind = \"adafactor\" }".to_owned(),
        "gradient = [{ kind = \"galore\", rank = 4, update_proj_gap = 2 }]".to_owned(),
        "selection = { kind = \"hft\" }".to_owned(),
        "selection = { kind = \"s2ft\", o_ratio = 0.5, d_ratio = 0.25 }".to_owned(),
        "selection = { kind = \"lt-sft\", ft_params_proportion = 0.2, full_ft_max_steps = 2, sparse_ft_max_steps = 2 }"
            .to_owned(),
        "estimator = { kind = \"mezo\", n_directions = 2 }\nmax_grad_norm = 0\noptimizer = { kind = \"sgd\", lr = 1e-3 }"
            .to_owned(),
        format!(
            "estimator = {{ kind = \"mezo\", objective = \"accuracy\" }}\nmax_grad_norm = 0\noptimizer = {{ kind = \"sgd\", lr = 1e-3 }}\n{LORA}"
        ),
        format!("hook = [{{ kind = \"ist\", active_fraction = 0.5, num_candidates = 2 }}]\n{LORA}"),
        format!("hook = [{{ kind = \"ema\", decay = 0.5 }}, {{ kind = \"early-stop\", patience = 1 }}]\n{eval}\n{LORA}"),
        format!("quantizer = {{ kind = \"nf4\", block_size = 32 }}\n{LORA}"),
        format!("placement = {{ kind = \"disk\" }}\nactivation = {{ kind = \"checkpoint\" }}\n{LORA}"),
        format!("activation = {{ kind = \"offload\", to = \"host\", min_bytes = 0 }}\n{LORA}"),
        "adapter = [{ kind = \"unipt\", reduction = 2, output = \"residual\", causal = true, pool = \"prefix_mean\" }]"
            .to_owned(),
        "adapter = [{ kind = \"vera\", r = 8, target_modules = [\"q_proj\"] }]".to_owned(),
    ] {
        let length = if stage.contains("lt-sft") { "" } else { "steps = 4" };
        let stage = format!("{stage}\n{TOKENS}\n{length}");
        same(&stage, &cooked(&stage, 1, 2), &cooked(&stage, 2, 1));
    }
}

/// An update inside the backward pass waits for the other rank's gradient of the same tensor.
#[test]
fn updates_in_backward_see_the_whole_gradient() {
    let stage = format!("{LORA}\n{TOKENS}\nsteps = 3\nmax_grad_norm = 0");
    let (plain, fused) = (cooked(&stage, 1, 2), cooked(&format!("{stage}\nfused_optimizer = true"), 2, 1));
    assert_eq!(made(&plain), made(&fused));
    let galore = "gradient = [{ kind = \"galore\", rank = 4, update_proj_gap = 2 }]";
    let stage = format!("{TOKENS}\nsteps = 3\nmax_grad_norm = 0\n{galore}");
    let (plain, fused) =
        (cooked(&stage, 1, 2), cooked(&stage.replace("rank = 4", "rank = 4, per_layer_update = true"), 2, 1));
    assert_eq!(made(&plain), made(&fused));
}
