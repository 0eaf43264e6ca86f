//! Stages that cook other recipes: `search`, for every registered one, and `bench`.
//!
//! * what is tried is a function of the recipe alone: interrupted anywhere and gone on with, it ends the same
//! * the table, its lines and the picture are there, the best trial is the best
//! * a trial or a variant that fails is a row that says why; the others are not touched by it

use ramekin_registry::Slot;
use ramekin_tests::Kitchen;
use ramekin_tests::kitchen::{binary, finish, json};
use serde_json::{Value as Json, json};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

const TRIAL: &str = r#"
name = "trial"
seed = 3
model = { source = "builtin:tiny" }

[[stage]]
kind = "train"
adapter = [{ kind = "lora", r = 4 }]
optimizer = { kind = "adamw", lr = 1e-3 }
data = { kind = "builtin", name = "records", rows = 40, max_length = 128, split = { dev = 0.1 } }
batch = { micro_batch_size = 2 }
audit = false
steps = 3
eval = { metrics = ["loss"] }
"#;

fn kitchen(recipe: &str) -> Kitchen {
    let kitchen = Kitchen::new(recipe);
    std::fs::write(kitchen.folder().join("trial.toml"), TRIAL).expect("a recipe to try");
    kitchen
}

fn search(how: &str) -> Kitchen {
    kitchen(&format!(
        r#"
seed = 5
[[stage]]
kind = "search"
recipe = "trial.toml"
search = {how}
metric = "0-train/eval.loss"
[stage.space]
"stage.0.optimizer.lr" = [1e-3, 1e-2]
"memory.budget" = ["1GiB", "2GiB", "1MiB"]
"#
    ))
}

fn lines(file: &Path) -> Vec<Json> {
    let text = std::fs::read_to_string(file).unwrap_or_else(|e| panic!("`{}`: {e}", file.display()));
    text.lines().map(|l| serde_json::from_str(l).expect("a line")).collect()
}

/// Every search, its settings and how many trials it makes of the space above.
fn searches() -> Vec<(&'static str, Json, usize)> {
    vec![("grid", json!({}), 6), ("random", json!({ "trials": 4 }), 4)]
}

#[test]
fn every_search_is_in_the_table() {
    ramekin_catalog::link();
    let mut known: Vec<&str> = searches().iter().map(|(name, ..)| *name).collect();
    known.sort_unstable();
    assert_eq!(ramekin_registry::names(Slot::Search), known);
}

#[test]
fn a_search_ends_with_its_best_wherever_it_was_interrupted() {
    for (name, mut settings, trials) in searches() {
        settings["kind"] = name.into();
        let fields = settings.as_object().expect("settings");
        let how: Vec<String> = fields.iter().map(|(k, v)| format!("{k} = {v}")).collect();
        let kitchen = search(&format!("{{ {} }}", how.join(", ")));
        kitchen.run(&[]).expect(0);
        let (told, found) = (kitchen.figures("0-search"), lines(&kitchen.out("trials.jsonl")));
        assert_eq!((told["trials"].as_u64(), found.len()), (Some(trials as u64), trials), "{name}");
        let least = found.iter().filter_map(|l| l["figure"].as_f64()).fold(f64::INFINITY, f64::min);
        assert_eq!(told["best"].as_f64(), Some(least), "{name}");
        let best = told["best_trial"].as_u64().expect("a best one") as usize;
        assert_eq!(found[best]["values"], told["values"], "{name}");
        let table = std::fs::read_to_string(kitchen.out("trials.txt")).expect("a table");
        assert_eq!(table.lines().count(), trials + 1, "{name}");
        assert!(table.lines().nth(1).is_some_and(|l| l.contains(&format!("{best:03} *"))), "{name}: {table}");
        assert!(std::fs::read_to_string(kitchen.out("trials.svg")).is_ok_and(|s| s.starts_with("<svg")));
        assert!(
            std::fs::read_to_string(kitchen.out("report.html")).is_ok_and(|p| p.contains("Side by side"))
        );

        // Killed inside the second trial, it goes on to the same lines.
        let again = kitchen.folder().join("again");
        let mut child = kitchen.start(&again, &[]);
        let begun = Instant::now();
        while !again.join("trials/001/metrics.jsonl").exists() && begun.elapsed() < Duration::from_secs(120) {
            std::thread::sleep(Duration::from_millis(5));
        }
        child.kill().expect("it ends");
        child.wait().expect("it has ended");
        kitchen.run_into(&again, &["--resume"]).expect(0);
        assert_eq!(lines(&again.join("trials.jsonl")), found, "{name}");
    }
}

