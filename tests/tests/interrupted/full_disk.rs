//! No room: a limit on the size of files, a file system that is full, a device that takes nothing.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use ramekin_tests::Kitchen;
use ramekin_tests::kitchen::{Outcome, finish};

use crate::run_folder::{Left, checkpoints, copy, files, leftovers};
use crate::{RECIPE, cook, killed_after_checkpoint, quiet, resumed_to_the_bit, resumed_to_the_same_adapter};
use crate::{single, undisturbed};

/// Goes on under a limit on the size of files, in blocks of 512 bytes. The signal that
/// comes with it is ignored, so that the program sees an error as it would from a full disk.
fn limited(kitchen: &Kitchen, out: &Path, blocks: u64, arguments: &[&str]) -> Outcome {
    let inner = single(kitchen.command(out, arguments));
    let mut command = Command::new("sh");
    command.arg("-c").arg(format!("trap '' XFSZ; ulimit -f {blocks}; exec \"$0\" \"$@\""));
    command.arg(inner.get_program()).args(inner.get_args());
    command.env("RAMEKIN_THREADS", "1").current_dir(kitchen.folder()).stdin(Stdio::null());
    finish(command)
}

/// What every failure for want of room says: the file, that there was no room, how to go on.
#[track_caller]
fn told_clearly(outcome: &Outcome, out: &Path, what: &str) {
    let said = &outcome.stderr;
    assert_eq!(outcome.code, Some(1), "{what}: {said}");
    let error = said.lines().find(|l| l.starts_with("error: ")).unwrap_or_default();
    assert!(error.contains(&format!("`{}", out.display())), "{what}: the file is not named:\n{said}");
    let why = ["no room on the disk", "File too large", "No space left"];
    assert!(why.iter().any(|w| error.contains(w)), "{what}: why is not said:\n{said}");
    assert!(!said.contains("panicked"), "{what}: {said}");
}

#[test]
fn a_limit_on_files_at_every_kind_of_file() {
    let kitchen = Kitchen::new(RECIPE);
    let partial = kitchen.folder().join("partial");
    killed_after_checkpoint(&kitchen, &partial, 4);
    let blocks = |bytes: u64| bytes / 512;
    let size = |name: &str| std::fs::metadata(partial.join(name)).expect("a file").len();
    let newest = checkpoints(&partial).pop().expect("a checkpoint").1;
    let of = |name: &str| std::fs::metadata(newest.join(name)).expect("a file").len();
    let (weights, moments) = (of("trainable.safetensors"), of("optimizer.safetensors"));
    assert!(
        weights > 2 * size("metrics.jsonl") && moments > weights,
        "sizes are as the cases below want them"
    );
    let cases = [
        ("the recipe", "recipe.toml", blocks(size("recipe.toml")) - 1),
        ("the weights", "trainable.safetensors", blocks(weights / 2)),
        ("the moments", "optimizer.safetensors", blocks(weights.midpoint(moments))),
    ];
    for (what, file, limit) in cases {
        let out = kitchen.folder().join(what.replace(' ', "-"));
        copy(&partial, &out);
        let before = files(&out);
        let outcome = limited(&kitchen, &out, limit, &["--resume"]);
        told_clearly(&outcome, &out, what);
        assert!(outcome.stderr.contains(file), "{what}: {}", outcome.stderr);
        assert!(outcome.stderr.contains("--resume"), "{what}: how to go on is not said:\n{}", outcome.stderr);
        let after = files(&out);
        for (name, sum) in before.iter().filter(|(n, _)| n.starts_with("checkpoints/checkpoint-")) {
            assert_eq!(after.get(name), Some(sum), "{what}: `{name}` is gone or changed");
        }
        assert_eq!(leftovers(&out), Vec::<String>::new(), "{what}");
        resumed_to_the_bit(&kitchen, &out, what);
    }
    // Without checkpoints on the way, the figures of the steps are what grows.
    let quiet = Kitchen::new(&quiet());
    let limit = blocks(size("recipe.toml")) + 1;
    let outcome = limited(&quiet, &quiet.out("a"), limit, &[]);
    told_clearly(&outcome, &quiet.out("a"), "the metrics");
    let grows = ["metrics.jsonl", "events.out.tfevents"];
    assert!(grows.iter().any(|file| outcome.stderr.contains(file)), "{}", outcome.stderr);
    resumed_to_the_same_adapter(&quiet, &quiet.out("a"), "the metrics");
    // From the start, where there is nothing yet to go back to.
    for limit in [0, 4, 40, 400] {
        let out = kitchen.folder().join(format!("fresh-{limit}"));
        let outcome = limited(&kitchen, &out, limit, &[]);
        told_clearly(&outcome, &out, &format!("{limit} blocks"));
        resumed_to_the_bit(&kitchen, &out, &format!("begun with {limit} blocks"));
    }
}

