//! How a run on two ranks ends: resumed, stopped, or with the words of the rank that failed.

use std::process::Stdio;

use ramekin_core::Draws;
use ramekin_tests::kitchen::losses;
use ramekin_tests::{Kitchen, sha256, write_ids};

use super::{LORA, MODEL, kitchen};

const TOKENS: &str = r#"data = { kind = "tokens", path = "ids.safetensors", repeat = false }
batch = { micro_batch_size = 1, gradient_accumulation_steps = 2 }
comm = { kind = "local", ranks = 2 }"#;

fn stage(steps: u64) -> String {
    format!(
        "{LORA}\n{TOKENS}\nsteps = {steps}\ncheckpoint = {{ every = 1 }}\nhook = [{{ kind = \"ema\", decay = 0.5 }}]"
    )
}

fn adapter(kitchen: &Kitchen, out: &str) -> String {
    sha256(&kitchen.folder().join(out).join("adapter/adapter_model.safetensors"))
}

/// Starts cooking into `out`, and calls `then` once some checkpoint stands.
fn begun(kitchen: &Kitchen, then: impl FnOnce(&mut std::process::Child)) -> Option<i32> {
    let mut command = kitchen.command(&kitchen.out(""), &[]);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("the binary starts");
    let first = kitchen.out("checkpoints/checkpoint-2");
    while !first.exists() && child.try_wait().expect("a child").is_none() {
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    then(&mut child);
    child.wait().expect("an end").code()
}

/// Killed or stopped, and gone on with: the bits of a run that nobody disturbed.
#[test]
fn a_run_goes_on_to_the_bit() {
    let undisturbed = kitchen(&stage(60));
    undisturbed.run_into(&undisturbed.folder().join("whole"), &[]).expect(0);
    let signal = |name: &'static str| {
        move |child: &mut std::process::Child| {
            let sent = std::process::Command::new("kill").args([name, &child.id().to_string()]).status();
            assert!(sent.expect("`kill` is there").success());
        }
    };
    for (name, code) in [("-INT", Some(130)), ("-KILL", None)] {
        let disturbed = kitchen(&stage(60));
        assert_eq!(begun(&disturbed, signal(name)), code, "{name}: it ended before");
        let taken = losses(&disturbed.out("")).len();
        assert!((2..60).contains(&taken), "{name} after {taken} steps");
        disturbed.run(&["--resume"]).expect(0);
        assert_eq!(losses(&disturbed.out("")), losses(&undisturbed.folder().join("whole")), "{name}");
        assert_eq!(adapter(&disturbed, "out"), adapter(&undisturbed, "whole"), "{name}");
    }
}

/// A row that one rank alone meets ends the run with its words. Every row is met once in the first four
/// steps, half of them by rank 1.
#[test]
fn a_fault_ends_the_run() {
    let text = format!(
        "{MODEL}\n[[stage]]\nkind = \"train\"\n{LORA}\n{TOKENS}\nsteps = 20\naudit = false\n\
         objective = {{ kind = \"label-words\", label_words = [3, 4, 5, 6] }}\n"
    );
    for bad in 0..16 {
        let kitchen = Kitchen::new(&text);
        let mut draws = Draws::new(ramekin_core::Rng::new(1).stream("rows", 0));
        let row = |draws: &mut Draws| (0..12).map(|_| 3 + draws.below(4) as u32).collect();
        let mut rows: Vec<Vec<u32>> = (0..16).map(|_| row(&mut draws)).collect();
        rows[bad][5] = 50;
        write_ids(&kitchen.folder().join("ids.safetensors"), &rows);
        let outcome = kitchen.run(&[]);
        outcome.expect(2);
        assert!(losses(&kitchen.out("")).len() < 4, "16 rows are four steps");
        for words in ["label_words", "does not name token 50"] {
            assert!(outcome.stderr.contains(words), "row {bad}: no `{words}` in\n{}", outcome.stderr);
        }
        assert!(!outcome.stderr.contains("has left"), "{}", outcome.stderr);
    }
}

/// Training that diverges does so on all ranks, and is told once.
#[test]
fn divergence_is_told_once() {
    let stage = format!(
        "{TOKENS}\nsteps = 50\noptimizer = {{ kind = \"sgd\", lr = 1e30 }}\nmax_grad_norm = 0\naudit = false"
    );
    let outcome = kitchen(&stage).run(&[]);
    outcome.expect(1);
    assert_eq!(outcome.stderr.matches("training has diverged").count(), 1, "{}", outcome.stderr);
}

/// A number of ranks that cannot be is refused at its place.
#[test]
fn no_rank_at_all() {
    let outcome = kitchen(&stage(3).replace("ranks = 2", "ranks = 0")).run(&[]);
    outcome.expect(2);
    for words in ["cannot take this `ranks`", "is 0; it must be from 1 to 64", "comm = "] {
        assert!(outcome.stderr.contains(words), "no `{words}` in\n{}", outcome.stderr);
    }
}
