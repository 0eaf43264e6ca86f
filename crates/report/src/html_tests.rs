//! The page on ordinary, tiny, huge and hostile data.

use ramekin_core::{Link, Traffic};
use serde_json::json;

use super::*;
use crate::metrics::{EvalLine, Mem, StepLine};

fn mem(scale: u64) -> Mem {
    let mib = 1 << 20;
    Mem {
        weights: 38 * mib,
        trainable: 3 * mib,
        gradients: 2 * mib,
        optimizer: 6 * mib,
        activations: scale * mib,
        kv: 0,
        workspace: 4 * mib,
        peak: 70 * mib,
        rss: 90 * mib,
    }
}

fn stage(kind: &str, steps: u64) -> StageData {
    let noise = |s: u64| (s.wrapping_mul(2_654_435_761) >> 7) % 1000;
    StageData {
        kind: kind.into(),
        steps: (1..=steps)
            .map(|s| StepLine {
                step: s,
                loss: 0.3 + 3.0 / (1.0 + s as f64 / 20.0) + noise(s) as f64 / 3000.0,
                lr: 2e-4 * (1.0 - s as f64 / steps as f64),
                grad_norm: 1.0,
                tokens: 2048,
                tokens_per_s: 2300.0 + noise(s) as f64 / 4.0,
                mem: mem(10 + noise(s) / 200),
                ..StepLine::default()
            })
            .collect(),
        evals: (0..=steps)
            .step_by((steps as usize / 8).max(1))
            .map(|s| EvalLine {
                stage: 0,
                step: s,
                eval: json!({"loss": 0.5 + 3.0 / (1.0 + s as f64 / 20.0)}).as_object().unwrap().clone(),
            })
            .collect(),
        planned: Some(Mem { activations: 16 << 20, peak: 69 << 20, rss: 0, ..mem(0) }),
        measured: Some(mem(17)),
        planned_traffic: Traffic { disk: Link { sent: 0, fetched: 3 << 20 }, ..Traffic::default() },
        measured_traffic: Traffic { disk: Link { sent: 0, fetched: 3 << 20 }, ..Traffic::default() },
        budget: Some(80 << 20),
        audit: vec![
            Check { name: "masks".into(), passed: true, detail: "41 % of 2 048 tokens are active".into() },
            Check { name: "one BOS a row".into(), passed: true, detail: "no doubled BOS in 64 rows".into() },
            Check {
                name: "no leak between packed rows".into(),
                passed: true,
                detail: "largest change 0".into(),
            },
            Check { name: "1×N equals N×1".into(), passed: true, detail: "largest difference 2e-7".into() },
        ],
        samples: vec![
            Sample {
                prompt: "Tom has 4 apples and buys 3 more. How many apples has he?".into(),
                expected: Some("4 + 3 = 7\n#### 7".into()),
                before: Some("Tom was a little boy who liked to play in the park with his dog.".into()),
                after: Some("4 + 3 = 7\n#### 7".into()),
                before_right: Some(false),
                after_right: Some(true),
            },
            Sample {
                prompt: "A box holds 12 eggs. Ann has 3 boxes. How many eggs has she?".into(),
                expected: Some("3 × 12 = 36\n#### 36".into()),
                before: Some(" ".into()),
                after: Some("3 × 12 = 34\n#### 34".into()),
                before_right: Some(false),
                after_right: Some(false),
            },
        ],
        ..StageData::default()
    }
}

fn data(steps: u64) -> ReportData {
    ReportData {
        name: "quickstart".into(),
        seconds: 83.4,
        figures: vec![Figure::new("exact match", "4 % → 91 %", "256 held-out rows")],
        facts: [
            ("model", "builtin:tiny, 1 622 144 parameters"),
            ("base", "nf4, 0.98 MiB"),
            ("adapter", "lora, r = 16, 28 sites"),
            ("seed", "7"),
            ("machine", "2 cores, AVX-512"),
        ]
        .map(|(k, v)| (k.to_owned(), v.to_owned()))
        .to_vec(),
        warnings: vec!["3 rows were longer than 512 tokens and were cut".into()],
        stages: vec![stage("train", steps)],
        recipe: "name = \"quickstart\"\nseed = 7\n\n[[stage]]\nkind = \"train\"\n".into(),
        ..ReportData::default()
    }
}

