//! `kill -9`: at instants spread over the whole run, and on purpose inside a write.

use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use ramekin_core::{Draws, Rng};
use ramekin_tests::Kitchen;

use crate::run_folder::{checkpoints, copy, leftovers};
use crate::{RECIPE, killed_after_checkpoint, resumed_to_the_bit, signal, start, undisturbed, until};

const KILLS: usize = 30;

/// Runs at a time.
const TOGETHER: usize = 2;

#[test]
fn killed_at_thirty_instants_and_resumed() {
    let (_, whole) = undisturbed();
    let next = AtomicUsize::new(0);
    let seen = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..TOGETHER {
            scope.spawn(|| {
                loop {
                    let i = next.fetch_add(1, Ordering::Relaxed);
                    if i >= KILLS {
                        break;
                    }
                    let state = killed_somewhere(i, *whole);
                    seen.lock().expect("a list").push(state);
                }
            });
        }
    });
    let seen = seen.into_inner().expect("a list");
    assert_eq!(seen.len(), KILLS);
    let count = |s: &str| seen.iter().filter(|x| **x == s).count();
    let states = ["nothing yet", "before a checkpoint", "between checkpoints", "inside a write", "finished"];
    println!("{}", states.map(|s| format!("{s}: {}", count(s))).join(", "));
    assert!(count("between checkpoints") + count("inside a write") >= KILLS / 4, "kills all over the run");
}

/// Kills a run at the `i`-th of the instants, some a second time, and resumes it.
fn killed_somewhere(i: usize, whole: Duration) -> &'static str {
    let kitchen = Kitchen::new(RECIPE);
    let out = kitchen.folder().join("out");
    let mut draws = Draws::new(Rng::new(30).stream("tests/kills", i as u64));
    // Instants are shuffled over the run and fine enough to fall anywhere in it.
    let mut within = |from: f64, to: f64| {
        let u = draws.below(1 << 20) as f64 / f64::from(1 << 20);
        whole.mul_f64(from + (to - from) * u)
    };
    let slot = i as f64 / KILLS as f64;
    let mut first = within(slot, slot + 1.0 / KILLS as f64);
    while !kill(&kitchen, &out, &[], first) {
        // The run was faster than the one that was timed: that was no kill.
        first = first.mul_f64(0.8);
    }
    let state = state(&out);
    if i.is_multiple_of(3) {
        kill(&kitchen, &out, &["--resume"], within(0.0, 0.8));
    }
    resumed_to_the_bit(&kitchen, &out, &format!("killed at instant {i} ({first:?} of {whole:?}; {state})"));
    state
}

/// Kills a run after this time; false if it had ended before.
fn kill(kitchen: &Kitchen, out: &Path, arguments: &[&str], after: Duration) -> bool {
    let mut child = start(kitchen, out, arguments);
    std::thread::sleep(after);
    child.kill().expect("killed");
    child.wait().expect("gone").signal() == Some(9)
}

fn state(out: &Path) -> &'static str {
    if !out.join("recipe.toml").exists() {
        "nothing yet"
    } else if out.join("summary.json").exists() {
        "finished"
    } else if !leftovers(out).is_empty() {
        "inside a write"
    } else if checkpoints(out).is_empty() {
        "before a checkpoint"
    } else {
        "between checkpoints"
    }
}

/// Stops a run with this path in existence, makes sure that it still is, and kills it there.
///
/// Stopping first makes the hit certain: where the path is gone by the time the
/// stop arrives, the run goes on to the next one.
fn killed_while_there(kitchen: &Kitchen, out: &Path, there: &dyn Fn() -> bool) -> bool {
    let mut child = start(kitchen, out, &[]);
    let mut hit = false;
    while !hit && until(&mut child, there) && child.try_wait().expect("a child").is_none() {
        signal(&child, "STOP");
        // A process in the middle of a system call stops after it.
        std::thread::sleep(Duration::from_millis(2));
        hit = there();
        signal(&child, if hit { "KILL" } else { "CONT" });
    }
    child.wait().expect("gone");
    hit
}

#[test]
fn killed_inside_a_checkpoint_write() {
    let files = ["trainer_state.json", "trainable.safetensors", "optimizer.safetensors", "checksums.json"];
    for file in files {
        // Never the first checkpoint: one to fall back on should be there.
        let mut tried = 0;
        let (kitchen, left) = loop {
            let kitchen = Kitchen::new(RECIPE);
            let out = kitchen.folder().join("out");
            let half =
                || (3..=8).any(|s| out.join(format!("checkpoints/.checkpoint-{s}.writing/{file}")).exists());
            if killed_while_there(&kitchen, &out, &half) {
                let left = leftovers(&out);
                break (kitchen, left);
            }
            tried += 1;
            assert!(tried < 5, "no write of `{file}` could be caught");
        };
        let out = kitchen.folder().join("out");
        assert_eq!(left.len(), 1, "{left:?}");
        let before = checkpoints(&out);
        assert!(!before.is_empty(), "the checkpoints before the one being written stand");
        let outcome = resumed_to_the_bit(&kitchen, &out, &format!("killed while `{file}` was written"));
        let newest = before.last().expect("a checkpoint").0;
        assert!(outcome.stderr.contains(&format!("resuming after step {newest} of 8")), "{}", outcome.stderr);
    }
}

#[test]
fn what_a_write_leaves_at_any_point_is_cleaned_up() {
    let kitchen = Kitchen::new(RECIPE);
    let partial = kitchen.folder().join("partial");
    killed_after_checkpoint(&kitchen, &partial, 4);
    let newest = |out: &Path| checkpoints(out).pop().expect("a checkpoint");
    type Leave = fn(&Path, (u64, std::path::PathBuf));
    let cases: [(&str, Leave); 6] = [
        ("half of the next checkpoint", |out, (step, path)| {
            let next = out.join(format!("checkpoints/.checkpoint-{}.writing", step + 1));
            copy(&path, &next);
            std::fs::remove_file(next.join("checksums.json")).expect("removed");
            let file = std::fs::OpenOptions::new().write(true).open(next.join("trainable.safetensors"));
            file.and_then(|f| f.set_len(1000)).expect("cut");
        }),
        ("a checkpoint moved aside for one of its name", |out, (step, path)| {
            std::fs::rename(&path, out.join(format!("checkpoints/.checkpoint-{step}.old"))).expect("moved");
        }),
        ("a checkpoint half removed", |out, (step, path)| {
            let doomed = out.join(format!("checkpoints/.checkpoint-{}.writing", step.saturating_sub(2)));
            copy(&path, &doomed);
            std::fs::remove_file(doomed.join("trainable.safetensors")).expect("removed");
        }),
        ("half an adapter", |out, _| {
            let half = out.join(".adapter.writing");
            std::fs::create_dir_all(&half).expect("a folder");
            std::fs::write(half.join("adapter_model.safetensors"), [7; 99]).expect("written");
        }),
        ("half a file", |out, _| {
            for name in [".state.json.writing", ".summary.json.writing", ".report.html.writing"] {
                std::fs::write(out.join(name), b"{\"sta").expect("written");
            }
        }),
        ("half a line of metrics", |out, _| {
            let mut text = std::fs::read(out.join("metrics.jsonl")).expect("metrics");
            text.extend_from_slice(b"{\"stage\":0,\"step\":6,\"lo");
            std::fs::write(out.join("metrics.jsonl"), text).expect("written");
        }),
    ];
    for (what, leave) in cases {
        let out = kitchen.folder().join(what.replace(' ', "-"));
        copy(&partial, &out);
        leave(&out, newest(&out));
        resumed_to_the_bit(&kitchen, &out, what);
    }
}