/// A file system of this size, gone with the value.
struct Small(PathBuf);

impl Small {
    fn mounted(at: PathBuf, options: &str) -> Option<Small> {
        std::fs::create_dir_all(&at).expect("a folder");
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", options, "ramekin-test"]).arg(&at).stderr(Stdio::null());
        mount.status().is_ok_and(|s| s.success()).then_some(Small(at))
    }

    fn resized(&self, options: &str) {
        let options = format!("remount,{options}");
        let mut mount = Command::new("mount");
        let status = mount.args(["-o", &options]).arg(&self.0).status();
        assert!(status.expect("mount is there").success(), "remount");
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn a_file_system_that_is_full() {
    let kitchen = Kitchen::new(RECIPE);
    let Some(small) = Small::mounted(kitchen.folder().join("small"), "size=64m") else {
        println!("skipped a_file_system_that_is_full: no file system can be mounted here");
        return;
    };
    let out = small.0.join("out");
    // How much a run needs at most, from one that has room.
    let checkpoint = |bytes: u64| bytes.div_ceil(4096) * 4096;
    killed_after_checkpoint(&kitchen, &out, 2);
    let newest = checkpoints(&out).pop().expect("a checkpoint").1;
    let names = std::fs::read_dir(&newest).expect("a folder").flatten();
    let one: u64 = names.map(|e| checkpoint(e.metadata().expect("a file").len())).sum();
    std::fs::remove_dir_all(&out).expect("removed");
    let mut stopped = 0;
    // Room for no checkpoint, for one, for two and no third beside them.
    for (whole, room) in [(0, one / 2), (1, one + one / 2), (2, 2 * one + one / 2)] {
        small.resized(&format!("size={}k", (room + (64 << 10)) / 1024));
        let outcome = cook(&kitchen, &out, &[]);
        told_clearly(&outcome, &out, &format!("room for {room} B"));
        let all = checkpoints(&out);
        assert_eq!(all.len(), whole, "{all:?}");
        assert!(outcome.stderr.contains("--resume"), "{}", outcome.stderr);
        stopped += 1;
        small.resized("size=64m");
        resumed_to_the_bit(&kitchen, &out, &format!("after room for {whole} checkpoints"));
        std::fs::remove_dir_all(&out).expect("removed");
    }
    assert_eq!(stopped, 3);
}

/// Nothing can be said: that is no reason to lose the run, or to end with a panic.
#[test]
fn standard_streams_that_take_nothing() {
    let full = || {
        let file = std::fs::OpenOptions::new().write(true).open("/dev/full");
        file.inspect_err(|_| println!("skipped a part of standard_streams: no /dev/full here")).ok()
    };
    let kitchen = Kitchen::new(RECIPE);
    let Some(deaf) = full() else { return };
    let out = kitchen.folder().join("deaf");
    let mut command = single(kitchen.command(&out, &[]));
    command.stdout(Stdio::null()).stderr(deaf);
    assert_eq!(command.status().expect("the binary starts").code(), Some(0));
    Left::in_folder(&out).same_as(&undisturbed().0, "with a standard error that takes nothing");

    // Its result is what a caller waits for: the run is whole, and the exit code tells.
    let Some(full) = full() else { return };
    let out = kitchen.folder().join("mute");
    let mut command = single(kitchen.command(&out, &["--json"]));
    command.stdout(full).stderr(Stdio::piped());
    let ended = command.output().expect("the binary starts");
    let said = String::from_utf8_lossy(&ended.stderr);
    assert_eq!(ended.status.code(), Some(1), "{said}");
    assert!(said.contains("cannot write to standard output"), "{said}");
    assert!(!said.contains("panicked"), "{said}");
    Left::in_folder(&out).same_as(&undisturbed().0, "with a standard output that takes nothing");
}
