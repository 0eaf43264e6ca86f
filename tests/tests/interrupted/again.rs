//! Running into a folder that holds a run already.

use ramekin_tests::{Kitchen, Outcome};

use crate::run_folder::{Left, files, leftovers};
use crate::{RECIPE, cook, killed_after_checkpoint, resumed_to_the_bit, undisturbed};

#[test]
fn a_finished_run_is_left_as_it_is() {
    let kitchen = Kitchen::new(RECIPE);
    let out = kitchen.folder().join("out");
    cook(&kitchen, &out, &[]).expect(0);
    let before = files(&out);
    let outcome: Outcome = cook(&kitchen, &out, &["--resume"]);
    outcome.expect(0);
    assert_eq!(files(&out), before, "resuming a finished run changes no file");
    assert!(outcome.stderr.contains("finished already"), "{}", outcome.stderr);
    // What is missing of the last words is written again.
    for file in ["summary.json", "report.html"] {
        std::fs::remove_file(out.join(file)).expect("removed");
        resumed_to_the_bit(&kitchen, &out, &format!("`{file}` was not written"));
    }
}

#[test]
fn another_recipe_is_refused() {
    let kitchen = Kitchen::new(RECIPE);
    let out = kitchen.folder().join("out");
    killed_after_checkpoint(&kitchen, &out, 3);
    let before = files(&out);
    for change in ["stage.0.optimizer.lr=1e-4", "seed=8", "stage.0.steps=11"] {
        let outcome = cook(&kitchen, &out, &["--resume", "--set", change]);
        outcome.expect(2);
        let said = &outcome.stderr;
        for part in ["the recipe is not the one this run began with", "recipe.toml", "--out"] {
            assert!(said.contains(part), "{change}: `{part}` is not said:\n{said}");
        }
    }
    let kept = files(&out);
    for (name, sum) in before.iter().filter(|(n, _)| !n.contains(".writing")) {
        assert_eq!(kept.get(name), Some(sum), "`{name}` is gone or changed");
    }
    resumed_to_the_bit(&kitchen, &out, "after it was refused");
}

#[test]
fn without_resume_a_run_begins_anew_and_leaves_foreign_files_alone() {
    let kitchen = Kitchen::new(RECIPE);
    let out = kitchen.folder().join("out");
    let more = ["--set", "stage.0.steps=11", "--set", "stage.0.adapter.0.r=2"];
    cook(&kitchen, &out, &more).expect(0);
    std::fs::write(out.join("notes.txt"), "mine").expect("written");
    cook(&kitchen, &out, &[]).expect(0);
    assert_eq!(std::fs::read_to_string(out.join("notes.txt")).expect("kept"), "mine");
    std::fs::remove_file(out.join("notes.txt")).expect("removed");
    Left::in_folder(&out).same_as(&undisturbed().0, "begun anew");
    assert_eq!(leftovers(&out), Vec::<String>::new());
    let events = std::fs::read_dir(&out).expect("a folder").flatten();
    let events = events.filter(|e| e.file_name().to_string_lossy().starts_with("events.out.")).count();
    assert_eq!(events, 1, "events of the run before would be shown with this one's");
}

/// A folder with a model or a recipe of the user's is not a run folder, and nothing in it may go.
#[test]
fn a_folder_that_is_no_run_folder_loses_nothing() {
    let kitchen = Kitchen::new(RECIPE);
    let mine = kitchen.folder().join("mine");
    std::fs::create_dir_all(mine.join("model")).expect("a folder");
    std::fs::write(mine.join("model/config.json"), "{}").expect("written");
    std::fs::write(kitchen.folder().join("model"), "mine").expect("written");
    for out in [mine.as_path(), kitchen.folder()] {
        let before = files(out);
        let outcome = cook(&kitchen, out, &[]);
        outcome.expect(2);
        assert!(outcome.stderr.contains("is no run folder"), "{}", outcome.stderr);
        assert_eq!(files(out), before, "nothing is touched");
    }
}

/// A fresh run that is killed while it clears the folder must not leave the old run's
/// checkpoints to be taken for its own.
#[test]
fn killed_while_beginning_anew() {
    let kitchen = Kitchen::new(RECIPE);
    let other = ["--set", "seed=99"];
    let finished = kitchen.folder().join("finished");
    cook(&kitchen, &finished, &other).expect(0);
    // Every prefix of the removals, as the disk would show it after a kill.
    let order = ["state.json", "checkpoints", "stages"];
    for gone in 1..=order.len() {
        let out = kitchen.folder().join(format!("gone-{gone}"));
        crate::run_folder::copy(&finished, &out);
        for name in &order[..gone] {
            let path = out.join(name);
            let _ = std::fs::remove_file(&path).or_else(|_| std::fs::remove_dir_all(&path));
        }
        let outcome = cook(&kitchen, &out, &["--resume"]);
        outcome.expect(2);
        assert!(outcome.stderr.contains("not the one this run began with"), "{}", outcome.stderr);
        cook(&kitchen, &out, &[]).expect(0);
        Left::in_folder(&out).same_as(&undisturbed().0, &format!("{gone} things gone"));
    }
}
