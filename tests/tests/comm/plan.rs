//! The bill of several ranks against what their meters see.

use ramekin_core::Traffic;
use ramekin_tests::kitchen::{finish, json};
use ramekin_tests::{Kitchen, kitchen};
use serde_json::Value as Json;

use super::{LORA, kitchen as cooker};

const TOKENS: &str = r#"data = { kind = "tokens", path = "ids.safetensors", repeat = false }
steps = 3"#;

fn number(figures: &Json, key: &str) -> f64 {
    figures[key].as_f64().unwrap_or_else(|| panic!("no `{key}` in {figures}"))
}

fn traffic(figures: &Json, key: &str) -> Traffic {
    serde_json::from_value(figures[key].clone()).expect("links")
}

#[track_caller]
fn near(what: &str, planned: u64, measured: u64) {
    let (p, m) = (planned as f64, measured as f64);
    assert!((p - m).abs() <= 0.05 * m, "{what}: planned {planned}, measured {measured}");
}

#[track_caller]
fn as_planned(stage: &str) -> (Kitchen, Json) {
    let kitchen = cooker(stage);
    kitchen.run(&[]).expect(0);
    let figures = kitchen.figures("0-train");
    let (planned, measured) = (number(&figures, "planned_peak"), number(&figures, "measured_peak"));
    println!("{stage}: planned {planned}, measured {measured}");
    assert!(
        measured <= planned && planned <= 1.05 * measured,
        "{stage}: {planned} for {measured}\n{figures}"
    );
    let (plan, seen) = (traffic(&figures, "planned_traffic"), traffic(&figures, "measured_traffic"));
    for ((link, p), (_, m)) in plan.links().into_iter().zip(seen.links()) {
        near(&format!("{stage}: {link} sent"), p.sent, m.sent);
        near(&format!("{stage}: {link} fetched"), p.fetched, m.fetched);
    }
    (kitchen, figures)
}

/// Peak and traffic of two and three ranks, with shared weights and without.
#[test]
fn ranks_are_billed() {
    let batch = |ranks: usize, micros: usize| {
        format!(
            "comm = {{ kind = \"local\", ranks = {ranks} }}\n\
             batch = {{ micro_batch_size = 2, gradient_accumulation_steps = {micros} }}\n{TOKENS}"
        )
    };
    for (stage, shares) in [
        (format!("{LORA}\n{}", batch(2, 1)), true),
        (format!("{LORA}\n{}", batch(3, 3)), true),
        (format!("{LORA}\nquantizer = {{ kind = \"nf4\", block_size = 32 }}\n{}", batch(2, 1)), true),
        (batch(2, 2), false),
        (format!("fused_optimizer = true\nmax_grad_norm = 0\n{}", batch(2, 1)), false),
    ] {
        let (kitchen, figures) = as_planned(&stage);
        let plan = json(&kitchen.out("plan.json"));
        let ranks = plan["shares"].as_array().expect("shares");
        assert_eq!(ranks.len() as u64, figures["ranks"].as_u64().expect("ranks"));
        assert_eq!(ranks.iter().map(|s| number(s, "peak")).sum::<f64>(), number(&plan, "peak"));
        assert_eq!(plan["shared"].as_u64().unwrap_or(0) > 0, shares, "{stage}");
        let mut command = std::process::Command::new(kitchen::binary());
        command.arg("plan").arg(kitchen.folder().join("recipe.toml"));
        let text = finish(command).expect(0).stdout.clone();
        let said = if shares { "of frozen weights are shared" } else { "no weights are shared" };
        assert!(text.contains(said) && text.contains("rank 0 holds"), "{text}");
        assert!(text.contains("traffic      ranks:"), "{text}");
        // Every trained number goes out once a micro-batch.
        let sent = traffic(&figures, "measured_traffic").ranks.sent as f64;
        assert!(sent >= 4.0 * number(&figures, "trainable") * ranks.len() as f64, "{stage}: {sent}");
    }
}

/// Gradients from forwards alone need no exchange of gradients: a few numbers are all.
#[test]
fn mezo_sends_figures_alone() {
    let (_, figures) = as_planned(&format!(
        "comm = {{ kind = \"local\" }}\nbatch = {{ micro_batch_size = 2 }}\n{TOKENS}\nmax_grad_norm = 0\n\
         estimator = {{ kind = \"mezo\" }}\noptimizer = {{ kind = \"sgd\", lr = 1e-4 }}"
    ));
    let ranks = traffic(&figures, "measured_traffic").ranks;
    // Of each rank: tokens and targets (4 + 16), and the loss (4 + 8) at +ε and −ε.
    assert_eq!((ranks.sent, ranks.fetched), (2 * 44, 2 * 44));
}
