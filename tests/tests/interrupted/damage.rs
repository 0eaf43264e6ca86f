//! Checkpoints that are not what was written.

use std::path::Path;

use ramekin_tests::Kitchen;

use crate::run_folder::{checkpoints, copy, files};
use crate::{RECIPE, cook, killed_after_checkpoint, resumed_to_the_bit};

fn cut(path: &Path) {
    let length = std::fs::metadata(path).expect("a file").len();
    let file = std::fs::OpenOptions::new().write(true).open(path).expect("a file");
    file.set_len(length / 2).expect("cut");
}

fn flip(path: &Path) {
    let mut bytes = std::fs::read(path).expect("a file");
    let middle = bytes.len() * 2 / 3;
    bytes[middle] ^= 0x10;
    std::fs::write(path, bytes).expect("written");
}

fn empty(path: &Path) {
    std::fs::write(path, b"").expect("written");
}

fn delete(path: &Path) {
    std::fs::remove_file(path).expect("removed");
}

type Harm = fn(&Path);

/// A way to spoil a file, and what the message says of it.
const HARM: [(&str, Harm, &str); 8] = [
    ("trainable.safetensors", cut, "is cut off"),
    ("trainable.safetensors", flip, "has other bytes"),
    ("trainable.safetensors", delete, "is missing"),
    ("optimizer.safetensors", empty, "is cut off"),
    ("optimizer.safetensors", flip, "has other bytes"),
    ("trainer_state.json", flip, "has other bytes"),
    ("checksums.json", cut, "cannot be understood"),
    ("checksums.json", delete, "is missing"),
];

#[test]
fn a_damaged_newest_checkpoint_is_named_and_passed_over() {
    let kitchen = Kitchen::new(RECIPE);
    let partial = kitchen.folder().join("partial");
    killed_after_checkpoint(&kitchen, &partial, 5);
    for (i, (file, harm, why)) in HARM.into_iter().enumerate() {
        let out = kitchen.folder().join(format!("damaged-{i}"));
        copy(&partial, &out);
        let all = checkpoints(&out);
        let [.., (good, _), (_, newest)] = &all[..] else { panic!("two checkpoints, not {all:?}") };
        harm(&newest.join(file));
        let outcome = resumed_to_the_bit(&kitchen, &out, &format!("`{file}` {why}"));
        let said = &outcome.stderr;
        assert!(said.contains(&format!("`{}` is passed over: `{file}` {why}", newest.display())), "{said}");
        assert!(said.contains(&format!("resuming after step {good} of 8")), "{said}");
    }
}

#[test]
fn when_no_checkpoint_is_whole_nothing_is_lost() {
    let kitchen = Kitchen::new(RECIPE);
    let out = kitchen.folder().join("out");
    killed_after_checkpoint(&kitchen, &out, 5);
    // What a kill left half-written goes; that is not what is looked at here.
    let all = checkpoints(&out);
    assert!(all.len() >= 2, "{all:?}");
    for (_, path) in &all {
        cut(&path.join("trainable.safetensors"));
    }
    let before = files(&out);
    let outcome = cook(&kitchen, &out, &["--resume"]);
    outcome.expect(2);
    let newest = all.last().expect("a checkpoint").1.display().to_string();
    let said = &outcome.stderr;
    for part in [newest.as_str(), "`trainable.safetensors` is cut off", "no checkpoint is whole", "help: "] {
        assert!(said.contains(part), "`{part}` is not said:\n{said}");
    }
    assert!(!said.contains("panicked"), "{said}");
    let after = files(&out);
    for (name, sum) in before.iter().filter(|(n, _)| !n.contains(".writing/")) {
        let kept = name == "report.html" || after.get(name) == Some(sum);
        assert!(kept, "`{name}` is gone or changed");
    }
    // The way out that is offered: begin again.
    std::fs::remove_dir_all(out.join("checkpoints")).expect("removed");
    resumed_to_the_bit(&kitchen, &out, "begun again without checkpoints");
}
