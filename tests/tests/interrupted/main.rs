//! Runs that are cut short: killed, stopped, out of room, with damaged
//! checkpoints. Whatever happened, going on gives the bits of a run that nobody
//! disturbed, and what could be saved is still there.

mod again;
mod damage;
mod full_disk;
mod kills;
mod run_folder;
mod signals;
mod stages;

use std::path::Path;
use std::process::{Child, Command};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use ramekin_tests::Kitchen;
use ramekin_tests::kitchen::Outcome;

use crate::run_folder::{Left, leftovers};

/// A run of seconds with everything in it that has a state: dropout, shuffled
/// and packed rows, accumulation, a schedule, moments, evaluations, a
/// checkpoint after each step.
const RECIPE: &str = r#"
seed = 7
model = { source = "builtin:tiny" }

[[stage]]
kind = "train"
quantizer = { kind = "nf4" }
adapter = [{ kind = "lora", r = 4, lora_alpha = 8, target_modules = "all-linear", lora_dropout = 0.1 }]
activation = { kind = "checkpoint" }
optimizer = { kind = "adamw", lr = 5e-3 }
schedule = { kind = "cosine", warmup_ratio = 0.1 }
data = { kind = "builtin", name = "records", rows = 200, packing = true, max_length = 96 }
batch = { micro_batch_size = 2, gradient_accumulation_steps = 2 }
checkpoint = { every = 1, keep = 2 }
steps = 8

[stage.eval]
data = { kind = "builtin", name = "records", rows = 2, held_out = true, max_length = 96 }
metrics = ["loss", "exact_match"]
max_new_tokens = 4
every = 3
"#;

/// The same without checkpoints on the way: what is there after a signal is there because of it.
fn quiet() -> String {
    RECIPE.replace("checkpoint = { every = 1, keep = 2 }\n", "")
}

/// What [`RECIPE`] leaves when nobody disturbs it, and how long that takes.
fn undisturbed() -> &'static (Left, Duration) {
    static ONCE: OnceLock<(Left, Duration)> = OnceLock::new();
    ONCE.get_or_init(|| {
        let kitchen = Kitchen::new(RECIPE);
        let out = kitchen.folder().join("out");
        let began = Instant::now();
        cook(&kitchen, &out, &[]).expect(0);
        (Left::in_folder(&out), began.elapsed())
    })
}

/// One thread each: several runs share the machine, and the bits do not depend on it.
fn single(mut command: Command) -> Command {
    command.env("RAMEKIN_THREADS", "1");
    command
}

fn cook(kitchen: &Kitchen, out: &Path, arguments: &[&str]) -> Outcome {
    ramekin_tests::kitchen::finish(single(kitchen.command(out, arguments)))
}

/// Starts cooking, with nobody listening.
fn start(kitchen: &Kitchen, out: &Path, arguments: &[&str]) -> Child {
    use std::process::Stdio;
    let mut command = single(kitchen.command(out, arguments));
    command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("the binary starts")
}

/// Goes on and fails unless the run folder is in the end what it would have been.
#[track_caller]
fn resumed_to_the_bit(kitchen: &Kitchen, out: &Path, what: &str) -> Outcome {
    let outcome = cook(kitchen, out, &["--resume"]);
    assert_eq!(outcome.code, Some(0), "{what}: {}", outcome.stderr);
    Left::in_folder(out).same_as(&undisturbed().0, what);
    assert_eq!(leftovers(out), Vec::<String>::new(), "{what}");
    outcome
}

/// The same for [`quiet`], which differs in its checkpoints alone.
#[track_caller]
fn resumed_to_the_same_adapter(kitchen: &Kitchen, out: &Path, what: &str) {
    let outcome = cook(kitchen, out, &["--resume"]);
    assert_eq!(outcome.code, Some(0), "{what}: {}", outcome.stderr);
    let (here, there) = (Left::in_folder(out), &undisturbed().0);
    let adapter = "adapter/adapter_model.safetensors";
    assert_eq!(here.files()[adapter], there.files()[adapter], "{what}");
    assert_eq!(here.metrics(), there.metrics(), "{what}");
    assert_eq!(leftovers(out), Vec::<String>::new(), "{what}");
}

/// Sends a signal by its name.
fn signal(child: &Child, name: &str) {
    let sent = Command::new("kill").args([&format!("-{name}"), &child.id().to_string()]).status();
    assert!(sent.expect("`kill` is there").success(), "SIG{name} could not be sent");
}

/// Waits until something is true of a running child; false if it ended before.
fn until(child: &mut Child, mut seen: impl FnMut() -> bool) -> bool {
    while child.try_wait().expect("a child").is_none() {
        if seen() {
            return true;
        }
        std::thread::sleep(Duration::from_micros(200));
    }
    seen()
}

/// Kills a run once this checkpoint stands; `out` then holds it and, as a rule, the one before.
fn killed_after_checkpoint(kitchen: &Kitchen, out: &Path, step: u64) {
    let mut child = start(kitchen, out, &[]);
    let there = out.join(format!("checkpoints/checkpoint-{step}"));
    assert!(until(&mut child, || there.exists()), "the run ended before checkpoint {step}");
    child.kill().expect("killed");
    child.wait().expect("gone");
}