/// Every tag that is opened is closed, in order.
fn assert_balanced(page: &str) {
    let mut open = Vec::new();
    for tag in page.split('<').skip(1) {
        let tag = tag.split('>').next().unwrap();
        let name = tag.trim_start_matches('/').split([' ', '\n']).next().unwrap();
        if tag.ends_with('/') || ["!doctype", "meta"].contains(&name) {
            continue;
        }
        if tag.starts_with('/') {
            assert_eq!(open.pop(), Some(name), "in </{name}>");
        } else {
            open.push(name);
        }
    }
    assert!(open.is_empty(), "{open:?}");
}

#[test]
fn everything_is_there() {
    let page = render(&data(400));
    assert_balanced(&page);
    for part in [
        "exact match",
        "4 % → 91 %",
        "training loss",
        "held-out loss",
        "70.0 MiB",
        "tokens per second",
        "aria-label=\"loss by step\"",
        "Learning rate",
        "peak 70.0 MiB at step 1",
        "plan 69.0 MiB",
        "budget 80.0 MiB",
        "+1.4 %",
        "+6.2 %",
        "all passed",
        "disk, fetched a step",
        "A box holds 12 eggs",
        "<i>nothing</i>",
        "seed = 7",
        "3 rows were longer",
    ] {
        assert!(page.contains(part), "the page lacks {part}");
    }
}

#[test]
fn nothing_comes_from_elsewhere() {
    let page = render(&data(400));
    for word in ["http:", "https:", "<script", "<link", "<img", "@import", "url(", "src="] {
        assert!(!page.contains(word), "the page has {word}");
    }
}

#[test]
fn any_number_of_steps() {
    for steps in [0, 1, 2, 7, 100_000] {
        let page = render(&data(steps));
        assert_balanced(&page);
        assert!(!page.contains("NaN") && !page.contains("inf\""), "{steps}");
        assert!(page.len() < 400_000, "{steps} steps make {} bytes", page.len());
    }
    assert_balanced(&render(&ReportData::default()));
}

#[test]
fn several_stages() {
    let mut data = data(50);
    data.stages.push(StageData {
        kind: "merge".into(),
        notes: vec!["28 adapters merged; largest difference of a logit 3e-6".into()],
        table: vec![vec!["variant".into(), "peak".into()], vec!["keep".into(), "432.9".into()]],
        ..StageData::default()
    });
    data.outcome = Outcome::Failed("the disk is full".into());
    let page = render(&data);
    assert_balanced(&page);
    assert!(page.contains("<span>stage 2</span> merge") && page.contains("3e-6"));
    assert!(page.contains("<th>keep</th><td>432.9</td>"));
    assert!(page.contains("the disk is full"));
}

#[test]
fn hostile_text_stays_text() {
    let evil = "</pre><script>alert('1')</script>\u{0}\u{202e}\"'&";
    let mut data = data(3);
    data.name = evil.into();
    data.outcome = Outcome::Failed(evil.into());
    data.recipe = evil.into();
    data.warnings = vec![evil.into()];
    data.facts = vec![(evil.into(), evil.into())];
    data.figures = vec![Figure::new(evil, evil, evil)];
    let stage = &mut data.stages[0];
    stage.kind = evil.into();
    stage.notes = vec![evil.into()];
    stage.table = vec![vec![evil.into(); 2]; 2];
    stage.audit = vec![Check { name: evil.into(), passed: false, detail: evil.into() }];
    stage.samples = vec![Sample {
        prompt: evil.into(),
        expected: Some(evil.into()),
        before: Some(evil.into()),
        after: Some(evil.into()),
        ..Sample::default()
    }];
    let page = render(&data);
    assert_balanced(&page);
    assert!(!page.contains("<script") && !page.contains('\u{202e}') && !page.contains('\u{0}'));
}

#[test]
fn a_broken_loss_is_told() {
    let mut data = data(20);
    data.stages[0].steps[9].loss = f64::NAN;
    let page = render(&data);
    assert!(page.contains("1 steps without a finite loss") && !page.contains("NaN"));
}

/// For the eye: `RAMEKIN_REPORT_DIR=DIR cargo test --release -p ramekin-report pages -- --ignored`.
#[test]
#[ignore = "writes pages to look at"]
fn pages_to_look_at() {
    let Some(dir) = std::env::var_os("RAMEKIN_REPORT_DIR") else {
        return;
    };
    let dir = Path::new(&dir);
    for steps in [1, 400, 100_000] {
        write_report(dir.join(format!("report-{steps}.html")), &data(steps)).unwrap();
    }
    let mut two = data(60);
    two.stages.push(StageData { kind: "merge".into(), notes: vec!["merged".into()], ..StageData::default() });
    two.stages.push(stage("train", 30));
    write_report(dir.join("report-stages.html"), &two).unwrap();
}
