//! Being asked to stop.

use std::io::Read as _;
use std::path::Path;
use std::process::{Child, Stdio};

use ramekin_tests::Kitchen;
use ramekin_tests::kitchen::Outcome;

use crate::run_folder::{checkpoints, leftovers};
use crate::{RECIPE, quiet, resumed_to_the_bit, resumed_to_the_same_adapter, signal, single, until};

fn heard(kitchen: &Kitchen, out: &Path) -> Child {
    let mut command = single(kitchen.command(out, &[]));
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the binary starts")
}

fn ended(mut child: Child) -> Outcome {
    let mut texts = [String::new(), String::new()];
    let status = child.wait().expect("a child");
    child.stdout.take().expect("piped").read_to_string(&mut texts[0]).expect("text");
    child.stderr.take().expect("piped").read_to_string(&mut texts[1]).expect("text");
    let [stdout, stderr] = texts;
    Outcome { code: status.code(), stderr, stdout }
}

fn steps_done(out: &Path) -> usize {
    ramekin_tests::kitchen::losses(out).len()
}

#[test]
fn a_signal_saves_and_leaves() {
    for name in ["INT", "TERM", "HUP"] {
        let kitchen = Kitchen::new(&quiet());
        let out = kitchen.folder().join("out");
        let mut child = heard(&kitchen, &out);
        assert!(until(&mut child, || steps_done(&out) >= 3), "SIG{name}: the run ended too soon");
        signal(&child, name);
        let outcome = ended(child);
        outcome.expect(130);
        let all = checkpoints(&out);
        assert_eq!(all.len(), 1, "SIG{name}: one checkpoint, made for the signal: {all:?}");
        let step = all[0].0;
        assert!((3..8).contains(&step), "SIG{name}: step {step}");
        let said = &outcome.stderr;
        for part in [format!("after step {step} of 8"), "--resume".into(), out.display().to_string()] {
            assert!(said.contains(&part), "SIG{name}: `{part}` is not said:\n{said}");
        }
        assert_eq!(leftovers(&out), Vec::<String>::new());
        let page = std::fs::read_to_string(out.join("report.html")).expect("a report page");
        assert!(page.contains("interrupted"), "the page says how the run ended");
        resumed_to_the_same_adapter(&kitchen, &out, name);
    }
}

#[test]
fn a_signal_before_the_first_step_is_heard_too() {
    let kitchen = Kitchen::new(RECIPE);
    let out = kitchen.folder().join("out");
    let mut child = heard(&kitchen, &out);
    assert!(until(&mut child, || out.join("recipe.toml").exists()));
    signal(&child, "INT");
    ended(child).expect(130);
    assert!(checkpoints(&out).len() <= 1);
    resumed_to_the_bit(&kitchen, &out, "stopped before the first step");
}

#[test]
fn a_second_signal_leaves_at_once() {
    // A step of this run takes minutes: only leaving at once ends the test.
    let kitchen = Kitchen::new(
        &RECIPE.replace("gradient_accumulation_steps = 2", "gradient_accumulation_steps = 20000"),
    );
    let out = kitchen.folder().join("out");
    let mut child = heard(&kitchen, &out);
    assert!(until(&mut child, || out.join("start.json").exists()));
    signal(&child, "INT");
    let mut stderr = child.stderr.take().expect("piped");
    let mut said = String::new();
    // The first is answered before the second is sent: two at once are one to the system.
    let mut byte = [0];
    while !said.contains("once more") && stderr.read(&mut byte).expect("text") == 1 {
        said.push(char::from(byte[0]));
    }
    assert!(said.contains("stopping after this step"), "{said}");
    signal(&child, "INT");
    let status = child.wait().expect("a child");
    stderr.read_to_string(&mut said).expect("text");
    assert_eq!(status.code(), Some(130), "{said}");
    assert!(said.contains("not saved"), "{said}");
    assert_eq!(steps_done(&out), 0);
}