#[test]
fn a_trial_that_does_not_fit_is_a_row_and_the_best_is_another() {
    let kitchen = search(r#"{ kind = "grid" }"#);
    kitchen.run(&[]).expect(0);
    let found = lines(&kitchen.out("trials.jsonl"));
    let failed: Vec<&Json> = found.iter().filter(|l| l["fault"].is_string()).collect();
    assert_eq!(failed.len(), 2, "{found:?}");
    assert!(failed.iter().all(|l| l["values"]["memory.budget"] == "1MiB" && l["figure"].is_null()));
    assert_eq!(kitchen.figures("0-search")["failed"], failed.len());
}

fn bench(more: &str) -> Kitchen {
    kitchen(&format!("[[stage]]\nkind = \"bench\"\nrecipe = \"trial.toml\"\n{more}"))
}

const VARIANTS: &str = r#"
cumulative = true
[[stage.variant]]
name = "as it is"
[[stage.variant]]
name = "checkpoint"
set = { "stage.0.activation.kind" = "checkpoint" }
[[stage.variant]]
name = "in a thimble"
set = { "memory.budget" = "1MiB" }
"#;

#[test]
fn a_bench_shows_plan_and_meter_side_by_side() {
    let kitchen = bench(&format!("rounds = 2\n{VARIANTS}"));
    let outcome = kitchen.run(&[]);
    outcome.expect(0);
    let rows = lines(&kitchen.out("bench.jsonl"));
    let names: Vec<&str> = rows.iter().filter_map(|r| r["variant"].as_str()).collect();
    assert_eq!(names, ["as it is", "checkpoint", "in a thimble"]);
    for row in &rows[..2] {
        let peak = |side: &str| row[side]["peak"].as_f64().expect("a peak");
        let (planned, measured) = (peak("planned"), peak("measured"));
        assert!(measured <= planned && planned <= 1.05 * measured, "{planned} and {measured}: {row}");
        let speed = |side: &str| row[side]["tokens_per_s"].as_f64().expect("a speed");
        assert!(speed("planned") > 0.0 && speed("measured") > 0.0);
        assert!(row["spread"].as_f64().is_some_and(|s| s >= 0.0), "two rounds have a spread");
        assert!(
            kitchen
                .out(&format!(
                    "variants/0{}-1/summary.json",
                    names.iter().position(|n| row["variant"] == **n).unwrap()
                ))
                .exists()
        );
    }
    assert!(rows[1]["planned"]["peak"].as_f64() < rows[0]["planned"]["peak"].as_f64());
    assert!(rows[2]["fault"].as_str().is_some_and(|f| f.contains("the budget is 1.0 MiB")), "{}", rows[2]);
    let table = std::fs::read_to_string(kitchen.out("bench.txt")).expect("a table");
    assert!(outcome.stderr.contains(table.trim_end()), "what is shown is what is written");
    assert_eq!(kitchen.figures("0-bench")["failed"], 1);

    // What is done is read again; what was not begun is done.
    let before = json(&kitchen.out("variants/00-0/summary.json"));
    std::fs::remove_file(kitchen.out("state.json")).expect("the stage counts as not done");
    std::fs::remove_dir_all(kitchen.out("variants/01-0")).expect("a variant is gone");
    kitchen.run(&["--resume"]).expect(0);
    assert_eq!(json(&kitchen.out("variants/00-0/summary.json")), before);
    assert!(kitchen.out("variants/01-0/summary.json").exists());
}

#[test]
fn variants_stand_alone_unless_they_are_cumulative() {
    let stage = |cumulative: &str| {
        let kitchen = bench(&VARIANTS.replace("cumulative = true", cumulative));
        let mut command = Command::new(binary());
        command.arg("plan").arg(kitchen.folder().join("recipe.toml")).arg("--json");
        let outcome = finish(command);
        outcome.expect(0);
        let bills: Json = serde_json::from_str(&outcome.stdout).expect("JSON");
        bills[2]["at_peak"]["activations"].as_u64().expect("bytes")
    };
    assert!(stage("cumulative = true") < stage("cumulative = false"));
}

/// Bytes at the peak of every row of `recipes/memory-ladder.toml`, as planned.
#[test]
fn every_rung_of_the_memory_ladder_is_lower() {
    let recipe = Path::new(env!("CARGO_MANIFEST_DIR")).join("../recipes/memory-ladder.toml");
    let mut command = Command::new(binary());
    command.arg("plan").arg(recipe).arg("--json");
    let outcome = finish(command);
    outcome.expect(0);
    let bills: Json = serde_json::from_str(&outcome.stdout).expect("JSON");
    let peaks: Vec<u64> =
        bills.as_array().expect("bills").iter().filter_map(|b| b["peak"].as_u64()).collect();
    assert_eq!(peaks.len(), 10);
    assert!(peaks.is_sorted_by(|a, b| a > b), "{peaks:?}");
}

/// The ladder's own rungs over a smaller model, measured: as planned, none higher than the one before. (With so
/// few tokens and words the logits are not what fills the peak, so that two rungs may be level.)
#[test]
fn the_memory_ladder_is_what_was_planned() {
    let recipes = Path::new(env!("CARGO_MANIFEST_DIR")).join("../recipes");
    let read = |name: &str| std::fs::read_to_string(recipes.join(name)).expect("a recipe");
    let kitchen = Kitchen::new(&read("memory-ladder.toml").replace("bench/ladder-step.toml", "step.toml"));
    let step = read("bench/ladder-step.toml")
        .replace("vocab_size = 16384", "vocab_size = 4096")
        .replace("hidden_size = 256", "hidden_size = 128")
        .replace("intermediate_size = 688", "intermediate_size = 344")
        .replace("max_length = 256", "max_length = 128")
        .replace("steps = 4", "steps = 2\naudit = false");
    std::fs::write(kitchen.folder().join("step.toml"), step).expect("a recipe to vary");
    kitchen.run(&[]).expect(0);
    let rows = lines(&kitchen.out("bench.jsonl"));
    let mut last = f64::INFINITY;
    for row in &rows {
        let peak = |side: &str| row[side]["peak"].as_f64().expect("a peak");
        let (planned, measured) = (peak("planned"), peak("measured"));
        assert!(measured <= planned && planned <= 1.05 * measured, "{row}");
        assert!(measured <= last, "{} needs {measured}, the rung above {last}", row["variant"]);
        last = measured;
    }
    assert_eq!(rows.len(), 10);
}
