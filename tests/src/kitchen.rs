//! Recipes cooked by the binary, each in a folder of its own.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::Value as Json;

/// The binary that `cargo xtask test` builds before the tests.
pub fn binary() -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../target"), PathBuf::from);
    let binary = target.join("release/ramekin");
    assert!(binary.exists(), "`{}` is not built: `cargo xtask test` does that first", binary.display());
    binary
}

/// A recipe in a temporary folder.
pub struct Kitchen {
    folder: tempfile::TempDir,
}

/// How a command ended.
#[derive(Debug)]
pub struct Outcome {
    /// The exit code; `None` where a signal ended it.
    pub code: Option<i32>,
    /// Everything on standard error.
    pub stderr: String,
    /// Everything on standard output.
    pub stdout: String,
}

impl Outcome {
    /// Fails with what was said unless the code is this one.
    #[track_caller]
    pub fn expect(&self, code: i32) -> &Self {
        assert_eq!(self.code, Some(code), "exit code; the command said:\n{}", self.stderr);
        self
    }
}

impl Kitchen {
    /// A folder with this recipe in it.
    pub fn new(recipe: &str) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        std::fs::write(folder.path().join("recipe.toml"), recipe).expect("a written recipe");
        Kitchen { folder }
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// A path in the run folder.
    pub fn out(&self, name: &str) -> PathBuf {
        self.folder().join("out").join(name)
    }

    /// `ramekin run` on the recipe into this run folder, not started.
    pub fn command(&self, out: &Path, arguments: &[&str]) -> Command {
        let mut command = Command::new(binary());
        command.arg("run").arg(self.folder().join("recipe.toml")).arg("--out").arg(out).args(arguments);
        command.current_dir(self.folder()).stdin(Stdio::null());
        command
    }

    /// Cooks into a run folder of this name.
    pub fn run_into(&self, out: &Path, arguments: &[&str]) -> Outcome {
        finish(self.command(out, arguments))
    }

    /// Cooks into `out`.
    pub fn run(&self, arguments: &[&str]) -> Outcome {
        self.run_into(&self.out(""), arguments)
    }

    /// Starts cooking and leaves it to the caller to end it.
    pub fn start(&self, out: &Path, arguments: &[&str]) -> Child {
        let mut command = self.command(out, arguments);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        command.spawn().expect("the binary starts")
    }

    /// The figures of a stage in `summary.json`.
    pub fn figures(&self, stage: &str) -> Json {
        let summary = json(&self.out("summary.json"));
        summary["stages"][stage].clone()
    }
}

/// Runs a command to its end.
pub fn finish(mut command: Command) -> Outcome {
    let output = command.output().expect("the binary starts");
    Outcome {
        code: output.status.code(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
    }
}

/// Cooks a recipe and fails with its own words if that fails.
#[track_caller]
pub fn cook(recipe: &str) -> Kitchen {
    let kitchen = Kitchen::new(recipe);
    kitchen.run(&[]).expect(0);
    kitchen
}

/// A JSON file.
pub fn json(path: &Path) -> Json {
    let bytes = std::fs::read(path).unwrap_or_else(|e| panic!("`{}`: {e}", path.display()));
    serde_json::from_slice(&bytes).expect("JSON")
}

/// Step and loss of every step in a run folder's `metrics.jsonl`.
pub fn losses(out: &Path) -> Vec<(u64, f64)> {
    let text = std::fs::read_to_string(out.join("metrics.jsonl")).unwrap_or_default();
    text.lines()
        .filter_map(|line| serde_json::from_str::<Json>(line).ok())
        .filter_map(|v| Some((v["step"].as_u64()?, v["loss"].as_f64()?)))
        .collect()
}
